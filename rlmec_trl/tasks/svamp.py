"""SVAMP: short word problems. A reference is the problem's equation and its result."""

import re
from typing import Any

from .answers import check_math
from .problems import read_columns
from .steps import check_stated_steps
from .task import Task


def read_row(row: dict[str, Any]) -> dict[str, str]:
    """Read a row of the Hub, or one with `problem`, `solution` and `answer`."""
    if "problem" in row:
        return read_columns()(row)
    body = row["Body"].strip()
    # Many stories end in the middle of a sentence, "If he used 10 to buy some toys"
    separator = " " if body.endswith((".", ",", "?", "!", ";", ":")) else ", "
    answer = _without_zeros(str(row["Answer"]))
    return {
        "problem": f"{body}{separator}{row['Question'].strip()}",
        "reference": f"{_infix(row['Equation'])} = {answer}\nThe answer is {answer}",
        "answer": answer,
    }


def _infix(equation: str) -> str:
    """`( ( 14.0 - 2.0 ) - 10.0 )` as `(14 - 2) - 10`."""
    equation = _without_zeros(equation).strip()
    if equation.startswith("(") and equation.endswith(")"):
        equation = equation[1:-1].strip()
    return equation.replace("( ", "(").replace(" )", ")")


def _without_zeros(numbers: str) -> str:
    return re.sub(r"(\d)\.0+\b", r"\1", numbers)


TASK = Task(
    "svamp",
    check_math,
    hub_id="ChilleD/SVAMP",
    splits=("train", "test"),
    read_row=read_row,
    check_steps=check_stated_steps,
)
