"""The options of a command line, and the shipped files that they name."""

import os

from ..data.errors import ConfigError, did_you_mean
from ..data.shipped import find_file, recipes_folder


# Where the files that an option may name ship
_FOLDERS = {"--config": "configs"}
_FOLDERS |= dict.fromkeys(("--config_file", "--config-file", "--accelerate_config"), "accelerate_configs")
_RENAMED = {"--accelerate_config": "--config_file"}  # as TRL's own command calls it


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
        name, values = name_of(option), option[1:]
        if "=" in option[0]:
            values = [option[0].partition("=")[2]]
        if name in _FOLDERS and len(values) == 1:
            option = [_RENAMED.get(name, name), _find_yaml(values[0], _FOLDERS[name])]
        found.append(option)
    return found


def _find_yaml(name: str, folder: str) -> str:
    for spelled in (name, f"{name}.yaml"):
        path = find_file(spelled, folder, "")
        if os.path.exists(os.path.expanduser(path)):
            return path
    shipped = [path.relative_to(recipes_folder()) for path in recipes_folder().rglob("*.yaml")]
    known = [path.name if path.parent.name == folder else path.as_posix() for path in shipped]
    raise ConfigError(f"There is no file {name!r}, and none of this name ships.{did_you_mean(name, known)}")
