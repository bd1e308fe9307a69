"""Names that may be published: nothing in a pushed file tells where something lies on the machine."""

import os
import re
from collections.abc import Mapping
from typing import Any


# `name` or `user/name`, as on the Hub
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def is_hub_name(name: str) -> bool:
    """Whether a model or dataset is named as on the Hub, and is not a file or folder here."""
    return _HUB_NAME.fullmatch(name) is not None and not os.path.lexists(name)


def public_name(name: str) -> str:
    """
    The name of a model, a dataset or a Python object for a card: as it is on the Hub, the last part of a path.

    Example:

    ```python
    >>> public_name("Qwen/Qwen2.5-1.5B-Instruct"), public_name("/home/me/runs/policy"), public_name("tasks/my.py:TASK")
    ('Qwen/Qwen2.5-1.5B-Instruct', 'policy', 'my.py:TASK')
    ```
    """
    return name if is_hub_name(name) else os.path.basename(os.path.normpath(os.path.expanduser(name)))


def without_paths(value: Any) -> Any:
    """A JSON value in which every text that is a path on this machine has been replaced by the last part of it."""
    if isinstance(value, str):
        is_path = os.path.isabs(value) or value.startswith(("~", "./", "../")) or ("/" in value and _exists(value))
        return public_name(value) if is_path and value.strip("/.~") else value
    if isinstance(value, Mapping):
        return {name: without_paths(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(without_paths, value))
    return value


def _exists(path: str) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:  # a NUL, or a lone surrogate
        return False
