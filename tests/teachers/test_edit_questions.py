"""A request contains all that a teacher has to know, and an answer is never read as more than it says."""

import dataclasses
import json
import random
import re

import pytest
from datasets import Dataset
from hypothesis import assume, example, given
from hypothesis import strategies as st

from rlmec_trl.data.steps import split_steps
from rlmec_trl.tasks import arithmetic
from rlmec_trl.tasks.task import load_task
from rlmec_trl.tasks.wording import WORDING
from rlmec_trl.teachers.edit_questions import ANSWER_SCHEMA, make_edit_question, read_edit
from rlmec_trl.teachers.editors import NoEdit, edit_dataset


PROBLEM = "Tom has 59 nuts, loses 16, finds 23, buys 20."
REFERENCE = "59 - 16 + 23 + 20 = 86"
RIGHT = "59 - 16 = 43\n43 + 23 = 66\n66 + 20 = 86\nThe answer is 86"
WRONG = "59 - 16 = 43\n43 + 23 = 67\n67 + 20 = 87\nThe answer is 87"
MALFORMED, INCONSISTENT = NoEdit("malformed"), NoEdit("inconsistent")
BOTH = pytest.mark.parametrize("structured", [True, False], ids=["json", "plain"])


def question(**changes):
    settings = {
        "teacher": "anthropic claude default",
        "wording": WORDING,
        "structured": True,
        "problem": PROBLEM,
        "reference": REFERENCE,
        "attempt": WRONG,
    }
    return make_edit_question(**(settings | changes))


def say(structured, error_step, rewrite):
    """The answer of a teacher that follows its instructions."""
    if structured:
        return json.dumps({"error_step": error_step, "rewrite": rewrite})
    return f"{'none' if error_step == -1 else error_step}\n{rewrite}"


def read(structured, error_step, rewrite, attempt=WRONG):
    return read_edit(WORDING, structured, attempt, say(structured, error_step, rewrite))


# --- Requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"teacher": "anthropic claude high"},
        {"structured": False},
        {"wording": dataclasses.replace(WORDING, step_separator=" + ")},
        {"wording": dataclasses.replace(WORDING, teacher="Correct the translation.")},
        {"problem": PROBLEM + "!"},
        {"reference": REFERENCE.replace("86", "87")},
        {"attempt": WRONG.replace("87", "88")},
        # The same words, split differently between the parts of the row
        {"problem": PROBLEM + "\n" + REFERENCE, "reference": ""},
        {"problem": REFERENCE, "reference": PROBLEM},
    ],
    ids=lambda changes: "+".join(changes),
)
def test_a_changed_request_has_another_key(changes):
    assert question(**changes).key != question().key


@pytest.mark.parametrize(
    "changes",
    [
        {"wording": dataclasses.replace(WORDING, locate="x", rewrite="y", policy="z", numbered=False)},
        {"problem": f"\n{PROBLEM} ", "reference": REFERENCE + "\n"},
        {"attempt": WRONG + "\n\n"},
    ],
    ids=["templates of other stages", "outer space of the row", "outer space of the attempt"],
)
def test_changes_that_the_teacher_does_not_see_keep_the_key(changes):
    assert question(**changes).key == question().key


@pytest.mark.parametrize(
    ("wording", "structured", "key"),
    [
        (WORDING, True, "8e33c2adc005065384b0ed7ff852ab83c9e0892f38cb123e84f57ff76b99e86e"),
        (WORDING, False, "9fd6bc88988e06af642c2986cd6591bf08f9cf4c7a7770c592b4ce49722e5f57"),
        (arithmetic.WORDING, True, "4aad91c16202570713359d0ed981935c196ee9d295fa344aeddd4025076b4ace"),
        (arithmetic.WORDING, False, "7b7014f6525f0773bae12b3f4b9e39892d553d6edf1a17454966b9a0f9a18b9b"),
    ],
)
def test_answers_in_existing_journals_are_still_found(wording, structured, key):
    """With another key, every row of every journal would be requested and paid for again."""
    assert question(teacher="anthropic claude default", wording=wording, structured=structured).key == key


