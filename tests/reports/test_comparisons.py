"""Paired comparisons agree with the naive computation, and only what is of the same problems is compared."""

import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmec_trl.data.errors import ConfigError
from rlmec_trl.reports import comparisons
from rlmec_trl.reports.comparisons import ComparisonError, Outcomes, compare, mcnemar_p_value, read_outcomes
from rlmec_trl.reports.t_intervals import t_interval
from rlmec_trl.stages.compare_results import CompareResultsConfig


def outcomes(text, problems="p", file="a.json"):
    return Outcomes(file, problems, np.array([letter == "1" for letter in text]))


# Outcomes of two policies on the problems of one to three seeds
PAIRS = st.lists(
    st.integers(1, 12).flatmap(lambda size: st.tuples(*[st.text("01", min_size=size, max_size=size)] * 2)),
    min_size=1,
    max_size=3,
)


def sides(pairs, problems="own"):
    names = [str(seed) if problems == "own" else problems for seed in range(len(pairs))]
    return [[outcomes(pair[side], name) for pair, name in zip(pairs, names, strict=True)] for side in (0, 1)]


@pytest.fixture
def few_resamples(monkeypatch):
    monkeypatch.setattr(comparisons, "RESAMPLES", 200)
    monkeypatch.setattr(comparisons, "_DRAWN", 37)


# --- The bootstrap ---------------------------------------------------------------------------------------------------


def naive_interval(first, second, resamples, seed):
    """Problems of each seed drawn one by one, and the middle 95% of the mean differences."""
    rng = np.random.default_rng(seed)
    means = [0.0] * resamples
    for one, other in zip(first, second, strict=True):
        for index in range(resamples):
            rows = [int(row) for row in rng.integers(len(one.correct), size=len(one.correct))]
            difference = sum(int(one.correct[row]) - int(other.correct[row]) for row in rows) / len(rows)
            means[index] += difference / len(first)
    return [float(value) for value in np.percentile(means, [2.5, 97.5])]


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_the_interval_is_that_of_a_naive_loop_with_the_same_seed(few_resamples, num_seeds):
    rng = np.random.default_rng(0)
    pairs = [["".join(rng.choice(["0", "1"], size=23 + seed)) for _ in range(2)] for seed in range(num_seeds)]
    first, second = sides(pairs)
    assert compare(first, second, seed=5)["interval"] == pytest.approx(naive_interval(first, second, 200, 5))


def test_the_interval_is_that_of_all_resamples():
    """5 problems have 3,125 resamples."""
    differences = [1, 1, 0, -1, 1]
    means = [sum(rows) / 5 for rows in itertools.product(differences, repeat=5)]
    expected = np.quantile(means, [0.025, 0.975])
    assert compare([outcomes("11101")], [outcomes("00110")])["interval"] == pytest.approx(expected)


def test_seeds_of_the_same_problems_are_resampled_together():
    """Otherwise, what makes a problem hard would average out over seeds as if there were more problems."""
    pairs = [("1100101110", "1000101000")] * 4
    alone = compare(*sides(pairs[:1]))
    assert compare(*sides(pairs, problems="same"))["interval"] == pytest.approx(alone["interval"])
    low, high = compare(*sides(pairs))["interval"]
    assert high - low < 0.7 * (alone["interval"][1] - alone["interval"][0]), "of 4 times as many problems"


def test_the_interval_covers_the_true_difference_about_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(comparisons, "RESAMPLES", 1000)
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(100):
        # Correct with probability .8 and .7, both depending on how hard the problem is
        hard = rng.random(150)
        low, high = compare([Outcomes("a", "p", hard < 0.8)], [Outcomes("b", "p", (hard + 0.1) % 1 < 0.7)])["interval"]
        covered += low <= 0.1 <= high
    assert 88 <= covered <= 100


# --- McNemar's test --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second"), [(a, b) for a in range(7) for b in range(7)])
def test_the_p_value_is_that_of_all_ways_to_divide_the_problems(first, second):
    divisions = list(itertools.product((0, 1), repeat=first + second))
    as_far = [way for way in divisions if abs(2 * sum(way) - len(way)) >= abs(first - second)]
    assert mcnemar_p_value(first, second) == pytest.approx(len(as_far) / len(divisions))


@given(st.integers(0, 800), st.integers(0, 800))
@settings(max_examples=20)
def test_the_p_value_of_many_problems_is_exact_and_symmetric(first, second):
    total = first + second
    tail = sum(math.comb(total, k) for k in range(min(first, second) + 1))
    exact = min(Fraction(1), Fraction(2 * tail, 2**total))
    assert mcnemar_p_value(first, second) == mcnemar_p_value(second, first) == float(exact)


# --- All figures -----------------------------------------------------------------------------------------------------


def test_the_figures_of_a_worked_example():
    result = compare([outcomes("1111011100")], [outcomes("1100010100")])
    assert result["accuracy"] == pytest.approx([0.7, 0.4])
    assert result["difference"] == pytest.approx(0.3)
    assert (result["only_first"], result["only_second"], result["seeds"], result["total"]) == (3, 0, 1, 10)
    assert result["p_value"] == 0.25  # 2 / 2**3
    assert result["t_interval"] is None


