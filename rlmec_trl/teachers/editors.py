"""Who rewrites the attempts, and the check that every rewrite has to pass before anything is trained on it."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from datasets import Dataset

from ..credit.alignment import edit_distance
from ..data.messages import is_conversational, message_text
from ..data.steps import first_changed_step
from ..tasks.task import Task


@dataclass(frozen=True)
class NoEdit:
    """There is no edit of an attempt, for this reason."""

    reason: str


# The index of the first wrong step, -1 where none is, and the rewrite
Edit = tuple[int, str] | NoEdit
# Whether an edit of the attempt with this index passes verification
Usable = Callable[[int, Edit], bool]


class Editor(Protocol):
    """
    Whoever corrects attempts with minimum edits.

    Called with the problems, their correct solutions and the attempts at them, it answers for each attempt with the
    index of its first wrong step (-1 where none) and the rewrite, or with [`NoEdit`]. One that would not say the same
    twice may ask `usable(index, edit)` whether an edit passes verification, and try again where it does not.
    """

    def __call__(
        self,
        problems: Sequence[str],
        references: Sequence[str],
        completions: Sequence[str],
        usable: Usable | None = None,
    ) -> list[Edit]: ...


def verify_rewrite(task: Task, problem: str, answer: str, rewrite: str) -> str | None:
    """Why a rewrite may not be trained on, or `None` where it passes the checks of its task."""
    if not rewrite.strip():
        return "empty"
    if not task.check_answer(rewrite, answer, problem):
        return "wrong answer"
    if task.check_steps is not None and not all(task.check_steps(problem, rewrite)):
        return "wrong step"
    return None


def editor_inputs(dataset: Dataset, task: Task) -> tuple[list[str], list[str], list[str]]:
    """The problems, references and attempts of a data set, as texts, the way an editor is given them."""
    problems = [task.raw_problem(prompt) for prompt in dataset["prompt"]]
    return problems, dataset["reference"][:], [message_text(completion) for completion in dataset["completion"]]


def edit_dataset(
    dataset: Dataset, editor: Editor, task: Task, check_correct_samples: bool = True
) -> tuple[Dataset, Counter]:
    """
    Have an editor rewrite the attempts of a data set, and keep what passes verification.

    Args:
        dataset ([`~datasets.Dataset`]):
            Sampled rows: `prompt`, `reference`, `answer`, `completion`, `correct`.
        editor (`Editor`):
            Who rewrites.
        task ([`~rlmec_trl.tasks.task.Task`]):
            How answers and steps are checked.
        check_correct_samples (`bool`, *optional*, defaults to `True`):
            Whether right answers are edited too, since they may hide wrong steps. Otherwise they stay as they are.

    Returns:
        `tuple`: The rows with `rewrite`, `error_step` and `edit_outcome`, and the number of rows by outcome. A rewrite
        that fails verification is `None`, its `error_step` -1, and its outcome the reason.
    """
    problems, references, completions = editor_inputs(dataset, task)
    raw_completions, corrects, answers = dataset["completion"][:], dataset["correct"][:], dataset["answer"][:]
    asked = [index for index, correct in enumerate(corrects) if check_correct_samples or not correct]

    @cache  # an editor that asks whether an edit is usable has had it verified
    def judge(index: int, edit: Edit) -> tuple[str, int, str | None]:
        return judge_edit(task, problems[index], answers[index], completions[index], corrects[index], edit)

    edits = editor(
        [problems[index] for index in asked],
        [references[index] for index in asked],
        [completions[index] for index in asked],
        lambda position, edit: judge(asked[position], edit)[2] is not None,
    )
    edits = dict(zip(asked, edits, strict=True))
    outcomes, rewrites, error_steps = [], [], []
    for index, completion in enumerate(completions):
        outcome, error_step, rewrite = judge(index, edits.get(index, (-1, completion)))
        outcomes.append(outcome)
        error_steps.append(error_step)
        conversational = rewrite is not None and is_conversational(raw_completions[index])
        rewrites.append([{"role": "assistant", "content": rewrite}] if conversational else rewrite)
    new = {"rewrite": rewrites, "error_step": error_steps, "edit_outcome": outcomes}
    edited = dataset.remove_columns([name for name in new if name in dataset.column_names])
    for name, values in new.items():
        edited = edited.add_column(name, values)
    return edited, Counter(outcomes)


def judge_edit(
    task: Task, problem: str, answer: str, completion: str, correct: bool, edit: Edit
) -> tuple[str, int, str | None]:
    """The outcome of an edit by name, and the first wrong step and rewrite that may be used."""
    if isinstance(edit, NoEdit):
        return edit.reason, -1, None
    error_step, rewrite = edit
    if rewrite == completion or (correct and error_step == -1):
        # Left as it is, which only a right attempt may be
        return ("unchanged", -1, completion) if correct else ("left wrong", -1, None)
    reason = verify_rewrite(task, problem, answer, rewrite)
    if reason is not None:
        return reason, -1, None
    if error_step == -1:
        error_step = first_changed_step(completion, rewrite, task.wording.step_separator)
    return "rewritten", error_step, rewrite


def mean_edit_distance(edited: Dataset) -> float | None:
    """Mean number of words that a rewrite changes, over the attempts that were rewritten; `None` where none was."""
    rows = zip(edited["completion"], edited["rewrite"], edited["edit_outcome"], strict=True)
    distances = [
        edit_distance(message_text(completion).split(), message_text(rewrite).split())
        for completion, rewrite, outcome in rows
        if outcome == "rewritten"
    ]
    return sum(distances) / len(distances) if distances else None
