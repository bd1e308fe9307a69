"""The label that a response states as its own, and the rationale beside it."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlmec_trl.data.errors import ConfigError
from rlmec_trl.tasks.classification import label_first
from rlmec_trl.tasks.labels import check_label, find_label, split_response, stated_label
from rlmec_trl.tasks.options import write_options
from rlmec_trl.tasks.task import BUILT_IN, Task, load_task


MOODS = ("negative", "positive", "very positive")
PAIRS = ("not equivalent", "equivalent")
REASONS = "The plot is not positive at all, as a negative critic would say."
LABELED_TASKS = [name for name in BUILT_IN if load_task(name).labels and name != "verdicts"]


# --- Stated labels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "label"),
    [
        (f"{REASONS}\nThe answer is negative.", "negative"),
        (f"{REASONS}\n**The answer is: NEGATIVE**", "negative"),
        (f"{REASONS}\nAnswer: 'Very Positive'", "very positive"),
        (f"{REASONS} So the answer is very  positive.", "very positive"),
        (f"{REASONS}\nThe answer is\n\npositive", "positive"),
        (f"{REASONS}\n\\boxed{{\\text{{positive}}}}.", "positive"),
        (f"{REASONS}\nThe answer is $\\boxed{{positive}}$.", "positive"),
        # On a line of its own
        (f"{REASONS}\nPositive", "positive"),
        (f"{REASONS}\n\n> **very positive**.\n", "very positive"),
        ("positive", "positive"),
        ("positive because of its\nplot", "positive"),
        # A statement counts anywhere
        (f"The answer is positive.\n{REASONS}", "positive"),
        # The same one twice
        ("The answer is positive. Yes.\nFinal answer: positive", "positive"),
        # What is stated is more or less than a label
        ("The answer is not positive.", None),
        ("The answer is positive or negative.", None),
        ("The answer is mildly positive.", None),
        ("The answer is very", None),
        ("The answer is neutral.", None),
        # Two labels
        ("The answer is positive.\nNo: the answer is negative.", None),
        ("The answer is positive.\nnegative", None),
        ("The answer is positive\n\nnegative\n\nThat is it.", None),
        ("Positive\nIt is dull.\nThe answer is negative.", None),
        ("Positive.\nNegative.", None),
        # None
        (REASONS, None),
        (f"Positive\n{REASONS}", None),
        ("", None),
        (" \n", None),
    ],
)
def test_the_label_of_a_response_that_ends_with_it(response, label):
    assert stated_label(MOODS, "last", response) == label


@pytest.mark.parametrize(
    ("response", "label"),
    [
        (f"The answer is Positive.\n{REASONS}", "positive"),
        (f"The answer is positive. {REASONS}", "positive"),
        (f"**Very positive**\n{REASONS}", "very positive"),
        (f"positive\n{REASONS}", "positive"),
        (f"Answer: \\boxed{{negative}}\n{REASONS}", "negative"),
        ("The answer is positive.\nThe answer is clear from the plot.", "positive"),
        (f"{REASONS}\npositive", None),
        ("The answer is positive.\nThe answer is negative.", None),
        ("The answer is clear.\nThe answer is positive.", None),
        (REASONS, None),
    ],
)
def test_the_label_of_a_response_that_begins_with_it(response, label):
    assert stated_label(MOODS, "first", response) == label


@pytest.mark.parametrize("position", ["last", "first"])
def test_a_label_inside_another_is_not_taken_for_it(position):
    for label in PAIRS:
        assert stated_label(PAIRS, position, f"The answer is {label}.") == label
        assert check_label(f"The answer is {label}.", label, labels=PAIRS, label_position=position)
        other = PAIRS[1 - PAIRS.index(label)]
        assert not check_label(f"The answer is {label}.", other, labels=PAIRS, label_position=position)


def test_labels_that_a_problem_lists_are_named_by_letter():
    problem = write_options("What is it?", [label.title() for label in MOODS])
    assert stated_label(MOODS, "last", "The answer is (C)", problem) == "very positive"
    assert stated_label(MOODS, "last", "The answer is (C)") is None
    other = write_options("A review with a list.", ["tea", "milk"])
    assert stated_label(MOODS, "last", "The answer is positive", other) == "positive"
    assert stated_label(MOODS, "last", "The answer is B", other) is None


def test_an_answer_is_a_label_in_any_case():
    assert find_label(MOODS, " Very Positive ") == "very positive"
    assert find_label(MOODS, "very") is None
    assert find_label(("0", "1"), "1") == "1"


words = st.text(alphabet="abcdefgh .,\n*", max_size=60)


@given(words, st.sampled_from(MOODS), st.sampled_from(["{}", "{}.", "**{}**", "'{}'"]))
def test_a_rationale_around_a_statement_changes_nothing(rationale, label, form):
    line = f"The answer is {form.format(label.upper())}"
    for position, response in (("last", f"{rationale}\n{line}"), ("first", f"{line}\n{rationale}")):
        assert stated_label(MOODS, position, response) == label
        assert split_response(MOODS, position, response) == (rationale.strip(), label)


@given(st.text(alphabet="posive ntg.\n*:ThAawr", max_size=80), st.sampled_from(["last", "first"]))
def test_any_text_has_a_label_or_none(response, position):
    label = stated_label(MOODS, position, response)
    rationale, split = split_response(MOODS, position, response)
    assert label in (*MOODS, None)
    assert split in (label, None)
    assert rationale == response if split is None else rationale in response


# --- Rationale and label ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("position", "response", "parts"),
    [
        ("last", "A bleak film.\n\nThe answer is negative.\n", ("A bleak film.", "negative")),
        ("last", "A bleak film. The answer is negative.", ("A bleak film.", "negative")),
        ("last", "A bleak film.\nSo **the answer is negative**.", ("A bleak film.", "negative")),
        ("last", "A bleak film.\n$\\boxed{negative}$.", ("A bleak film.", "negative")),
        ("last", "A bleak film.\nNegative", ("A bleak film.", "negative")),
        ("last", "So the answer is negative.", ("", "negative")),
        ("first", "The answer is negative.\n\nA bleak film.", ("A bleak film.", "negative")),
        ("first", "**The answer is negative.** \n*Bleak.*", ("*Bleak.*", "negative")),
        ("first", "The answer is negative. A bleak film.\nBoring.", ("A bleak film.\nBoring.", "negative")),
        ("first", "Negative\nA bleak film.", ("A bleak film.", "negative")),
    ],
)
def test_a_response_is_split_into_rationale_and_label(position, response, parts):
    assert split_response(MOODS, position, response) == parts


@pytest.mark.parametrize(
    ("position", "response"),
    [
        ("last", "The answer is negative.\nA bleak film."),
        ("last", "The answer is negative because it is bleak."),
        ("last", "The answer is negative.\nThe answer is positive."),
        ("first", "A bleak film.\nThe answer is negative."),
        ("first", "A bleak film. The answer is negative."),
        ("last", "A bleak film."),
    ],
)
def test_a_label_that_is_not_at_its_place_is_not_split_off(position, response):
    assert split_response(MOODS, position, response) == (response, None)


# --- Tasks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LABELED_TASKS)
def test_a_task_reads_its_own_labels_and_those_of_no_other_row(name):
    for task in (load_task(name), label_first(load_task(name))):
        for label in task.labels:
            line = f"The answer is {label}."
            response = f"{line}\nSo it is." if task.label_position == "first" else f"So it is.\n{line}"
            assert task.stated_label(response) == label
            assert [other for other in task.labels if task.check_answer(response, other, "")] == [label]
            bare = f"{label}\nSo it is." if task.label_position == "first" else f"So it is.\n{label}"
            assert task.is_correct(bare, label, "")


@pytest.mark.parametrize("name", LABELED_TASKS)
def test_the_prompt_asks_for_the_label_where_it_is_read(name):
    last, first = load_task(name), label_first(load_task(name))
    assert (last.label_position, first.label_position) == ("last", "first")
    assert "end with a line" in last.wording.policy and "Begin with a line" in first.wording.policy


def test_a_task_may_read_labels_itself():
    task = Task("mine", labels=MOODS, read_label=lambda response: response.split()[-1] if response else None)
    assert task.stated_label("it is positive") == "positive"
    assert task.check_answer("it is positive", "Positive", "")
    assert not task.check_answer("it is positive", "negative", "")
    assert not task.check_answer("", "negative", "")
    with pytest.raises(ConfigError, match="`read_label` of task 'mine' returned 'film' .* one of the labels"):
        task.stated_label("a film")


def test_a_reader_of_labels_that_fails_is_reported():
    task = Task("mine", labels=MOODS, read_label=lambda response: response.index("label"))
    with pytest.raises(ConfigError, match="`read_label` of task 'mine' failed on .*test_labels.py.* return None"):
        task.stated_label("text")


def test_a_task_without_labels_states_none():
    with pytest.raises(ConfigError, match="Task 'gsm8k' has no labels"):
        load_task("gsm8k").stated_label("The answer is 5")


def test_a_labeled_task_can_be_pickled():
    task = pickle.loads(pickle.dumps(label_first(load_task("sst2"))))
    assert task.is_correct("Positive\nA fine film.", "positive", "")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": ("good", " GOOD")}, "no two may be alike, or empty"),
        ({"labels": ("good", "")}, "no two may be alike, or empty"),
        ({"labels": ("good", "very\ngood")}, "No response can state the label"),
        ({"labels": ("*", "**")}, "No response can state the label"),
        ({"labels": MOODS, "label_position": "end"}, "is 'end'; it must be one of 'last', 'first'"),
        ({"labels": MOODS, "read_label": "last"}, "`read_label` of task 'mine' is 'last', not a function"),
    ],
)
def test_labels_that_cannot_be_told_apart_and_other_errors(fields, message):
    with pytest.raises(ConfigError, match=message):
        Task("mine", **fields)
