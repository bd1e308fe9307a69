"""The columns of each stage: their types, and a check of every row before any expensive work."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm.auto import tqdm

from .errors import UserError
from .messages import message_text, problem_text


if TYPE_CHECKING:
    from datasets import Dataset
    from datasets.features.features import FeatureType


Stage = Literal["task", "samples", "edits", "scores", "policy"]

# The columns that the reader of a stage's rows needs; of a tuple, one column is enough
_REQUIRED: dict[str, tuple[str | tuple[str, ...], ...]] = {
    "task": ("prompt", "reference", "answer"),
    "samples": ("prompt", "reference", "answer", "completion", "completion_ids", "correct"),
    "edits": ("prompt", "reference", "completion", "correct", "rewrite", "error_step"),
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
}
# The columns that are read, and so checked, where the dataset has them
_OPTIONAL: dict[str, tuple[str, ...]] = {
    "task": (),
    "samples": (),
    "edits": ("answer", "completion_ids"),
    "scores": ("reference", "answer", "rewrite_topk_ids", "rewrite_topk_logps"),
    "policy": ("completion", "correct", "old_logps", "rewrite_topk_ids", "rewrite_topk_logps"),
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
}
# Columns that may hold messages, and how their text is read
_READ = {"prompt": problem_text, "completion": message_text, "rewrite": message_text}
_BATCH_SIZE = 5_000
_BIG = 50_000


class DatasetError(UserError, ValueError):
    """A dataset that a stage cannot use. The message names the row, the column, the value, and the fix."""


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
        "rewrite_ids": integers,
        "token_probs": floats,
        "token_rewards": floats,
        "old_logps": floats,
        "rewrite_topk_ids": List(integers),
        "rewrite_topk_logps": List(floats),
    }


def check_dataset(dataset: Dataset, stage: Stage, eos_token_ids: int | Iterable[int] | None = None) -> None:
    """
    Check that a dataset has the columns that a stage reads, with valid values.

    Columns that the stage does not read are ignored. `prompt`, `completion` and `rewrite` are strings or TRL messages.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows to check.
        stage (`str`):
            What the rows are used for: `"task"` to be sampled, `"samples"` to be edited or scored, `"edits"` to train
            the generative reward model, `"scores"` as the score stage writes them, `"policy"` to train the policy.
        eos_token_ids (`int` or `Iterable[int]`, *optional*):
            Ids that may end a completion. If given, every `completion_ids` and `rewrite_ids` must end with one.

    Raises:
        `DatasetError`:
            If a column is missing, or at the first row with an invalid value.
        `ValueError`:
            If there is no such stage.
    """
    if stage not in _REQUIRED:
        raise ValueError(f"Unknown stage {stage!r}; the stages are {', '.join(_REQUIRED)}")
    columns = _columns_to_check(dataset.column_names, stage)
    if eos_token_ids is not None:
        eos_token_ids = {eos_token_ids} if isinstance(eos_token_ids, int) else set(eos_token_ids)

    _check_forms(dataset, columns)
    batches = dataset.select_columns(columns).with_format("arrow").iter(batch_size=_BATCH_SIZE)
    progress = tqdm(total=len(dataset), desc=f"Checking {stage}", unit=" rows", disable=len(dataset) < _BIG)
    start = 0
    with progress:
        for table in batches:
            rows = start + np.arange(table.num_rows)
            batch = {name: table[name].combine_chunks() for name in columns}
            texts = _check_texts(batch, rows, stage)
            _check_verdicts(batch, rows)
            if stage == "edits":
                _check_copies(texts, batch, rows)
            if stage == "policy":
                _check_rewrite_texts(texts, batch, rows)
            _check_token_lists(batch, rows, eos_token_ids)
            _check_topk(batch, rows)
            start += table.num_rows
            progress.update(table.num_rows)


def _columns_to_check(column_names: list[str], stage: str) -> list[str]:
    """The columns that the stage reads. A missing one that it needs raises a `DatasetError`."""
    required = [(names,) if isinstance(names, str) else names for names in _REQUIRED[stage]]
    readable = {name for names in required for name in names}.union(_OPTIONAL[stage])
    for names in required:
        if not set(names).intersection(column_names):
            raise _missing(names, f"which stage '{stage}' needs")
    columns = [name for name in _SOURCE if name in readable and name in column_names]

    companions = [("rewrite_topk_ids", "rewrite_topk_logps"), ("rewrite_topk_logps", "rewrite_topk_ids")]
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


def _check_forms(dataset: Dataset, columns: list[str]) -> None:
    """
    A column has values of one form: its texts are strings, or all of them messages. A column of JSON lines with
    several forms is of type `Json`, which Arrow stores as text.
    """
    from datasets import Json

    for name in columns:
        if isinstance(dataset.features[name], Json):
            values = dataset[name][:]
            first = next((value for value in values if value is not None), None)
            for row, value in enumerate(values):
                if value is not None and type(value) is not type(first):
                    forms = "strings or messages" if name in _READ else "one type"
                    raise _error(row, name, value, f"The rows before have another form: use {forms} in all.")


def _check_texts(batch: dict[str, pa.Array], rows: np.ndarray, stage: str) -> dict[str, list[str | None]]:
    fixes = {
        "prompt": "Give every problem a text.",
        "reference": "Give every problem a correct worked solution.",
        "answer": "Give every problem its final answer, as text.",
        "completion": "Drop the row, or sample it again.",
        "rewrite": "Write None where there is no verified rewrite, and only in scored datasets.",
    }
    texts = {}
    for name in [name for name in fixes if name in batch]:
        texts[name] = []
        optional = name == "rewrite" and stage != "edits"
        for row, value in zip(rows, batch[name].to_pylist(), strict=True):
            if value is None and optional:
                texts[name].append(None)
                continue
            text = _READ[name](value) if name in _READ else value
            if not isinstance(text, str):
                kind = "a string or a list of messages" if name in _READ else "a string"
                raise _error(row, name, value, f"It must be {kind}. {fixes[name]}")
            if not text.strip():
                raise _error(row, name, f"an empty text ({value!r})", fixes[name], quote=False)
            texts[name].append(text)

    return texts


def _check_copies(texts: dict[str, list[str | None]], batch: dict[str, pa.Array], rows: np.ndarray) -> None:
    must_be_copies = batch["correct"].to_numpy(zero_copy_only=False) & (batch["error_step"].to_numpy() == -1)
    for index in np.flatnonzero(must_be_copies):
        if texts["rewrite"][index] != texts["completion"][index]:
            fix = (
                "The sample is correct and none of its steps is incorrect (error_step is -1), so its rewrite must be "
                "the completion, word for word. Copy it, or run `recipes/edit.py` again on this row."
            )
            raise _error(rows[index], "rewrite", texts["rewrite"][index], fix)


def _check_rewrite_texts(texts: dict[str, list[str | None]], batch: dict[str, pa.Array], rows: np.ndarray) -> None:
    """A rewrite without ids gets them by comparison with the completion, which has to be there."""
    if "completion" in batch or "rewrite" not in batch:
        return
    has_ids = np.zeros(len(rows), dtype=bool)
    if "rewrite_ids" in batch:
        has_ids = batch["rewrite_ids"].is_valid().to_numpy(zero_copy_only=False)
    for row, rewrite, with_ids in zip(rows, texts["rewrite"], has_ids, strict=True):
        if rewrite is not None and not with_ids:
            found = f"the text {rewrite!r} without `rewrite_ids`, and no column `completion`"
            fix = (
                "The steps that the two texts share keep the sampled ids, so the trainer needs both. Add the column "
                "`completion` (`recipes/sample.py` writes it) or `rewrite_ids` (`recipes/score.py` writes it)."
            )
            raise _error(row, "rewrite", found, fix, quote=False)


def _check_verdicts(batch: dict[str, pa.Array], rows: np.ndarray) -> None:
    if "correct" in batch:
        fix = "It must be True or False: the verdict of the answer check."
        _check_scalars(batch["correct"], rows, "correct", pa.types.is_boolean, fix)
    if "error_step" in batch:
        fix = "It must be an integer: the index of the first incorrect step, or -1 where there is none."
        _check_scalars(batch["error_step"], rows, "error_step", pa.types.is_integer, fix)
        error_steps = batch["error_step"].to_numpy()
        _refuse_first(error_steps < -1, error_steps, rows, "error_step", fix)


def _check_token_lists(batch: dict[str, pa.Array], rows: np.ndarray, eos_token_ids: set[int] | None) -> None:
    if "completion_ids" in batch:
        fix = "Drop the row, or sample it again with `recipes/sample.py`."
        _check_ids(batch["completion_ids"], rows, "completion_ids", fix, eos_token_ids)
    if "rewrite_ids" in batch:
        fix = "Write None where there is no verified rewrite."
        _check_ids(batch["rewrite_ids"], rows, "rewrite_ids", fix, eos_token_ids, optional=True)

    for name in ("token_probs", "token_rewards", "old_logps"):
        if name not in batch:
            continue
        lists = _flat(batch[name], rows, name, _is_number, "It must be a list of numbers, one for each token.")
        if "completion_ids" in batch:
            tokens = _lengths(batch["completion_ids"])
            for index in np.flatnonzero(lists.lengths != tokens)[:1]:
                found = f"{lists.lengths[index]} values for {tokens[index]} completion_ids"
                fix = "It must have one for each token, EOS included: score exactly the `completion_ids` of the row."
                raise _error(rows[index], name, found, fix, quote=False)
        values = lists.values.to_numpy()
        if name == "token_probs":
            # Written so that NaN, which is in no interval, is refused too
            wrong = ~((values >= 0) & (values <= 1))
            fix = "It must be a probability, from 0 to 1 (not a log-probability). Score the row again."
        else:
            wrong = ~np.isfinite(values)
            fix = "It must be finite, otherwise the loss of the whole batch is NaN. Drop the row, or fix its source."
        _refuse_first(wrong, values, lists.rows, name, fix)


def _check_ids(
    column: pa.Array, rows: np.ndarray, name: str, fix: str, eos_token_ids: set[int] | None, optional: bool = False
) -> None:
    lists = _flat(column, rows, name, pa.types.is_integer, f"It must be a list of token ids. {fix}", optional)
    for index in np.flatnonzero(lists.present & (lists.lengths == 0))[:1]:
        raise _error(rows[index], name, [], fix)
    if eos_token_ids is None:
        return
    last_ids = lists.values.to_numpy()[np.cumsum(lists.lengths[lists.present]) - 1]
    for found_at in np.flatnonzero(~np.isin(last_ids, list(eos_token_ids)))[:1]:
        index = np.flatnonzero(lists.present)[found_at]
        expected = ", ".join(str(token_id) for token_id in sorted(eos_token_ids))
        found = f"{lists.lengths[index]} tokens that end with id {last_ids[found_at]}, not with EOS ({expected})"
        fix = (
            "A text that is truncated at `max_new_tokens` does not teach where to stop. Drop the row, or generate it "
            "again with a larger `max_new_tokens`."
        )
        raise _error(rows[index], name, found, fix, quote=False)


def _check_topk(batch: dict[str, pa.Array], rows: np.ndarray) -> None:
    """The reward model's distribution on its rewrite: for each token as many ids as log-probabilities."""
    if "rewrite_topk_ids" not in batch:
        return
    fix = "Score the row again with `recipes/score.py`."
    tokens = _lengths(batch["rewrite_ids"])
    num_candidates = {}
    for name, is_element in (("rewrite_topk_ids", pa.types.is_integer), ("rewrite_topk_logps", _is_number)):
        must = f"It must be a list of candidates for each token of the rewrite. {fix}"
        lists = _flat(batch[name], rows, name, _is_list, must, optional=True)
        for index in np.flatnonzero(lists.lengths != tokens)[:1]:
            found = f"candidates for {lists.lengths[index]} tokens, where rewrite_ids has {tokens[index]}"
            raise _error(rows[index], name, found, fix, quote=False)
        num_candidates[name] = _lengths(lists.values)
        for index in np.flatnonzero(num_candidates[name] == 0)[:1]:
            raise _error(lists.rows[index], name, "a token without candidates", must, quote=False)
        counts = num_candidates[name]
        # Neighbors of the same row are compared: if none differ, all tokens of the row have as many candidates
        differ = (counts[1:] != counts[:-1]) & (lists.rows[1:] == lists.rows[:-1])
        for index in np.flatnonzero(differ)[:1]:
            found = f"{counts[index]} candidates for one token and {counts[index + 1]} for the next"
            raise _error(lists.rows[index], name, found, f"Every token of a row must have as many. {fix}", quote=False)
        candidates = _flat(lists.values, lists.rows, name, is_element, must)
        if name == "rewrite_topk_logps":
            logps = candidates.values.to_numpy()
            _refuse_first(np.isnan(logps), logps, candidates.rows, name, must)
    differ = num_candidates["rewrite_topk_ids"] != num_candidates["rewrite_topk_logps"]
    for index in np.flatnonzero(differ)[:1]:
        counts = [num_candidates[name][index] for name in num_candidates]
        found = f"{counts[1]} log-probabilities at a token where rewrite_topk_ids has {counts[0]} ids"
        raise _error(lists.rows[index], "rewrite_topk_logps", found, fix, quote=False)


