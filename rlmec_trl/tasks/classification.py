"""Classification: what the tasks with labels share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from .choice import index_of
from .labels import find_label
from .problems import found_in_raw, read_columns, read_text
from .task import Task
from .wording import LABEL_FIRST, LABEL_LAST, WORDING


LABEL_WORDING = replace(WORDING, policy=LABEL_LAST)


def labeled_row(
    row: dict[str, Any],
    texts: dict[str, str],
    question: str,
    labels: Sequence[str],
    read_label: Callable[[dict[str, Any]], str],
) -> dict[str, Any]:
    """
    A problem whose answer is a label, without a reference.

    Args:
        row (`dict`):
            Row of the Hub, or one with `problem` and `answer`, and optionally `solution`.
        texts (`dict[str, str]`):
            Columns of the texts to read, and what each is called in the problem.
        question (`str`):
            What is asked about them.
        labels (`Sequence[str]`):
            All labels of the task, which the problem lists.
        read_label (`Callable[[dict], str]`):
            Reads the label of a row of the Hub.

    Raises:
        [`~rlmec_trl.data.schema.DatasetError`]: If a text is missing, or the row has no label.
    """
    if "problem" in row:
        return read_columns(needs_reference=False)(row)
    shown = [f"{name}: {read_text(row, column).strip()}" for column, name in texts.items()]
    problem = "\n".join([*shown, "", question, f"Labels: {', '.join(labels)}"])
    return {"problem": problem, "answer": read_label(row)}


def read_class(row: dict[str, Any], labels: Sequence[str], column: str = "label") -> str:
    """
    The label in a column of a row, as an index or as its text, with spaces or underscores.

    Raises:
        [`~rlmec_trl.data.schema.DatasetError`]: If it is none of them, as -1 in splits without answers.
    """
    value = row[column]
    label = find_label(labels, value.replace("_", " ")) if isinstance(value, str) else None
    return labels[index_of(value, range(len(labels)), column)] if label is None else label


def read_number(row: dict[str, Any], labels: Sequence[str], column: str) -> str:
    """
    The label in a column of numbers, rounded to the nearest one (halves are rounded up).

    Raises:
        [`~rlmec_trl.data.schema.DatasetError`]: If it is not a number, or out of their range.
    """
    value, low, high = row[column], int(labels[0]), int(labels[-1])
    if type(value) not in (int, float) or not low <= value <= high:
        raise found_in_raw(column, value, f"It must be a number from {low} to {high}. Use a split that has answers.")
    return str(int(value + 0.5))


def classification_task(
    name: str,
    labels: tuple[str, ...],
    texts: dict[str, str],
    question: str,
    read_label: Callable[..., str] = read_class,
    column: str = "label",
    **hub: Any,
) -> Task:
    """
    A task with labels.

    Args:
        name (`str`):
            Name of the task.
        labels (`tuple[str, ...]`):
            Its labels.
        texts, question (`dict[str, str]`, `str`):
            As in [`labeled_row`].
        read_label (`Callable`, *optional*, defaults to [`read_class`]):
            Reads the label of a row: [`read_class`] or [`read_number`].
        column (`str`, *optional*, defaults to `"label"`):
            Column of the label.
        **hub:
            `hub_id`, `hub_configs` and `splits` of the task.
    """
    reader = partial(read_label, labels=labels, column=column)
    read_row = partial(labeled_row, texts=texts, question=question, labels=labels, read_label=reader)
    return Task(name, wording=LABEL_WORDING, read_row=read_row, labels=labels, **hub)


def label_first(task: Task) -> Task:
    """One of the tasks with labels, whose responses begin with the label instead of ending with it."""
    wording = replace(task.wording, policy=LABEL_FIRST)
    # Made again, for labels at the other end
    return replace(task, label_position="first", wording=wording, check_answer=None)
