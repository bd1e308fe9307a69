"""Which exceptions are what a library says of a setting, and which may be mistakes of ours."""

import traceback


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
        `str`, *optional*: `None` if the error may be one of ours.
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
    return where
