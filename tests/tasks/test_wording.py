"""Prompts contain what they are given, and step indices mean the same everywhere."""

import dataclasses
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlmec_trl.data.messages import is_conversational, message_text, problem_text
from rlmec_trl.data.steps import split_steps
from rlmec_trl.grm.prompts import WORDING_FILE, load_wording
from rlmec_trl.tasks import arithmetic
from rlmec_trl.tasks.wording import (
    TEACHER_INSTRUCTIONS,
    WORDING,
    Wording,
    locate_answer,
    locate_prompt,
    number_steps,
    parse_locate,
    policy_prompt,
    rewrite_prompt,
)


PLAIN = Wording(locate="{problem}|{reference}|{attempt}", rewrite="{attempt}|{problem}", policy="Q: {problem}")
SEPARATORS = ["\n", "\n\n", " ; ", ";"]
TEXTS = st.text(alphabet="ab; \n\té", max_size=30)


@given(TEXTS, st.sampled_from(SEPARATORS))
def test_splitting_loses_no_character(text, separator):
    assert "".join(split_steps(text, separator)) == text


@given(TEXTS, st.sampled_from(SEPARATORS))
def test_steps_are_the_visible_pieces_in_order(text, separator):
    visible = [piece.strip() for piece in text.split(separator) if piece.strip()]
    steps = split_steps(text, separator)
    if visible:
        assert len(steps) == len(visible)
        assert all(piece in step for piece, step in zip(visible, steps, strict=True))
    else:
        assert steps == ([text] if text else [])


@pytest.mark.parametrize(
    ("text", "separator", "steps"),
    [
        ("a\nb\nc", "\n", ["a\n", "b\n", "c"]),
        ("a\nb\n", "\n", ["a\n", "b\n"]),
        ("a\n\n \nb", "\n", ["a\n\n \n", "b"]),
        ("\n\na\nb", "\n", ["\n\na\n", "b"]),
        ("1 + 2 is 3 ; 3 + 4 = 7 ; The answer is 7", " ; ", ["1 + 2 is 3 ; ", "3 + 4 = 7 ; ", "The answer is 7"]),
        ("a ;  ; b", " ; ", ["a ;  ; ", "b"]),
    ],
)
def test_blank_steps_do_not_shift_the_indices(text, separator, steps):
    assert split_steps(text, separator) == steps


def test_numbered_steps_are_listed_one_a_line_without_separators():
    wording = Wording(locate="{attempt}", rewrite="", policy="", step_separator=" ; ", numbered=True)
    assert locate_prompt(wording, "", "", "a = 1 ; b\n= 2 ;  ; c") == "0: a = 1\n1: b = 2\n2: c"


@given(TEXTS | st.text(max_size=30), st.sampled_from(SEPARATORS))
def test_every_step_has_one_line_with_its_index_whatever_its_text(text, separator):
    wording = Wording(locate="", rewrite="", policy="", step_separator=separator)
    steps = split_steps(text, separator)
    lines = number_steps(wording, text).splitlines()
    assert [line.partition(": ")[0] for line in lines] == [str(index) for index in range(len(steps))]
    # Only white space and separators are left out
    for line, step in zip(lines, steps, strict=True):
        assert "".join(line.partition(": ")[2].split()) == "".join(step.replace(separator, " ").split())


def test_steps_are_numbered_even_where_the_locate_prompt_is_not():
    assert number_steps(PLAIN, "a\nb") == "0: a\n1: b"
    assert number_steps(PLAIN, "") == ""


def test_an_attempt_without_numbers_is_shown_as_it_is():
    assert locate_prompt(PLAIN, "p", "r", "x\n\n y") == "p|r|x\n\n y"


def test_the_rewrite_prompt_shows_the_attempt_as_it_is_even_where_locate_numbers_it():
    assert "one\ntwo\n" in rewrite_prompt(WORDING, "p", "r", "one\ntwo\n")
    assert "0: one\n1: two" in locate_prompt(WORDING, "p", "r", "one\ntwo\n")


def test_braces_in_texts_are_not_slots():
    problem = r"Simplify {attempt} and \frac{1}{x}, {} \1 \g<0>"
    assert locate_prompt(PLAIN, problem, "r", "a") == problem + "|r|a"
    assert policy_prompt(PLAIN, problem) == "Q: " + problem


def test_a_template_may_contain_latex():
    assert policy_prompt(Wording(locate="", rewrite="", policy=r"{problem} Use \boxed{} {x}."), "p") == (
        r"p Use \boxed{} {x}."
    )


@pytest.mark.parametrize("ask", [locate_prompt, rewrite_prompt])
def test_the_default_wording_shows_problem_reference_and_attempt(ask):
    prompt = ask(WORDING, "PROBLEM", "REFERENCE", "ATTEMPT")
    positions = [prompt.index(part) for part in ("PROBLEM", "REFERENCE", "ATTEMPT")]
    assert positions == sorted(positions)
    assert "{" not in prompt


@pytest.mark.parametrize("error_step", [-1, 0, 7, 12])
def test_an_answer_to_locate_is_parsed_back(error_step):
    for wording in (WORDING, Wording("", "", "", no_error="all fine.")):
        assert parse_locate(wording, locate_answer(wording, error_step)) == error_step


@pytest.mark.parametrize(
    ("text", "error_step"),
    [
        (" 3\n", 3),
        ("\n\nStep 3.", 3),
        ("**2**", 2),
        ("3: 4 + 5 is 9, not 8", 3),
        ("3 (the sum is wrong)", 3),
        ("None.", -1),
        ("none\nEvery one of the 4 steps is right.", -1),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("3 steps are right", None),
        ("nonexistent", None),
        ("7" * 5000, None),  # more digits than Python makes a number of
        ("I think that 4 + 5 = 9", None),
    ],
)
def test_only_an_answer_is_parsed_as_one(text, error_step):
    assert parse_locate(WORDING, text) == error_step


@given(st.text())
def test_no_text_makes_the_parser_fail(text):
    found = parse_locate(WORDING, text)
    assert found is None or found >= -1


def test_messages_and_strings_read_the_same():
    prompt = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "second"},
    ]
    assert problem_text(prompt) == problem_text("second") == "second"
    assert problem_text([*prompt, {"role": "assistant", "content": "so"}]) == "second"
    assert message_text([{"role": "assistant", "content": "done"}]) == message_text("done") == "done"


@pytest.mark.parametrize("value", ["text", "", [], None, [1, 2], ["role"], {"role": "user", "content": "x"}])
def test_other_values_are_not_conversational(value):
    assert not is_conversational(value)


# --- What trained models and journals rest on ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wording", "digest"),
    [
        (WORDING, "bd72285bddb83140"),
        (arithmetic.WORDING, "83b88599e0450959"),
    ],
    ids=["default", "arithmetic"],
)
def test_the_shipped_wordings_have_not_changed_since_models_were_trained_on_them(wording, digest):
    prompts = {name: text for name, text in dataclasses.asdict(wording).items() if name not in ("justify", "rate")}
    assert hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16] == digest


def test_a_wording_saved_before_teachers_had_one_still_loads(tmp_path):
    saved = dataclasses.asdict(PLAIN)
    del saved["teacher"]
    (tmp_path / WORDING_FILE).write_text(json.dumps(saved), encoding="utf-8")
    assert load_wording(str(tmp_path)) == PLAIN


def test_a_task_can_word_the_teachers_instructions():
    wording = dataclasses.replace(WORDING, teacher="Correct the translation.")
    assert wording != WORDING
    assert WORDING.teacher == TEACHER_INSTRUCTIONS
