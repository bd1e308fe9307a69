"""The checks of the values in rows, a batch of rows at a time."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .errors import DatasetError
from .messages import is_storable, message_text, problem_text


# Columns that may hold messages, and how their text is read
_READ = {
    "prompt": problem_text,
    "completion": message_text,
    "rewrite": message_text,
    "chosen": message_text,
    "rejected": message_text,
}
# What the two responses of a pair differ in: the label, or how well the rationale reads
PAIR_KINDS = ("label", "rationale")
# What a text column must hold
_TEXT_FIXES = {
    "prompt": "Give every problem a text.",
    "reference": "Give every problem a correct worked solution.",
    "answer": "Give every problem its final answer, as text.",
    "completion": "Drop the row, or sample it again.",
    "rewrite": "Write None where there is no verified rewrite, and only in scored datasets.",
    "chosen": "Give every pair two responses.",
    "rejected": "Give every pair two responses.",
}
_NUMBERS = "It must be a list of numbers, one for each token."
_ONE_EACH = "It must have one for each token, EOS included: score exactly the `completion_ids` of the row."
_FINITE = "It must be finite, otherwise the loss of the whole batch is NaN. Drop the row, or fix its source."
_LOGPS = "It must be a log-probability, which is not over 0 (not a probability). Score the row again."
_RESCORE = "Score the row again with `recipes/score.py`."
_CANDIDATES = "It must be a list of candidates for each token of the {}. " + _RESCORE
# What the other columns must hold
_NUMBER_FIXES = {
    "completion_ids": "It must be a list of token ids. Drop the row, or sample it again with `recipes/sample.py`.",
    "correct": "It must be True or False: the verdict of the answer check.",
    "error_step": "It must be an integer: the index of the first incorrect step, or -1 where there is none.",
    "rewrite_ids": "It must be a list of token ids. Write None where there is no verified rewrite.",
    "token_probs": _NUMBERS,
    "token_rewards": _NUMBERS,
    "old_logps": _NUMBERS,
    "rewrite_topk_ids": _CANDIDATES.format("rewrite"),
    "rewrite_topk_logps": _CANDIDATES.format("rewrite"),
    "attempt_topk_ids": _CANDIDATES.format("completion"),
    "attempt_topk_logps": _CANDIDATES.format("completion"),
    "kind": f"It must be one of {', '.join(map(repr, PAIR_KINDS))}, in every row.",
    "margin": "It must be a finite number: by how much the reward of `chosen` should be larger.",
}
# What Arrow raises where values have no common type, and Python where a value does not fit
_NO_ARRAY = (pa.ArrowException, OverflowError, UnicodeEncodeError)
TEXT_COLUMNS = frozenset(_TEXT_FIXES)
NUMBER_COLUMNS = frozenset(_NUMBER_FIXES)
# The reward model's distributions: ids, their log-probabilities, and the ids at whose tokens they are
_TOPK = (
    ("rewrite_topk_ids", "rewrite_topk_logps", "rewrite_ids"),
    ("attempt_topk_ids", "attempt_topk_logps", "completion_ids"),
)
TOPK_COLUMNS = tuple(name for columns in _TOPK for name in columns[:2])


class RowCheck:
    """
    The check of a stage's rows, called with one batch after another, in their order.

    Args:
        stage (`str`):
            What the rows are used for.
        eos_token_ids (`int` or `Iterable[int]`, *optional*):
            Ids that may end a completion.
        vocab_size (`int`, *optional*):
            Number of ids that the model knows.

    A call takes the columns to check, `TEXT_COLUMNS` as lists of Python values and `NUMBER_COLUMNS` as Arrow arrays,
    and the numbers of the rows, an integer array. It raises a `DatasetError` at the first invalid value.
    """

    def __init__(self, stage: str, eos_token_ids: int | Iterable[int] | None, vocab_size: int | None) -> None:
        self.stage = stage
        self.eos_token_ids = {eos_token_ids} if isinstance(eos_token_ids, int) else eos_token_ids
        if self.eos_token_ids is not None:
            self.eos_token_ids = set(self.eos_token_ids)
        self.vocab_size = vocab_size
        # Whether a column has texts (or messages), from the first row that has a value
        self.has_texts: dict[str, bool] = {}

    def __call__(self, batch: dict[str, Any], rows: np.ndarray) -> None:
        texts = self._check_texts(batch, rows)
        _check_verdicts(batch, rows)
        if self.stage == "edits":
            _check_copies(texts, batch, rows)
        if self.stage == "policy":
            _check_rewrite_texts(texts, batch, rows)
        if self.stage == "preference":
            _check_pairs(batch, rows)
        if self.stage in ("dpo", "responses"):
            _check_single_messages(batch, rows, "completion")
        if self.stage == "dpo":
            _check_single_messages(batch, rows, "rewrite")
            _check_response_forms(batch, rows)
        self._check_token_lists(batch, rows)
        for columns in _TOPK:
            if columns[0] in batch:
                _check_topk(batch, rows, *columns, self.vocab_size)

    @staticmethod
    def to_arrow(name: str, values: list[Any], rows: Sequence[int]) -> pa.Array:
        """A column of Python values as Arrow array. A `DatasetError` names the first value that has another type."""
        try:
            return pa.array(values)
        except _NO_ARRAY:
            index = next(index for index in range(len(values)) if not _is_array(values[: index + 1]))
            raise row_error(rows[index], name, values[index], _NUMBER_FIXES[name]) from None

    def _check_texts(self, batch: dict[str, Any], rows: np.ndarray) -> dict[str, list[str | None]]:
        texts = {}
        for name in [name for name in _TEXT_FIXES if name in batch]:
            texts[name] = []
            fix = _TEXT_FIXES[name]
            optional = name == "rewrite" and self.stage != "edits"
            for row, value in zip(rows, batch[name], strict=True):
                if value is None and optional:
                    texts[name].append(None)
                    continue
                text = check_text(row, name, value, fix, name in _READ)
                if self.has_texts.setdefault(name, isinstance(value, str)) != isinstance(value, str):
                    fix = "The rows before have another form: use strings or messages in all."
                    raise row_error(row, name, value, fix)
                texts[name].append(text)
        return texts

    def _check_token_lists(self, batch: dict[str, Any], rows: np.ndarray) -> None:
        if "completion_ids" in batch:
            self._check_ids(batch["completion_ids"], rows, "completion_ids")
        if "rewrite_ids" in batch:
            self._check_ids(batch["rewrite_ids"], rows, "rewrite_ids", optional=True)

        for name in ("token_probs", "token_rewards", "old_logps"):
            if name not in batch:
                continue
            # Where the reward model has another tokenizer, it has no opinion on some tokens
            may_be_none = name == "token_probs"
            lists = _flat(batch[name], rows, name, _is_number, _NUMBERS, may_be_none=may_be_none)
            if "completion_ids" in batch:
                tokens = _lengths(batch["completion_ids"])
                for index in np.flatnonzero(lists.lengths != tokens)[:1]:
                    found = f"{lists.lengths[index]} values for {tokens[index]} completion_ids"
                    raise row_error(rows[index], name, found, _ONE_EACH, quote=False)
            values = lists.values.to_numpy(zero_copy_only=False)
            if name == "token_probs":
                # Written so that NaN, which is in no interval, is refused too. None has become NaN
                is_given = lists.values.is_valid().to_numpy(zero_copy_only=False)
                wrong = is_given & ~((values >= 0) & (values <= 1))
                fix = "It must be a probability, from 0 to 1 (not a log-probability). Score the row again."
            else:
                with np.errstate(over="ignore"):
                    wrong = ~np.isfinite(values.astype(np.float32))
                fix = _FINITE
                if name == "old_logps" and not wrong.any():
                    # Not 0: with logits in bfloat16, the value of a nearly certain token can be slightly over 0
                    wrong, fix = values > 1, _LOGPS
            _refuse_first(wrong, values, lists.rows, name, fix)

    def _check_ids(self, column: pa.Array, rows: np.ndarray, name: str, optional: bool = False) -> None:
        must = _NUMBER_FIXES[name]
        lists = _flat(column, rows, name, pa.types.is_integer, must, optional)
        for index in np.flatnonzero(lists.present & (lists.lengths == 0))[:1]:
            raise row_error(rows[index], name, [], must.partition(". ")[2])
        _check_vocabulary(lists, name, self.vocab_size)
        if self.eos_token_ids is None:
            return
        last_ids = lists.values.to_numpy()[np.cumsum(lists.lengths[lists.present]) - 1]
        for found_at in np.flatnonzero(~np.isin(last_ids, list(self.eos_token_ids)))[:1]:
            index = np.flatnonzero(lists.present)[found_at]
            expected = ", ".join(str(token_id) for token_id in sorted(self.eos_token_ids))
            found = f"{lists.lengths[index]} tokens that end with id {last_ids[found_at]}, not with EOS ({expected})"
            fix = (
                "A text that is truncated at `max_new_tokens` does not teach where to stop. Drop the row, or "
                "generate it again with a larger `max_new_tokens`."
            )
            raise row_error(rows[index], name, found, fix, quote=False)


def check_text(row: int, name: str, value: Any, fix: str, may_be_messages: bool) -> str:
    """The text of a value, or of its messages. A `DatasetError` if it has none, or none that can be stored."""
    text = _read(name, value) if may_be_messages else value
    if not isinstance(text, str):
        kind = "a string or a list of messages" if may_be_messages else "a string"
        raise row_error(row, name, value, f"It must be {kind}. {fix}")
    if not text.strip():
        raise row_error(row, name, f"an empty text ({value!r})", fix, quote=False)
    if not is_storable(text):
        found = f"{text!r}, in which a character is broken (half of a surrogate pair)"
        raise row_error(row, name, found, "Drop the row, or fix the encoding of its source.", quote=False)
    return text


def check_verdict(row: int, value: Any) -> bool:
    """A value of `correct`. A `DatasetError` if it is neither `True` nor `False`."""
    if not isinstance(value, bool):
        raise row_error(row, "correct", value, _NUMBER_FIXES["correct"])
    return value


def _is_array(values: list[Any]) -> bool:
    try:
        pa.array(values)
    except _NO_ARRAY:
        return False
    return True


def _read(name: str, value: Any) -> Any:
    """The text of a value, or something else where it is neither a text nor a list of messages."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        return None
    is_chat = all(isinstance(message, dict) and {"role", "content"} <= message.keys() for message in value)
    return _READ.get(name, message_text)(value) if is_chat else None


