"""The reference as the teacher: what agrees is kept, what does not is corrected, and nothing is guessed."""

import random
from fractions import Fraction

import pytest

from rlmec_trl.tasks import arithmetic
from rlmec_trl.tasks.task import load_task
from rlmec_trl.teachers.editors import NoEdit, judge_edit
from rlmec_trl.teachers.reference_editor import ANOTHER_WAY, NOT_COMPARABLE, ReferenceEditor
from rlmec_trl.teachers.reference_values import format_number, read_reference, replace_numbers


ARITHMETIC = ReferenceEditor(arithmetic.TASK)
GSM8K = ReferenceEditor(load_task("gsm8k"))

SUM = "Tom has 59 nuts, loses 16, finds 23, buys 20."
TERSE = "59 - 16 + 23 + 20 = 86"

CLIPS = "Natalia sold clips to 48 friends in April, and half as many in May. Each clip costs $3. What did she earn?"
MARKED = (
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
    "Natalia sold 48+24 = <<48+24=72>>72 clips altogether.\n"
    "She earned 72*3 = $<<72*3=216>>216.\n"
    "#### 216"
)


def edit_clips(completion):
    return GSM8K.edit(CLIPS, MARKED, completion)


# --- The built-in task -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "error_step", "rewrite"),
    [
        # An incorrect result, and its consequences
        (
            "59 - 16 is 43 ; 43 + 23 makes 67 ; 67 + 20 is 87 ; The answer is 87",
            1,
            "59 - 16 is 43 ; 43 + 23 makes 66 ; 66 + 20 is 86 ; The answer is 86",
        ),
        # An incorrect operand: the steps after it are written again, with their connectives
        (
            "59 - 16 is 43 ; 43 + 32 makes 75 ; 75 + 20 is 95 ; The answer is 95",
            1,
            "59 - 16 is 43 ; 43 + 23 makes 66 ; 66 + 20 is 86 ; The answer is 86",
        ),
        # Truncated, in the middle of a separator too
        ("59 - 16 is 43", 1, "59 - 16 is 43 ; 43 + 23 = 66 ; 66 + 20 = 86 ; The answer is 86"),
        ("59 - 16 is 43 ;", 1, "59 - 16 is 43 ; 43 + 23 = 66 ; 66 + 20 = 86 ; The answer is 86"),
        (
            "59 - 16 is 43 ; 43 + 23 is 66 ; 66 + 20 = 86 ; The answer",
            3,
            "59 - 16 is 43 ; 43 + 23 is 66 ; 66 + 20 = 86 ; The answer is 86",
        ),
        # Only the answer is copied incorrectly
        (
            "59 - 16 is 43 ; 43 + 23 = 66 ; 66 + 20 = 86 ; The answer is 68",
            3,
            "59 - 16 is 43 ; 43 + 23 = 66 ; 66 + 20 = 86 ; The answer is 86",
        ),
        # A result of the reference at the wrong place
        (
            "66 + 20 = 86 ; 59 - 16 is 43 ; The answer is 68",
            0,
            "59 - 16 = 43 ; 43 + 23 = 66 ; 66 + 20 = 86 ; The answer is 86",
        ),
        ("", 0, "59 - 16 = 43 ; 43 + 23 = 66 ; 66 + 20 = 86 ; The answer is 86"),
        # A computation that cannot be read
        ("59 - is 43 ; The answer is 43", 0, "59 - 16 is 43 ; 43 + 23 = 66 ; 66 + 20 = 86 ; The answer is 86"),
    ],
)
def test_the_built_in_task_is_corrected_in_the_form_of_the_attempt(completion, error_step, rewrite):
    edit = ARITHMETIC.edit(SUM, TERSE, completion)
    assert edit == (error_step, rewrite)
    outcome, *_ = judge_edit(arithmetic.TASK, SUM, "86", completion, False, edit)
    assert outcome == "rewritten"


def test_incorrect_attempts_are_corrected_as_by_the_editor_of_the_task():
    rng = random.Random(0)
    for _ in range(300):
        numbers = arithmetic.draw_numbers(rng, 0.5)
        values = list(numbers)
        values[rng.randrange(len(values))] += rng.choice([-10, -1, 1, 10])
        connectives = [rng.choice(arithmetic.CONNECTIVES) for _ in numbers[1:]]
        row = (arithmetic.write_problem(rng, numbers), arithmetic.write_reference(numbers))
        attempt = arithmetic.write_solution(tuple(values), connectives)
        error_step, rewrite = ARITHMETIC.edit(*row, attempt)
        assert all(arithmetic.check_steps(row[0], rewrite)), (row, attempt, rewrite)
        assert (error_step, rewrite) == arithmetic.rewrite_minimally(*row, attempt)


