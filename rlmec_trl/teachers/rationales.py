"""What a rationale is, who writes it, and the verification that it has to pass before it is trained on."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from datasets import Dataset, Features

from ..data.errors import UserError
from ..data.messages import is_conversational, is_storable
from ..data.schema import column_features
from ..tasks.answers import find_statements, readings
from ..tasks.labels import split_response
from ..tasks.options import Options, named_options
from ..tasks.task import Task, user_code
from .calls import call_function, load_function, name_of, show_entry


ACCEPTED = "accepted"

_SENTENCE_END = re.compile(r"[.;!?]\s")


@dataclass(frozen=True)
class NoRationale:
    """
    A row for which the teacher has no response.

    Args:
        reason (`str`):
            Why not. It becomes the row's `rationale_outcome`, so keep it short and the same for rows of the same kind.
    """

    reason: str


# A whole response: rationale and label
Rationale = str | NoRationale
# Whether the response for the row with this index passes verification
Usable = Callable[[int, Rationale], bool]


class Justifier(Protocol):
    """
    A teacher: writes the response to a problem that justifies a given label. Any callable with this signature works,
    for instance a function or an object with `__call__`; `--teacher package.module:NAME` or
    `--teacher path/to/file.py:NAME` loads it.

    It is called once per shard with all rows of the shard, and each process has its own shards. It does not have to be
    reliable: each response is verified, and a row whose response fails is left without one.

    Args:
        problems (`Sequence[str]`):
            The problems, without the prompt template around them.
        labels (`Sequence[str]`):
            The label to justify for each of them. It may be a wrong one.
        usable (`Callable[[int, Rationale], bool]`, *optional*):
            `usable(index, response)` verifies a response to `problems[index]`, so that a teacher that samples can try
            again. A teacher without a parameter of this name is called without it.

    Returns:
        `list[str | NoRationale]`: For each problem, in the same order, the whole response, rationale and label, in the
        form that the task's prompt asks for; or [`NoRationale`] with the reason. Anything else is a
        [`RationaleError`].

    Example:

    ```python
    def quote_the_text(problems, labels):
        return [f"The text says: {problem}\\nThe answer is {label}" for problem, label in zip(problems, labels)]
    ```
    """

    def __call__(
        self, problems: Sequence[str], labels: Sequence[str], usable: Usable | None = None
    ) -> list[Rationale]: ...


class RationaleError(UserError, ValueError):
    """A teacher failed, or returned something that is not a list with one response per problem."""


def load_justifier(path: str) -> Justifier:
    """
    Load a writer of rationales from `package.module:NAME` or `path/to/file.py:NAME`.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If there is no such object, or it cannot be called.
    """
    protocol = "rlmec_trl.teachers.rationales.Justifier"
    return load_function(path, "a teacher of rationales", "problems and labels", protocol)


class TaskJustifier:
    """
    A task's own writer of rationales, a row at a time.

    Args:
        task ([`~rlmec_trl.tasks.task.Task`]):
            A task with a `justifier`.
    """

    def __init__(self, task: Task):
        self.task = task

    def __call__(self, problems: Sequence[str], labels: Sequence[str]) -> list[Rationale]:
        return [self._justify(*row) for row in zip(problems, labels, strict=True)]

    def _justify(self, problem: str, label: str) -> Rationale:
        what = f"`justifier` of task '{self.task.name}' failed on the problem {problem[:60]!r}"
        with user_code(what, "Fix it, or let it return None where there is no rationale.", RationaleError):
            response = self.task.justifier(problem, label)
        return NoRationale("no rationale") if response is None else response


def verify_rationale(task: Task, problem: str, label: str, response: str) -> str | None:
    """
    The reason to reject a response that should justify a label; `None` if it passes.

    It passes if it states the label as its own, and no other, and has a rationale beside it. Unless the task reads
    labels itself, the label has to be at its place (`label_position`).
    """
    if not response.strip():
        return "empty"
    if task.read_label is None and _names_several(task, response):
        return "several labels"
    stated = task.stated_label(response, problem)
    if stated is None:
        return "no label"
    if stated != label:
        return "wrong label"
    if task.read_label is not None:
        return None
    rationale, placed = split_response(task.labels, task.label_position, response)
    if placed is None:
        return "misplaced label"
    # "..." and rules of markdown are no rationale
    return None if any(map(str.isalnum, rationale)) else "no rationale"


def _names_several(task: Task, response: str) -> bool:
    """Whether a response states two labels, one of them perhaps at the start of a longer sentence or line."""
    named = set()
    for statement in find_statements(response):
        texts = readings(statement)
        named |= named_options([*texts, *(_SENTENCE_END.split(text)[0] for text in texts)], Options(task.labels))
    return len(named) > 1


def justify_dataset(dataset: Dataset, justifier: Justifier, task: Task, first_row: int = 0) -> tuple[Dataset, Counter]:
    """
    Have a teacher justify labels, and keep what passes verification.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows with `prompt`, `answer` and `label`, the label to justify. Other columns are kept.
        justifier ([`Justifier`]):
            The teacher.
        task ([`~rlmec_trl.tasks.task.Task`]):
            How labels are read.
        first_row (`int`, *optional*, defaults to `0`):
            Number of the first row in error messages, where `dataset` is a shard of a larger one.

    Returns:
        `tuple`: The rows with `completion` (the whole response, of the type of `prompt`), `correct` (whether it is
        accepted and the label is the answer) and `rationale_outcome`, and the number of rows by outcome. A response
        that fails verification is `None`, and its outcome the reason.

    Raises:
        [`RationaleError`]: If the teacher does not return one response per row.
    """
    problems, labels = justifier_inputs(dataset, task)

    @cache  # cached: `usable` may already have verified the response
    def judge(index: int, response: Rationale) -> str:
        if isinstance(response, NoRationale):
            return response.reason
        return verify_rationale(task, problems[index], labels[index], response) or ACCEPTED

    def usable(index: int, response: Rationale) -> bool:
        _check_rationale(justifier, response, first_row + index)
        return judge(index, response) == ACCEPTED

    responses = []
    if labels:
        words = ("teacher", "response", "problem", "NoRationale(reason)")
        responses = call_function(justifier, [problems, labels], *words, RationaleError, usable=usable)
    outcomes, completions, corrects = [], [], []
    for index, (row, response) in enumerate(zip(dataset, responses, strict=True)):
        _check_rationale(justifier, response, first_row + index)
        outcomes.append(judge(index, response))
        completion = response if outcomes[-1] == ACCEPTED else None
        corrects.append(completion is not None and row["label"] == row["answer"])
        conversational = completion is not None and is_conversational(row["prompt"])
        completions.append([{"role": "assistant", "content": completion}] if conversational else completion)
    # The types are given, because they cannot be inferred from a shard in which no response is accepted
    types = column_features(messages=len(dataset) > 0 and is_conversational(dataset[0]["prompt"]))
    new = {"completion": completions, "correct": corrects, "rationale_outcome": outcomes}
    columns = {**{name: dataset[name][:] for name in dataset.column_names}, **new}
    features = Features({**dataset.features, **{name: types[name] for name in new}})
    return Dataset.from_dict(columns, features=features), Counter(outcomes)


def justifier_inputs(dataset: Dataset, task: Task) -> tuple[list[str], list[str]]:
    """The problems of a dataset as plain text, and the labels to justify, as passed to a teacher."""
    return [task.raw_problem(prompt) for prompt in dataset["prompt"]], dataset["label"][:]


def _check_rationale(justifier: Justifier, response: Any, row: int) -> None:
    """Refuse what is neither a text nor [`NoRationale`], with the name of the teacher and the row."""
    if isinstance(response, NoRationale):
        is_sound = is_storable(response.reason) and response.reason.strip() and response.reason != ACCEPTED
    else:
        is_sound = is_storable(response)
    if not is_sound:
        raise RationaleError(
            f"The teacher `{name_of(justifier)}` returned {show_entry(response)} for row {row}; a response is a text "
            "with a rationale and a label, or `NoRationale` with a reason."
        )
