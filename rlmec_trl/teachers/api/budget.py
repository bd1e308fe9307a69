"""Cost estimates and the budget of an API teacher."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .config import TeacherConfig


@dataclass(frozen=True)
class Estimate:
    """
    What the rows without an answer will cost, estimated before any request is sent.

    Args:
        requests (`int`):
            Number of requests.
        input_tokens, output_tokens (`int`, *optional*):
            Expected tokens with one answer per request; `None` if the API cannot count them. Reasoning tokens
            are not included.
        cost (`float`, *optional*):
            Expected dollars, `None` if tokens or prices are unknown.
        highest_cost (`float`, *optional*):
            Dollars if every answer were as long as `max_tokens` allows.
    """

    requests: int
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost: float | None = None
    highest_cost: float | None = None


class Budget:
    """
    Dollars that may still be spent.

    Args:
        limit (`float`, *optional*):
            Maximum total over all answers; no limit if `None`.
        costs (`Iterable[float]`):
            Costs of earlier answers.
        share (`float`, *optional*, defaults to `1.0`):
            Share of what is left that this process may spend.
        expected_cost (`float`, *optional*, defaults to `0.0`):
            Assumed cost of an answer until there is one. Better too high than too low, because a batch is submitted
            as a whole.
    """

    def __init__(self, limit: float | None, costs: Iterable[float], share: float = 1.0, expected_cost: float = 0.0):
        costs = list(costs)
        self.spent = sum(costs)
        self.under_way = 0
        self.expected_cost = expected_cost
        self._num_answers = len(costs)
        self._limit = None if limit is None else self.spent + (limit - self.spent) * share

    def add(self, cost: float | None) -> None:
        """Count an answer."""
        if cost is not None:
            self.spent += cost
            self._num_answers += 1

    def affords(self, num_answers: int) -> bool:
        """Whether so many more answers stay within the limit, if they and those in flight have the mean cost."""
        return num_answers <= self.affordable()

    def affordable(self) -> float:
        """Number of further answers that stay within the limit: a whole number, or infinity."""
        if self._limit is None:
            return math.inf
        if self.spent >= self._limit:
            return 0
        mean = self.spent / self._num_answers if self._num_answers else self.expected_cost
        if mean == 0:
            return math.inf
        # One answer is needed to learn what answers cost
        least = 0 if self._num_answers or self.under_way else 1
        return max(least, (self._limit - self.spent) // mean - self.under_way)


def describe_estimate(estimate: Estimate, config: TeacherConfig) -> str:
    """Describe an estimate in a sentence."""
    if estimate.requests == 0:
        return (
            "No new request: every row has an answer. Rows whose answers failed are requested again, up to "
            "`--max_attempts` answers each."
        )
    text = f"{estimate.requests:,} requests"
    if estimate.input_tokens is None:
        return f"{text}. This API cannot count their tokens beforehand."
    text += f", about {estimate.input_tokens:,} tokens in and {estimate.output_tokens:,} out"
    if estimate.cost is None:
        return f"{text}. For the cost, look up the teacher's prices and set `--input_price` and `--output_price`."
    text += (
        f", reasoning not included: about {estimate.cost:,.2f} dollars ({estimate.highest_cost:,.2f} if every answer "
        f"had {config.max_tokens:,} tokens)."
    )
    if config.max_cost is not None:
        text += f" The run stops at {config.max_cost:,.2f} dollars."
    return text