def _check_vocabulary(lists: "_FlatLists", name: str, vocab_size: int | None) -> None:
    ids = lists.values.to_numpy()
    # Where the vocabulary is not known, a tokenizer still takes no larger ids
    size = 2**31 if vocab_size is None else vocab_size
    for index in np.flatnonzero((ids < 0) | (ids >= size))[:1]:
        known = "from 0" if vocab_size is None and ids[index] < 0 else f"from 0 to {size - 1}"
        found = f"the id {ids[index]}, where the ids of the model's vocabulary are {known}"
        fix = "Use the model and the tokenizer that the ids were made with, or drop the row."
        raise row_error(lists.rows[index], name, found, fix, quote=False)


def _check_copies(texts: dict[str, list[str | None]], batch: dict[str, Any], rows: np.ndarray) -> None:
    must_be_copies = batch["correct"].to_numpy(zero_copy_only=False) & (batch["error_step"].to_numpy() == -1)
    for index in np.flatnonzero(must_be_copies):
        if texts["rewrite"][index] != texts["completion"][index]:
            fix = (
                "The sample is correct and none of its steps is incorrect (error_step is -1), so its rewrite must be "
                "the completion, word for word. Copy it, or run `recipes/edit.py` again on this row."
            )
            raise row_error(rows[index], "rewrite", texts["rewrite"][index], fix)


