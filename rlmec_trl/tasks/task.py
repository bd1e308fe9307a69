"""What a task is, and how one is loaded by name."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..data.errors import ConfigError, UserError
from ..data.messages import problem_text
from ..data.shipped import find_file
from ..data.steps import split_steps
from .equations import Operation
from .labels import POSITIONS, check_label, stated_label
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
    "movie_reviews",
    "app_reviews",
    "ag_news",
    "mrpc",
    "qqp",
    "mnli",
    "sst2",
    "stsb",
    "verdicts",
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
            `solution` and `answer`; without `answer`, it is extracted from `solution`. Of a task with `labels`,
            `reference` may be left out.
        check_steps (`Callable[[str, str], list[bool]]`, *optional*):
            Which steps of a completion are correct, called as `check_steps(problem, completion)`. `None` where steps
            cannot be checked without a model.
        labels (`tuple[str, ...]`, *optional*):
            The possible answers, if they are the same for all problems, as in sentiment classification. A raw
            row may give its answer as an index into them, unless the labels are numbers themselves.
        editor (`Callable`, *optional*):
            A programmatic teacher ([`~rlmec_trl.teachers.editors.Editor`]), used with `--teacher task`.
        write_steps (`Callable[[Sequence[Operation], Sequence[str]], list[str]]`, *optional*):
            Writes computations of a reference in the form of an attempt, for `--teacher reference`, called as
            `write_steps(operations, steps)` with [`~rlmec_trl.tasks.equations.Operation`] and the steps of the attempt
            that they replace. Returns one step for each operation, without separators. `None` where the words of
            the reference are used.
        label_position (`str`, *optional*, defaults to `"last"`):
            Where a response states its label: `"last"`, after its rationale, or `"first"`, before it. The prompt of
            `wording` has to ask for it there.
        read_label (`Callable[[str], str | None]`, *optional*):
            The label that a response states as its own, one of `labels`, or `None`. By default, it is read by
            [`~rlmec_trl.tasks.labels.stated_label`].
        justifier (`Callable[[str, str], str | None]`, *optional*):
            A programmatic writer of rationales, used with `--teacher task`: `justifier(problem, label)` returns a
            response that justifies the label, or `None` if there is none.
        rate (`Callable[[str, str], float]`, *optional*):
            How good the rationale of a response is, used with `--rater task`, called as `rate(problem, response)`.
            Higher is better.
        perfect_rating (`float`, *optional*):
            The rating of a rationale without a flaw. With it, evaluations count the responses that have it.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If there is neither `check_answer` nor `labels`, or a field is of
            another type.

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
    label_position: str = "last"
    read_label: Callable[[str], str | None] | None = None
    justifier: Callable[[str, str], str | None] | None = None
    rate: Callable[[str, str], float] | None = None
    perfect_rating: float | None = None
    write_steps: Callable[[Sequence[Operation], Sequence[str]], list[str]] | None = None

    def __post_init__(self):
        for name in (
            "check_answer",
            "check_steps",
            "read_row",
            "read_label",
            "editor",
            "justifier",
            "rate",
            "write_steps",
        ):
            if not (getattr(self, name) is None or callable(getattr(self, name))):
                raise ConfigError(f"`{name}` of task '{self.name}' is {getattr(self, name)!r}, not a function.")
        if not isinstance(self.wording, Wording):
            raise ConfigError(f"`wording` of task '{self.name}' is {self.wording!r}, not a `Wording`.")
        for name, slot in (("policy", "{problem}"), ("locate", "{attempt}"), ("rewrite", "{attempt}")):
            template = getattr(self.wording, name)
            if slot not in template:
                raise ConfigError(f"The template `{name}` of task '{self.name}' has no {slot}: {template[:60]!r}.")
        if isinstance(self.labels, str) or not all(isinstance(label, str) for label in self.labels or ()):
            raise ConfigError(f"`labels` of task '{self.name}' are {self.labels!r}; they must be a tuple of texts.")
        if len({" ".join(label.casefold().split()) for label in self.labels or ()} - {""}) < len(self.labels or ()):
            raise ConfigError(f"`labels` of task '{self.name}' are {self.labels!r}; no two may be alike, or empty.")
        if self.label_position not in POSITIONS:
            raise ConfigError(
                f"`label_position` of task '{self.name}' is {self.label_position!r}; it must be one of "
                f"{', '.join(map(repr, POSITIONS))}."
            )
        if self.perfect_rating is not None and self.rate is None:
            raise ConfigError(f"Task '{self.name}' has a `perfect_rating` and no `rate` that would give it.")
        if self.check_answer is None:
            if not self.labels:
                raise ConfigError(f"Task '{self.name}' cannot check answers: give it `check_answer` or `labels`.")
            if self.read_label is None:
                for label in self.labels:
                    if stated_label(self.labels, self.label_position, f"The answer is {label}") != label:
                        raise ConfigError(
                            f"No response can state the label {label!r} of task '{self.name}': \"The answer is "
                            f'{label}" is not read as it. Choose another, or give the task `read_label`.'
                        )
            reader = {"labels": self.labels, "label_position": self.label_position, "read_label": self.read_label}
            object.__setattr__(self, "check_answer", partial(check_label, **reader))

    def is_correct(self, completion: str, answer: str, problem: str) -> bool:
        """
        Whether a completion reaches an answer, by `check_answer`.

        Raises:
            [`~rlmec_trl.data.errors.ConfigError`]: If the check fails, or returns anything but a bool: `"no"` and
                `[False]` would count as true.
        """
        verdict = self._call("check_answer", completion, completion, answer, problem)
        if not _is_bool(verdict):
            raise ConfigError(
                f"`check_answer` of task '{self.name}' returned {verdict!r} for the completion {completion[:60]!r}. "
                "It must return True or False."
            )
        return bool(verdict)

    def stated_label(self, response: str, problem: str = "") -> str | None:
        """
        The label that a response states as its own, by `read_label`; `None` if it states none, or several.

        Raises:
            [`~rlmec_trl.data.errors.ConfigError`]: If the task has no labels, or `read_label` fails or returns
                something else.
        """
        if not self.labels:
            raise ConfigError(f"Task '{self.name}' has no labels. Give it `labels`, or name a task that has them.")
        if self.read_label is None:
            return stated_label(self.labels, self.label_position, response, problem)
        label = self._call("read_label", response, response)
        if label is not None and label not in self.labels:
            raise ConfigError(
                f"`read_label` of task '{self.name}' returned {label!r} for the completion {response[:60]!r}. It must "
                f"return one of the labels ({', '.join(self.labels)}), or None."
            )
        return label

    def has_correct_steps(self, problem: str, completion: str) -> bool:
        """
        Whether every step of a completion is correct, by `check_steps`; true where the task cannot check steps.

        Raises:
            [`~rlmec_trl.data.errors.ConfigError`]: If the check fails, or does not return a list with a bool for each
                step.
        """
        if self.check_steps is None:
            return True
        verdicts = self._call("check_steps", completion, problem, completion)
        num_steps = len(split_steps(completion, self.wording.step_separator))
        if not isinstance(verdicts, list) or len(verdicts) < num_steps or not all(map(_is_bool, verdicts)):
            raise ConfigError(
                f"`check_steps` of task '{self.name}' returned {verdicts!r} for the {num_steps} steps of the "
                f"completion {completion[:60]!r}. It must return a list of True and False, one for each step."
            )
        return all(verdicts)

    def _call(self, check: str, completion: str, *arguments: str) -> Any:
        what = f"`{check}` of task '{self.name}' failed on the completion {completion[:60]!r}"
        nothing = "None" if check == "read_label" else "False"
        with user_code(what, f"Fix it, or let it return {nothing} for what it cannot read."):
            return getattr(self, check)(*arguments)

    def raw_problem(self, prompt: str | list[dict]) -> str:
        """The problem in a policy's prompt, without the template around it."""
        return raw_problem(self.wording, problem_text(prompt))


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


