"""Invalid rows of a stage: an error at the first, or all are left out and listed."""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from datasets import Dataset, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers import PreTrainedTokenizerBase

from ..data.errors import UserError
from ..data.messages import message_text, template_kwargs
from ..data.schema import DatasetError
from ..data.tokens import encode_prompt
from ..generation.processes import process_state


BAD_ROWS_FILE = "bad_rows.jsonl"


@dataclass(frozen=True)
class BadRow:
    """
    A row that was left out.

    Args:
        row (`int`):
            Its index in the dataset that was read.
        column (`str` or `None`):
            The column that is invalid.
        reason (`str`):
            What was found there.
    """

    row: int
    column: str | None
    reason: str


def find_bad_rows(dataset: Dataset, check: Callable[[Dataset], object]) -> list[BadRow]:
    """
    Every row that a check refuses.

    A check stops at the first invalid row, so the others are found by bisection: a dataset without bad rows is checked
    once, and each bad row costs a logarithmic number of checks of ever smaller parts.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows to check.
        check (`Callable[[Dataset], Any]`):
            Raises a [`~rlmec_trl.data.schema.DatasetError`] at the first invalid row of what it is given.

    Raises:
        [`~rlmec_trl.data.schema.DatasetError`]: If what is wrong is not a row, for instance a missing column.
    """
    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        return _bisect(dataset, check, range(len(dataset)))
    finally:
        if not were_disabled:
            enable_progress_bars()


def _bisect(dataset: Dataset, check: Callable[[Dataset], object], rows: range) -> list[BadRow]:
    try:
        check(dataset.select(rows))
    except DatasetError as error:
        if error.row is None:  # a column that is missing, for instance
            raise
        if len(rows) == 1:
            return [BadRow(rows.start, error.column, error.reason)]
        half = len(rows) // 2
        bad_rows = _bisect(dataset, check, rows[:half]) + _bisect(dataset, check, rows[half:])
        if not bad_rows:  # each part is valid, but not both together: texts in one, messages in the other
            raise
        return bad_rows
    return []


def leave_out_bad_rows(
    dataset: Dataset, check: Callable[[Dataset], object], output_dir: str | os.PathLike
) -> tuple[Dataset, list[BadRow]]:
    """
    The rows that pass a check, and those that do not. The user is told before the work begins.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows to check.
        check (`Callable[[Dataset], Any]`):
            As in [`find_bad_rows`].
        output_dir (`str` or `os.PathLike`):
            Folder that will have the list.

    Raises:
        [`~rlmec_trl.data.schema.DatasetError`]: If no row is left.
    """
    bad_rows = find_bad_rows(dataset, check)
    if not bad_rows:
        return dataset, []
    if len(bad_rows) == len(dataset):
        raise DatasetError(f"All {len(dataset)} rows are invalid. {_describe(bad_rows[0])}")
    process_state().print(
        f"{len(bad_rows)} of {len(dataset)} rows are invalid and left out; {Path(output_dir, BAD_ROWS_FILE)} will "
        f"list them. The first: {_describe(bad_rows[0])}"
    )
    bad = {bad_row.row for bad_row in bad_rows}
    return dataset.select([index for index in range(len(dataset)) if index not in bad]), bad_rows


def _describe(bad_row: BadRow) -> str:
    """What was wrong with a row, as the error at this row says it."""
    return str(DatasetError(bad_row.reason, bad_row.row, bad_row.column))


def check_prompts(dataset: Dataset, processing_class: PreTrainedTokenizerBase, max_length: int | None = None) -> None:
    """
    Check that every prompt can be encoded, and leaves room for a completion.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows with `prompt`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        max_length (`int`, *optional*):
            Number of positions of the policy.

    Raises:
        [`~rlmec_trl.data.schema.DatasetError`]: At the first prompt that cannot, or does not.
    """
    kwargs = template_kwargs(dataset) or [None] * len(dataset)
    for index, (prompt, arguments) in enumerate(zip(dataset["prompt"], kwargs, strict=True)):
        try:
            length = len(encode_prompt(processing_class, prompt, arguments, row=index))
        except UserError:
            raise
        except (TypeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DatasetError(
                f"found a prompt that the tokenizer cannot encode ({type(error).__name__}: {reason}). Fix its "
                "messages, or drop the row.",
                index,
                "prompt",
            ) from None
        if max_length is not None and length >= max_length:
            raise DatasetError(
                f"found {length} tokens, which leave no room for a completion: the model has {max_length} positions. "
                "Shorten the prompt, or drop the row.",
                index,
                "prompt",
            )


def check_completion_ids(dataset: Dataset, processing_class: PreTrainedTokenizerBase) -> None:
    """
    Check that the ids of every completion are those of its text.

    Raises:
        [`~rlmec_trl.data.schema.DatasetError`]: At the first completion whose ids decode to something else.
    """
    for index, (ids, completion) in enumerate(zip(dataset["completion_ids"], dataset["completion"], strict=True)):
        known = all(0 <= token_id < len(processing_class) for token_id in ids)
        text = processing_class.decode(ids, skip_special_tokens=True) if known else None
        if text is None or text.strip() != message_text(completion).strip():
            found = "ids that the tokenizer does not have" if text is None else f"ids that decode to {text[:60]!r}"
            raise DatasetError(
                f"found {found}, but `completion` is {message_text(completion)[:60]!r}. The ids must be those that "
                "the policy sampled, with its tokenizer: sample the row again.",
                index,
                "completion_ids",
            )


def write_bad_rows(bad_rows: Iterable[BadRow], folder: Path) -> None:
    """Write the rows that were left out, with the reasons, as JSON lines next to the result."""
    lines = [json.dumps(asdict(bad_row)) + "\n" for bad_row in bad_rows]
    (folder / BAD_ROWS_FILE).write_text("".join(lines), encoding="utf-8")
