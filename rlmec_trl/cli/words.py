"""The options of a command line, and the shipped files that they name."""

import os

from ..data.errors import ConfigError, did_you_mean
from ..data.shipped import find_file, recipes_folder


_FILES = ("--config", "--accelerate_config", "--config_file", "--config-file")


def split_options(words: list[str]) -> list[list[str]]:
    """Each option with its values."""
    options = []
    for word in words:
        if word.startswith("--") or not options:
            options.append([])
        options[-1].append(word)
    return options


def name_of(option: list[str]) -> str:
    """The name of an option, whose value may follow after `=`."""
    return option[0].partition("=")[0]


def find_configs(options: list[list[str]]) -> list[list[str]]:
    """
    Put the paths of shipped YAML files in the place of their names.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If there is no such file.
    """
    found = []
    for option in options:
        name, *values = option
        if "=" in name and name_of(option) in _FILES:
            name, value = name.split("=", 1)
            values = [value, *values]
        if name == "--accelerate_config":  # as TRL's own command calls it
            name = "--config_file"
        if name == "--config" and len(values) == 1:
            values = [_find_yaml(values[0], "configs")]
        elif name in ("--config_file", "--config-file") and len(values) == 1:
            values = [_find_yaml(values[0], "accelerate_configs")]
        found.append([name, *values])
    return found


def _find_yaml(name: str, folder: str) -> str:
    for spelled in (name, f"{name}.yaml"):
        path = find_file(spelled, folder, "")
        if os.path.exists(os.path.expanduser(path)):
            return path
    shipped = [path.relative_to(recipes_folder()) for path in recipes_folder().rglob("*.yaml")]
    known = [path.name if path.parent.name == folder else path.as_posix() for path in shipped]
    raise ConfigError(f"There is no file {name!r}, and none of this name ships.{did_you_mean(name, known)}")
