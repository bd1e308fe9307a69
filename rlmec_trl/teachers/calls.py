"""Calls of a teacher that is any function: it gets lists with one entry a row, and returns such a list."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from ..data.errors import ConfigError, UserError
from ..tasks.task import load_object, user_code


def load_function(path: str, kind: str, takes: str, protocol: str) -> Callable:
    """
    Load a teacher of the user's from `package.module:NAME` or `path/to/file.py:NAME`.

    Args:
        path (`str`):
            Where it is.
        kind, takes, protocol (`str`):
            What it is, what it takes, and where that is described, for an error.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If there is no such object, or it cannot be called.
    """
    function = load_object(path)
    if not callable(function):
        raise ConfigError(
            f"{path!r} is a `{type(function).__name__}`, not {kind}. Name a function, or an object with `__call__`, "
            f"that takes {takes} (see `{protocol}`)."
        )
    return function


def call_function(
    function: Callable,
    inputs: Sequence[list],
    kind: str,
    entry: str,
    of: str,
    otherwise: str,
    error_type: type[UserError],
    **keywords: Any,
) -> Sequence:
    """
    Call a teacher with lists of the same length, and check that it returns a list with one entry for each row.

    Args:
        function (`Callable`):
            The teacher.
        inputs (`Sequence[list]`):
            Its arguments.
        kind, entry, of (`str`):
            What it is, what it returns for each row, and of what, for an error: an editor returns an edit per attempt.
        otherwise (`str`):
            What to return for a row for which there is none.
        error_type (`type`):
            What to raise.
        keywords:
            Further arguments, of which it gets those that it takes.

    Raises:
        `error_type`: If it fails, or returns anything else.
    """
    name, num_rows = name_of(function), len(inputs[0])
    parameters = inspect.signature(function).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    taken = {key: value for key, value in keywords.items() if takes_all or key in parameters}
    what = f"The {kind} `{name}` failed on {num_rows} {of}s"
    fix = f"Fix it and run the command again: finished shards are saved. Return `{otherwise}` for {_a(of)} without "
    with user_code(what, f"{fix}{_a(entry)}.", error_type):
        entries = function(*inputs, **taken)
    if not isinstance(entries, list | tuple):
        raise error_type(
            f"The {kind} `{name}` returned a `{type(entries).__name__}`; it must return a list with one {entry} per "
            f"{of}."
        )
    if len(entries) != num_rows:
        raise error_type(
            f"The {kind} `{name}` returned {len(entries)} {entry}s for {num_rows} {of}s; it must return one per {of}, "
            f"in the same order. Return `{otherwise}` where there is none."
        )
    return entries


def show_entry(value: Any) -> str:
    """What a function returned for a row, for an error."""
    shown = repr(value)
    return shown if len(shown) <= 100 else shown[:100] + "..."


def name_of(function: Callable) -> str:
    """The name of a function, or of the class of an object that is called."""
    named = inspect.isroutine(function) or inspect.isclass(function)
    return (function if named else type(function)).__qualname__


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
