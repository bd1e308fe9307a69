"""How every recipe runs from the command line."""

import sys
import warnings
from collections.abc import Callable
from typing import Any

from trl import TrlParser

from ..data.errors import UserError
from ..generation.processes import end_processes
from .settings import parse_settings


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
    # Transformers 5.23 deprecates this name, but it is the one in TRL's configs, and older releases know no other.
    # There is nothing that a user could do about the warning.
    warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated", FutureWarning)
    try:
        result = main(*parse_settings(make_parser()))
    except UserError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    end_processes()
    return result
