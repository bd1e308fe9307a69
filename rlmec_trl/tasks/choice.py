"""
Problems with options. The task `choice` also reads your own rows: `problem` is the question, a line "Options:" and one
option per line, `solution` ends with "The answer is X", `answer` is the correct option's text or label.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

from ..data.schema import DatasetError
from .answers import check_choice
from .options import named_options, one_line, read_options, write_options
from .problems import found_in_raw, read_columns
from .task import Task


def read_row(row: dict[str, Any]) -> dict[str, str]:
    """Read a row with `problem`, `solution` and `answer`; an answer has to be one of the options that are listed."""
    raw = read_columns()(row)
    options = read_options(raw["problem"])
    if options is not None and len(options.texts) < 2:
        raise found_in_raw("problem", options.texts[0], "List at least two options, one per line after 'Options:'.")
    if options is not None and raw["answer"] is not None and not named_options([str(raw["answer"])], options):
        raise DatasetError(
            f"found {raw['answer']!r}, which is none of the options {', '.join(options.texts)}. Give the text of the "
            "correct option, or its label.",
            column="answer",
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

    Raises:
        [`~rlmec_trl.data.schema.DatasetError`]: If there are not 2 to 26 options, or an option or fact is not a text.
    """
    if not 2 <= len(options) <= len(string.ascii_uppercase):
        raise found_in_raw("options", options, f"Give every problem 2 to {len(string.ascii_uppercase)} of them.")
    for name, values in (("options", options), ("facts", [fact for fact in facts if fact is not None])):
        for value in values:
            if not isinstance(value, str) or (name == "options" and not value.strip()):
                raise found_in_raw(name, value, "Each must be a text.")
    answer = one_line(options[correct])
    facts = [fact.strip() for fact in facts if fact and fact.strip()]
    return {
        "problem": write_options(question, options),
        "reference": "\n".join([*facts, f"The answer is {answer}"]),
        "answer": answer,
    }


def read_choices(row: dict[str, Any], column: str = "choices") -> tuple[list[str], list[str]]:
    """
    The labels and the texts of a row's options, in the form `{"label": [...], "text": [...]}`.

    Raises:
        [`~rlmec_trl.data.schema.DatasetError`]: If the column has another form.
    """
    value = row[column]
    lists = [value.get(name) for name in ("label", "text")] if isinstance(value, dict) else []
    if not lists or not all(isinstance(part, list) for part in lists) or len(lists[0]) != len(lists[1]):
        raise found_in_raw(column, value, 'It must be {"label": [...], "text": [...]}, with as many labels as texts.')
    return lists[0], lists[1]


def index_of(value: Any, choices: Sequence[Any], column: str) -> int:
    """
    Index of a row's correct option, given as one of `choices`.

    Raises:
        [`~rlmec_trl.data.schema.DatasetError`]: If it is none of them, as in test splits without answers.
    """
    if value not in choices:
        raise DatasetError(
            f"found {value!r}, which is none of {', '.join(map(str, choices))}. Use a split that has answers.",
            column=column,
        )
    return list(choices).index(value)


TASK = Task("choice", check_choice, read_row=read_row)
