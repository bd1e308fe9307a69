"""What a task is, and how one is loaded by name."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..data.messages import problem_text
from ..data.steps import split_steps
from .answers import check_label
from .wording import WORDING, Wording, raw_problem


# Each is the `TASK` of the module of that name in this package
BUILT_IN = (
    "arithmetic",
    "ecqa",
    "qasc",
    "openbookqa",
    "arc_easy",
    "gsm8k",
    "math",
    "svamp",
    "mmlu_math",
    "choice",
)


@dataclass(frozen=True)
class Task:
    """
    Definition of a task.

    Args:
        name (`str`):
            Name of the task.
        check_answer (`Callable[[str, str, str], bool]`, *optional*):
            Whether a completion reaches the correct answer, called as `check_answer(completion, answer, problem)`.
            [`~rlmec_trl.tasks.answers.check_by_reward`] makes one of a TRL reward function. By default, of `labels`.
        wording ([`~rlmec_trl.tasks.wording.Wording`], *optional*):
            Prompts of the policy, the generative reward model and the teacher.
        hub_id (`str`, *optional*):
            Dataset on the Hub that the problems come from.
        hub_configs (`tuple[str, ...]`, *optional*, defaults to `()`):
            Configurations of that dataset; the rows of several are joined.
        splits (`tuple[str, ...]`, *optional*, defaults to `("train", "validation", "test")`):
            Splits of that dataset that have answers.
        read_row (`Callable[[dict], dict]`, *optional*):
            Turns one raw row into `problem`, `reference` and `answer`, all strings. By default the row has `problem`,
            `solution` and `answer`; without `answer`, it is extracted from `solution`.
        check_steps (`Callable[[str, str], list[bool]]`, *optional*):
            Which steps of a completion are correct, called as `check_steps(problem, completion)`. `None` where steps
            cannot be checked without a model.
        labels (`tuple[str, ...]`, *optional*):
            The possible answers, if they are the same for all problems, as in sentiment classification. A raw
            row may give its answer as an index into them.
        editor (`Callable`, *optional*):
            A programmatic teacher ([`~rlmec_trl.teachers.editors.Editor`]), used with `--teacher task`.

    Raises:
        `ValueError`: If there is neither `check_answer` nor `labels`.

    Examples:

    ```python
    >>> from rlmec_trl.tasks.task import Task
    >>> task = Task("sentiment", labels=("negative", "positive"))
    >>> task.check_answer("A bleak film.\nThe answer is Negative.", "negative", "")
    True
    ```
    """

    name: str
    check_answer: Callable[[str, str, str], bool] | None = None
    wording: Wording = WORDING
    hub_id: str | None = None
    hub_configs: tuple[str, ...] = ()
    splits: tuple[str, ...] = ("train", "validation", "test")
    read_row: Callable[[dict[str, Any]], dict[str, str]] | None = None
    check_steps: Callable[[str, str], list[bool]] | None = None
    labels: tuple[str, ...] | None = None
    editor: Callable | None = None

    def __post_init__(self):
        if self.check_answer is None:
            if not self.labels:
                raise ValueError(f"Task '{self.name}' cannot check answers: give it `check_answer` or `labels`.")
            object.__setattr__(self, "check_answer", partial(check_label, labels=self.labels))

    def is_correct(self, completion: str, answer: str, problem: str) -> bool:
        """
        Whether a completion reaches an answer, by `check_answer`.

        Raises:
            `ValueError`: If the check returns anything but a bool: `"no"` and `[False]` would count as true.
        """
        verdict = self.check_answer(completion, answer, problem)
        if not _is_bool(verdict):
            raise ValueError(
                f"`check_answer` of task '{self.name}' returned {verdict!r} for the completion {completion[:60]!r}. "
                "It must return True or False."
            )
        return bool(verdict)

    def has_correct_steps(self, problem: str, completion: str) -> bool:
        """
        Whether every step of a completion is correct, by `check_steps`; true where the task cannot check steps.

        Raises:
            `ValueError`: If the check does not return a list with a bool for each step.
        """
        if self.check_steps is None:
            return True
        verdicts = self.check_steps(problem, completion)
        num_steps = len(split_steps(completion, self.wording.step_separator))
        if not isinstance(verdicts, list) or len(verdicts) < num_steps or not all(map(_is_bool, verdicts)):
            raise ValueError(
                f"`check_steps` of task '{self.name}' returned {verdicts!r} for the {num_steps} steps of the "
                f"completion {completion[:60]!r}. It must return a list of True and False, one for each step."
            )
        return all(verdicts)

    def raw_problem(self, prompt: str | list[dict]) -> str:
        """The problem in a policy's prompt, without the template around it."""
        return raw_problem(self.wording, problem_text(prompt))


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


def load_task(task: str | Task) -> Task:
    """
    Load a task.

    Args:
        task (`str` or [`Task`]):
            A built-in task (see [docs/tasks.md](../../docs/tasks.md)), or your own as `package.module:NAME`
            or `path/to/file.py:NAME`. A [`Task`] is returned as it is.

    Raises:
        `ValueError`: If there is no such task.
    """
    if isinstance(task, Task):
        return task
    if ":" in task:
        loaded = load_object(task)
        if not isinstance(loaded, Task):
            raise ValueError(f"{task!r} is of type `{type(loaded).__name__}`, not a `rlmec_trl.tasks.task.Task`.")
        return loaded
    if task not in BUILT_IN:
        raise ValueError(
            f"Unknown task {task!r}. Choose one of {', '.join(BUILT_IN)}, or name your own as "
            "`package.module:NAME` or `path/to/file.py:NAME`."
        )
    return importlib.import_module(f"{__package__}.{task}").TASK


def load_object(path: str) -> Any:
    """
    Load an object from `package.module:NAME` or `path/to/file.py:NAME`.

    Raises:
        `ValueError`: If the module or file does not exist, or has no such name. Errors inside the module are
            propagated.
    """
    module, name = _load_source(path)
    if not hasattr(module, name):
        raise ValueError(f"{path.rpartition(':')[0]!r} defines no {name!r}.")
    return getattr(module, name)


def source_hash(path: str) -> str:
    """Hash of the file that [`load_object`] loads from."""
    module, _ = _load_source(path)
    return hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()


def _load_source(path: str) -> tuple[ModuleType, str]:
    module_name, _, name = path.rpartition(":")
    is_file = module_name.endswith(".py")
    if not module_name or not name or (module_name.startswith(".") and not is_file):
        raise ValueError(f"{path!r} is neither `package.module:NAME` nor `path/to/file.py:NAME`.")
    return (_load_file if is_file else _load_module)(module_name, name), name


def _load_file(file_name: str, name: str) -> ModuleType:
    file = Path(file_name).expanduser().resolve()
    if not file.is_file():
        raise ValueError(f"There is no file {file_name!r} to load {name!r} from.")
    # Registered, so that what the file defines can be pickled, under a name that changes with its content, because
    # caches such as that of `Dataset.map` identify a function by its name
    digest = hashlib.sha256(bytes(file) + file.read_bytes()).hexdigest()[:16]
    module_name = f"_rlmec_trl_file_{file.stem}_{digest}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]
            raise
    return sys.modules[module_name]


def _load_module(module_name: str, name: str) -> ModuleType:
    # As `python -m` does: a module in the working directory can be named without being installed
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # Only if this module is missing, not one that it imports
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ValueError(f"There is no module {module_name!r} to load {name!r} from.") from None
        raise