class _FlatLists(NamedTuple):
    present: np.ndarray  # (lists,) False where the list is None
    lengths: np.ndarray  # (lists,) 0 where the list is None
    values: pa.Array  # (sum of lengths,)
    rows: np.ndarray  # (sum of lengths,) the row of each value


def _flat(
    column: pa.Array,
    rows: np.ndarray,
    name: str,
    is_element: Callable[[pa.DataType], bool],
    fix: str,
    optional: bool = False,
) -> _FlatLists:
    """Flatten a column of lists, so that it can be checked as one array instead of list by list."""
    present = column.is_valid().to_numpy(zero_copy_only=False)
    for index in np.flatnonzero(~present)[:1]:
        if not optional:
            raise _error(rows[index], name, None, fix)
    if present.any() and not _is_list(column.type):
        index = np.flatnonzero(present)[0]
        raise _error(rows[index], name, column[index].as_py(), fix)
    lengths = _lengths(column)
    values = pc.list_flatten(column) if present.any() else pa.nulls(0)
    rows = np.repeat(rows, lengths)
    wrong = ~values.is_valid().to_numpy(zero_copy_only=False)
    if not is_element(values.type):
        wrong[:] = True
    for index in np.flatnonzero(wrong)[:1]:
        raise _error(rows[index], name, f"{values[index].as_py()!r} among its values", fix, quote=False)
    # Where every list is empty or None, Arrow knows no type
    return _FlatLists(present, lengths, values if len(values) else pa.array([], pa.int64()), rows)


def _check_scalars(
    column: pa.Array, rows: np.ndarray, name: str, is_type: Callable[[pa.DataType], bool], fix: str
) -> None:
    for index, value in enumerate(column.to_pylist()):
        if value is None or not is_type(column.type):
            raise _error(rows[index], name, value, fix)


def _lengths(column: pa.Array) -> np.ndarray:
    if not _is_list(column.type):
        # None alone, or nothing at all
        return np.zeros(len(column), dtype=np.int64)
    return pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def _refuse_first(wrong: np.ndarray, values: np.ndarray, rows: np.ndarray, name: str, fix: str) -> None:
    for index in np.flatnonzero(wrong)[:1]:
        raise _error(rows[index], name, values[index].item(), fix)


def _error(row: int, name: str, found: Any, fix: str, quote: bool = True) -> DatasetError:
    shown = repr(found) if quote else str(found)
    if len(shown) > 100:
        shown = shown[:100] + "..."
    return DatasetError(f"Row {row}, column '{name}': found {shown}. {fix}")
