"""How good is a generative reward model? Its verdicts against a checker that judges every step."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import ModelConfig

from ..credit.alignment import edit_distance
from ..data.checks import check_config
from ..data.errors import ConfigError
from ..data.loading import load_rows
from ..data.messages import message_text
from ..data.schema import DatasetError, check_dataset
from ..data.steps import first_changed_step, split_steps
from ..data.tokens import encode_completion
from ..generation.loading import load_tokenizer
from ..reports.accuracy import Accuracy
from ..tasks.task import Task, load_task
from ..teachers.editors import Editor
from .output import claim_file, write_atomically
from .summary import print_summary, timed


@dataclass
class AuditConfig:
    r"""
    Settings of the audit stage.

    Parameters:
        dataset_name (`str`):
            Scored samples, as the score stage writes them.
        seen_dataset_name (`str`):
            Edited samples whose problems the reward model was trained on.
        tokenizer (`str`):
            Path or Hub name of the policy's tokenizer.
        task (`str`):
            A task whose own editor makes no mistakes: a built-in one, `package.module:NAME` or
            `path/to/file.py:NAME`.
        output_file (`str`, *optional*):
            JSON file to write the audit to.
        threshold (`float`, *optional*, defaults to `0.5`):
            Probability under which a token counts as flagged, between 0 and 1.
    """

    dataset_name: str = field(metadata={"help": "Scored samples, as `score.py` writes them."})
    seen_dataset_name: str = field(metadata={"help": "Edited samples whose problems the reward model was trained on."})
    tokenizer: str = field(metadata={"help": "Path or Hub name of the policy's tokenizer."})
    task: str = field(
        metadata={
            "help": "Built-in task, `package.module:NAME` or `path/to/file.py:NAME`.",
        }
    )
    output_file: str | None = field(default=None, metadata={"help": "JSON file to write the audit to."})
    threshold: float = field(
        default=0.5,
        metadata={"help": "Probability under which a token counts as flagged, between 0 and 1."},
    )

    def __post_init__(self):
        check_config(self)


@dataclass(frozen=True)
class GRMAudit:
    """
    Results of an audit, on samples with known incorrect steps.

    Args:
        first_wrong_flagged (`Accuracy`):
            First incorrect tokens with a probability under the threshold. One without a probability counts as not
            flagged.
        clean_kept (`Accuracy`):
            Tokens before the first incorrect one (all tokens of a sample without one) with a probability over it.
        auc (`float`):
            Probability that a first incorrect token has a lower probability than a clean one (area under the ROC
            curve).
        wrong_rewritten (`Accuracy`):
            Samples with an incorrect answer whose rewrite has every step correct.
        verified_flawed (`Accuracy`):
            Rewrites that passed the checks of the score stage and have an incorrect step all the same. Lower is
            better: the policy imitates these.
        flawed_flagged (`Accuracy`):
            Samples with a correct answer and an incorrect step that have a token under the threshold.
        error_located (`Accuracy`):
            Samples whose rewrite first departs from them at the first incorrect step, or not at all where there is
            none.
        edits_made_over_needed (`float`):
            Edits of the rewrites with every step correct, over those of the teacher on the same samples.
    """

    first_wrong_flagged: Accuracy
    clean_kept: Accuracy
    auc: float
    wrong_rewritten: Accuracy
    verified_flawed: Accuracy
    flawed_flagged: Accuracy
    error_located: Accuracy
    edits_made_over_needed: float

    def to_dict(self) -> dict[str, Any]:
        """The results for JSON, which has no NaN: what could not be measured is `None`."""
        return {name: None if value != value else value for name, value in asdict(self).items()}


@timed
def run(config: AuditConfig) -> GRMAudit:
    """
    Audit a generative reward model on the scored samples of problems that it was not trained on.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If the task has no editor.
        [`~rlmec_trl.data.schema.DatasetError`]: If a row breaks the contract of its columns, or no sample is left.
    """
    with claim_file(config.output_file, ("first_wrong_flagged", "clean_kept", "auc")):
        task = load_task(config.task)
        if task.editor is None:
            raise ConfigError(f"The audit needs a task with an editor; '{task.name}' has none.")
        scored = load_rows(config.dataset_name)
        check_dataset(scored, "scores")
        _check_columns(scored, config.dataset_name, ("reference", "rewrite", "rewrite_ids"))
        edited = load_rows(config.seen_dataset_name)
        _check_columns(edited, config.seen_dataset_name, ("prompt",))
        seen = {json.dumps(prompt) for prompt in edited["prompt"]}
        unseen = [index for index, prompt in enumerate(scored["prompt"]) if json.dumps(prompt) not in seen]
        if not unseen:
            raise DatasetError(
                f"There is nothing to audit: {config.dataset_name!r} has {len(scored)} samples, and the problems of "
                f"all of them are in {config.seen_dataset_name!r}. Score samples of other problems."
            )
        tokenizer = load_tokenizer(ModelConfig(config.tokenizer))
        audit = audit_grm(scored.select(unseen), task, task.editor, tokenizer, config.threshold)
        if config.output_file is not None:
            write_atomically(config.output_file, json.dumps(audit.to_dict(), indent=2) + "\n")
        print_summary(
            f"Audited {len(unseen):,} samples of problems that the reward model was not trained on.",
            config.output_file,
        )
    return audit


def _check_columns(dataset: Dataset, name: str, columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise DatasetError(f"{name!r} has no column '{missing[0]}', which the audit needs.")


def first_wrong_token(
    completion: str,
    completion_ids: Sequence[int],
    rewrite: str,
    rewrite_ids: Sequence[int],
) -> int | None:
    """Position of the first completion token that a faithful rewrite does not repeat; `None` where it repeats all."""
    if completion == rewrite:
        return None
    pairs = zip(completion_ids, rewrite_ids, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(completion_ids), len(rewrite_ids)) - 1)


def area_under_curve(negatives: Sequence[float], positives: Sequence[float]) -> float:
    """Probability that a draw from `negatives` is smaller than one from `positives`; ties count half."""
    if not negatives or not positives:
        return float("nan")
    ranked = sorted([(value, 0) for value in negatives] + [(value, 1) for value in positives])
    rank_sum, start = 0.0, 0
    while start < len(ranked):
        end = start
        while end < len(ranked) and ranked[end][0] == ranked[start][0]:
            end += 1
        mean_rank = (start + end + 1) / 2
        rank_sum += mean_rank * sum(label for _, label in ranked[start:end])
        start = end
    return (rank_sum - len(positives) * (len(positives) + 1) / 2) / (len(positives) * len(negatives))


def audit_grm(
    dataset: Dataset,
    task: Task,
    teacher: Editor,
    processing_class: PreTrainedTokenizerBase,
    threshold: float = 0.5,
) -> GRMAudit:
    """
    Audit a generative reward model on scored samples of problems that it was not trained on.

    Args:
        dataset ([`~datasets.Dataset`]):
            Scored rows: `prompt`, `reference`, `completion`, `completion_ids`, `correct`, `token_probs`, `rewrite`,
            `rewrite_ids`.
        task ([`~rlmec_trl.tasks.task.Task`]):
            The task.
        teacher (`Editor`):
            An editor without mistakes, whose edits are minimal. It locates the first incorrect step of a sample,
            counts the edits that are needed, and judges rewrites. The task's `check_steps` is not used: rewrites have
            already passed it.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        threshold (`float`, *optional*, defaults to `0.5`):
            Probability under which a token counts as flagged.
    """
    problems = [task.raw_problem(prompt) for prompt in dataset["prompt"]]
    completions = [message_text(completion) for completion in dataset["completion"]]
    references = dataset["reference"][:]
    edits = teacher(problems, references, completions)
    rewrites = [None if rewrite is None else message_text(rewrite) for rewrite in dataset["rewrite"]]
    verified = [index for index, rewrite in enumerate(rewrites) if rewrite is not None]
    columns = ([values[index] for index in verified] for values in (problems, references, rewrites))
    is_flawed = dict(zip(verified, (error_step >= 0 for error_step, _ in teacher(*columns)), strict=True))

    separator = task.wording.step_separator
    wrong_probs, clean_probs = [], []
    rewritten, flawed, located = [], [], []
    num_wrong = edits_made = edits_needed = 0
    for index, (row, completion, rewrite, (error_step, teacher_rewrite)) in enumerate(
        zip(dataset, completions, rewrites, edits, strict=True)
    ):
        ids, probs = row["completion_ids"], row["token_probs"]
        num_steps = len(split_steps(completion, separator))
        teacher_ids = encode_completion(processing_class, teacher_rewrite)
        first_wrong = first_wrong_token(completion, ids, teacher_rewrite, teacher_ids)
        # Tokens that the reward model has no opinion on are neither kept nor flagged
        clean_probs += [prob for prob in probs[:first_wrong] if prob is not None]
        if first_wrong is not None:
            num_wrong += 1
            if probs[first_wrong] is not None:
                wrong_probs.append(probs[first_wrong])
        if row["correct"] and error_step >= 0:
            flawed.append(any(prob is not None and prob < threshold for prob in probs))
        is_right = rewrite is not None and not is_flawed[index]
        if not row["correct"]:
            rewritten.append(is_right)
        # A step that is missing at the end has no place in the attempt: the last step stands for it
        located.append(
            rewrite is not None
            and first_changed_step(completion, rewrite, separator) == min(error_step, num_steps - 1)
        )
        if is_right:
            edits_made += edit_distance(ids, row["rewrite_ids"])
            edits_needed += edit_distance(ids, teacher_ids)
    return GRMAudit(
        first_wrong_flagged=Accuracy(sum(prob < threshold for prob in wrong_probs), num_wrong),
        clean_kept=Accuracy(sum(prob > threshold for prob in clean_probs), len(clean_probs)),
        auc=area_under_curve(wrong_probs, clean_probs),
        wrong_rewritten=Accuracy(sum(rewritten), len(rewritten)),
        verified_flawed=Accuracy(sum(is_flawed.values()), len(is_flawed)),
        flawed_flagged=Accuracy(sum(flawed), len(flawed)),
        error_located=Accuracy(sum(located), len(located)),
        edits_made_over_needed=edits_made / edits_needed if edits_needed else float("nan"),
    )
