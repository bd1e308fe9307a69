"""The tasks that the recipes know by name: what their prompts look like and how their solutions are checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rlmec_trl.data import arithmetic, prompts
from rlmec_trl.data.answers import check_choice, check_math


@dataclass(frozen=True)
class Task:
    """
    What the stages need to know about a task.

    Args:
        wording ([`~rlmec_trl.data.prompts.Wording`]):
            Templates of the prompts.
        check_answer (`Callable[[str, str], bool]`):
            Whether a completion reaches an answer, called as `check_answer(completion, answer)`.
        check_steps (`Callable[[str, str], list[bool]]`, *optional*):
            Which steps of a completion are right, called as `check_steps(problem, completion)`. `None` where steps
            cannot be checked without a model.
    """

    wording: prompts.Wording
    check_answer: Callable[[str, str], bool]
    check_steps: Callable[[str, str], list[bool]] | None = None


_TASKS = {
    "arithmetic": Task(arithmetic.WORDING, arithmetic.check_answer, arithmetic.check_steps),
    "math": Task(prompts.WORDING, check_math),
    "choice": Task(prompts.WORDING, check_choice),
}


def load_task(name: str) -> Task:
    """
    Look up a task: `"arithmetic"` (the built-in one), `"math"` (a number or an expression as the answer) or `"choice"`
    (a short text, such as an option's letter or yes and no, as the answer).
    """
    if name not in _TASKS:
        raise ValueError(f"Unknown task {name!r}; choose one of {', '.join(map(repr, _TASKS))}.")
    return _TASKS[name]
