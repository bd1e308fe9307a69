"""Accuracy with its counts and a confidence interval."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.marks import read_object


def wilson_interval(correct: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """
    Wilson score interval of a proportion.

    Unlike the normal approximation, it stays inside [0, 1] and keeps its coverage near 1, where good generative reward
    models are.

    Args:
        correct (`int`):
            Number of successes.
        total (`int`):
            Number of trials. With none, the interval is (0, 1).
        z (`float`, *optional*, defaults to `1.96`):
            Width in standard deviations of a normal distribution; 1.96 gives a 95% interval.

    Returns:
        `tuple[float, float]`: lower and upper bound.

    Raises:
        `ValueError`: If `correct` is not between 0 and `total`.
    """
    if not 0 <= correct <= total:
        raise ValueError(f"`correct` must be between 0 and `total`, got {correct} of {total}.")
    if total == 0:
        return 0.0, 1.0
    mean = correct / total
    shrinkage = 1 + z**2 / total
    center = (mean + z**2 / (2 * total)) / shrinkage
    half_width = z * math.sqrt(mean * (1 - mean) / total + z**2 / (4 * total**2)) / shrinkage
    # At 0 and 1 the bound equals the mean; rounding must not move it past the mean.
    low = 0.0 if correct == 0 else center - half_width
    high = 1.0 if correct == total else center + half_width
    return low, high


@dataclass(frozen=True)
class Accuracy:
    """
    Share of correct answers.

    Args:
        correct (`int`):
            Number of correct answers.
        total (`int`):
            Number of answers.

    Raises:
        `ValueError`: If `correct` is not between 0 and `total`.
    """

    correct: int
    total: int

    def __post_init__(self):
        if not 0 <= self.correct <= self.total:
            raise ValueError(f"`correct` must be between 0 and `total`, got {self.correct} of {self.total}.")

    @property
    def mean(self) -> float:
        """Share of correct answers; NaN if there are no answers."""
        return self.correct / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95% Wilson interval of `mean`."""
        return wilson_interval(self.correct, self.total)


def read_accuracy(path: str | Path) -> Accuracy | None:
    """
    The accuracy in a result of `evaluate.py`, `None` if a file is something else. In a vocabulary, the names of one
    may have numbers, too, but no interval.
    """
    result = read_object(path) or {}
    return read_counts(result) if isinstance(result.get("interval"), list) else None


def read_counts(counts: Any) -> Accuracy | None:
    """The accuracy that a value of a JSON file has as `correct` and `total`, `None` where it is no such value."""
    if not isinstance(counts, dict):
        return None
    correct, total = counts.get("correct"), counts.get("total")
    if type(correct) is not int or type(total) is not int or not 0 <= correct <= total:
        return None
    return Accuracy(correct, total)
