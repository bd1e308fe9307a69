"""Which exceptions are what a library says of a setting, and which may be mistakes of ours or of the user's code."""

import sys
import traceback
from pathlib import Path


_LIBRARIES = frozenset({"transformers", "trl", "peft", "accelerate"})
_OURS = frozenset({"rlmec_trl", "recipes", "__main__"})
# Constructors of ours hand on the settings of the classes that they inherit from
_CONSTRUCTORS = ("__init__", "__post_init__")


def refused_by(error: Exception) -> str | None:
    """
    The function of a library, with its module, that refused a setting.

    Args:
        error (`Exception`):
            What was raised, with its traceback.

    Returns:
        `str`, *optional*: `None` if the error may be one of ours, or of code that a library was given, such as a
        reward function.
    """
    where, in_library = None, False
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module, function = frame.f_globals.get("__name__", ""), frame.f_code.co_name
        package = module.partition(".")[0]
        if package in _LIBRARIES:
            where, in_library = f"{module}.{function}", True
        elif package in _OURS:
            if in_library and function not in _CONSTRUCTORS:
                return None
            where = None  # unless it calls a library again
        elif in_library and not _is_installed(package):
            return None
    return where


def _is_installed(package: str) -> bool:
    """Whether a package is of the standard library, or lies among those that were installed."""
    if not package or package in sys.stdlib_module_names:  # generated code has no module
        return True
    module = sys.modules.get(package)
    folders = [module.__file__] if getattr(module, "__file__", None) else list(getattr(module, "__path__", ()))
    return any({"site-packages", "dist-packages"} & set(Path(folder).parts) for folder in folders)