def _check_rewrite_texts(texts: dict[str, list[str | None]], batch: dict[str, Any], rows: np.ndarray) -> None:
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
            raise row_error(row, "rewrite", found, fix, quote=False)


def _check_verdicts(batch: dict[str, Any], rows: np.ndarray) -> None:
    if "correct" in batch:
        fix = _NUMBER_FIXES["correct"]
        _check_scalars(batch["correct"], rows, "correct", pa.types.is_boolean, fix)
    if "error_step" in batch:
        fix = _NUMBER_FIXES["error_step"]
        _check_scalars(batch["error_step"], rows, "error_step", pa.types.is_integer, fix)
        error_steps = batch["error_step"].to_numpy()
        _refuse_first(error_steps < -1, error_steps, rows, "error_step", fix)


def _check_pairs(batch: dict[str, Any], rows: np.ndarray) -> None:
    for name in ("chosen", "rejected"):
        _check_single_messages(batch, rows, name)
    if "kind" in batch:
        fix = _NUMBER_FIXES["kind"]
        _check_scalars(batch["kind"], rows, "kind", _is_string, fix)
        for row, kind in zip(rows, batch["kind"].to_pylist(), strict=True):
            if kind not in PAIR_KINDS:
                raise row_error(row, "kind", kind, fix)
    if "margin" in batch:
        fix = _NUMBER_FIXES["margin"]
        _check_scalars(batch["margin"], rows, "margin", _is_number, fix)
        margins = batch["margin"].to_numpy(zero_copy_only=False)
        with np.errstate(over="ignore"):
            _refuse_first(~np.isfinite(margins.astype(np.float32)), margins, rows, "margin", fix)


