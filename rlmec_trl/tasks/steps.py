"""Checks of the steps of a solution by what its text states."""

from __future__ import annotations

import re

from ..data.steps import split_steps
from .answers import find_answer
from .equations import Equation, Expression, read_equations, read_number


# A calculator mark, <<48/2=24>>, and the number written after it
CALCULATOR_MARK = re.compile(r"<<([^<>\n]*)>>(?:[ $€£]*(-?\d[\d,]*(?:\.\d+)?%?))?")
# What may precede a box that only states the answer. Other boxes may hold the result of a step that is not written
_BEFORE_LONE_BOX = re.compile(r"(?:^|answer\s+is)\W*$", re.IGNORECASE)
# In another arithmetic, 7 + 8 = 0 and 1 + 1 = 10
_OTHER_ARITHMETIC = re.compile(
    r"(?<![a-z])(?:[pb]?mod(?:ul(?:o|us|ar))?|binary|octal|hex(?:adecimal)?"
    r"|base[- ](?:\$?\d+|two|three|four|five|six|seven|eight|nine|ten|twelve|sixteen|\$?[bn]\b))(?![a-z])|≡|\\equiv",
    re.IGNORECASE,
)
# Without one of these, a text cannot change what the last result is
_NUMBER_OR_RELATION = re.compile(r"[\d=]")


def check_stated_steps(problem: str, completion: str, step_separator: str = "\n") -> list[bool]:
    r"""
    Check each step of a completion by what the completion itself states, without a reference or a model. It can be a
    task's `check_steps`.

    A step is incorrect in three cases:

    - An equation in it does not hold: `48 / 2 = 23`, one of the equals signs of a chain, `59 - 16 is 42`. A result may
      be rounded, up or down, to the decimals it has.
    - A calculator mark such as `<<48/2=24>>24` does not hold, or the number after it is not its result.
    - It states the final answer, and that is none of the results before it.

    Everything else passes, so that a correct solution is not rejected: steps without equations, equations with
    variables or with notation that is not understood, equations that mix units such as minutes and hours, numbers on
    the left of a computation (`40 = 5 * 8` looks like `8 batches = 5 * 8`, which is no claim), and every step where a
    modulus or another base is mentioned. For the same reason the final answer is compared only if it is a number
    stated on its own (`The answer is 24`, `#### 24`, or a box that is not inside a sentence), and only if no
    other number stands between the last equation and it. It may be any earlier result, because the last equation may
    be a check of it. It may be rounded, or a hundred times as much or as little: a percentage, or cents for dollars.

    Args:
        problem (`str`):
            Problem. It counts only where it mentions a modulus or the base of numbers: then all steps pass.
        completion (`str`):
            Solution to check.
        step_separator (`str`, *optional*, defaults to `"\n"`):
            Separator between steps. For a task with another one, bind it with `functools.partial`.

    Returns:
        `list[bool]`:
            One verdict for each step of [`~rlmec_trl.data.steps.split_steps`].

    Examples:

    ```python
    >>> check_stated_steps("", "48 / 2 = 24\n48 + 24 = 62\nThe answer is 62")
    [True, False, True]
    >>> check_stated_steps("", "48 / 2 = 24\n48 + 24 = 72\nThe answer is 62")
    [True, True, False]
    ```
    """
    steps = split_steps(completion, step_separator)
    if _OTHER_ARITHMETIC.search(problem) or _OTHER_ARITHMETIC.search(completion):
        return [True] * len(steps)
    found = find_answer(completion)
    position, answer = (-1, "") if found is None else found
    verdicts, start = [], 0
    results: list[Expression] = []
    ends_in_result = False
    for step in steps:
        is_correct, step_results, step_ends_in_result = _read_step(step)
        if start <= position < start + len(step):
            before = step[: position - start]
            if _NUMBER_OR_RELATION.search(before):
                _, before_results, ends_in_result = _read_step(before)
                results += before_results
            in_a_sentence = completion.startswith("\\", position) and not _BEFORE_LONE_BOX.search(before)
            is_compared = ends_in_result and not in_a_sentence
            is_correct = is_correct and (not is_compared or _is_among(results, answer))
        elif _NUMBER_OR_RELATION.search(step):
            results += step_results
            ends_in_result = step_ends_in_result
        verdicts.append(is_correct)
        start += len(step)
    return verdicts


def read_step(step: str) -> tuple[bool, list[Equation]]:
    """Whether all that a step states holds, and its equations, those in calculator marks included."""
    holds, *_ = _read_step(step)
    equations = [equation for mark in CALCULATOR_MARK.finditer(step) for equation in read_equations(mark[1])[0]]
    return holds, equations + read_equations(CALCULATOR_MARK.sub(r" \2", step))[0]


def _read_step(step: str) -> tuple[bool, list[Expression], bool]:
    """Whether all that a step states holds, its results, and whether no other number follows the last equation."""
    marks_hold = all(_mark_holds(*mark.groups()) for mark in CALCULATOR_MARK.finditer(step))
    equations, results, is_last = read_equations(CALCULATOR_MARK.sub(r" \2", step))
    return marks_hold and all(equation.holds() for equation in equations), results, is_last


def _mark_holds(mark: str, written: str | None) -> bool:
    equations, *_ = read_equations(mark)
    result, number = read_number(mark.rpartition("=")[2]), read_number(written or "")
    is_copied = result is None or number is None or result.equals(number)
    return is_copied and all(equation.holds() for equation in equations)


def _is_among(results: list[Expression], answer: str) -> bool:
    number = read_number(answer)
    return number is None or any(
        result.equals(number) or any(a == 100 * b or b == 100 * a for a in result.values for b in number.values)
        for result in results
    )
