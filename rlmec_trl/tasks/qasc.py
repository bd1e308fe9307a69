"""QASC: science questions with eight options, answered by composing two facts."""

from typing import Any

from . import choice
from .answers import check_choice
from .problems import read_text
from .task import Task


def read_row(row: dict[str, Any]) -> dict[str, str]:
    """Read a row of the Hub, or one with `problem`, `solution` and `answer`."""
    if "problem" in row:
        return choice.read_row(row)
    labels, texts = choice.read_choices(row)
    correct = choice.index_of(row["answerKey"], labels, "answerKey")
    facts = [row["fact1"], row["fact2"], row["combinedfact"]]
    return choice.choice_row(read_text(row, "question"), texts, correct, facts)


# The test split has no answers
TASK = Task("qasc", check_choice, hub_id="allenai/qasc", splits=("train", "validation"), read_row=read_row)
