"""MMLU-math: the mathematical subjects of MMLU, four options each. A reference is the answer alone."""

from typing import Any

from . import choice
from .answers import check_choice
from .problems import found_in_raw, read_text
from .steps import check_stated_steps
from .task import Task


SUBJECTS = (
    "abstract_algebra",
    "college_mathematics",
    "elementary_mathematics",
    "formal_logic",
    "high_school_mathematics",
)


def read_row(row: dict[str, Any]) -> dict[str, str]:
    """Read a row of the Hub, or one with `problem`, `solution` and `answer`."""
    if "problem" in row:
        return choice.read_row(row)
    options = row["choices"]
    if not isinstance(options, list):
        raise found_in_raw("choices", options, "It must be a list of options.")
    correct = choice.index_of(row["answer"], range(len(options)), "answer")
    return choice.choice_row(read_text(row, "question"), options, correct)


TASK = Task(
    "mmlu_math",
    check_choice,
    hub_id="cais/mmlu",
    hub_configs=SUBJECTS,
    splits=("test", "validation", "dev"),
    read_row=read_row,
    check_steps=check_stated_steps,
)
