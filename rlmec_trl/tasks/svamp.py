"""SVAMP: short word problems. A reference is the problem's equation and its result."""

import re
from typing import Any

from .answers import check_math
from .problems import answer_text, found_in_raw, read_columns, read_text
from .steps import check_stated_steps
from .task import Task


def read_row(row: dict[str, Any]) -> dict[str, str]:
    """Read a row of the Hub, or one with `problem`, `solution` and `answer`."""
    if "problem" in row:
        return read_columns()(row)
    body, question, equation = (read_text(row, name).strip() for name in ("Body", "Question", "Equation"))
    # Many stories end in the middle of a sentence, "If he used 10 to buy some toys"
    separator = " " if body.endswith((".", ",", "?", "!", ";", ":")) else ", "
    answer = _without_zeros(answer_text(row["Answer"]) or "")
    if not answer.strip():
        raise found_in_raw("Answer", row["Answer"], "Give every problem one final answer, as a text or a number.")
    return {
        "problem": f"{body}{separator}{question}",
        "reference": f"{_infix(equation)} = {answer}\nThe answer is {answer}",
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
