"""Errors that a user has to fix."""

import difflib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any


class UserError(Exception):
    """
    Something that only the user can fix: an input, a setting, a folder. The message says in one sentence what was
    found, where (row, column, file or setting), and what to do. Recipes print it without a traceback.
    """


class ConfigError(UserError, ValueError):
    """An invalid setting, or an invalid combination of settings."""


class DatasetError(UserError, ValueError):
    """
    A dataset that a stage cannot use. The message names the row, the column, the value, and the fix.

    Args:
        reason (`str`):
            What was found, and how to fix it.
        row (`int`, *optional*):
            Number of the row. `None` where the error is about no row, or its number is not known yet.
        column (`str`, *optional*):
            The column.
    """

    def __init__(self, reason: str, row: int | None = None, column: str | None = None):
        self.reason = reason
        self.row = row
        self.column = column
        place = "" if row is None else f"Row {row}"
        if column is not None:
            place += f", column '{column}'" if place else f"Column '{column}'"
        super().__init__(f"{place}: {reason}" if place else reason)


@contextmanager
def errors_of_dataset(name: str) -> Iterator[None]:
    """Let a [`DatasetError`] name the dataset: for stages that read several."""
    try:
        yield
    except DatasetError as error:
        raise DatasetError(f"{error.reason} (In {name!r}.)", error.row, error.column) from None


class ModelError(UserError, ValueError):
    """A model or tokenizer cannot be loaded. The message has its path and what is wrong there."""


def did_you_mean(name: Any, known: Collection[str]) -> str:
    """A hint at names that an unknown one is close to."""
    close = difflib.get_close_matches(str(name), known)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