def _check_single_messages(batch: dict[str, Any], rows: np.ndarray, name: str) -> None:
    for row, value in zip(rows, batch[name], strict=True):
        if isinstance(value, list) and len(value) > 1:
            fix = "A response is one message. Put the messages before it into `prompt`."
            raise row_error(row, name, f"{len(value)} messages", fix, quote=False)


def _check_response_forms(batch: dict[str, Any], rows: np.ndarray) -> None:
    """A text after messages can become a message, messages after a text cannot become one. Only texts are paired."""
    for name in ("completion", "rewrite"):
        for row, prompt, value in zip(rows, batch["prompt"], batch[name], strict=True):
            if isinstance(prompt, str) and isinstance(value, list):
                raise row_error(row, name, value, "The prompt is a string, so the response must be one too.")
            if isinstance(value, list) and any(message.get("tool_calls") for message in value):
                fix = "Pairs are made of the texts of responses, without the calls. Drop the row."
                raise row_error(row, name, "a message with tool calls", fix, quote=False)


def _check_topk(
    batch: dict[str, Any], rows: np.ndarray, ids_name: str, logps_name: str, of: str, vocab_size: int | None
) -> None:
    """The reward model's distribution at the tokens of a rewrite or completion: as many ids as log-probabilities."""
    fix = _RESCORE
    tokens = _lengths(batch[of])
    if of == "completion_ids":
        # Rows that were scored without a distribution on the attempt may be among others
        has_none = ~(batch[ids_name].is_valid().to_numpy(False) | batch[logps_name].is_valid().to_numpy(False))
        tokens = np.where(has_none, 0, tokens)
    num_candidates = {}
    for name, is_element in ((ids_name, pa.types.is_integer), (logps_name, _is_number)):
        must = _NUMBER_FIXES[name]
        lists = _flat(batch[name], rows, name, _is_list, must, optional=True)
        for index in np.flatnonzero(lists.lengths != tokens)[:1]:
            found = f"candidates for {lists.lengths[index]} tokens, where {of} has {tokens[index]}"
            raise row_error(rows[index], name, found, fix, quote=False)
        num_candidates[name] = _lengths(lists.values)
        for index in np.flatnonzero(num_candidates[name] == 0)[:1]:
            raise row_error(lists.rows[index], name, "a token without candidates", must, quote=False)
        counts = num_candidates[name]
        # Neighbors of the same row are compared: if none differ, all tokens of the row have as many candidates
        differ = (counts[1:] != counts[:-1]) & (lists.rows[1:] == lists.rows[:-1])
        for index in np.flatnonzero(differ)[:1]:
            found = f"{counts[index]} candidates for one token and {counts[index + 1]} for the next"
            raise row_error(
                lists.rows[index], name, found, f"Every token of a row must have as many. {fix}", quote=False
            )
        candidates = _flat(lists.values, lists.rows, name, is_element, must)
        if name == ids_name:
            _check_vocabulary(candidates, name, vocab_size)
        else:
            _check_candidate_logps(candidates, lists.rows, num_candidates[name], name, must)
    differ = num_candidates[ids_name] != num_candidates[logps_name]
    for index in np.flatnonzero(differ)[:1]:
        counts = [num_candidates[name][index] for name in num_candidates]
        found = f"{counts[1]} log-probabilities at a token where {ids_name} has {counts[0]} ids"
        raise row_error(lists.rows[index], logps_name, found, fix, quote=False)