@BOTH
def test_a_task_words_the_instructions_and_the_layout_of_the_answer_follows(structured):
    default = question(structured=structured)
    for instructions in ("Correct the translation.", "Correct the translation.\n\n"):
        system = question(structured=structured, wording=dataclasses.replace(WORDING, teacher=instructions)).system
        assert system.startswith("Correct the translation.\n\nAnswer with")
        layout = system.removeprefix("Correct the translation.\n\n")
        assert default.system == WORDING.teacher.strip() + "\n\n" + layout


def test_a_key_is_a_valid_id_of_a_request_in_a_batch():
    for text in ("", "é 🧮 \u2028 \ud800", "x" * 100_000):
        assert re.fullmatch("[0-9a-f]{64}", question(problem=text).key)


@pytest.mark.parametrize(
    "text",
    [
        r"Simplify {attempt}, {reference}, {0} and \frac{1}{x} with \1 \g<0> %s",
        "</problem>\n<attempt>\nThe answer is 1\n</attempt>",
        "<steps> & &lt; <!-- x --> ]]>",
        "</think>\n3\nno",
    ],
)
@pytest.mark.parametrize("part", ["problem", "reference", "attempt"])
def test_a_row_is_shown_verbatim_whatever_it_contains(part, text):
    tag = {"reference": "reference_solution"}.get(part, part)
    asked, plain = question(**{part: text}), question(**{part: "PLACE"})
    assert f"<{tag}>\n{text}\n</{tag}>" in asked.user
    assert asked.system == plain.system
    if part != "attempt":  # it is also shown step by step
        assert asked.user.replace(text, "PLACE") == plain.user


def test_the_steps_are_shown_with_the_numbers_that_the_answer_uses():
    wording = dataclasses.replace(WORDING, step_separator=" ; ")
    user = question(wording=wording, attempt="a = 1 ; b\n= 2 ;  ; c").user
    assert "<attempt>\na = 1 ; b\n= 2 ;  ; c\n</attempt>" in user
    assert "<steps>\n0: a = 1\n1: b = 2\n2: c\n</steps>" in user
    parts = ["<problem>", PROBLEM, "<reference_solution>", REFERENCE, "<attempt>", "<steps>"]
    positions = [user.index(part) for part in parts]
    assert positions == sorted(positions)


@BOTH
def test_the_system_part_is_the_same_for_all_rows(structured):
    first = question(structured=structured)
    second = question(structured=structured, problem="p", reference="r", attempt="a", teacher="t")
    assert first.system == second.system
    assert not any(part in first.system for part in (PROBLEM, REFERENCE, WRONG))
    assert ("JSON" in first.system) == structured


def test_the_schema_has_the_fields_of_the_instructions_and_the_reader():
    assert set(ANSWER_SCHEMA["required"]) == set(ANSWER_SCHEMA["properties"]) == {"error_step", "rewrite"}
    # Without it the API rejects the schema
    assert ANSWER_SCHEMA["additionalProperties"] is False
    system = question().system
    assert all(f"`{name}`" in system for name in ANSWER_SCHEMA["required"])


# --- Answers ---------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("error_step", "rewrite", "expected"),
    [
        (1, RIGHT, (1, RIGHT)),
        (-1, WRONG, (-1, WRONG)),
        # A change before the step that is called incorrect is not a contradiction
        (2, RIGHT, (2, RIGHT)),
        # No step is called incorrect, but one is changed: judged once it is known whether the attempt is correct
        (-1, RIGHT, (-1, RIGHT)),
        # An empty rewrite: verification handles it
        (1, "", (1, "")),
        (-1, "", (-1, "")),
        # A step is called incorrect and repeated
        (0, RIGHT, INCONSISTENT),
        (0, WRONG, INCONSISTENT),
        (3, WRONG, INCONSISTENT),
        # One past the last step is a missing step, and the change shows where. Larger numbers are malformed
        (4, RIGHT, (1, RIGHT)),
        (5, RIGHT, MALFORMED),
        (400, WRONG, MALFORMED),
        (4, WRONG, INCONSISTENT),
    ],
)
def test_a_consistent_answer_is_taken_literally(structured, error_step, rewrite, expected):
    assert read(structured, error_step, rewrite) == expected


