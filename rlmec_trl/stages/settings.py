"""Settings of a recipe, from its command line and its YAML file: each is checked before anything is loaded."""

import os
import sys
from argparse import ArgumentTypeError
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from ..data.checks import check_setting, is_numeric
from ..data.errors import ConfigError, UserError, did_you_mean
from ..data.messages import is_storable
from .library_errors import refused_by


def parse_settings(parser: TrlParser, words: list[str] | None = None) -> tuple:
    """
    [`~trl.TrlParser.parse_args_and_config`], where every mistake is one sentence that names the setting, and the file
    if the setting is in one.

    Args:
        parser ([`~trl.TrlParser`]):
            A recipe's parser. It keeps the file's settings as its defaults.
        words (`list[str]`, *optional*):
            The command line, by default that of this process.

    Returns:
        The recipe's dataclasses.

    Raises:
        [`ConfigError`]: If a setting does not exist, or cannot have its value.
    """
    words = [part for word in (sys.argv[1:] if words is None else words) for part in _parts(word)]
    if "--config" not in words:
        return make_configs(parser, {}, words)
    place = words.index("--config")
    if place + 1 == len(words):
        raise ConfigError("`--config` needs a YAML file.")
    path = words[place + 1]
    settings = read_yaml(path)
    environment = settings.pop("env", {})
    if not isinstance(environment, dict) or not all(isinstance(name, str) for name in environment):
        raise ConfigError(f"{path}: `env` must be a mapping of environment variables, got {environment!r}.")
    os.environ.update({name: str(value) for name, value in environment.items()})
    return make_configs(parser, settings, words[:place] + words[place + 2 :], f"{path}: ")


def _parts(word: str) -> list[str]:
    name, has_value, value = word.partition("=")
    return [name, value] if name == "--config" and has_value else [word]


def make_configs(parser: TrlParser, settings: dict[str, Any], words: Collection[str] = (), where: str = "") -> tuple:
    """
    A recipe's dataclasses from the settings of a YAML file, and from the words of a command line, which replace these.

    Args:
        parser ([`~trl.TrlParser`]):
            The recipe's parser. It keeps `settings` as its defaults.
        settings (`dict[str, Any]`):
            What the file holds. Texts are converted as those of the command line are.
        words (`Collection[str]`, *optional*, defaults to `()`):
            The command line without `--config`.
        where (`str`, *optional*):
            What messages about `settings` begin with.

    Raises:
        [`ConfigError`]: If a setting does not exist, or cannot have its value.
    """
    kinds = {field.name: kind for kind in parser.dataclass_types for field in fields(kind) if field.init}
    actions = {action.dest: action for action in reversed(parser._actions)}  # reversed: `--x` before its `--no_x`
    for name, value in settings.items():
        if name not in kinds:
            raise ConfigError(f"{where}there is no setting {name!r}.{did_you_mean(name, kinds)}")
        try:
            _check(kinds[name], name, value, actions[name])
        except ConfigError as error:
            raise ConfigError(f"{where}{error}") from None
    parser.set_defaults_with_config(**settings)
    parser.error = _refuse  # which would print the usage, of hundreds of settings
    # Before the dataclasses are made: some of TRL's compute with what is out of range
    namespace, unknown = parser.parse_known_args(list(words))
    if unknown:
        raise ConfigError(f"There is no argument {unknown[0]!r}.{did_you_mean(unknown[0].lstrip('-'), kinds)}")
    for name, kind in kinds.items():
        # Libraries give some fields defaults that their annotations exclude
        if name not in settings and getattr(namespace, name) != parser.get_default(name):
            _check(kind, name, getattr(namespace, name), actions[name])
    try:
        configs = parser.parse_args_into_dataclasses(list(words))
        for config in configs:
            if isinstance(config, ModelConfig):  # checked where these are made
                get_quantization_config(config)
                get_peft_config(config)
        return configs
    except UserError as error:
        raise type(error)(f"{where}{error}") from None
    except OSError as error:
        raise ConfigError(f"{where}{error.filename!r} cannot be read ({error.strerror}).") from None
    except (ValueError, ImportError) as error:
        # Combinations of settings that TRL and Transformers refuse, and packages that are not installed
        raise ConfigError(f"{where}{' '.join(str(error).split())}") from None
    except TypeError as error:
        # Unknown keys of a setting that is a mapping
        refusal = refused_by(error)
        if refusal is None:
            raise
        raise ConfigError(f"{where}{error} (in {refusal}).") from None


def _refuse(message: str) -> None:
    raise ConfigError(f"On the command line: {message}.")


def _check(kind: type, name: str, value: Any, action) -> None:
    if isinstance(value, str):
        if action.nargs == "+" and action.type is str:
            return  # PEFT takes one text for a list, such as `lora_target_modules: all-linear`
        try:
            value = action.type(value)
        except (TypeError, ValueError, ArgumentTypeError) as error:
            check_setting(kind, name, value)  # says what it has to be, unless a text would do
            raise ConfigError(f"`{name}` cannot be {value!r} ({error}).") from None
        if isinstance(value, str) and is_numeric(kind, name):
            value = _number(value)
    check_setting(kind, name, value)
    # Those of an `Enum` are known to the parser alone. It does not look at the defaults that a file gives it
    if action.choices is not None and value is not None and value not in action.choices:
        raise ConfigError(f"`{name}` must be one of {', '.join(map(repr, action.choices))}, got {value!r}.")


def _number(text: str) -> str | float:
    """The number in a text, for settings that are a number or a text, which the parser does not convert."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def read_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """
    Read a mapping from a YAML file.

    Raises:
        [`ConfigError`]: If there is no such file, or it is not a mapping in YAML, or it has a key twice, of which YAML
            itself would take the last.
    """
    path = Path(path)
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise ConfigError(f"There is no file {str(path)!r}.") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError(
            f"{path}: not a YAML file (line {mark.line + 1}, column {mark.column + 1}: {error.problem})."
        ) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # a date such as 2024-13-45 is a ValueError
        raise ConfigError(f"{path}: not a YAML file ({' '.join(str(error).split())}).") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from None
    if not isinstance(settings, dict):
        found = "nothing" if settings is None else repr(settings)
        raise ConfigError(f"{path}: expected a mapping of settings, found {found}.")
    _check_values(settings, f"{path}", ())
    return settings


class _Loader(yaml.SafeLoader):
    """YAML in which a mapping has each key once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        # Before keys are merged (`<<`), which may repeat those of the mapping
        written = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        for key in written:
            if written.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


def _check_values(value: Any, where: str, parents: tuple[int, ...]) -> None:
    """Settings are texts, numbers, booleans and nulls in lists and mappings, none of which contains itself."""
    if id(value) in parents:
        raise ConfigError(f"{where}: a value contains itself.")
    if isinstance(value, dict):
        if not any(all(isinstance(key, kind) for key in value) for kind in (str, int)):
            raise ConfigError(f"{where}: all keys have to be texts, found {', '.join(map(repr, value))}.")
        for key, item in value.items():
            _check_values(item, f"{where}: `{key}`" if not parents else where, (*parents, id(value)))
    elif isinstance(value, list):
        for item in value:
            _check_values(item, where, (*parents, id(value)))
    elif isinstance(value, str):
        if "\0" in value or not is_storable(value):
            raise ConfigError(f"{where}: found {value!r}, which has a character that no name or path may have.")
    elif not (value is None or isinstance(value, (bool, int, float))):
        raise ConfigError(f"{where}: found {value!r} ({type(value).__name__}). Quote it if it is a text.")
