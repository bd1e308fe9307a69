"""Checks of the steps of a solution by what its text states."""

from __future__ import annotations

import re

from ..data.steps import split_steps
from .answers import find_answer
from .equations import Expression, read_equations, read_number


# A calculator mark, <<48/2=24>>, and the number written after it
_MARK = re.compile(r"<<([^<>\n]*)>>(?:[ $€£]*(-?\d[\d,]*(?:\.\d+)?%?))?")
# What may precede a box that only states the answer. Other boxes may hold the result of a step that is not written
_BEFORE_LONE_BOX = re.compile(r"(?:^|answer\s+is)\W*$", re.IGNORECASE)
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
    - It states the final answer, and that is not the last result.

    Everything else passes, so that a correct solution is not rejected: steps without equations, equations with
    variables or with notation that is not understood, equations that mix units such as minutes and hours, and
    numbers on the left of a computation (`40 = 5 * 8` looks like `8 batches = 5 * 8`, which is no claim). For the
    same reason the final answer is compared only if it is a number stated on its own (`The answer is 24`,
    `#### 24`, or a box that is not inside a sentence), and only if no other number stands between the last
    equation and it. It may be the last result rounded, or a hundred times as much or as little: a percentage, or
    cents for dollars.

    Args:
        problem (`str`):
            Not used. It is here because every `check_steps` is called as `check_steps(problem, completion)`.
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
    found = find_answer(completion)
    position, answer = (-1, "") if found is None else found
    verdicts, start = [], 0
    last_result: Expression | None = None
    for step in split_steps(completion, step_separator):
        is_correct, result = _read_step(step)
        if start <= position < start + len(step):
            before = step[: position - start]
            if _NUMBER_OR_RELATION.search(before):
                last_result = _read_step(before)[1]
            in_a_sentence = completion.startswith("\\", position) and not _BEFORE_LONE_BOX.search(before)
            is_correct = is_correct and (in_a_sentence or _may_follow(last_result, answer))
        elif _NUMBER_OR_RELATION.search(step):
            last_result = result
        verdicts.append(is_correct)
        start += len(step)
    return verdicts


def _read_step(step: str) -> tuple[bool, Expression | None]:
    """Whether all that a step states holds, and its last result: `None` if another number follows it."""
    marks_hold = all(_mark_holds(*mark.groups()) for mark in _MARK.finditer(step))
    equations, is_last = read_equations(_MARK.sub(r" \2", step))
    holds = marks_hold and all(equation.holds() for equation in equations)
    return holds, equations[-1].right if is_last else None


def _mark_holds(mark: str, written: str | None) -> bool:
    equations, _ = read_equations(mark)
    result, number = read_number(mark.rpartition("=")[2]), read_number(written or "")
    is_copied = result is None or number is None or result.equals(number)
    return is_copied and all(equation.holds() for equation in equations)


def _may_follow(result: Expression | None, answer: str) -> bool:
    number = read_number(answer)
    if result is None or number is None or result.equals(number):
        return True
    return any(a == 100 * b or b == 100 * a for a in result.values for b in number.values)
