import random
import re
from functools import partial
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlmec_trl.data.steps import split_steps
from rlmec_trl.tasks import arithmetic
from rlmec_trl.tasks.steps import check_stated_steps


check_arithmetic = partial(check_stated_steps, step_separator=arithmetic.WORDING.step_separator)


def test_the_step_with_the_false_equation_is_the_incorrect_one():
    steps = ["She has 48 nuts.", "48/2 = 24 in May.", "48 + 24 = 62 in all.", "So it is 62.", "The answer is 62"]
    assert check_stated_steps("", "\n".join(steps)) == [True, True, False, True, True]


def test_steps_are_those_that_split_steps_counts():
    completion = "\n\n1 + 1 = 2\n\n2 + 2 = 5\n \nThe answer is 5\n"
    assert len(split_steps(completion, "\n")) == 3
    assert check_stated_steps("", completion) == [True, False, True]
    assert check_stated_steps("", "") == []
    assert check_arithmetic("", "1 + 1 = 2 ; 2 + 2 = 5 ; The answer is 5") == [True, False, True]


@pytest.mark.parametrize(
    ("step", "is_correct"),
    [
        ("48/2 = <<48/2=24>>24 clips", True),
        ("48/2 = $<<48/2=24>>24.00", True),
        ("48/2 = <<48/2=24>>24% of them", True),
        ("10/3 = <<10/3=3.3333>>3.33", True),
        ("1,000 + 24 = <<1000+24=1024>>1,024", True),
        ("So x is <<24=24>>24", True),
        ("48/2 = <<48/2=23>>23 clips", False),
        ("She has <<48/2=23>>23 clips", False),
        ("48/2 = <<48/2=24>>23 clips", False),
        ("Half of them are <<48/2=24>>23 clips", False),
        ("So x is <<24=24>>25", False),
        ("48/3 = <<48/2=24>>24 clips", False),
    ],
)
def test_a_calculator_mark_holds_and_its_result_is_written_after_it(step, is_correct):
    assert check_stated_steps("", f"{step}\nDone.") == [is_correct, True]


@pytest.mark.parametrize(
    ("completion", "is_correct"),
    [
        ("48 + 24 = 72\nThe answer is 72", True),
        ("48 + 24 = 72\nThe answer is 86", False),
        ("48 + 24 = <<48+24=72>>72\n#### 72", True),
        ("48 + 24 = <<48+24=72>>72\n#### 86", False),
        ("48 + 24 = 72\n$\\boxed{86}$", False),
        ("48 + 24 = 72\nThe final answer is $\\boxed{86}$.", False),
        ("48 + 24 = 72 and all. The answer is $86.", False),
        ("48 + 24 = 72, which is a lot.\nShe is glad.\nThe answer is 86 clips", False),
        ("$48 + 24 = \\boxed{72}$", True),
        # The same number in other words
        ("48 + 24 = 72\nThe answer is **72.0** clips.", True),
        ("70/4 = 17.5\nShe needs whole boxes.\nThe answer is 18", True),
        ("12/15 = .8\nThe answer is 80", True),
        ("12/15 = 80%\nThe answer is 0.8", True),
        ("$0.30 + $0.25 = $0.55\nThe answer is 55 cents", True),
        ("3/4 = 0.75\nThe answer is \\frac{3}{4}", True),
        ("60 + 30 = 90 minutes\nThe answer is 1.5 hours", True),
        # The last equation is a check, or about something else
        ("10 - 3 = 7\nCheck: 7 + 3 = 10\nThe answer is 7", True),
        ("x = 12/4 = 3\nSubstituting back: 4*3 = 12\nThe answer is 3", True),
        ("Ann has 5+3=8. Bob has 8*2=16. We need Ann's number.\nThe answer is 8", True),
        ("x = 4\nSubstituting back: 2 * 4 = 8\nThe answer is 4", True),
        ("1/2 + 1/4 = 3/4\nCheck: 3/4 - 1/4 = 1/2\nThe answer is 0.75", True),
        ("10 - 3 = 7\nCheck: 7 + 3 = 10\nThe answer is 6", False),
        # The last equation is not the last thing computed
        ("48 + 24 = 72\nShe keeps 14 more of them.\nThe answer is 86", True),
        ("48 + 24 = 72\nx = 86\nThe answer is 86", True),
        ("33 + 24 = 57 of the 42 students, so $\\boxed{15}$ do both", True),
        ("33 + 24 = 57 students, so there are $\\boxed{15}$ who do both", True),
        ("48 + 24 = 72\nThe answer is 72 + 14 = 86", True),
        # No number, or none to compare it with
        ("48 + 24 = 72\nThe answer is Tom", True),
        ("48 + 24 = 72\nThe answer is 3, 1 and 2", True),
        ("She has many.\nThe answer is 86", True),
        ("48 + 24 = 72", True),
    ],
)
def test_the_answer_is_a_result(completion, is_correct):
    verdicts = check_stated_steps("", completion)
    assert all(verdicts) == is_correct
    assert verdicts[:-1] == [True] * (len(verdicts) - 1)


