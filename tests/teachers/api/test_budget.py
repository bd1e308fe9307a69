"""How much may still be spent, and the estimate of the costs."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlmec_trl.teachers.api.budget import Budget, Estimate, describe_estimate
from rlmec_trl.teachers.api.config import TeacherConfig


PRICES = {"input_price": 5.0, "output_price": 25.0}


def spend(budget, cost, concurrency, seed=0, most=1000):
    """Send requests as long as the budget allows, several at a time that end in any order; returns their number."""
    rng = random.Random(seed)
    asked = 0
    while True:
        while budget.under_way < concurrency and asked < most and budget.affords(1):
            budget.under_way += 1
            asked += 1
        if budget.under_way == 0:
            return asked
        for _ in range(rng.randint(1, budget.under_way)):
            budget.add(cost)
            budget.under_way -= 1


# --- The budget ------------------------------------------------------------------------------------------------------


@given(
    limit=st.floats(0.001, 1000),
    fraction=st.floats(0.001, 1),
    num_before=st.integers(0, 5),
    concurrency=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_the_limit_is_kept_and_used_up_if_answers_cost_the_same(limit, fraction, num_before, concurrency, seed):
    cost = limit * fraction
    budget = Budget(limit, [cost] * num_before)
    budget.expected_cost = cost
    asked = spend(budget, cost, concurrency, seed)
    total = num_before + asked
    assert asked == 0 or total * cost <= limit * (1 + 1e-9)
    # What is left is not enough for another answer
    assert asked == 1000 or (total + 1) * cost > limit * (1 - 1e-9)


@given(costs=st.lists(st.floats(0.1, 2.0), min_size=1, max_size=60), concurrency=st.integers(1, 8))
def test_costs_that_differ_exceed_the_limit_by_no_more_than_the_answers_in_flight(costs, concurrency):
    limit = 10.0
    budget = Budget(limit, [])
    budget.expected_cost = costs[0]
    waiting, under_way = list(costs), []
    while True:
        while waiting and len(under_way) < concurrency and budget.affords(1):
            budget.under_way += 1
            under_way.append(waiting.pop())
        if not under_way:
            break
        assert budget.spent < limit or not budget.affords(1)
        budget.add(under_way.pop(0))
        budget.under_way -= 1
    assert budget.spent < limit + 2.0 * concurrency
    assert budget.spent == pytest.approx(sum(costs) - sum(waiting))


def test_the_expected_cost_is_used_until_the_first_answer():
    budget = Budget(1.0, [])
    budget.expected_cost = 0.125
    assert budget.affordable() == 8
    assert budget.affords(8) and not budget.affords(9)
    budget.add(0.25)
    assert budget.affordable() == 3
    budget.add(0.05)
    # 0.70 are left, and answers cost 0.15 on average
    assert budget.affordable() == 4


def test_what_earlier_runs_spent_counts():
    budget = Budget(1.0, iter([0.25, 0.25]))
    budget.expected_cost = 100.0
    assert budget.spent == 0.5
    assert budget.affordable() == 2


def test_answers_in_flight_count_as_spent():
    budget = Budget(1.0, [0.125])
    budget.under_way = 5
    assert budget.affords(2) and not budget.affords(3)
    budget.under_way = 9
    assert budget.affordable() == 0


@pytest.mark.parametrize("costs", [[1.0], [0.7, 0.7], [1.0, 0.0, 0.0]])
def test_nothing_is_affordable_once_the_limit_is_reached(costs):
    budget = Budget(1.0, costs)
    assert budget.affordable() == 0 and not budget.affords(1)
    # With a higher limit there is
    assert Budget(10.0, costs).affords(1)


def test_nothing_is_affordable_if_the_limit_is_zero():
    assert not Budget(0.0, []).affords(1)


def test_without_a_limit_everything_is_affordable():
    budget = Budget(None, [5.0])
    budget.expected_cost, budget.under_way = 3.0, 100
    assert budget.affordable() == math.inf and budget.affords(10**9)
    budget.add(2.0)
    assert budget.spent == 7.0


def test_answers_that_cost_nothing_are_always_affordable():
    assert Budget(1.0, [0.0, 0.0]).affordable() == math.inf


def test_an_answer_of_unknown_cost_changes_nothing():
    budget = Budget(1.0, [0.25])
    budget.add(None)
    assert (budget.spent, budget.affordable()) == (0.25, 3)


@pytest.mark.parametrize("num_processes", [2, 3, 4])
def test_processes_that_share_the_rest_keep_the_limit_together(num_processes):
    earlier, limit, cost = [0.5, 0.5], 10.0, 0.5
    budgets = [Budget(limit, earlier, 1 / num_processes) for _ in range(num_processes)]
    asked = [spend(budget, cost, 4) for budget in budgets]
    assert len(set(asked)) == 1
    # Each share is rounded down to whole answers
    assert 1 + sum(asked) * cost <= limit < 1 + (sum(asked) + num_processes) * cost


def test_a_share_of_nothing_is_nothing():
    assert not Budget(1.0, [3.0], 0.5).affords(1)


NOTHING_NEW = (
    "No new request: every row has an answer. Rows whose answers failed are requested again, up to `--max_attempts` "
    "answers each."
)


# --- Description -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("estimate", "fields", "said"),
    [
        (Estimate(0), {}, NOTHING_NEW),
        (Estimate(0), PRICES | {"max_cost": 5.0}, NOTHING_NEW),
        (
            Estimate(1234),
            PRICES,
            "1,234 requests. This API cannot count their tokens beforehand.",
        ),
        (
            Estimate(1234, 500_000, 70_000),
            {},
            "1,234 requests, about 500,000 tokens in and 70,000 out. For the cost, look up the teacher's prices and "
            "set `--input_price` and `--output_price`.",
        ),
        (
            Estimate(1234, 500_000, 70_000, 4.25, 1255.5),
            PRICES | {"max_tokens": 4096},
            "1,234 requests, about 500,000 tokens in and 70,000 out, reasoning not included: about 4.25 dollars "
            "(1,255.50 if every answer had 4,096 tokens).",
        ),
        (
            Estimate(1234, 500_000, 70_000, 4.25, 1255.5),
            PRICES | {"max_tokens": 4096, "max_cost": 1500.0},
            "1,234 requests, about 500,000 tokens in and 70,000 out, reasoning not included: about 4.25 dollars "
            "(1,255.50 if every answer had 4,096 tokens). The run stops at 1,500.00 dollars.",
        ),
        # A price of zero is a known price
        (
            Estimate(2, 10, 20, 0.0, 0.0),
            {"input_price": 0.0, "output_price": 0.0, "max_cost": 0.0},
            "2 requests, about 10 tokens in and 20 out, reasoning not included: about 0.00 dollars (0.00 if every "
            "answer had 8,192 tokens). The run stops at 0.00 dollars.",
        ),
    ],
)
def test_an_estimate_is_described_in_a_sentence(estimate, fields, said):
    assert describe_estimate(estimate, TeacherConfig(**fields)) == said