@contextmanager
def user_code(what: str, fix: str, error_type: type[UserError] = ConfigError) -> Iterator[None]:
    """
    Run code of the user's, which may raise anything: a check, a reader of rows, an editor.

    Args:
        what (`str`):
            What failed, if it does.
        fix (`str`):
            What to do about it.
        error_type (`type`, *optional*, defaults to [`~rlmec_trl.data.errors.ConfigError`]):
            What to raise.

    Raises:
        `error_type`: Instead of any exception but a [`~rlmec_trl.data.errors.UserError`], which says what to do. It
            names the exception and its line, and has it as its cause.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise error_type(f"{what}: {_describe_failure(error)}. {fix}") from error


def _describe_failure(error: BaseException) -> str:
    """What a user's own code raised, and where: the last line that is neither Python's, nor a library's, nor ours."""
    libraries = (*sysconfig.get_paths().values(), str(Path(__file__).parents[1]), "<frozen", "<string>")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(libraries)]
    text = " ".join(str(error).split()).rstrip(".")
    what = f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
    # A syntax error names file and line itself
    is_placed = isinstance(error, SyntaxError) or not frames
    return what if is_placed else f"{what} ({frames[-1].filename}, line {frames[-1].lineno})"


def load_task(task: str | Task) -> Task:
    """
    Load a task.

    Args:
        task (`str` or [`Task`]):
            A built-in task (see [docs/tasks.md](../../docs/tasks.md)), or your own as `package.module:NAME`
            or `path/to/file.py:NAME`. A [`Task`] is returned as it is.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If there is no such task, or it cannot be imported.
    """
    if isinstance(task, Task):
        return task
    if not isinstance(task, str):
        raise ConfigError(f"`task` must be a text or a `rlmec_trl.tasks.task.Task`, got {task!r}.")
    if ":" in task:
        loaded = load_object(task)
        if not isinstance(loaded, Task):
            raise ConfigError(f"{task!r} is of type `{type(loaded).__name__}`, not a `rlmec_trl.tasks.task.Task`.")
        return loaded
    if task not in BUILT_IN:
        raise ConfigError(
            f"Unknown task {task!r}. Choose one of {', '.join(BUILT_IN)}, or name your own as "
            "`package.module:NAME` or `path/to/file.py:NAME`."
        )
    return importlib.import_module(f"{__package__}.{task}").TASK


