"""How every recipe runs from the command line."""

import sys
from collections.abc import Callable
from typing import Any

from trl import TrlParser

from ..data.errors import UserError
from ..data.library_warnings import hide_library_warnings
from ..generation.processes import end_processes
from .settings import parse_settings
from .summary import naming_next


def run_command(make_parser: Callable[[], TrlParser], main: Callable[..., Any]) -> Any:
    """
    Parse the command line and run a recipe. What the user has to fix is printed without a traceback, and the exit
    status is 1.

    Args:
        make_parser (`Callable[[], TrlParser]`):
            Creates the recipe's parser.
        main (`Callable`):
            The recipe, called with the parsed dataclasses.

    Returns:
        What `main` returns.
    """
    hide_library_warnings()
    try:
        with naming_next():
            result = main(*parse_settings(make_parser()))
    except UserError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    end_processes()
    return result