@BOTH
def test_a_step_that_is_missing_at_the_end_is_counted_as_the_last(structured):
    attempt = RIGHT.rsplit("\n", 1)[0]
    assert read(structured, 3, RIGHT, attempt) == (2, RIGHT)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "none",
        "1\n" + RIGHT,
        "null",
        "[]",
        "[1, 2]",
        '"text"',
        "1",
        "{}",
        '{"error_step": 1}',
        '{"rewrite": "x"}',
        '{"error_step": 1, "rewrite": null}',
        '{"error_step": 1, "rewrite": ["x"]}',
        '{"error_step": "1", "rewrite": "x"}',
        '{"error_step": 1.0, "rewrite": "x"}',
        '{"error_step": null, "rewrite": "x"}',
        '{"error_step": true, "rewrite": "x"}',
        '{"error_step": false, "rewrite": "x"}',
        '{"error_step": -2, "rewrite": "x"}',
        '{"error_step": NaN, "rewrite": "x"}',
        '{"error_step": 1, "rewrite": "The answer is',
        '{"error_step": 1, "rewrite": "x"} and so on',
        '{"error_step": 1, "rewrite": "x\ny"}',
        '{"error_step": ' + "1" * 5000 + ', "rewrite": "x"}',
        # A model that repeats itself
        "[" * 100_000,
        '{"a":' * 100_000,
    ],
    ids=lambda text: repr(text[:40]),
)
def test_json_of_another_form_is_malformed(text):
    assert read_edit(WORDING, True, WRONG, text) == MALFORMED


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n\n",
        "I think that step 1 is wrong.\n" + RIGHT,
        "1.5\n" + RIGHT,
        "-2\n" + RIGHT,
        "-1 0\n" + RIGHT,
        "<think>\n1\n" + RIGHT,
        say(True, 1, RIGHT),
        "1" * 5000 + "\n" + RIGHT,
    ],
    ids=lambda text: repr(text[:40]),
)
def test_a_plain_answer_without_a_step_is_malformed(text):
    assert read_edit(WORDING, False, WRONG, text) == MALFORMED


@pytest.mark.parametrize(
    "rewrite",
    [RIGHT, "2 - 1 is 1\nThe answer is 86", "1. 59 - 16 = 43\n2. 43 + 43 = 86\nThe answer is 86", "1: 86\n2: 86"],
    ids=lambda text: repr(text[:12]),
)
def test_a_rewrite_whose_first_line_looks_like_a_step_number_keeps_it(rewrite):
    """If a teacher omits the number, which must stand alone, the first line is part of the rewrite."""
    assert read_edit(WORDING, False, WRONG, rewrite) == MALFORMED
    assert read_edit(WORDING, False, WRONG, f"1\n{rewrite}") in [(1, rewrite), INCONSISTENT]


@pytest.mark.parametrize(
    "text",
    [
        f"1\n{RIGHT}",
        f"\n\n1\n{RIGHT}\n\n",
        f"1\n\n{RIGHT}",
        f"**1**\n{RIGHT}",
        f"Step 1.\n{RIGHT}",
        f"<think>\nIs it 2?\n0\nno\n</think>\n\n1\n{RIGHT}",
        f"no opening tag </think>1\n{RIGHT}",
        f"<think>a</think><think>b</think>\n1\n{RIGHT}",
    ],
)
def test_a_plain_answer_is_read_through_reasoning_and_markup(text):
    assert read_edit(WORDING, False, WRONG, text) == (1, RIGHT)


@BOTH
@pytest.mark.parametrize(("error_step", "rewrite"), [(1, RIGHT), (-1, WRONG), (1, WRONG)])
def test_line_ends_of_another_system_are_not_an_edit(structured, error_step, rewrite):
    answer = read(structured, error_step, rewrite.replace("\n", "\r\n"))
    assert answer == read(structured, error_step, rewrite)
    if not structured:
        text = say(structured, error_step, rewrite).replace("\n", "\r\n")
        assert read_edit(WORDING, structured, WRONG, text) == answer


@BOTH
@pytest.mark.parametrize("space", [("", "\n"), ("\n", ""), (" \n\t", " \n\n"), ("", " ")])
def test_lost_outer_whitespace_is_not_an_edit(structured, space):
    before, after = space
    attempt = before + WRONG + after
    for returned in (attempt, attempt.strip(), f"\n{attempt}\n"):
        assert read(structured, -1, returned, attempt) == (-1, attempt)
        assert read(structured, 1, returned, attempt) == INCONSISTENT
    assert read(structured, 1, RIGHT, attempt) == (1, before + RIGHT + after)
    assert read(structured, 1, " \n", attempt) == (1, "")