def load_object(path: str) -> Any:
    """
    Load an object from `package.module:NAME` or `path/to/file.py:NAME`.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If the module or file does not exist, cannot be imported, or has no
            such name. An error inside it is the cause.
    """
    module, name = _load_source(path)
    if not hasattr(module, name):
        raise ConfigError(f"{path.rpartition(':')[0]!r} defines no {name!r}.")
    return getattr(module, name)


def source_hash(path: str) -> str:
    """
    Hash of the file that [`load_object`] loads from.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If there is none, as of a module that is built into Python.
    """
    module, _ = _load_source(path)
    if getattr(module, "__file__", None) is None:
        raise ConfigError(f"{path!r} is of a module that is no file. Call it from a function of your own in a file.")
    return hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()


def _load_source(path: str) -> tuple[ModuleType, str]:
    module_name, _, name = path.rpartition(":")
    is_file = module_name.endswith(".py")
    if not module_name or not name or (module_name.startswith(".") and not is_file):
        raise ConfigError(f"{path!r} is neither `package.module:NAME` nor `path/to/file.py:NAME`.")
    return (_load_file if is_file else _load_module)(module_name, name), name


def _load_file(file_name: str, name: str) -> ModuleType:
    file = find_file(file_name)
    if not os.path.isfile(os.path.expanduser(file)):
        raise ConfigError(f"There is no file {file_name!r} to load {name!r} from.")
    file = Path(file).expanduser().resolve()
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
        except BaseException as error:
            del sys.modules[module_name]
            _report(error, file_name)
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
            raise ConfigError(f"There is no module {module_name!r} to load {name!r} from.") from None
        _report(error, module_name)
    except BaseException as error:
        _report(error, module_name)
        raise


def _report(error: BaseException, source: str) -> None:
    """Report what a user's module raised while it was imported; interrupts pass."""
    if isinstance(error, Exception | SystemExit):
        raise ConfigError(f"{source!r} cannot be imported: {_describe_failure(error)}. Fix it.") from error
