"""The sample stage: completions of a policy, each with the verdict on its answer."""

from collections.abc import Sequence

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..data.messages import is_conversational
from ..tasks.task import Task


def to_sample_rows(
    dataset: Dataset,
    completions: Sequence[Sequence[list[int]]],
    ends: set[int],
    processing_class: PreTrainedTokenizerBase,
    task: Task,
) -> Dataset:
    """
    One row a completion: the columns of its problem, `completion`, `completion_ids` and `correct`.

    Completions that were cut off before EOS, or say nothing, are left out: what they were going to say is unknown.

    Args:
        dataset ([`~datasets.Dataset`]):
            The problems.
        completions (`Sequence[Sequence[list[int]]]`):
            What [`sample_completions`] or [`sample_from_server`] gave for them.
        ends (`set[int]`):
            Ids that end a completion.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        task ([`~rlmec_trl.tasks.task.Task`]):
            How answers are checked.
    """
    columns = {name: [] for name in [*dataset.column_names, "completion", "completion_ids", "correct"]}
    for row, samples in zip(dataset, completions, strict=True):
        for ids in samples:
            text = processing_class.decode(ids, skip_special_tokens=True)
            if not ids or ids[-1] not in ends or not text.strip():
                continue
            conversational = is_conversational(row["prompt"])
            row["completion"] = [{"role": "assistant", "content": text}] if conversational else text
            row["completion_ids"] = ids
            row["correct"] = task.check_answer(text, row["answer"], task.raw_problem(row["prompt"]))
            for name, values in columns.items():
                values.append(row[name])
    return Dataset.from_dict(columns)
