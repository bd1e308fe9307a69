import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlmec_trl.reports.accuracy import Accuracy, wilson_interval


COUNTS = st.integers(1, 5000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))


def test_wilson_interval_by_hand():
    # 8 of 10: center (0.8 + 0.19208) / 1.38416 = 0.71674, half width 1.96 * sqrt(0.025604) / 1.38416 = 0.22658
    assert wilson_interval(8, 10) == pytest.approx((0.49016, 0.94332), abs=1e-5)


@pytest.mark.parametrize(("correct", "expected"), [(0, (0.0, 0.27753)), (10, (0.72247, 1.0))])
def test_wilson_interval_at_the_ends(correct, expected):
    # Its closed form there is z^2 / (n + z^2) = 3.8416 / 13.8416 = 0.27754, on the one side.
    assert wilson_interval(correct, 10) == pytest.approx(expected, abs=2e-5)


@given(COUNTS)
def test_bounds_solve_the_score_test(counts):
    # The interval holds every p whose z-score |mean - p| / sqrt(p (1 - p) / n) is at most z: its ends meet it exactly.
    correct, total = counts
    mean = correct / total
    low, high = wilson_interval(correct, total)
    assert 0 <= low <= mean <= high <= 1
    for bound in (low, high):
        if 0 < bound < 1:
            assert abs(mean - bound) == pytest.approx(1.96 * math.sqrt(bound * (1 - bound) / total), rel=1e-6)


@given(COUNTS)
def test_correct_and_incorrect_are_symmetric(counts):
    correct, total = counts
    low, high = wilson_interval(correct, total)
    assert wilson_interval(total - correct, total) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_more_answers_and_smaller_z_narrow_the_interval():
    def width(correct, total, z=1.96):
        low, high = wilson_interval(correct, total, z)
        return high - low

    assert width(800, 1000) < width(80, 100) < width(8, 10)
    assert width(8, 10, z=1.0) < width(8, 10)


def test_without_answers_the_interval_is_everything():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert math.isnan(Accuracy(0, 0).mean)
    assert Accuracy(0, 0).interval == (0.0, 1.0)


@pytest.mark.parametrize(("correct", "total"), [(-1, 10), (11, 10), (1, 0), (0, -1)])
def test_impossible_counts_are_refused(correct, total):
    with pytest.raises(ValueError, match="between 0 and `total`"):
        wilson_interval(correct, total)
    with pytest.raises(ValueError, match="between 0 and `total`"):
        Accuracy(correct, total)


def test_accuracy():
    accuracy = Accuracy(correct=8, total=10)
    assert accuracy.mean == 0.8
    assert accuracy.interval == wilson_interval(8, 10)
