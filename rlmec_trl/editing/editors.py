"""Who rewrites the attempts, and the check that every rewrite has to pass before anything is trained on it."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.arithmetic import rewrite_minimally
from ..data.messages import is_conversational, message_text, problem_text
from ..data.prompts import WORDING, Wording, locate_prompt, parse_locate, raw_problem, rewrite_prompt, split_steps
from ..data.tasks import Task
from ..data.tokens import as_prompt, encode_prompt
from ..generation.inference import eos_token_ids, generate_ids


class Editor(Protocol):
    """
    Whoever corrects attempts with minimum edits.

    Called with the problems, their correct solutions and the attempts at them, it answers for each attempt with the
    index of its first wrong step (-1 where none) and the rewrite, or `None` where it has no answer.
    """

    def __call__(
        self, problems: Sequence[str], references: Sequence[str], completions: Sequence[str]
    ) -> list[tuple[int, str] | None]: ...


class ArithmeticEditor:
    """The programmatic editor of the built-in task, which is never wrong."""

    def __call__(
        self, problems: Sequence[str], references: Sequence[str], completions: Sequence[str]
    ) -> list[tuple[int, str] | None]:
        return [rewrite_minimally(*row) for row in zip(problems, references, completions, strict=True)]


class ModelEditor:
    """
    A local causal language model as the editor: it is asked for the first wrong step, and for the corrected attempt.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Any instruction-tuned causal language model.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer. Where it has a chat template, the questions are asked as a user's message.
        wording ([`~rlmec_trl.data.prompts.Wording`], *optional*):
            Wording of the two questions.
        batch_size (`int`, *optional*, defaults to `16`):
            Number of attempts in a batch.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Greatest length of a rewrite, in tokens.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processing_class: PreTrainedTokenizerBase,
        wording: Wording = WORDING,
        batch_size: int = 16,
        max_new_tokens: int = 512,
    ):
        self.model = model
        self.processing_class = processing_class
        self.wording = wording
        self.batch_size = batch_size
        self.max_new_tokens = max_new_tokens

    def __call__(
        self, problems: Sequence[str], references: Sequence[str], completions: Sequence[str]
    ) -> list[tuple[int, str] | None]:
        rows = list(zip(problems, references, completions, strict=True))
        rewrites = self._ask([rewrite_prompt(self.wording, *row) for row in rows], self.max_new_tokens, "Rewriting")
        answers = self._ask([locate_prompt(self.wording, *row) for row in rows], 16, "Locating errors")
        edits = []
        for completion, rewrite, answer in zip(completions, rewrites, answers, strict=True):
            if rewrite is None:
                edits.append(None)
                continue
            located = None if answer is None else parse_locate(self.wording, answer)
            if located is None or located >= len(split_steps(completion, self.wording.step_separator)):
                # No usable answer, but the rewrite itself shows where the attempt was first changed
                located = first_changed_step(completion, rewrite, self.wording.step_separator)
            edits.append((located, rewrite))
        return edits

    def _ask(self, questions: list[str], max_new_tokens: int, desc: str) -> list[str | None]:
        """The model's answers; `None` where `max_new_tokens` cut one off."""
        tokenizer = self.processing_class
        prompt_ids = [encode_prompt(tokenizer, as_prompt(tokenizer, question)) for question in questions]
        answers = generate_ids(self.model, tokenizer, prompt_ids, max_new_tokens, self.batch_size, desc)
        ends = eos_token_ids(self.model, tokenizer)
        return [
            tokenizer.decode(ids, skip_special_tokens=True).strip() if ids[-1] in ends else None for ids in answers
        ]


def first_changed_step(completion: str, rewrite: str, step_separator: str) -> int:
    """Index of the first step of the completion that the rewrite does not repeat, -1 where they are the same."""
    if completion == rewrite:
        return -1
    # The separator after a step is not part of what it says: the last step has none
    steps, rewritten = (
        [step.removesuffix(step_separator).strip() for step in split_steps(text, step_separator)]
        for text in (completion, rewrite)
    )
    same = [step == other for step, other in zip(steps, rewritten, strict=False)]
    return same.index(False) if False in same else max(min(len(same), len(steps) - 1), 0)


def verify_rewrite(task: Task, problem: str, answer: str, rewrite: str) -> str | None:
    """Why a rewrite may not be trained on, or `None` where it passes the checks of its task."""
    if not rewrite.strip():
        return "empty"
    if not task.check_answer(rewrite, answer):
        return "wrong answer"
    if task.check_steps is not None and not all(task.check_steps(problem, rewrite)):
        return "wrong step"
    return None


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
        task ([`~rlmec_trl.data.tasks.Task`]):
            How answers and steps are checked.
        check_correct_samples (`bool`, *optional*, defaults to `True`):
            Whether right answers are edited too, since they may hide wrong steps. Otherwise they stay as they are.

    Returns:
        `tuple`: The rows with `rewrite` and `error_step`, and the number of rows by outcome. A rewrite that fails
        verification is `None`, and its `error_step` -1.
    """
    problems = [raw_problem(task.wording, problem_text(prompt)) for prompt in dataset["prompt"]]
    raw_completions = dataset["completion"][:]
    completions = [message_text(completion) for completion in raw_completions]
    corrects, references, answers = dataset["correct"], dataset["reference"], dataset["answer"]
    asked = [index for index, correct in enumerate(corrects) if check_correct_samples or not correct]
    edits = dict(
        zip(
            asked,
            editor([problems[i] for i in asked], [references[i] for i in asked], [completions[i] for i in asked]),
            strict=True,
        )
    )
    outcomes, rewrites, error_steps = Counter(), [], []
    for index, completion in enumerate(completions):
        edit = edits.get(index, (-1, completion))
        outcome, error_step, rewrite = judge_edit(
            task, problems[index], answers[index], completion, corrects[index], edit
        )
        outcomes[outcome] += 1
        error_steps.append(error_step)
        conversational = rewrite is not None and is_conversational(raw_completions[index])
        rewrites.append([{"role": "assistant", "content": rewrite}] if conversational else rewrite)
    columns = dataset.remove_columns([name for name in ("rewrite", "error_step") if name in dataset.column_names])
    edited = columns.add_column("rewrite", rewrites).add_column("error_step", error_steps)
    return edited, outcomes


def judge_edit(
    task: Task, problem: str, answer: str, completion: str, correct: bool, edit: tuple[int, str] | None
) -> tuple[str, int, str | None]:
    """The outcome of an edit by name, and the first wrong step and rewrite that may be used."""
    if edit is None:
        return "no answer", -1, None
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


def load_editor(
    name: str, load_model: Callable[[str], tuple[PreTrainedModel, PreTrainedTokenizerBase]], **kwargs
) -> Editor:
    """
    The editor of a name: `"arithmetic"`, or else the path or Hub name of a model.

    Args:
        name (`str`):
            Who edits.
        load_model (`Callable`):
            Loads a model and its tokenizer by path or name; called only where one is needed.
        kwargs:
            Arguments of [`ModelEditor`].
    """
    return ArithmeticEditor() if name == "arithmetic" else ModelEditor(*load_model(name), **kwargs)
