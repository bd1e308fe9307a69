"""The rows that a generative reward model is trained on: a teacher's edits, and rewrites that such a model made."""

import json
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, Json, List, Value

from ..data.errors import DatasetError, errors_of_dataset
from ..data.messages import message_text, without_empty_fields
from ..data.schema import check_dataset, check_prompt_forms
from ..data.steps import first_changed_step
from ..tasks.task import Task
from .responses import TEMPLATE_KWARGS
from .through_journal import describe_outcomes


# Why a scored row is left out
EDITED = "problem with an edit"
NO_REWRITE = "no verified rewrite"
NEEDLESS = "correct sample without a wrong step, changed"
UNCHANGED = "incorrect sample, not changed"

_COLUMNS = ("prompt", "reference", "completion", "correct", "rewrite", "error_step")


def gather_grm_rows(datasets: dict[str, Dataset], task: Task) -> tuple[Dataset, Counter]:
    """
    Join edited rows and scored rows, in which the rewrites of an earlier generative reward model stand in for edits.

    Edits come first: a problem that has one gives no scored row, whatever the order of the datasets. The rewrites of
    scored rows are verified ([`~rlmec_trl.stages.score.score_dataset`]), and their first incorrect step is the first
    one that the rewrite changes. A sample that the rewrite leaves as it is, is a correct one to copy. One with a
    correct answer that the rewrite changes is used only if the task's check finds an incorrect step in it: otherwise,
    the model would learn to change what is correct.

    Args:
        datasets (`dict[str, Dataset]`):
            Edited rows, as the edit stage writes them, and scored rows, which have `rewrite_ids`, by their names.
        task ([`~rlmec_trl.tasks.task.Task`]):
            How steps are divided and checked.

    Returns:
        `tuple[Dataset, Counter]`: The rows for [`GRMTrainer`], and the number of scored rows that were left out, by
        reason. A single dataset of edits is returned as it is.

    Raises:
        [`~rlmec_trl.data.errors.DatasetError`]: If a row is invalid, some prompts are texts and others messages, or no
            row is left.
    """
    edits = {name: rows for name, rows in datasets.items() if not _is_scored(rows)}
    if len(edits) == len(datasets) == 1:
        return next(iter(edits.values())), Counter()
    left_out: Counter[str] = Counter()
    rows = []
    for name, dataset in edits.items():
        with errors_of_dataset(name):
            rows += _edited_rows(dataset)
    edited = {_prompt_key(row["prompt"]) for row in rows}
    for name, dataset in datasets.items():
        if _is_scored(dataset):
            with errors_of_dataset(name):
                rows += _scored_rows(dataset, task, edited, left_out)
    if not rows:
        names = ", ".join(map(repr, datasets))
        reasons = describe_outcomes(left_out) or "no edit was verified"
        raise DatasetError(f"There is no row to train a generative reward model on in {names} ({reasons}).")
    check_prompt_forms((row["prompt"] for row in rows), datasets)
    return _to_dataset(rows, datasets), left_out


def _is_scored(dataset: Dataset) -> bool:
    return "rewrite_ids" in dataset.column_names


def _prompt_key(prompt: str | list[dict]) -> str:
    return json.dumps(without_empty_fields(prompt), sort_keys=True)


def _edited_rows(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """The rows with an edit, checked."""
    numbers = list(range(len(dataset)))
    if "rewrite" in dataset.column_names:
        numbers = [number for number, rewrite in enumerate(dataset["rewrite"]) if rewrite is not None]
    selected = dataset.select(numbers)
    check_dataset(selected, "edits", row_numbers=numbers)
    yield from selected


def _scored_rows(dataset: Dataset, task: Task, edited: Collection[str], left_out: Counter) -> Iterator[dict[str, Any]]:
    """The rows with a rewrite to learn from, checked, as edited rows."""
    check_dataset(dataset, "rewrites")
    for row in dataset:
        completion = message_text(row["completion"])
        rewrite = None if row["rewrite"] is None else message_text(row["rewrite"])
        is_unchanged = rewrite is not None and rewrite.strip() == completion.strip()
        if _prompt_key(row["prompt"]) in edited:
            left_out[EDITED] += 1
        elif rewrite is None:
            left_out[NO_REWRITE] += 1
        elif is_unchanged and not row["correct"]:
            left_out[UNCHANGED] += 1
        elif is_unchanged:
            yield {**row, "rewrite": row["completion"], "error_step": -1}
        elif row["correct"] and task.has_correct_steps(task.raw_problem(row["prompt"]), completion):
            left_out[NEEDLESS] += 1
        else:
            yield {**row, "error_step": first_changed_step(completion, rewrite, task.wording.step_separator)}


def _to_dataset(rows: list[dict[str, Any]], datasets: dict[str, Dataset]) -> Dataset:
    """The columns that train a reward model. Sampled ids are used if all datasets have them."""
    columns = {name: [row[name] for row in rows] for name in _COLUMNS}
    for name in ("completion", "rewrite"):
        if len({isinstance(value, str) for value in columns[name]}) > 1:  # texts in some datasets, messages in others
            columns[name] = [message_text(value) for value in columns[name]]
    types = {}
    if all("completion_ids" in dataset.column_names for dataset in datasets.values()):
        columns["completion_ids"] = [row["completion_ids"] for row in rows]
        types["completion_ids"] = List(Value("int64"))
    if any(TEMPLATE_KWARGS in dataset.column_names for dataset in datasets.values()):
        columns[TEMPLATE_KWARGS] = [row.get(TEMPLATE_KWARGS) for row in rows]
        types[TEMPLATE_KWARGS] = Json()
    # The types of the texts are inferred: messages may have other fields than role and content
    try:
        inferred = Dataset.from_dict({name: columns[name] for name in _COLUMNS}).features
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DatasetError(
            f"The messages of {', '.join(map(repr, datasets))} have a field with values of different types ({error}). "
            "Keep only `role` and `content`."
        ) from None
    return Dataset.from_dict(columns, features=Features({**inferred, **types}))
