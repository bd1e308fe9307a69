"""OpenBookQA: elementary science questions with four options, and the fact each is about."""

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
    # The configuration `main` has the same questions without their facts
    return choice.choice_row(read_text(row, "question_stem"), texts, correct, [row.get("fact1")])


TASK = Task("openbookqa", check_choice, hub_id="allenai/openbookqa", hub_configs=("additional",), read_row=read_row)