def _check_candidate_logps(
    candidates: "_FlatLists", token_rows: np.ndarray, num_candidates: np.ndarray, name: str, must: str
) -> None:
    """Log-probabilities of the candidates: a candidate may have none (`-inf`), but not all of a token's."""
    logps = candidates.values.to_numpy()
    _refuse_first(np.isnan(logps), logps, candidates.rows, name, must)
    # Not 0: with logits in bfloat16, a token that is nearly certain gets a little more
    _refuse_first(logps > 1, logps, candidates.rows, name, _LOGPS)
    if len(logps) == 0:
        return
    with np.errstate(over="ignore"):
        highest = np.maximum.reduceat(logps.astype(np.float32), np.cumsum(num_candidates) - num_candidates)
    for index in np.flatnonzero(np.isneginf(highest))[:1]:
        found = "a token all of whose candidates have the probability 0"
        raise row_error(token_rows[index], name, found, must, quote=False)


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
    may_be_none: bool = False,
) -> _FlatLists:
    """
    Flatten a column of lists, so that it can be checked as one array instead of list by list. `optional` lists may be
    `None`, and values may where `may_be_none`.
    """
    present = column.is_valid().to_numpy(zero_copy_only=False)
    for index in np.flatnonzero(~present)[:1]:
        if not optional:
            raise row_error(rows[index], name, None, fix)
    if present.any() and not _is_list(column.type):
        index = np.flatnonzero(present)[0]
        raise row_error(rows[index], name, column[index].as_py(), fix)
    lengths = _lengths(column)
    values = pc.list_flatten(column) if present.any() else pa.nulls(0)
    rows = np.repeat(rows, lengths)
    is_none = ~values.is_valid().to_numpy(zero_copy_only=False)
    wrong = np.zeros_like(is_none) if may_be_none else is_none.copy()
    if may_be_none and pa.types.is_null(values.type):
        values = values.cast(pa.float64())
    if not is_element(values.type):
        if pa.types.is_floating(values.type):
            # One fraction among integers makes floats of all
            numbers = values.to_numpy(zero_copy_only=False)
            wrong |= np.floor(numbers) != numbers
        if not wrong.any():
            wrong = ~is_none | is_none.all()
    for index in np.flatnonzero(wrong)[:1]:
        raise row_error(rows[index], name, f"{values[index].as_py()!r} among its values", fix, quote=False)
    # Where every list is empty or None, Arrow knows no type
    return _FlatLists(present, lengths, values if len(values) else pa.array([], pa.int64()), rows)


def _check_scalars(
    column: pa.Array, rows: np.ndarray, name: str, is_type: Callable[[pa.DataType], bool], fix: str
) -> None:
    for index, value in enumerate(column.to_pylist()):
        if value is None or not is_type(column.type):
            raise row_error(rows[index], name, value, fix)


def _lengths(column: pa.Array) -> np.ndarray:
    if not _is_list(column.type):
        # None alone, or nothing at all
        return np.zeros(len(column), dtype=np.int64)
    return pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def _refuse_first(wrong: np.ndarray, values: np.ndarray, rows: np.ndarray, name: str, fix: str) -> None:
    for index in np.flatnonzero(wrong)[:1]:
        raise row_error(rows[index], name, values[index].item(), fix)


def row_error(row: int | None, name: str, found: Any, fix: str, quote: bool = True) -> DatasetError:
    """The error for a value, in the form that all have. `row` is `None` where its number is not known."""
    shown = repr(found) if quote else str(found)
    if len(shown) > 100:
        shown = shown[:100] + "..."
    return DatasetError(f"found {shown}. {fix}", None if row is None else int(row), name)
