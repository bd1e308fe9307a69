"""Which of the responses to a problem make a pair: pure functions of texts, labels and ratings."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..teachers.raters import NoRating, Rating


@dataclass(frozen=True)
class Responses:
    """
    The responses to a problem.

    Args:
        texts (`list[str]`):
            The responses, each once.
        labels (`list[str]`):
            The label that each of them states.
    """

    texts: list[str]
    labels: list[str]

    def with_label(self, label: str) -> list[int]:
        """Indices of the responses that state a label."""
        return [index for index, stated in enumerate(self.labels) if stated == label]

    def to_rate(self) -> list[int]:
        """Indices of the responses of which another one states the same label. The others make no rationale pair."""
        return [index for index, label in enumerate(self.labels) if self.labels.count(label) > 1]


# The indices of the chosen and of the rejected response
Pair = tuple[int, int]


def label_pairs(
    responses: Responses, answer: str, wrong_labels: Iterable[str], max_pairs: int | None, rng: random.Random
) -> tuple[list[Pair], str]:
    """
    Label-sensitive pairs: a response with the correct label over one with a wrong label.

    Args:
        responses ([`Responses`]):
            The responses to a problem.
        answer (`str`):
            The correct label.
        wrong_labels (`Iterable[str]`):
            The labels that the rejected responses may state.
        max_pairs (`int`, *optional*):
            Number of pairs to choose. The wrong labels take turns, in an order that is drawn for each problem.
        rng (`random.Random`):
            Source of the choice.

    Returns:
        `tuple[list[Pair], str]`: The pairs, and in words what came of the problem.
    """
    correct = responses.with_label(answer)
    if not correct:
        return [], "no correct response"
    groups = []
    for label in wrong_labels:
        groups.append([(chosen, rejected) for chosen in correct for rejected in responses.with_label(label)])
    pairs = _choose(groups, max_pairs, rng)
    return pairs, "paired" if pairs else "no response with a wrong label"


def rationale_pairs(
    responses: Responses, ratings: Sequence[Rating | None], max_pairs: int | None, rng: random.Random
) -> tuple[list[Pair], str]:
    """
    Rationale-sensitive pairs: of two responses with the same label, correct or not, the one with the higher rating
    over the other. Equal ratings make no pair.

    Args:
        responses ([`Responses`]):
            The responses to a problem.
        ratings (`Sequence[Rating | None]`):
            The rating of each; `None` for those that are not in [`Responses.to_rate`].
        max_pairs (`int`, *optional*):
            Number of pairs to choose. The labels take turns, in an order that is drawn for each problem.
        rng (`random.Random`):
            Source of the choice.

    Returns:
        `tuple[list[Pair], str]`: The pairs, and in words what came of the problem.
    """
    if not responses.to_rate():
        return [], "no two responses with the same label"
    rated = [index for index in responses.to_rate() if not isinstance(ratings[index], NoRating)]
    groups, has_ties = [], False
    for label in dict.fromkeys(responses.labels):
        own = [index for index in rated if responses.labels[index] == label]
        groups.append([(better, worse) for better in own for worse in own if ratings[better] > ratings[worse]])
        has_ties = has_ties or len(own) > 1
    pairs = _choose(groups, max_pairs, rng)
    if pairs:
        return pairs, "paired"
    return [], "ties" if has_ties else "no two rated responses with the same label"


def _choose(groups: list[list[Pair]], max_pairs: int | None, rng: random.Random) -> list[Pair]:
    """Pairs of all groups, which take turns."""
    groups = [rng.sample(group, len(group)) for group in groups if group]
    rng.shuffle(groups)
    longest = max(map(len, groups), default=0)
    pairs = [group[turn] for turn in range(longest) for group in groups if turn < len(group)]
    return pairs[:max_pairs]
