"""What asking a teacher will cost, and how much of it may still be spent."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .config import TeacherConfig


@dataclass(frozen=True)
class Estimate:
    """
    What the questions that are still open will come to, before any of them is asked.

    Args:
        requests (`int`):
            Number of questions.
        input_tokens, output_tokens (`int`, *optional*):
            Expected tokens, if each question is asked once; `None` where the API cannot count them. What the teacher
            thinks before it answers is not among them.
        cost (`float`, *optional*):
            Expected dollars, `None` where tokens or prices are not known.
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
            Greatest sum over all answers; no limit where `None`.
        costs (`Iterable[float]`):
            What earlier answers have cost.
        share (`float`, *optional*, defaults to `1.0`):
            Part of what is left that this process may spend.
        expected_cost (`float`, *optional*, defaults to `0.0`):
            What an answer is taken to cost until there is one: rather too much than too little, for batches are handed
            in whole.
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
        """Whether so many more answers stay within the limit, if they and those under way cost what answers do."""
        return num_answers <= self.affordable()

    def affordable(self) -> float:
        """How many more answers stay within the limit: a whole number, or infinity."""
        if self._limit is None:
            return math.inf
        if self.spent >= self._limit:
            return 0
        mean = self.spent / self._num_answers if self._num_answers else self.expected_cost
        if mean == 0:
            return math.inf
        # One has to be asked to learn what answers cost
        least = 0 if self._num_answers or self.under_way else 1
        return max(least, (self._limit - self.spent) // mean - self.under_way)


def describe_estimate(estimate: Estimate, config: TeacherConfig) -> str:
    """An estimate in words, for the terminal."""
    if estimate.requests == 0:
        return (
            "No new question: every row was asked before. Rows whose answers failed are asked again, up to "
            "`--max_attempts` answers each."
        )
    said = f"{estimate.requests:,} questions"
    if estimate.input_tokens is None:
        return f"{said}. This API cannot say beforehand how many tokens they have."
    said += f", about {estimate.input_tokens:,} tokens in and {estimate.output_tokens:,} out"
    if estimate.cost is None:
        return (
            f"{said}. What they cost is not known: look up the teacher's prices and give `--input_price` and "
            "`--output_price`."
        )
    said += (
        f", thinking not counted: about {estimate.cost:,.2f} dollars ({estimate.highest_cost:,.2f} if every answer "
        f"had {config.max_tokens:,} tokens)."
    )
    if config.max_cost is not None:
        said += f" It stops at {config.max_cost:,.2f} dollars."
    return said
