"""Correlations against slow references."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlmec_trl.reports.correlations import pearson, spearman


def naive_pearson(first, second):
    n = len(first)
    mean_first, mean_second = sum(first) / n, sum(second) / n
    covariance = sum((a - mean_first) * (b - mean_second) for a, b in zip(first, second, strict=True))
    spread = sum((a - mean_first) ** 2 for a in first) * sum((b - mean_second) ** 2 for b in second)
    return covariance / math.sqrt(spread)


def naive_ranks(scores):
    """The mean of the places that equal scores take when all are sorted."""
    places = [[place for place, other in enumerate(sorted(scores), 1) if other == score] for score in scores]
    return [sum(each) / len(each) for each in places]


pairs = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30).filter(
    lambda rows: all(len(set(column)) > 1 for column in zip(*rows, strict=True))
)


@given(pairs)
def test_correlations_are_those_of_their_definitions(rows):
    first, second = zip(*rows, strict=True)
    assert pearson(first, second) == pytest.approx(naive_pearson(first, second), abs=1e-12)
    ranks = naive_ranks(first), naive_ranks(second)
    assert spearman(first, second) == pytest.approx(naive_pearson(*ranks), abs=1e-12)


def test_a_case_worked_out_by_hand():
    # Deviations -1, 0, 1 and -2, -1, 3: covariance 5, spreads 2 and 14
    assert pearson([1, 2, 3], [0, 1, 5]) == pytest.approx(5 / math.sqrt(28))
    assert spearman([1, 2, 3], [0, 1, 5]) == pytest.approx(1)
    # Ranks 1.5, 1.5, 3 and 1, 2, 3
    assert spearman([4, 4, 5], [0, 1, 2]) == pytest.approx(1.5 / math.sqrt(1.5 * 2))


@pytest.mark.parametrize(("first", "second"), [([], []), ([1], [2]), ([3, 3], [1, 2]), ([0.1] * 3, [1, 2, 3])])
def test_a_correlation_that_is_undefined_is_nan(first, second):
    assert math.isnan(pearson(first, second))
    assert math.isnan(spearman(first, second))


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20).filter(lambda scores: np.ptp(scores) > 1e-3))
def test_scores_correlate_fully_with_themselves(scores):
    assert pearson(scores, scores) == pytest.approx(1)
    assert -1 <= pearson(scores, [-score for score in scores]) <= 1


def test_scores_have_to_be_paired():
    with pytest.raises(ValueError, match="2 predicted scores for 1 correct"):
        pearson([1, 2], [1])
