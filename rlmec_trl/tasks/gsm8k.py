"""GSM8K: grade-school word problems with worked solutions."""

from typing import Any

from .answers import check_math
from .problems import read_columns
from .steps import check_stated_steps
from .task import Task


def read_row(row: dict[str, Any]) -> dict[str, str]:
    """Read a row of the Hub, whose `answer` is the worked solution, or one with `problem`, `solution` and `answer`."""
    read = read_columns() if "problem" in row else read_columns("question", "answer")
    return read(row)


TASK = Task(
    "gsm8k",
    check_math,
    hub_id="openai/gsm8k",
    hub_configs=("main",),
    splits=("train", "test"),
    read_row=read_row,
    check_steps=check_stated_steps,
)
