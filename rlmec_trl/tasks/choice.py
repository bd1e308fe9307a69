"""
Problems with options. The task `choice` also reads your own rows: `problem` is the question, a line "Options:" and one
option per line, `solution` ends with "The answer is X", `answer` is the correct option's text or label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..data.schema import DatasetError
from .answers import check_choice
from .options import named_options, one_line, read_options, write_options
from .problems import read_columns
from .task import Task


def read_row(row: dict[str, Any]) -> dict[str, str]:
    """Read a row with `problem`, `solution` and `answer`; an answer has to be one of the options that are listed."""
    raw = read_columns()(row)
    options = read_options(str(raw["problem"]))
    if options is not None and raw["answer"] is not None and not named_options([str(raw["answer"])], options):
        raise DatasetError(
            f"column 'answer': found {raw['answer']!r}, which is none of the options {', '.join(options.texts)}. "
            "Give the text of the correct option, or its label."
        )
    return raw


def choice_row(
    question: str, options: Sequence[str], correct: int, facts: Sequence[str | None] = ()
) -> dict[str, str]:
    """
    A problem with options.

    Args:
        question (`str`):
            The question.
        options (`Sequence[str]`):
            Texts of the options. They get letters from A.
        correct (`int`):
            Index of the correct one.
        facts (`Sequence[str | None]`):
            Facts about the answer: the lines of the reference before its last one, "The answer is X".
    """
    answer = one_line(options[correct])
    facts = [fact.strip() for fact in facts if fact and fact.strip()]
    return {
        "problem": write_options(question, options),
        "reference": "\n".join([*facts, f"The answer is {answer}"]),
        "answer": answer,
    }


def index_of(value: Any, choices: Sequence[Any], column: str) -> int:
    """
    Index of a row's correct option, given as one of `choices`.

    Raises:
        [`~rlmec_trl.data.schema.DatasetError`]: If it is none of them, as in test splits without answers.
    """
    if value not in choices:
        raise DatasetError(
            f"column '{column}': found {value!r}, which is none of {', '.join(map(str, choices))}. Use a split that "
            "has answers."
        )
    return list(choices).index(value)


TASK = Task("choice", check_choice, read_row=read_row)
