"""Rows that a stage cannot use: an error at the first of them, or left out and listed."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from datasets import Dataset, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from ..data.schema import DatasetError


BAD_ROWS_FILE = "bad_rows.jsonl"
# How a `DatasetError` about a row begins, as opposed to one about a column that is missing
_ABOUT_ROW = re.compile(r"Row \d+(?:, column '(?P<column>[^']+)')?: (?P<reason>.*)", re.DOTALL)


@dataclass(frozen=True)
class BadRow:
    """
    A row that was left out.

    Args:
        row (`int`):
            Its index in the dataset that was read.
        column (`str` or `None`):
            The column that is invalid.
        reason (`str`):
            What was found there.
    """

    row: int
    column: str | None
    reason: str


def find_bad_rows(dataset: Dataset, check: Callable[[Dataset], object]) -> list[BadRow]:
    """
    Every row that a check refuses.

    A check stops at the first invalid row, so the others are found by bisection: a dataset without bad rows is checked
    once, and each bad row costs a logarithmic number of checks of ever smaller parts.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows to check.
        check (`Callable[[Dataset], Any]`):
            Raises a [`~rlmec_trl.data.schema.DatasetError`] at the first invalid row of what it is given.

    Raises:
        [`~rlmec_trl.data.schema.DatasetError`]: If what is wrong is not a row, for instance a missing column.
    """
    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        return _bisect(dataset, check, range(len(dataset)))
    finally:
        if not were_disabled:
            enable_progress_bars()


def _bisect(dataset: Dataset, check: Callable[[Dataset], object], rows: range) -> list[BadRow]:
    try:
        check(dataset.select(rows))
    except DatasetError as error:
        found = _ABOUT_ROW.fullmatch(str(error))
        if found is None:
            raise
        if len(rows) == 1:
            return [BadRow(rows.start, found["column"], found["reason"])]
    else:
        return []
    half = len(rows) // 2
    return _bisect(dataset, check, rows[:half]) + _bisect(dataset, check, rows[half:])


def leave_out(dataset: Dataset, bad_rows: Iterable[BadRow]) -> Dataset:
    """
    The dataset without its bad rows.

    Raises:
        [`~rlmec_trl.data.schema.DatasetError`]: If none is left.
    """
    bad_rows = list(bad_rows)
    if not bad_rows:
        return dataset
    if len(bad_rows) == len(dataset):
        first = bad_rows[0]
        raise DatasetError(f"All {len(dataset)} rows are invalid, so there is nothing to skip to. {describe(first)}")
    bad = {bad_row.row for bad_row in bad_rows}
    return dataset.select([index for index in range(len(dataset)) if index not in bad])


def describe(bad_row: BadRow) -> str:
    """What was wrong with a row, as the error at this row says it."""
    column = "" if bad_row.column is None else f", column '{bad_row.column}'"
    return f"Row {bad_row.row}{column}: {bad_row.reason}"


def write_bad_rows(bad_rows: Iterable[BadRow], folder: Path) -> None:
    """Write the rows that were left out, with the reasons, as JSON lines beside the result."""
    lines = [json.dumps(asdict(bad_row)) + "\n" for bad_row in bad_rows]
    (folder / BAD_ROWS_FILE).write_text("".join(lines), encoding="utf-8")