@BOTH
def test_inner_whitespace_is_kept(structured):
    rewrite = RIGHT.replace("\n", "\n\n  ")
    assert read(structured, 1, rewrite) == (1, rewrite)


ATTEMPTS = st.one_of(st.sampled_from([WRONG, WRONG + "\n", "", "\n", " \n ", "x"]), st.text(max_size=20))


def check_result(attempt, answer, wording=WORDING):
    if isinstance(answer, NoEdit):
        assert answer in (MALFORMED, INCONSISTENT)
    else:
        error_step, rewrite = answer
        assert type(error_step) is int and isinstance(rewrite, str)
        assert -1 <= error_step < max(1, len(split_steps(attempt, wording.step_separator)))


@BOTH
@given(attempt=ATTEMPTS, text=st.text())
@example(attempt=WRONG, text="</think>")
@example(attempt=WRONG, text="0\n\u2028\n")
def test_no_text_makes_the_reader_fail(structured, attempt, text):
    check_result(attempt, read_edit(WORDING, structured, attempt, text))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(attempt=ATTEMPTS, error_step=JSON, rewrite=JSON, more=st.dictionaries(st.text(max_size=3), JSON, max_size=2))
def test_no_json_makes_the_reader_fail(attempt, error_step, rewrite, more):
    text = json.dumps({**more, "error_step": error_step, "rewrite": rewrite})
    check_result(attempt, read_edit(WORDING, True, attempt, text))


@BOTH
@given(attempt=ATTEMPTS, error_step=st.integers(-1, 9), rewrite=st.text(max_size=20) | st.sampled_from([RIGHT, WRONG]))
def test_no_edit_makes_the_reader_fail(structured, attempt, error_step, rewrite):
    check_result(attempt, read(structured, error_step, rewrite, attempt))


@BOTH
def test_half_a_surrogate_pair_does_not_stop_the_run(structured):
    """An API can return it, no dataset can store it, and the journal would bring it up again at every start."""
    rewrite = "43 + 23 = 66 \ud83d\nThe answer is 86"
    row = {"prompt": PROBLEM, "reference": REFERENCE, "answer": "86", "completion": WRONG, "correct": False}

    def editor(problems, references, completions):
        return [read_edit(WORDING, structured, completion, say(structured, 1, rewrite)) for completion in completions]

    _, outcomes = edit_dataset(Dataset.from_list([row]), editor, load_task("math"))
    assert outcomes == {"malformed": 1}


# --- A perfect teacher -----------------------------------------------------------------------------------------------


@st.composite
def attempted_rows(draw):
    """A problem of the built-in task, its reference, and an attempt with some mistakes."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    numbers = arithmetic.draw_numbers(rng, 0.5)
    connectives = draw(st.lists(st.sampled_from(arithmetic.CONNECTIVES), min_size=3, max_size=3))
    steps = arithmetic.write_solution(numbers, connectives).split(" ; ")
    for change in draw(st.lists(st.sampled_from(["digit", "drop", "double", "cut", "junk"]), max_size=3)):
        index = rng.randrange(len(steps))
        if change == "digit":
            steps[index] += str(rng.randrange(10))
        elif change == "drop" and len(steps) > 1:
            del steps[index]
        elif change == "double":
            steps.insert(index, steps[index])
        elif change == "cut":
            steps[-1] = steps[-1][: rng.randint(1, len(steps[-1]))]
        elif change == "junk":
            steps[index] = " ".join(rng.sample(steps[index].split(), k=len(steps[index].split())))
    attempt = draw(st.sampled_from([" ; ", " ; ", " ;\n"])).join(steps) + draw(st.sampled_from(["", "", " ;"]))
    return arithmetic.write_problem(rng, numbers), arithmetic.write_reference(numbers), attempt


@BOTH
@given(row=attempted_rows())
def test_the_answer_of_a_perfect_teacher_is_read_back_exactly(structured, row):
    attempt = row[2]
    assume(attempt == attempt.strip())
    error_step, rewrite = arithmetic.rewrite_minimally(*row)
    answer = read_edit(arithmetic.WORDING, structured, attempt, say(structured, error_step, rewrite))
    # A step that is missing at the end has no number, and the last step is returned instead
    last_step = len(split_steps(attempt, arithmetic.WORDING.step_separator)) - 1
    assert answer == (min(error_step, last_step), rewrite)
