"""Student's t interval of a mean over seeds."""

import math
import statistics
from collections.abc import Sequence


def t_interval(values: Sequence[float], low: float, high: float) -> tuple[float, float] | None:
    """
    95% t interval of the mean of a few values, such as the accuracies of several seeds. It assumes that those of all
    seeds are distributed normally.

    Args:
        values (`Sequence[float]`):
            One value for each seed.
        low, high (`float`):
            Smallest and largest value that the mean can have. The interval ends there.

    Returns:
        `tuple[float, float]`: lower and upper bound. `None` with fewer than two values, which have no spread.
    """
    if len(values) < 2:
        return None
    mean = statistics.fmean(values)
    half_width = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return max(low, mean - half_width), min(high, mean + half_width)


def t_quantile(degrees: int, confidence: float = 0.95) -> float:
    """
    The value that the absolute value of Student's t stays under with a given probability.

    Args:
        degrees (`int`):
            Degrees of freedom, at least 1.
        confidence (`float`, *optional*, defaults to `0.95`):
            The probability, between 0 and 1. The default gives the quantile at 0.975.

    Raises:
        `ValueError`: If one of them is out of its range.
    """
    if degrees < 1 or not 0 < confidence < 1:
        raise ValueError(f"There is no t quantile of {degrees} degrees of freedom and confidence {confidence}.")
    low, high = 0.0, math.pi / 2
    for _ in range(100):  # until no number is between the two
        middle = (low + high) / 2
        low, high = (middle, high) if _probability(middle, degrees) < confidence else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _probability(angle: float, degrees: int) -> float:
    """P(|t| < sqrt(degrees) * tan(angle)): for an integer number of degrees of freedom a finite sum of cosines."""
    # Abramowitz and Stegun, 26.7.3 (odd) and 26.7.4 (even)
    cosine, odd = math.cos(angle), degrees % 2
    total, term = 0.0, cosine if odd else 1.0
    for power in range(1 + odd, degrees, 2):
        total += term
        term *= cosine**2 * power / (power + 1)
    return (angle + math.sin(angle) * total) * 2 / math.pi if odd else math.sin(angle) * total
