"""
`rlmec-trl STAGE ...`: every recipe as a command.

A stage runs its recipe in this process, as `python recipes/<stage>.py ...` does in a clone, or through
`accelerate launch` where the command line has options of the launcher.
"""

import os
import runpy
import subprocess
import sys
import types
from pathlib import Path

from .. import __version__
from ..data.errors import ConfigError, UserError, did_you_mean
from ..data.library_warnings import hide_library_warnings
from ..data.shipped import recipes_folder
from .stages import describe_stages, find_stages
from .words import find_configs, name_of, split_options


HELP = """\
usage: rlmec-trl STAGE [--config FILE] [settings] [options of accelerate launch]
       rlmec-trl STAGE --help
       rlmec-trl --version

FILE is a YAML file of yours, or one that ships: `rlmec.yaml`, `arithmetic/pipeline.yaml`. Options such as
`--num_processes 8` or `--config_file fsdp2.yaml` run the stage through `accelerate launch`.

stages:
"""

# The demo needs nothing from the Hub, and its data is too small for the threads of the tokenizers (as in the Makefile)
_DEMO_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}


def main(words: list[str] | None = None) -> None:
    """
    Run the console script.

    Args:
        words (`list[str]`, *optional*):
            The command line, by default that of this process.
    """
    name, *words = (sys.argv[1:] if words is None else words) or ["--help"]
    if name in ("-h", "--help"):
        print(HELP + describe_stages())
    elif name == "--version":
        print(f"rlmec-trl {__version__}")
    else:
        try:
            run_stage(name, words)
        except UserError as error:
            sys.exit(f"{type(error).__name__}: {error}")


def run_stage(name: str, words: list[str]) -> None:
    """
    Run the recipe of a stage.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If there is no such stage, or no such file of settings.
    """
    stages = find_stages()
    if name not in stages:
        raise ConfigError(f"There is no stage {name!r}.{did_you_mean(name, stages)} `rlmec-trl --help` lists all.")
    if name == "demo":
        for variable, value in _DEMO_ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
        words = ["--config", str(recipes_folder() / "arithmetic" / "pipeline.yaml"), *words]
    hide_library_warnings()  # before the recipe imports the libraries
    script = str(stages[name])
    launcher_words, words = divide(name, script, find_configs(split_options(words)))
    if launcher_words:
        _launch(script, launcher_words, words)
    else:
        _run(script, f"rlmec-trl {name}", words)


def divide(name: str, script: str, options: list[list[str]]) -> tuple[list[str], list[str]]:
    """
    Divide a command line, as TRL's command does: `accelerate launch` gets the options that it knows and the recipe
    does not. All others are for the recipe, which refuses what it does not know.

    Args:
        name (`str`):
            The stage.
        script (`str`):
            Its recipe.
        options (`list[list[str]]`):
            Each option with its values.

    Returns:
        The words for `accelerate launch`, and those for the recipe.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If a pipeline is to be launched.
    """
    from accelerate.commands.launch import launch_command_parser

    known = (launch_command_parser()._option_string_actions.keys() - {"--help"}) & set(map(name_of, options))
    if known:
        recipe = runpy.run_path(script)
        if "make_parser" not in recipe:
            names = ", ".join(sorted(known))
            raise ConfigError(f"`rlmec-trl {name}` runs all its stages in one process. Leave out {names}.")
        known -= recipe["make_parser"]()._option_string_actions.keys()
    words = [[], []]
    for option in options:
        words[name_of(option) not in known].extend(option)
    return words


def _run(script: str, command: str, words: list[str]) -> None:
    """Run a script as `python` does, but under the name of the command, which its help and its usage begin with."""
    sys.argv = [command, *words]  # `runpy` would put the script's path in front
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__file__ = script
    exec(compile(Path(script).read_bytes(), script, "exec"), vars(main))


def _launch(script: str, launcher_words: list[str], words: list[str]) -> None:
    from accelerate.commands.launch import launch_command, launch_command_parser

    try:
        launch_command(launch_command_parser().parse_args([*launcher_words, script, *words]))
    except subprocess.CalledProcessError as error:  # of the one process that ran the recipe, which has said why
        sys.exit(error.returncode)
