"""t intervals agree with published tables and stay around their mean."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlmec_trl.reports.t_intervals import t_interval, t_quantile


# Quantiles at 0.95, 0.975 and 0.995, from tables in print
TABLE = {
    1: (6.314, 12.706, 63.657),
    2: (2.920, 4.303, 9.925),
    3: (2.353, 3.182, 5.841),
    4: (2.132, 2.776, 4.604),
    5: (2.015, 2.571, 4.032),
    6: (1.943, 2.447, 3.707),
    7: (1.895, 2.365, 3.499),
    8: (1.860, 2.306, 3.355),
    9: (1.833, 2.262, 3.250),
    10: (1.812, 2.228, 3.169),
    20: (1.725, 2.086, 2.845),
    29: (1.699, 2.045, 2.756),
    30: (1.697, 2.042, 2.750),
    60: (1.671, 2.000, 2.660),
    120: (1.658, 1.980, 2.617),
}


@pytest.mark.parametrize("degrees", TABLE)
def test_quantiles_are_those_of_the_tables(degrees):
    found = [t_quantile(degrees, confidence) for confidence in (0.90, 0.95, 0.99)]
    assert found == pytest.approx(TABLE[degrees], abs=5.1e-4)


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_few_degrees_of_freedom_have_a_closed_form(confidence):
    assert t_quantile(1, confidence) == pytest.approx(math.tan(math.pi / 2 * confidence), rel=1e-10)
    assert t_quantile(2, confidence) == pytest.approx(confidence * math.sqrt(2 / (1 - confidence**2)), rel=1e-10)


def test_many_degrees_of_freedom_are_the_normal_distribution():
    assert t_quantile(10_000) == pytest.approx(statistics.NormalDist().inv_cdf(0.975), abs=5e-4)


@pytest.mark.parametrize(("degrees", "confidence"), [(0, 0.95), (3, 0.0), (3, 1.0), (3, math.nan)])
def test_what_has_no_quantile_is_refused(degrees, confidence):
    with pytest.raises(ValueError, match="no t quantile"):
        t_quantile(degrees, confidence)


def test_the_interval_of_a_worked_example():
    # Mean .7, standard deviation .1, 4.303 * .1 / sqrt(3) = .248
    assert t_interval([0.6, 0.7, 0.8], 0.0, 1.0) == pytest.approx((0.452, 0.948), abs=5e-4)


@pytest.mark.parametrize("values", [[], [0.5]])
def test_fewer_than_two_seeds_have_no_interval(values):
    assert t_interval(values, 0.0, 1.0) is None


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_the_interval_contains_the_mean_ends_at_the_bounds_and_turns_with_the_sign(values):
    low, high = t_interval(values, 0.0, 1.0)
    assert 0 <= low <= high <= 1
    assert low - 1e-12 <= statistics.fmean(values) <= high + 1e-12
    negated = t_interval([-value for value in values], -1.0, 0.0)
    assert negated == pytest.approx((-high, -low))