# --- Words -----------------------------------------------------------------------------------------------------------


def test_a_correct_attempt_is_not_changed():
    attempt = "In May she sold 48 / 2 = 24.\nIn total that is 48 + 24 = 72 clips.\n72 * $3 = $216\nThe answer is $216."
    assert edit_clips(attempt) == (-1, attempt)


def test_an_incorrect_result_is_corrected_in_the_words_of_the_attempt():
    attempt = "In May she sold 48 / 2 = 22.\nIn total that is 48 + 22 = 70 clips.\n70 * $3 = $210\nThe answer is $210."
    expected = attempt.replace("22", "24").replace("70", "72").replace("210", "216")
    assert edit_clips(attempt) == (0, expected)


def test_steps_after_a_wrong_computation_are_those_of_the_reference():
    attempt = "In May she sold 48 / 2 = 24.\nIn total that is 48 - 24 = 24 clips.\n24 * $3 = $72\nThe answer is $72."
    expected = (
        "In May she sold 48 / 2 = 24.\nNatalia sold 48+24 = 72 clips altogether.\nShe earned 72*3 = $216.\n"
        "The answer is $216."
    )
    assert edit_clips(attempt) == (1, expected)


def test_calculator_marks_stay_where_the_attempt_uses_them():
    attempt = "48/2 = <<48/2=24>>24\n48*24 = <<48*24=1152>>1152\n#### 1152"
    error_step, rewrite = edit_clips(attempt)
    assert error_step == 1
    assert rewrite.split("\n")[1:] == [*MARKED.split("\n")[1:3], "#### 216"]


def test_another_order_of_the_steps_agrees_if_their_values_are_known():
    problem = "Ann buys 3 pens for $4 each and 2 pads for $5 each. What does she pay?"
    reference = "3 * 4 = 12\n2 * 5 = 10\n12 + 10 = 22\nThe answer is 22"
    attempt = "2 * 5 = 10\n3 * 4 = 12\n10 + 12 = 23\nThe answer is 23"
    assert GSM8K.edit(problem, reference, attempt) == (2, attempt.replace("23", "22"))
    # 12 is not known in the first step
    early = "12 + 10 = 22\n3 * 4 = 12\n2 * 5 = 11\nThe answer is 11"
    assert GSM8K.edit(problem, reference, early) == (0, reference)


def test_steps_that_only_serve_what_is_done_are_left_out():
    # The attempt does the first two computations in one
    attempt = "She sold 48 + 48 / 2 = 72 clips.\n72 * 2 = 144\nThe answer is 144"
    error_step, rewrite = edit_clips(attempt)
    assert error_step == 1
    assert rewrite == "She sold 48 + 48 / 2 = 72 clips.\nShe earned 72*3 = $216.\nThe answer is 216"


def test_a_number_that_nothing_leads_to_disagrees_without_an_equation_too():
    attempt = "She sold 24 clips in May.\nThat makes 96 clips.\nThe answer is 288"
    error_step, rewrite = edit_clips(attempt)
    assert error_step == 1
    assert rewrite.startswith("She sold 24 clips in May.\nNatalia sold 48+24 = 72 clips altogether.\n")


def test_numbers_of_steps_and_words_do_not_disagree():
    attempt = "Let us begin.\n**Step 1:** 48 / 2 = 24\n2. 48 + 24 = 70\n3) 70 * 3 = 210\nThe answer is 210"
    assert edit_clips(attempt) == (2, attempt.replace("70", "72").replace("210", "216"))


def test_a_value_that_is_also_a_number_of_the_problem_still_has_to_be_computed():
    problem = "Roger needs 13 + 3 + 2 packs of 6. There are 3 coaches. How many boxes?"
    reference = "He needs 13 + 3 + 2 = 18.\nThat is 18 / 6 = 3 boxes.\nThe answer is 3"
    attempt = "He needs 13 + 3 + 2 = 18.\nThat is 18 / 9 = 2 boxes.\nThe answer is 2"
    assert GSM8K.edit(problem, reference, attempt) == (1, reference)


def test_a_correct_answer_in_another_way_is_not_rewritten():
    # From numbers of the problem
    attempt = "48 * 3 = 144\n144 + 144 / 2 = 216\nThe answer is 216"
    assert edit_clips(attempt) == (-1, attempt)
    # 150 leads to the answer, but is it right?
    assert edit_clips("150 + 66 = 216\nThe answer is 216") == ANOTHER_WAY
    # An equation that does not hold is an error in any way
    flawed = "48 / 2 = 24\n48 + 24 = 70\n72 * 3 = 216\nThe answer is 216"
    assert edit_clips(flawed) == (1, flawed.replace("70", "72"))


