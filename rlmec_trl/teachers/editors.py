"""What an editor is, and the verification that every rewrite has to pass before it is trained on."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from datasets import Dataset, Value

from ..credit.alignment import edit_distance
from ..data.errors import UserError
from ..data.messages import is_conversational, is_storable, message_text
from ..data.schema import OF_REWRITE
from ..data.steps import first_changed_step, split_steps
from ..tasks.task import Task
from .calls import call_function, load_function, name_of, show_entry


@dataclass(frozen=True)
class NoEdit:
    """
    An attempt for which the editor has no edit.

    Args:
        reason (`str`):
            Why not. It becomes the row's `edit_outcome`, so keep it short and the same for rows of the same kind.
    """

    reason: str


# The index of the first incorrect step (-1 if there is none) and the rewrite
Edit = tuple[int, str] | NoEdit
# Whether an edit of the attempt with this index passes verification
Usable = Callable[[int, Edit], bool]


class Editor(Protocol):
    """
    A teacher: corrects attempts with minimum edits. Any callable with this signature works, for instance a function
    or an object with `__call__`; `--teacher package.module:NAME` or `--teacher path/to/file.py:NAME` loads it.

    It is called once per shard with all attempts of the shard, and each process has its own shards. An editor that
    runs a model has to batch them itself. It does not have to be reliable: each edit is verified (the answer, and the
    steps if the task can check them), and an attempt whose edit fails is left without a rewrite.

    Args:
        problems (`Sequence[str]`):
            The problems, without the prompt template around them.
        references (`Sequence[str]`):
            A correct solution to each.
        completions (`Sequence[str]`):
            An attempt at each. Unless `check_correct_samples` is switched off, this includes attempts whose answer is
            correct, because their steps may still be incorrect.
        usable (`Callable[[int, Edit], bool]`, *optional*):
            `usable(index, edit)` verifies an edit of the attempt `completions[index]`, so that an editor that samples
            can try again. An editor without a parameter of this name is called without it.

    Returns:
        `list[tuple[int, str] | NoEdit]`: For each attempt, in the same order, one of

        - `(error_step, rewrite)`: the index of the first incorrect step, counted from 0 by the task's
          `step_separator`, and the attempt corrected with as few changes as possible. The number of steps is also a
          valid index: there, a step is missing at the end.
        - `(-1, completion)`: every step is correct, and the attempt stays as it is.
        - [`NoEdit`]: there is no edit, with the reason.

        Anything else is an [`EditorError`].

    Example:

    ```python
    def copy_the_reference(problems, references, completions):
        return [(0, reference) for reference in references]
    ```
    """

    def __call__(
        self,
        problems: Sequence[str],
        references: Sequence[str],
        completions: Sequence[str],
        usable: Usable | None = None,
    ) -> list[Edit]: ...


class EditorError(UserError, ValueError):
    """An editor failed, or returned something that is not a list with one edit per attempt."""


def load_editor(path: str) -> Editor:
    """
    Load an editor from `package.module:NAME` or `path/to/file.py:NAME`.

    Raises:
        `ValueError`: If there is no such object, or it cannot be called.
    """
    takes = "problems, references and completions"
    return load_function(path, "an editor", takes, "rlmec_trl.teachers.editors.Editor")


def verify_rewrite(task: Task, problem: str, answer: str, rewrite: str) -> str | None:
    """The reason to reject a rewrite; `None` if it passes."""
    if not rewrite.strip():
        return "empty"
    if not task.is_correct(rewrite, answer, problem):
        return "wrong answer"
    return None if task.has_correct_steps(problem, rewrite) else "wrong step"


def editor_inputs(dataset: Dataset, task: Task) -> tuple[list[str], list[str], list[str]]:
    """The problems, references and attempts of a dataset as plain text, as passed to an editor."""
    problems = [task.raw_problem(prompt) for prompt in dataset["prompt"]]
    return problems, dataset["reference"][:], [message_text(completion) for completion in dataset["completion"]]


def edit_dataset(
    dataset: Dataset, editor: Editor, task: Task, check_correct_samples: bool = True, first_row: int = 0
) -> tuple[Dataset, Counter]:
    """
    Have an editor rewrite the attempts of a dataset, and keep what passes verification.

    Args:
        dataset ([`~datasets.Dataset`]):
            Sampled rows: `prompt`, `reference`, `answer`, `completion`, `correct`. Other columns are kept.
        editor (`Editor`):
            The teacher.
        task ([`~rlmec_trl.tasks.task.Task`]):
            How answers and steps are checked.
        check_correct_samples (`bool`, *optional*, defaults to `True`):
            Whether attempts with a correct answer are edited too, since their steps may be incorrect. Otherwise they
            stay as they are, or are left without a rewrite if the task's check finds an incorrect step.
        first_row (`int`, *optional*, defaults to `0`):
            Number of the first row in error messages, where `dataset` is a shard of a larger one.

    Returns:
        `tuple`: The rows with `rewrite` (of the type of `completion`), `error_step` and `edit_outcome`, and the number
        of rows by outcome. A rewrite that fails verification is `None`, its `error_step` -1, and its outcome the
        reason.

    Raises:
        [`EditorError`]: If the editor does not return one edit per attempt.
    """
    problems, references, completions = editor_inputs(dataset, task)
    raw_completions, corrects, answers = dataset["completion"][:], dataset["correct"][:], dataset["answer"][:]
    asked = [index for index, correct in enumerate(corrects) if check_correct_samples or not correct]

    @cache  # cached: `usable` may already have verified the edit
    def judge(index: int, edit: Edit) -> tuple[str, int, str | None]:
        return judge_edit(task, problems[index], answers[index], completions[index], corrects[index], edit)

    def usable(position: int, edit: Edit) -> bool:
        _check_edit(editor, edit, first_row + asked[position])
        return judge(asked[position], edit)[2] is not None

    inputs = [[texts[index] for index in asked] for texts in (problems, references, completions)]
    edits = []
    if asked:
        words = ("editor", "edit", "attempt", "NoEdit(reason)")
        edits = call_function(editor, inputs, *words, EditorError, usable=usable)
    for index, edit in zip(asked, edits, strict=True):
        _check_edit(editor, edit, first_row + index)
    edit_of = dict(zip(asked, edits, strict=True))
    outcomes, rewrites, error_steps = [], [], []
    for index, completion in enumerate(completions):
        outcome, error_step, rewrite = judge(index, edit_of.get(index, (-1, completion)))
        outcomes.append(outcome)
        error_steps.append(error_step)
        conversational = rewrite is not None and is_conversational(raw_completions[index])
        rewrites.append([{"role": "assistant", "content": rewrite}] if conversational else rewrite)
    # The types are given, because they cannot be inferred from a shard without a rewrite
    new = {
        "rewrite": (rewrites, dataset.features["completion"]),
        "error_step": (error_steps, Value("int64")),
        "edit_outcome": (outcomes, Value("string")),
    }
    # Also what belongs to an earlier rewrite
    replaced = {*new, *OF_REWRITE}
    edited = dataset.remove_columns([name for name in dataset.column_names if name in replaced])
    for name, (values, feature) in new.items():
        edited = edited.add_column(name, values, feature=feature)
    return edited, Counter(outcomes)


# Outcomes of verified rewrites
_KEPT = ("rewritten", "unchanged")


def _check_edit(editor: Editor, edit: Any, row: int) -> None:
    """Refuse an edit that is neither `(int, str)` nor [`NoEdit`], with the name of the editor and the row."""
    if isinstance(edit, NoEdit):
        is_sound = is_storable(edit.reason) and edit.reason.strip() and edit.reason not in _KEPT
    else:
        is_sound = isinstance(edit, tuple) and len(edit) == 2 and type(edit[0]) is int and is_storable(edit[1])
    if not is_sound:
        raise EditorError(
            f"The editor `{name_of(editor)}` returned {show_entry(edit)} for row {row}; an edit is a tuple of the "
            "first incorrect step (an int, -1 if there is none) and the rewrite (a string), or `NoEdit` with a reason."
        )


def judge_edit(
    task: Task, problem: str, answer: str, completion: str, correct: bool, edit: Edit
) -> tuple[str, int, str | None]:
    """The outcome of an edit, with the first incorrect step (-1 if there is none) and the rewrite (`None`) to use."""
    if isinstance(edit, NoEdit):
        return edit.reason, -1, None
    error_step, rewrite = edit
    # One past the last step stands for a step that is missing at the end
    if not -1 <= error_step <= len(split_steps(completion, task.wording.step_separator)):
        return "malformed", -1, None
    if rewrite == completion or (correct and error_step == -1):
        # An unchanged attempt is accepted only if it is correct
        kept = correct and task.has_correct_steps(problem, completion)
        return ("unchanged", -1, completion) if kept else ("left wrong", -1, None)
    reason = verify_rewrite(task, problem, answer, rewrite)
    if reason is not None:
        return reason, -1, None
    if error_step == -1:
        error_step = first_changed_step(completion, rewrite, task.wording.step_separator)
    return "rewritten", error_step, rewrite


def mean_edit_distance(edited: Dataset) -> float | None:
    """Mean number of words that a rewrite changes, over the rewritten attempts; `None` if there are none."""
    rows = zip(edited["completion"], edited["rewrite"], edited["edit_outcome"], strict=True)
    distances = [
        edit_distance(message_text(completion).split(), message_text(rewrite).split())
        for completion, rewrite, outcome in rows
        if outcome == "rewritten"
    ]
    return sum(distances) / len(distances) if distances else None
