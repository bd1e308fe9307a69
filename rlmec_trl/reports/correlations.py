"""Correlations between predicted and correct scores."""

import math
from collections.abc import Sequence

import numpy as np


def pearson(predicted: Sequence[float], correct: Sequence[float]) -> float:
    """
    Pearson's correlation coefficient.

    Args:
        predicted, correct (`Sequence[float]`):
            Scores, one of each for every row.

    Returns:
        `float`: Between -1 and 1. NaN where it is undefined: with fewer than two rows, or if all scores of one kind
        are equal.

    Raises:
        `ValueError`: If there are more scores of one kind.
    """
    if len(predicted) != len(correct):
        raise ValueError(f"There are {len(predicted)} predicted scores for {len(correct)} correct ones.")
    if len(predicted) == 0:
        return math.nan
    first, second = (np.asarray(scores, dtype=np.float64) for scores in (predicted, correct))
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    first, second = first - first.mean(), second - second.mean()
    value = np.dot(first, second) / math.sqrt(np.dot(first, first) * np.dot(second, second))
    return float(np.clip(value, -1, 1))  # rounding must not move it past the bounds


def spearman(predicted: Sequence[float], correct: Sequence[float]) -> float:
    """Spearman's rank correlation: [`pearson`] of the ranks, equal scores sharing the mean of theirs."""
    return pearson(_ranks(predicted), _ranks(correct))


def _ranks(scores: Sequence[float]) -> np.ndarray:
    _, inverse, counts = np.unique(np.asarray(scores, dtype=np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2)[inverse]
