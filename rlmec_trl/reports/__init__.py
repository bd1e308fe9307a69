"""Accuracy, tables, and views of samples token by token."""

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .html_report import write_html

__all__ = ["write_html"]


def __getattr__(name):
    # Rewards need torch, which the other reports do not load
    if name != "write_html":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .html_report import write_html

    return write_html
