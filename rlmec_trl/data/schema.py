"""The columns of each stage: their types, and a check of every row before any expensive work."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tqdm.auto import tqdm

from .errors import DatasetError
from .messages import is_conversational
from .row_checks import NUMBER_COLUMNS, TEXT_COLUMNS, TOPK_COLUMNS, RowCheck


if TYPE_CHECKING:
    from datasets import Dataset
    from datasets.features.features import FeatureType


Stage = Literal[
    "task",
    "samples",
    "edits",
    "rewrites",
    "scores",
    "policy",
    "dpo",
    "grpo",
    "preference",
    "responses",
    "prompts",
    "validation",
]

# The columns that the reader of a stage's rows needs; of a tuple, one column is enough
_REQUIRED: dict[str, tuple[str | tuple[str, ...], ...]] = {
    "task": ("prompt", "reference", "answer"),
    "samples": ("prompt", "reference", "answer", "completion", "completion_ids", "correct"),
    "edits": ("prompt", "reference", "completion", "correct", "rewrite", "error_step"),
    "rewrites": ("prompt", "reference", "completion", "correct", "rewrite"),
    "scores": (
        "prompt",
        "completion",
        "completion_ids",
        "correct",
        "token_probs",
        "old_logps",
        ("rewrite", "rewrite_ids"),
    ),
    "policy": ("prompt", "completion_ids", ("token_probs", "token_rewards"), ("rewrite", "rewrite_ids")),
    "dpo": ("prompt", "completion", "correct", "rewrite"),
    "grpo": ("prompt", "answer"),
    "preference": ("prompt", "chosen", "rejected"),
    "responses": ("prompt", "answer", "completion"),
    "prompts": ("prompt",),
    "validation": ("prompt", "completion_ids", "correct"),
}
# The columns that are read, and so checked, where the dataset has them
_OPTIONAL: dict[str, tuple[str, ...]] = {
    "task": (),
    "samples": (),
    "edits": ("answer", "completion_ids"),
    "rewrites": ("completion_ids",),
    "scores": ("reference", "answer", *TOPK_COLUMNS),
    "policy": ("completion", "correct", "old_logps", *TOPK_COLUMNS),
    "dpo": (),
    "grpo": (),
    "preference": ("kind", "margin"),
    "responses": (),
    "prompts": (),
    "validation": (),
}
_SOURCE = {
    "prompt": "the task's dataset has to provide it",
    "reference": "the task's dataset has to provide it (a correct worked solution)",
    "answer": "the task's dataset has to provide it (the final answer)",
    "completion": "`recipes/sample.py` writes it",
    "completion_ids": "`recipes/sample.py` writes it",
    "correct": "`recipes/sample.py` writes it",
    "rewrite": "`recipes/edit.py` (a teacher) or `recipes/score.py` (the generative reward model) writes it",
    "error_step": "`recipes/edit.py` writes it",
    "rewrite_ids": "`recipes/score.py` writes it",
    "token_probs": "`recipes/score.py` writes it",
    "token_rewards": "your own source of token rewards has to provide it",
    "old_logps": "`recipes/score.py` writes it",
    "rewrite_topk_ids": "`recipes/score.py` writes it",
    "rewrite_topk_logps": "`recipes/score.py` writes it",
    "attempt_topk_ids": "`recipes/score.py` writes it",
    "attempt_topk_logps": "`recipes/score.py` writes it",
    "chosen": "`recipes/pairs.py` writes it (the better response)",
    "rejected": "`recipes/pairs.py` writes it (the worse response)",
    "kind": "`recipes/pairs.py` writes it",
    "margin": "your own source of pairs has to provide it",
}
# Columns that describe one rewrite, and do not fit the next
OF_REWRITE = ("error_step", "edit_outcome", "rewrite_ids", "rewrite_index", "rewrite_topk_ids", "rewrite_topk_logps")
_BATCH_SIZE = 5_000
_BIG = 50_000


def column_features(messages: bool = False) -> dict[str, FeatureType]:
    """
    Types of the columns that the stages write, for where they cannot be inferred: `rewrite` may be `None` in the first
    thousand rows.

    Args:
        messages (`bool`, *optional*, defaults to `False`):
            Whether `prompt`, `completion` and `rewrite` are lists of messages instead of strings.

    Returns:
        `dict[str, FeatureType]`: One feature for each column. Numbers have the width that Python's own get.
    """
    from datasets import List, Value

    string, integers, floats = Value("string"), List(Value("int64")), List(Value("float64"))
    text = List({"role": string, "content": string}) if messages else string
    return {
        "prompt": text,
        "reference": string,
        "answer": string,
        "completion": text,
        "completion_ids": integers,
        "correct": Value("bool"),
        "rewrite": text,
        "error_step": Value("int64"),
        "edit_outcome": string,
        "label": string,
        "rationale_outcome": string,
        "rewrite_ids": integers,
        "rewrite_index": Value("int64"),
        "token_probs": floats,
        "token_rewards": floats,
        "old_logps": floats,
        "rewrite_topk_ids": List(integers),
        "rewrite_topk_logps": List(floats),
        "attempt_topk_ids": List(integers),
        "attempt_topk_logps": List(floats),
    }


def check_dataset(
    dataset: Dataset,
    stage: Stage,
    eos_token_ids: int | Iterable[int] | None = None,
    vocab_size: int | None = None,
    row_numbers: Sequence[int] | None = None,
) -> None:
    """
    Check that a dataset has the columns that a stage reads, with valid values.

    Columns that the stage does not read are ignored. `prompt`, `completion`, `rewrite`, `chosen` and `rejected` are
    strings or TRL messages.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows to check.
        stage (`str`):
            What the rows are used for: `"task"` to be sampled, `"samples"` to be edited or scored, `"edits"` to train
            the generative reward model, `"rewrites"` to train the next one on scored rows, `"scores"` as the score
            stage writes them, `"policy"` to train the policy, `"dpo"` to pair samples with their rewrites, `"grpo"` to
            train it with GRPO, `"preference"` to train a reward model on pairs of responses, `"responses"` to be
            paired, or to count the labels that they state, `"prompts"` to be answered in training, and `"validation"`
            to find the cap of a label reward.
        eos_token_ids (`int` or `Iterable[int]`, *optional*):
            Ids that may end a completion. If given, every `completion_ids` and `rewrite_ids` must end with one.
        vocab_size (`int`, *optional*):
            Size of the vocabulary of the model that reads the ids. If given, every id must be smaller.
        row_numbers (`Sequence[int]`, *optional*):
            Numbers of the rows for the error message, if they are a selection of a dataset. The first is 0 by default.

    Raises:
        `DatasetError`:
            If a column is missing, or at the first row with an invalid value.
        `ValueError`:
            If there is no such stage.
    """
    from datasets import Json

    _check_stage(stage)
    columns = _columns_to_check(dataset.column_names, stage)
    check = RowCheck(stage, eos_token_ids, vocab_size)
    # From JSON lines with values of several types, `datasets` makes a column of JSON
    as_json = {name for name in columns if isinstance(dataset.features[name], Json)}
    batches = dataset.select_columns(columns).with_format("arrow").iter(batch_size=_BATCH_SIZE)
    progress = tqdm(total=len(dataset), desc=f"Checking {stage}", unit=" rows", disable=len(dataset) < _BIG)
    numbers = np.arange(len(dataset)) if row_numbers is None else np.asarray(row_numbers)
    start = 0
    with progress:
        for table in batches:
            rows = numbers[start : start + table.num_rows]
            batch: dict[str, Any] = {}
            for name in columns:
                values = table[name].combine_chunks()
                batch[name] = values.to_pylist() if name in TEXT_COLUMNS or name in as_json else values
                if name in as_json:
                    batch[name] = [None if value is None else json.loads(value) for value in batch[name]]
            _check_batch(check, batch, rows)
            start += table.num_rows
            progress.update(table.num_rows)


class StreamCheck:
    """
    Check the rows of a stream as they come, as [`check_dataset`] checks those of a dataset. It is a function for
    [`~datasets.IterableDataset.map`], with `batched=True` and `with_indices=True`.

    Ids and lists with one entry for each token are returned as plain lists, which is what the rows of a dataset have:
    a generator may give arrays or tuples.

    Args:
        stage (`str`):
            What the rows are used for, as in [`check_dataset`].
        eos_token_ids (`int` or `Iterable[int]`, *optional*):
            As in [`check_dataset`].
        vocab_size (`int`, *optional*):
            As in [`check_dataset`].

    Raises:
        `DatasetError`:
            By a call, at the first row with an invalid value. Rows are counted in the order in which they are read.
    """

    def __init__(
        self, stage: Stage, eos_token_ids: int | Iterable[int] | None = None, vocab_size: int | None = None
    ) -> None:
        _check_stage(stage)
        self.stage = stage
        self.check = RowCheck(stage, eos_token_ids, vocab_size)

    def __call__(self, rows: dict[str, list[Any]], row_numbers: list[int]) -> dict[str, list[Any]]:
        # The columns of these rows: later rows of a stream may have other columns than the first
        columns = _columns_to_check(list(rows), self.stage)
        checked = _check_batch(self.check, {name: rows[name] for name in columns}, np.asarray(row_numbers))
        return {name: checked[name].to_pylist() for name in columns if name in NUMBER_COLUMNS}


def _check_batch(check: RowCheck, batch: dict[str, Any], rows: np.ndarray) -> dict[str, Any]:
    """Check rows, with lists of Python values for any column, and return them as [`RowCheck`] takes them."""
    lists = [name for name in batch if name in NUMBER_COLUMNS and isinstance(batch[name], list)]
    try:
        converted = batch | {name: check.to_arrow(name, batch[name], rows) for name in lists}
        check(converted, rows)
    except DatasetError:
        # Arrow finds one type for a list, such as float where one of the rows has floats for ids, so the row that the
        # error names need not be the broken one
        if lists and len(rows) > 1:
            for index in range(len(rows)):
                one = slice(index, index + 1)
                _check_batch(check, {name: values[one] for name, values in batch.items()}, rows[one])
        raise
    return converted


def _check_stage(stage: str) -> None:
    if stage not in _REQUIRED:
        raise ValueError(f"Unknown stage {stage!r}; the stages are {', '.join(_REQUIRED)}")


def _columns_to_check(column_names: list[str], stage: str) -> list[str]:
    """The columns that the stage reads. A missing one that it needs raises a `DatasetError`."""
    required = [(names,) if isinstance(names, str) else names for names in _REQUIRED[stage]]
    readable = {name for names in required for name in names}.union(_OPTIONAL[stage])
    for names in required:
        if not set(names).intersection(column_names):
            raise _missing(names, f"which stage '{stage}' needs")
    columns = [name for name in _SOURCE if name in readable and name in column_names]

    companions = [("rewrite_topk_ids", "rewrite_topk_logps"), ("rewrite_topk_logps", "rewrite_topk_ids")]
    companions += [("attempt_topk_ids", "attempt_topk_logps"), ("attempt_topk_logps", "attempt_topk_ids")]
    companions.append(("rewrite_topk_ids", "rewrite_ids"))
    if "token_rewards" not in columns:
        # Probabilities become rewards only together with the verdict on the sample
        companions.append(("token_probs", "correct"))
    for name, companion in companions:
        if name in columns and companion not in columns:
            raise _missing((companion,), f"without which '{name}' cannot be used")
    return columns


def _missing(names: tuple[str, ...], need: str) -> DatasetError:
    sources = "; ".join(f"'{name}': {_SOURCE[name]}" for name in names)
    return DatasetError(f"Column {' or '.join(map(repr, names))} is missing, {need}. {sources}.")


def check_prompt_forms(prompts: Iterable[str | list[dict]], dataset_names: Iterable[str]) -> None:
    """
    Check that the prompts of several datasets, whose problems are compared, are all strings or all messages.

    Raises:
        [`DatasetError`]: If they are not.
    """
    if len({is_conversational(prompt) for prompt in prompts}) > 1:
        raise DatasetError(
            f"Some prompts of {', '.join(map(repr, dataset_names))} are strings, and others messages, which cannot be "
            "compared. Use strings or messages in all.",
            column="prompt",
        )
