"""Settings have the type that their dataclass states, one of its choices, and a value in range."""

import os
from dataclasses import fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import ConfigError
from .ranges import find_range


# Tensors of settings are float32, and counts become int64
_LARGEST_FLOAT = 3.4e38
_LARGEST_INT = 2**63 - 1

# Fields that take more than a library's annotation says
_HINTS = {"resume_from_checkpoint": str | bool | None}
_LIBRARIES = ("transformers", "trl")
_NAMES = {int: "an integer", float: "a number", str: "a text", bool: "true or false", dict: "a mapping"}


def check_config(config: Any) -> None:
    """
    Check the settings of a dataclass, from its `__post_init__`: type, choices and range. Of the settings that a
    dataclass inherits from TRL or Transformers, only the numbers are checked, since these libraries take more than
    their annotations say. Call it before their `__post_init__`, which may fail on what is out of range.

    Raises:
        [`ConfigError`]: If a setting cannot have its value.
    """
    kind = type(config)
    for field in fields(kind):
        if field.init and (_is_ours(kind, field.name) or is_numeric(kind, field.name)):
            check_setting(kind, field.name, getattr(config, field.name))


def check_setting(kind: type, name: str, value: Any) -> None:
    """
    Check the value that a dataclass is to have for a setting.

    Args:
        kind (`type`):
            The dataclass.
        name (`str`):
            Its field.
        value:
            The value.

    Raises:
        [`ConfigError`]: If the value does not have the type of the field, is none of its `choices`, is not finite, or
            is out of the range of [`~rlmec_trl.data.ranges.RANGES`].
    """
    hint = _hints(kind)[name]
    if not _fits(value, hint):
        raise ConfigError(f"`{name}` must be {_describe(hint)}, got {_show(value)}.{_advice(value, hint)}")
    choices = kind.__dataclass_fields__[name].metadata.get("choices")
    if choices is not None and value is not None and value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ConfigError(f"`{name}` must be one of {listed}, got {_show(value)}.")
    permitted = find_range(kind, name)
    numbers = value if isinstance(value, (list, tuple)) else [value]
    subject = f"every number of `{name}`" if isinstance(value, (list, tuple)) else f"`{name}`"
    for number in numbers:
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            continue
        if not _is_finite(number):
            rule = "" if permitted is None else f", and must {permitted}"
            finite = "an int64" if isinstance(number, int) else "finite in float32"
            raise ConfigError(f"{subject} must be {finite}{rule}, got {_show(value)}.")
        if permitted is not None and number not in permitted:
            raise ConfigError(f"{subject} must {permitted}, got {_show(value)}: {permitted.effect}.")


def check_reward_ranges(config: Any) -> None:
    """
    Check `positive_reward_range` and `negative_reward_range` of a configuration.

    Raises:
        [`ConfigError`]: If one of them is not a lower and an upper bound.
    """
    for name in ("positive_reward_range", "negative_reward_range"):
        bounds = getattr(config, name)
        if len(bounds) != 2 or bounds[0] > bounds[1]:
            raise ConfigError(f"`{name}` must be two numbers, the lower bound first, got {bounds}.")


def is_numeric(kind: type, name: str) -> bool:
    """Whether a field of a dataclass holds a number or a list of numbers."""
    return _has_number(_hints(kind)[name])


@cache
def _hints(kind: type) -> dict[str, Any]:
    return {name: _HINTS.get(name, hint) for name, hint in get_type_hints(kind).items()}


def _is_ours(kind: type, name: str) -> bool:
    """Whether a field is defined, or defined again, by a class that is not of TRL or Transformers."""
    owner = next(parent for parent in kind.__mro__ if name in vars(parent).get("__annotations__", {}))
    return owner.__module__.partition(".")[0] not in _LIBRARIES


def _has_number(hint: Any) -> bool:
    if get_origin(hint) in (Union, UnionType, list):
        return any(map(_has_number, get_args(hint)))
    return hint in (int, float)


def _is_finite(number: float) -> bool:
    largest = _LARGEST_INT if isinstance(number, int) else _LARGEST_FLOAT
    return -largest <= number <= largest  # which nan is not


def _fits(value: Any, hint: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is Literal:
        return value in args
    if hint in (None, NoneType):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint in (int, float):
        # No scalars of NumPy or PyTorch, which cannot be saved as JSON; `np.float64` is a float
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    if hint is str:
        return isinstance(value, (str, os.PathLike))
    if hint is list or origin is list:
        return isinstance(value, (list, tuple)) and all(_fits(item, arg) for item in value for arg in args)
    if hint is dict or origin is dict:
        return isinstance(value, dict)
    # What has no simple type (`Any`, a callable) is checked where it is used
    return not isinstance(hint, type) or isinstance(value, hint)


def _describe(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        # Libraries take the name of an `Enum` wherever they take one
        named = [arg for arg in args if get_origin(arg) or arg in _NAMES or arg is NoneType]
        return " or ".join(map(_describe, named or args))
    if hint is NoneType:
        return "unset"
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin is list:
        return f"a list of {'integers' if args == (int,) else 'numbers' if args == (float,) else 'texts'}"
    return _NAMES.get(origin or hint, getattr(hint, "__name__", str(hint)))


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]} ..."


def _advice(value: Any, hint: Any) -> str:
    if isinstance(value, bool) and _fits("no", hint):
        return " In YAML, yes, no, on and off are true or false unless they are quoted."
    if value is None:
        return " Leave it out to use the default."
    return ""
