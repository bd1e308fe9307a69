"""What a task is, and how one is loaded by name."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.messages import problem_text
from .wording import WORDING, Wording, raw_problem


# Each is the module of that name in this room, whose `TASK` it is.
BUILT_IN = (
    "arithmetic",
    "math",
    "choice",
)


@dataclass(frozen=True)
class Task:
    """
    What the stages need to know about a task.

    Args:
        name (`str`):
            Name of the task.
        check_answer (`Callable[[str, str, str], bool]`):
            Whether a completion reaches the correct answer, called as `check_answer(completion, answer, problem)`.
            [`~rlmec_trl.tasks.answers.check_by_reward`] makes one of a TRL reward function.
        wording ([`~rlmec_trl.tasks.wording.Wording`], *optional*):
            Prompts of the policy, the generative reward model and the teacher.
        hub_id (`str`, *optional*):
            Dataset on the Hub that the problems come from.
        hub_configs (`tuple[str, ...]`, *optional*, defaults to `()`):
            Configurations of that dataset; the rows of several are joined.
        splits (`tuple[str, ...]`, *optional*, defaults to `("train", "validation", "test")`):
            Splits of that dataset.
        read_row (`Callable[[dict], dict]`, *optional*):
            Turns one raw row into `problem`, `reference` and `answer`, all strings. By default the row has `problem`,
            `solution` and `answer`; without `answer`, it is extracted from `solution`.
        check_steps (`Callable[[str, str], list[bool]]`, *optional*):
            Which steps of a completion are correct, called as `check_steps(problem, completion)`. `None` where steps
            cannot be checked without a model.
        labels (`tuple[str, ...]`, *optional*):
            The texts that every answer is one of, where they are the same for all problems.
        editor (`Callable`, *optional*):
            A programmatic teacher ([`~rlmec_trl.teachers.editors.Editor`]), used with `--teacher task`.
    """

    name: str
    check_answer: Callable[[str, str, str], bool]
    wording: Wording = WORDING
    hub_id: str | None = None
    hub_configs: tuple[str, ...] = ()
    splits: tuple[str, ...] = ("train", "validation", "test")
    read_row: Callable[[dict[str, Any]], dict[str, str]] | None = None
    check_steps: Callable[[str, str], list[bool]] | None = None
    labels: tuple[str, ...] | None = None
    editor: Callable | None = None

    def raw_problem(self, prompt: str | list[dict]) -> str:
        """The problem in a policy's prompt, without the template around it."""
        return raw_problem(self.wording, problem_text(prompt))


def load_task(name: str) -> Task:
    """
    Load a task.

    Args:
        name (`str`):
            A built-in task (see [docs/tasks.md](../../docs/tasks.md)), or a task of your own as `package.module:NAME`
            or `path/to/file.py:NAME`.

    Raises:
        `ValueError`: If there is no such task.
    """
    if ":" in name:
        task = load_object(name)
        if not isinstance(task, Task):
            raise ValueError(f"{name!r} is a `{type(task).__name__}`, not a `rlmec_trl.tasks.task.Task`.")
        return task
    if name not in BUILT_IN:
        raise ValueError(
            f"Unknown task {name!r}. Choose one of {', '.join(BUILT_IN)}, or name your own as "
            "`package.module:NAME` or `path/to/file.py:NAME`."
        )
    return importlib.import_module(f"{__package__}.{name}").TASK


def load_object(path: str) -> Any:
    """
    Load an object from `package.module:NAME` or `path/to/file.py:NAME`.

    Raises:
        `ValueError`: If the module or file does not exist, or has no such name.
    """
    module_name, _, name = path.rpartition(":")
    if module_name.endswith(".py"):
        file = Path(module_name).expanduser().resolve()
        if not file.is_file():
            raise ValueError(f"There is no file {module_name!r} to load {name!r} from.")
        # Registered under a name of its own, so that what it defines can be pickled
        module_name = f"_rlmec_trl_file_{file.stem}_{hashlib.sha256(bytes(file)).hexdigest()[:8]}"
        module = sys.modules.get(module_name)
        if module is None:
            spec = importlib.util.spec_from_file_location(module_name, file)
            module = importlib.util.module_from_spec(spec)
            sys.modules[module_name] = module
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[module_name]
                raise
    else:
        # As `python -m` does: a module in the working directory can be named without installing it
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # Only where it is this module that is missing, not one that it imports
            if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
                raise ValueError(f"There is no module {module_name!r} to load {name!r} from.") from None
            raise
    if not hasattr(module, name):
        raise ValueError(f"{path.rpartition(':')[0]!r} defines no {name!r}.")
    return getattr(module, name)