def test_seeds_have_a_t_interval_of_the_differences():
    result = compare(*sides([("1110", "1000"), ("1111", "1100"), ("1000", "0000")]))
    assert result["difference"] == pytest.approx((0.5 + 0.5 + 0.25) / 3)
    assert result["t_interval"] == pytest.approx(t_interval([0.5, 0.5, 0.25], -1.0, 1.0))
    assert (result["only_first"], result["only_second"], result["seeds"], result["total"]) == (5, 0, 3, 12)


def test_a_problem_of_several_seeds_counts_once_in_mcnemars_test():
    result = compare(*sides([("110", "001"), ("010", "001"), ("000", "100")], problems="same"))
    assert (result["only_first"], result["only_second"], result["total"], result["seeds"]) == (1, 1, 3, 3)


@given(PAIRS, st.sampled_from(["own", "same"]))
@settings(max_examples=25)
def test_swapping_the_two_changes_the_signs_alone(pairs, problems):
    if problems == "same":
        pairs = [pairs[0], tuple(text[::-1] for text in pairs[0])]  # of two seeds
    first, second = sides(pairs, problems)
    result, swapped = compare(first, second), compare(second, first)
    assert swapped["difference"] == -result["difference"]
    assert swapped["interval"] == pytest.approx([-bound for bound in result["interval"][::-1]], abs=1e-12)
    if result["t_interval"] is not None:
        assert swapped["t_interval"] == pytest.approx([-bound for bound in result["t_interval"][::-1]])
    assert (swapped["only_first"], swapped["only_second"]) == (result["only_second"], result["only_first"])
    assert swapped["p_value"] == result["p_value"]


@given(PAIRS)
@settings(max_examples=25)
def test_intervals_contain_the_difference_and_all_figures_are_json(pairs):
    first, second = sides(pairs)
    result = compare(first, second)
    for interval in (result["interval"], result["t_interval"] or result["interval"]):
        assert -1 <= interval[0] <= interval[1] <= 1
        assert interval[0] - 1e-9 <= result["difference"] <= interval[1] + 1e-9
    assert result["difference"] == pytest.approx(result["accuracy"][0] - result["accuracy"][1])
    assert 0 <= result["p_value"] <= 1
    assert json.loads(json.dumps(result, allow_nan=False)) == result


@given(PAIRS)
@settings(max_examples=10)
def test_equal_outcomes_have_no_difference(pairs):
    first, _ = sides(pairs)
    result = compare(first, first)
    assert (result["difference"], result["interval"], result["p_value"]) == (0, [0, 0], 1)
    assert result["t_interval"] == (None if len(pairs) == 1 else [0, 0])


# --- What cannot be compared -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "found"),
    [
        (outcomes("11", "q", "b.json"), "2 problems each, but not the same in the same order"),
        (outcomes("111", "q", "b.json"), "2 and 3 problems"),
    ],
)
def test_outcomes_of_other_problems_are_refused(second, found):
    with pytest.raises(ComparisonError) as caught:
        compare([outcomes("10")], [second])
    assert str(caught.value) == (
        f"'a.json' and 'b.json' cannot be compared: they have {found}. Evaluate both on the same dataset."
    )


@pytest.mark.parametrize("numbers", [(0, 0), (1, 2), (2, 1)])
def test_every_seed_needs_both_results(numbers):
    with pytest.raises(ComparisonError, match="Give one pair a seed"):
        compare(*([outcomes("10")] * number for number in numbers))


GOOD = {"correct": 2, "total": 3, "outcomes": "101", "problems": "p"}


def test_outcomes_are_read_from_a_result(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(GOOD))
    found = read_outcomes(tmp_path / "a.json")
    assert (found.file, found.problems, found.correct.tolist()) == (str(tmp_path / "a.json"), "p", [True, False, True])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a result of `evaluate.py`"),
        ("{", "is not a result of `evaluate.py`"),
        ("[" * 100_000, "is not a result of `evaluate.py`"),
        ({"pairs": {}}, "is not a result of `evaluate.py`"),
        ({"correct": 2, "total": 3, "mean": 2 / 3}, "no outcomes of its rows, because an earlier version"),
        (GOOD | {"outcomes": "111"}, "was changed: its `outcomes` do not have 2 of 3 rows correct"),
        (GOOD | {"outcomes": "1010"}, "was changed"),
        (GOOD | {"outcomes": "1x1"}, "was changed"),
        (GOOD | {"outcomes": [1, 0, 1]}, "was changed"),
        (GOOD | {"outcomes": "", "correct": 0, "total": 0}, "was changed"),
    ],
)
def test_a_file_without_outcomes_is_named_in_one_line(tmp_path, content, message):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ComparisonError, match=message) as caught:
        read_outcomes(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_result_is_not_compared_with_itself(tmp_path):
    with pytest.raises(ConfigError, match="names the file '.*other/../a.json' twice"):
        CompareResultsConfig([str(tmp_path / name) for name in ("a.json", "b.json", "other/../a.json")])
