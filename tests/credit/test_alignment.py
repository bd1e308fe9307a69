"""The number of edits is minimal, and the marked tokens are those that a shortest edit script changes."""

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rlmec_trl.credit.alignment import edit_distance, edit_mask, edit_weights


# Few different tokens, so that there are many ways to align two sequences
TOKENS = st.lists(st.integers(0, 3), max_size=9)


def naive_distance(source, target):
    """Wagner and Fischer's table: `table[i][j]` edits turn the first i tokens into the first j."""
    table = [[0] * (len(target) + 1) for _ in range(len(source) + 1)]
    for i in range(len(source) + 1):
        for j in range(len(target) + 1):
            if i == 0 or j == 0:
                table[i][j] = i + j
                continue
            table[i][j] = min(
                table[i - 1][j] + 1,
                table[i][j - 1] + 1,
                table[i - 1][j - 1] + (source[i - 1] != target[j - 1]),
            )
    return table[len(source)][len(target)]


def fewest_edits_with_marks(source, target, marks):
    """
    Edits of the shortest script that changes exactly the target tokens in `marks`, infinite if there is none.

    A state is how much of source and target is used up, and whether the last edit was a deletion, which marks the
    target token that comes next.
    """
    infinite = float("inf")
    cost = {(0, 0, False): 0}

    def reach(state, edits):
        cost[state] = min(cost.get(state, infinite), edits)

    for i in range(len(source) + 1):
        for j in range(len(target) + 1):
            for after_deletion in (False, True):
                edits = cost.get((i, j, after_deletion), infinite)
                if i < len(source):
                    reach((i + 1, j, True), edits + 1)
                if j < len(target) and marks[j]:
                    reach((i, j + 1, False), edits + 1)
                if i < len(source) and j < len(target):
                    same = source[i] == target[j]
                    touched = after_deletion or not same
                    if touched == marks[j]:
                        reach((i + 1, j + 1, False), edits + (not same))
    return min(cost.get((len(source), len(target), after_deletion), infinite) for after_deletion in (False, True))


def test_the_reference_checker_rejects_an_incorrect_mask():
    assert fewest_edits_with_marks([1, 2, 3], [1, 9, 3], [False, True, False]) == 1
    assert fewest_edits_with_marks([1, 2, 3], [1, 9, 3], [True, True, False]) > 1
    assert fewest_edits_with_marks([1, 2, 3], [1, 9, 3], [False, False, False]) == float("inf")
    assert fewest_edits_with_marks([1, 2, 3], [1, 3], [False, True]) == 1
    assert fewest_edits_with_marks([1, 2, 3], [1, 3], [True, False]) > 1


@given(TOKENS, TOKENS)
def test_distance_is_the_fewest_edits(source, target):
    assert edit_distance(source, target) == naive_distance(source, target)


@given(TOKENS, TOKENS)
@example([0, 0, 1], [0, 1])  # either 0 may be the deleted one
def test_the_marks_are_those_of_a_shortest_script(source, target):
    mask = edit_mask(source, target)
    assert len(mask) == len(target)
    assert fewest_edits_with_marks(source, target, mask) == naive_distance(source, target)


@pytest.mark.parametrize(("source_length", "target_length"), [(3, 47), (1, 1), (5, 31), (47, 3), (120, 110)])
def test_the_marks_are_those_of_a_shortest_script_on_long_sequences(source_length, target_length):
    rng = random.Random(source_length)
    source = [rng.randrange(10) for _ in range(source_length)]
    target = [rng.randrange(10) for _ in range(target_length)]
    distance = naive_distance(source, target)
    assert edit_distance(source, target) == distance
    assert fewest_edits_with_marks(source, target, edit_mask(source, target)) == distance


@given(TOKENS, TOKENS)
def test_an_edit_marks_at_most_one_token(source, target):
    assert sum(edit_mask(source, target)) <= edit_distance(source, target)


@given(TOKENS, TOKENS)
def test_nothing_is_marked_only_if_only_the_end_is_deleted(source, target):
    only_the_end_went = source[: len(target)] == target
    assert (sum(edit_mask(source, target)) == 0) == only_the_end_went


@given(TOKENS, TOKENS)
def test_a_shared_prefix_is_not_marked(shared, rest):
    assert edit_mask([*shared, 7, *rest], [*shared, 8, *rest]) == [False] * len(shared) + [True] + [False] * len(rest)


@given(TOKENS)
def test_a_copy_has_no_edits(tokens):
    assert edit_distance(tokens, list(tokens)) == 0
    assert edit_mask(tokens, list(tokens)) == [False] * len(tokens)


@given(TOKENS)
def test_from_nothing_everything_is_inserted(tokens):
    assert edit_distance([], tokens) == len(tokens)
    assert edit_mask([], tokens) == [True] * len(tokens)
    assert edit_mask(tokens, []) == []


@pytest.mark.parametrize(
    ("source", "target", "mask"),
    [
        ([5, 6, 7], [5, 8, 7], [False, True, False]),  # replaced
        ([5, 7], [5, 6, 7], [False, True, False]),  # inserted
        ([5, 6, 7], [5, 7], [False, True]),  # deleted: 7 now stands in the place of 6
        ([5, 6, 6, 7], [5, 7], [False, True]),  # two deletions mark one token
        ([6, 5], [5], [True]),  # deleted at the very start
        ([5, 6, 7], [5], [False]),  # deleted at the end: nothing comes after
        ([5], [5, 6, 7], [False, True, True]),  # inserted at the end
        ([1], [2], [True]),
        ([1], [1], [False]),
        ([], [], []),
    ],
)
def test_marks_worked_out_by_hand(source, target, mask):
    assert edit_mask(source, target) == mask


def test_deleting_the_end_marks_eos():
    eos = 0
    assert edit_mask([5, 6, 7, eos], [5, 6, eos]) == [False, False, True]


def test_large_and_neighboring_ids_are_distinguished():
    # -1 and -2 have the same hash in Python, and ids over 2**16 do not fit the shorter characters
    assert edit_distance([-1, 151_643], [-2, 151_644]) == 2


@given(TOKENS, TOKENS)
def test_weights_follow_the_marks(source, target):
    mask = edit_mask(source, target)
    assert edit_weights(source, target) == [1.0 if marked else 0.5 for marked in mask]
    assert edit_weights(source, target, edited=2.0, unedited=0.0) == [2.0 if marked else 0.0 for marked in mask]
