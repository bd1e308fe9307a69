"""ARC-easy: grade-school science questions with three to five options. A reference is the answer alone."""

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
    # Most rows label their options with letters, some with numbers
    correct = choice.index_of(row["answerKey"], labels, "answerKey")
    return choice.choice_row(read_text(row, "question"), texts, correct)


TASK = Task("arc_easy", check_choice, hub_id="allenai/ai2_arc", hub_configs=("ARC-Easy",), read_row=read_row)