@pytest.mark.parametrize(
    ("problem", "completion"),
    [
        ("", "7 + 8 = 15 = 0 (mod 5)"),
        ("", r"7 + 8 = 15 = 0 \pmod{5}"),
        ("", "We work modulo 5:\n7 + 8 = 0\nThe answer is 0"),
        ("", "In binary, 1 + 1 = 10"),
        ("", "1 + 1 = 10 in base 2"),
        ("What is 1 + 1 in base two?", "1 + 1 = 10"),
    ],
)
def test_equations_of_another_arithmetic_are_not_checked(problem, completion):
    assert all(check_stated_steps(problem, completion))


@pytest.mark.parametrize("word", ["base", "baseball", "model", "basement 2"])
def test_other_words_do_not_switch_the_check_off(word):
    assert check_stated_steps(f"The {word} costs $2.", f"The {word}: 1 + 1 = 3") == [False]


@st.composite
def arithmetic_attempts(draw):
    """An attempt at the built-in task whose step `index` has another result, which the later steps go on from."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    numbers = arithmetic.draw_numbers(rng, 0.5)
    connectives = draw(st.lists(st.sampled_from(arithmetic.CONNECTIVES), min_size=3, max_size=3))
    index, error = draw(st.integers(0, 2)), draw(st.integers(-9, 9))
    values = list(accumulate((*numbers[: index + 2], *numbers[index + 2 :])))
    values[index + 1 :] = [value + error for value in values[index + 1 :]]
    steps = [
        f"{value} {'+' if operand > 0 else '-'} {abs(operand)} {connective} {result}"
        for value, operand, connective, result in zip(values, numbers[1:], connectives, values[1:], strict=False)
    ]
    answer = draw(st.sampled_from([values[-1], sum(numbers)]))
    return arithmetic.write_problem(rng, numbers), " ; ".join([*steps, f"The answer is {answer}"]), index, error


@given(arithmetic_attempts())
def test_a_false_step_of_the_built_in_task_is_found_whatever_the_answer(attempt):
    problem, completion, index, error = attempt
    verdicts = check_arithmetic(problem, completion)
    if error == 0:
        assert verdicts == arithmetic.check_steps(problem, completion) == [True] * 4
    else:
        assert verdicts.index(False) == index == arithmetic.check_steps(problem, completion).index(False)


@given(st.integers(0, 2**32))
def test_a_reference_of_the_built_in_task_is_correct(seed):
    numbers = arithmetic.draw_numbers(random.Random(seed), 0.5)
    assert all(check_arithmetic("", arithmetic.write_reference(numbers)))


@given(st.text(alphabet="0123456789+-*/^=.,;:()[]{}<>#$%\\ \nabxfrcisou½²", max_size=60))
def test_any_text_gets_one_verdict_a_step(text):
    verdicts = check_stated_steps("", text)
    assert len(verdicts) == len(split_steps(text, "\n"))
    assert set(verdicts) <= {True, False}


@given(st.lists(st.sampled_from(["48/2 = 24", "1 + 1 = 3", "so", "The answer is 24", "x = 2"]), max_size=8))
def test_only_equations_and_the_answer_can_be_incorrect(steps):
    for step, is_correct in zip(steps, check_stated_steps("", "\n".join(steps)), strict=True):
        assert is_correct or re.search("3|answer", step)


@pytest.mark.parametrize(
    "text",
    [
        "9" * 100_000 + " + 1 = 2",
        "+".join("1" * 50_000) + " = 2",
        "=".join(["1+1"] * 25_000),
        "1 + 1 = 2. " * 10_000 + "The answer is 3",
        "(" * 50_000 + "1" + ")" * 50_000 + " + 1 = 3",
        "1(" * 30_000 + "1" + ")" * 30_000 + " + 1 = 3",
        "\\frac{1}{" * 10_000 + "1" + "}" * 10_000 + " + 1 = 3",
        "9^9^9^9 + 1 = 2",
        "9^999999999 + 1 = 2",
        "9" * 39 + ("*" + "9" * 39) * 2_500 + " = 2",
        "+".join(f"1/{number}" for number in range(1, 15_000)) + " = 2",
        "<<" * 50_000,
        "<<1+1=3" * 15_000,
        "\\boxed{" * 15_000,
        "#### " + "1" * 100_000 + "x",
        "1 " * 50_000 + "gives 2",
        "1 + 1 gives " * 8_000 + "2",
        "five apples " * 10_000 + "= 2",
        "1" + " " * 100_000 + "+ 1 = 2",
        "1" + ",234" * 25_000 + "5 + 1 = 2",
        "\x00\ud800\u0663 + \uff11 = \u00b2",
    ],
)
def test_long_and_hostile_texts_are_read_in_one_pass(text):
    assert len(check_stated_steps("", text)) == 1


def test_a_long_answer_is_compared_with_many_results_in_one_pass():
    completion = "1 + 1 = 2\n" * 5_000 + "The answer is " + "3 " * 25_000
    assert all(check_stated_steps("", completion))
