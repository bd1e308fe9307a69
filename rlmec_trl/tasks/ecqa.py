"""ECQA: commonsense questions with five options, and facts that support the correct one."""

from typing import Any

from . import choice
from .answers import check_choice
from .problems import read_text
from .task import Task


def read_row(row: dict[str, Any]) -> dict[str, str]:
    """Read a row of the Hub, or one with `problem`, `solution` and `answer`."""
    if "problem" in row:
        return choice.read_row(row)
    options = [row[f"q_op{number}"] for number in range(1, 6)]
    correct = choice.index_of(row["q_ans"], options, "q_ans")
    # One supporting fact a line, where the free-flow explanation (`taskB`) is one paragraph
    return choice.choice_row(read_text(row, "q_text"), options, correct, [row["taskA_pos"]])


TASK = Task("ecqa", check_choice, hub_id="yangdong/ecqa", read_row=read_row)