@pytest.mark.parametrize(
    "reference",
    [
        "It is blue because of the sky.\nThe answer is blue",
        "The answer is 216",
        "",
        # Not the result of what it computes
        "48 / 2 = 24\nThe answer is 25",
        # It contradicts itself
        "48 / 2 = 25\nThe answer is 25",
        "Let x = 3y.\nThe answer is x^2",
    ],
)
def test_a_reference_without_comparable_values_edits_nothing(reference):
    edit = GSM8K.edit(CLIPS, reference, "48 / 2 = 23\nThe answer is 23")
    assert edit == NOT_COMPARABLE == NoEdit("no values in the reference")


# --- Values ----------------------------------------------------------------------------------------------------------


def test_the_computations_of_a_reference_are_read_operation_by_operation():
    reference = read_reference(SUM, TERSE, " ; ")
    assert [tuple(map(str, one.operation)) for one in reference.computations] == [
        ("59", "-", "16", "43"),
        ("43", "+", "23", "66"),
        ("66", "+", "20", "86"),
    ]
    assert reference.answer == "86"
    # A mark repeats its equation
    assert len(read_reference(CLIPS, MARKED, "\n").computations) == 3


def test_numbers_are_replaced_in_their_notation():
    assert replace_numbers("$1,200 and 12 of 1200", {1200: 1300}) == "$1,300 and 12 of 1300"
    assert replace_numbers("$2.50 plus 25", {2.5: 3}) == "$3.00 plus 25"
    assert format_number(Fraction(1, 4), like="3") == "0.25"


# --- Attempts and references of any kind -----------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["problem", "attempt", "decimals"])
def test_numbers_with_thousands_of_digits_do_not_stop_a_run(place):
    digits = "9" * 5000
    problem = f"{CLIPS} {digits}" if place == "problem" else CLIPS
    attempt = {"attempt": f"48 / 2 = {digits}", "decimals": f"48 / 2 = 24.{digits}"}.get(place, "48 / 2 = 25")
    error_step, rewrite = GSM8K.edit(problem, MARKED, f"{attempt}\nThe answer is 3")
    assert error_step == 0
    assert rewrite.endswith("The answer is 216")


def test_a_corrected_result_has_all_its_digits():
    # A float has 15 to 17 of them
    assert format_number(Fraction(10**23 + 1), like="1,000") == "100,000,000,000,000,000,000,001"
    product = 123456789012 * 987654321098
    reference = f"123456789012 * 987654321098 = {product}\nThe answer is {product}"
    attempt = "It is 123456789012 * 987654321098 = 7\nThe answer is 7"
    _, rewrite = GSM8K.edit("What is 123456789012 times 987654321098?", reference, attempt)
    assert rewrite == f"It is {reference}"


@pytest.mark.parametrize(
    ("expected", "stated", "corrected"),
    [
        ("-3", "−4", "-3"),
        ("−3", "-4 points", "−3 points"),
        ("3", "-$4", "$3"),
        ("$3", "$4 each", "$3 each"),
        ("$3", "4 dollars", "3 dollars"),
        ("20%", "30% of them", "20% of them"),
    ],
)
def test_a_corrected_answer_has_one_sign_and_one_unit(expected, stated, corrected):
    value = expected.replace("−", "-").strip("$%")
    reference = f"{Fraction(value) + 5} - 5 = {value}\nThe answer is {expected}"
    _, rewrite = GSM8K.edit("Five are lost.", reference, f"{Fraction(value) + 5} - 5 = 99\nThe answer is {stated}")
    assert rewrite.splitlines()[1] == f"The answer is {corrected}"


def test_the_effort_does_not_explode_with_the_length(monkeypatch):
    """Counted in operations, not in seconds: computations are compared at most about once for each pair."""
    from rlmec_trl.teachers.reference_values import Computation

    calls = 0
    uses = Computation.uses

    def counted(self, values):
        nonlocal calls
        calls += 1
        return uses(self, values)

    monkeypatch.setattr(Computation, "uses", counted)
    lines = [f"{number} + 1 = {number + 1}" for number in range(1, 41)]
    reference = "\n".join([*lines, "The answer is 41"])
    assert GSM8K.edit("Count from 1.", reference, reference) == (-1, reference)
    assert calls < 3 * len(lines) ** 2
