"""What a stage ends with: what was done, where it is, how long it took, and what comes next."""

import functools
import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

from ..generation.processes import process_state


P = ParamSpec("P")
T = TypeVar("T")

_start: ContextVar[float] = ContextVar("start")
_next: ContextVar[str | None] = ContextVar("next", default=None)


def timed(stage: Callable[P, T]) -> Callable[P, T]:
    """Let the summary of a stage say how long its function took."""

    @functools.wraps(stage)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        token = _start.set(time.perf_counter())
        try:
            return stage(*args, **kwargs)
        finally:
            _start.reset(token)

    return run


def print_summary(done: str, output: str | os.PathLike | None = None, then: str | None = None) -> None:
    """
    Print the summary of a stage, on the main process. Called by a [`timed`] function.

    Args:
        done (`str`):
            What was done, with counts: one or two sentences.
        output (`str` or `os.PathLike`, *optional*):
            Folder or file that it was saved to.
        then (`str`, *optional*):
            The stage of `rlmec-trl` to run next, and the setting that `output` is the value of. The console script is
            there however the package was installed; the script of a recipe is only in a clone.
    """
    seconds = describe_seconds(time.perf_counter() - _start.get())
    process_state().print(f"{done} Took {seconds}." if output is None else f"{done} Saved to {output} in {seconds}.")
    _next.set(None if None in (output, then) else f"Next: rlmec-trl {then} {shlex.quote(str(output))}")


@contextmanager
def naming_next() -> Iterator[None]:
    """
    At the end, print the command that follows the last stage: for recipes that run from the command line, unlike those
    in a pipeline, which runs the next stage itself.
    """
    token = _next.set(None)
    try:
        yield
        if _next.get() is not None:
            process_state().print(_next.get())
    finally:
        _next.reset(token)


def describe_seconds(seconds: float) -> str:
    """A time with its two largest units, such as "1 min 43 s"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
