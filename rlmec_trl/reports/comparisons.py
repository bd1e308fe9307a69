"""Two policies on the same problems: how much better is one, and how much of it may be chance?"""

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.errors import UserError
from ..data.marks import read_object
from .t_intervals import t_interval


RESAMPLES = 10_000
# Row numbers that are drawn at a time, to bound the memory
_DRAWN = 1_000_000


class ComparisonError(UserError, ValueError):
    """Results that cannot be compared row by row; the message names the files and says what to do."""


@dataclass(frozen=True, eq=False)
class Outcomes:
    """
    Which problems a policy answered correctly.

    Args:
        file (`str`):
            The result of `evaluate.py` that they are from.
        problems (`str`):
            Hash of the problems and their answers.
        correct (`np.ndarray` of shape `(rows,)`, bool):
            Whether each answer is correct.
    """

    file: str
    problems: str
    correct: np.ndarray

    @property
    def mean(self) -> float:
        """Share of correct answers."""
        return float(self.correct.mean())


def has_outcomes(result: dict[str, Any]) -> bool:
    """Whether a result of `evaluate.py` has the outcome of each row. Those of earlier versions do not."""
    return {"outcomes", "problems"} <= result.keys()


def read_outcomes(file: str | os.PathLike) -> Outcomes:
    """
    Read which problems a policy answered correctly from a result of `evaluate.py`.

    Raises:
        [`ComparisonError`]: If the file is no such result, or one of an earlier version, without outcomes.
    """
    result = read_object(Path(file))
    if result is None or not {"correct", "total"} <= result.keys():
        raise ComparisonError(
            f"{str(file)!r} is not a result of `evaluate.py`. Name one, which `--output_file` writes."
        )
    if not has_outcomes(result):
        raise ComparisonError(
            f"{str(file)!r} has no outcomes of its rows, because an earlier version of `evaluate.py` wrote it. "
            "Evaluate the policy again."
        )
    text = result["outcomes"]
    is_whole = isinstance(text, str) and text and not set(text) - {"0", "1"}
    if not is_whole or (text.count("1"), len(text)) != (result["correct"], result["total"]):
        raise ComparisonError(
            f"{str(file)!r} was changed: its `outcomes` do not have {result['correct']} of {result['total']} rows "
            "correct. Evaluate the policy again."
        )
    return Outcomes(str(file), str(result["problems"]), np.array([letter == "1" for letter in text]))


def compare(first: Sequence[Outcomes], second: Sequence[Outcomes], seed: int = 0) -> dict[str, Any]:
    """
    Compare two policies, or two methods over several seeds, problem by problem.

    Problems are resampled within each seed. Seeds that were evaluated on the same problems get the same resamples, and
    count as one problem in McNemar's test: what makes a problem hard is the same for all of them.

    Args:
        first, second (`Sequence[Outcomes]`):
            For each seed, the outcomes of a policy.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the resamples.

    Returns:
        `dict`:
            - `accuracy` (`list[float]`): mean accuracy of the first and of the second over seeds.
            - `difference` (`float`): the first minus the second.
            - `interval` (`list[float]`): its 95% paired bootstrap interval over problems.
            - `t_interval` (`list[float]` or `None`): its 95% t interval over seeds, `None` with one.
            - `only_first`, `only_second` (`int`): problems that only one of them answers correctly, or answers
              correctly in more seeds.
            - `p_value` (`float`): McNemar's test of these two numbers.
            - `seeds`, and `total`, the number of different problems of all seeds.

    Raises:
        [`ComparisonError`]: If the two were evaluated on other problems, or there is nothing to compare.
    """
    if len(first) != len(second) or not first:
        raise ComparisonError(f"There are {len(first)} and {len(second)} results to compare. Give one pair a seed.")
    # For each set of problems, the differences of its seeds: arrays of shape (rows,), each -1, 0 or 1
    differences: dict[str, list[np.ndarray]] = {}
    for one, other in zip(first, second, strict=True):
        _check_same_problems(one, other)
        differences.setdefault(one.problems, []).append(one.correct.astype(np.int64) - other.correct)
    of_seeds = [float(rows.mean()) for group in differences.values() for rows in group]
    sums = [np.sum(group, axis=0) for group in differences.values()]
    only_first, only_second = (int(sum(np.sum(sign * rows > 0) for rows in sums)) for sign in (1, -1))
    over_seeds = t_interval(of_seeds, -1.0, 1.0)
    return {
        "accuracy": [statistics.fmean(outcomes.mean for outcomes in side) for side in (first, second)],
        "difference": statistics.fmean(of_seeds),
        "interval": list(_bootstrap_interval(sums, len(of_seeds), np.random.default_rng(seed))),
        "t_interval": None if over_seeds is None else list(over_seeds),
        "only_first": only_first,
        "only_second": only_second,
        "p_value": mcnemar_p_value(only_first, only_second),
        "seeds": len(of_seeds),
        "total": sum(len(rows) for rows in sums),
    }


def _check_same_problems(one: Outcomes, other: Outcomes) -> None:
    if len(one.correct) != len(other.correct):
        found = f"{len(one.correct)} and {len(other.correct)} problems"
    elif one.problems != other.problems:
        found = f"{len(one.correct)} problems each, but not the same in the same order"
    else:
        return
    raise ComparisonError(
        f"{one.file!r} and {other.file!r} cannot be compared: they have {found}. Evaluate both on the same dataset."
    )


def _bootstrap_interval(sums: Sequence[np.ndarray], num_seeds: int, rng: np.random.Generator) -> tuple[float, float]:
    """The middle 95% of the mean difference over seeds, where problems are drawn again with replacement."""
    means = np.zeros(RESAMPLES)
    for rows in sums:
        size = max(1, _DRAWN // len(rows))
        for start in range(0, RESAMPLES, size):
            drawn = rng.integers(len(rows), size=(min(size, RESAMPLES - start), len(rows)))
            means[start : start + size] += rows[drawn].mean(axis=1)
    low, high = np.quantile(means / num_seeds, (0.025, 0.975))
    return float(low), float(high)


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """
    Two-sided p value of McNemar's exact test: if both were equally good, either would be as likely to be the only one
    with a correct answer.

    Args:
        only_first, only_second (`int`):
            Number of problems that only the first, and only the second answers correctly.
    """
    total, smaller = only_first + only_second, min(only_first, only_second)
    # Integers, whose quotient is exact however many problems there are
    coefficient = tail = 1
    for k in range(smaller):
        coefficient = coefficient * (total - k) // (k + 1)
        tail += coefficient
    return min(1.0, 2 * tail / 2**total)
