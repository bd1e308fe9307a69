"""Rows to imitate in supervised fine-tuning: prompts, and one column of the dataset as completions."""

from collections.abc import Iterable
from typing import Any

from datasets import Dataset, Features, Json, concatenate_datasets

from .errors import DatasetError
from .messages import is_conversational
from .row_checks import check_text, check_verdict, row_error
from .tokens import given_template_kwargs


# TRL passes these on to the chat template
_TEMPLATE_KWARGS = "chat_template_kwargs"


def prompt_completion_rows(
    dataset: Dataset, completion_column: str = "completion", only_correct: bool = False
) -> Dataset:
    """
    Turn rows into the prompt-completion format of [`~trl.SFTTrainer`]. Every row that is kept is checked.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows with `prompt` and the column to imitate, both texts, both messages, or messages and a text, which
            becomes a message of the assistant. The last message may have `tool_calls` instead of a text.
        completion_column (`str`, *optional*, defaults to `"completion"`):
            The column to imitate.
        only_correct (`bool`, *optional*, defaults to `False`):
            Whether to keep only the rows that are `correct`.

    Returns:
        [`~datasets.Dataset`]: Rows with `prompt` and `completion`, and with `chat_template_kwargs` and `tools` if
        `dataset` has them.

    Raises:
        [`~rlmec_trl.data.errors.DatasetError`]: If a column is missing, a row has an invalid value or another form
            than the first, or no row is left.
    """
    for name in ("prompt", completion_column, *(("correct",) if only_correct else ())):
        if name not in dataset.column_names:
            raise DatasetError(
                f"Column {name!r} is missing, which fine-tuning with `completion_column={completion_column!r}` and "
                f"`only_correct={only_correct}` reads. The columns are {', '.join(map(repr, dataset.column_names))}."
            )
    numbers = range(len(dataset))
    if only_correct:
        numbers = [number for number, correct in enumerate(dataset["correct"]) if check_verdict(number, correct)]
        dataset = dataset.select(numbers)
    if not numbers:
        left = ": `only_correct` leaves out all, and none is `correct`" if only_correct else ""
        raise DatasetError(f"There is no row to imitate{left}. Sample more rows, or name another dataset.")

    has_messages = None
    for number, prompt, completion in zip(numbers, dataset["prompt"], dataset[completion_column], strict=True):
        check_text(number, "prompt", prompt, "Give every problem a text.", may_be_messages=True)
        if not _calls_tools(completion):
            check_text(number, completion_column, completion, "Drop the row, or fix its source.", may_be_messages=True)
        if has_messages is None:
            has_messages = is_conversational(prompt)
        if is_conversational(prompt) != has_messages:
            fix = "The rows before have another form: use strings or messages in all."
            raise row_error(number, "prompt", prompt, fix)
        if is_conversational(completion) and not has_messages:
            fix = "The prompt is a string, so the completion must be one too."
            raise row_error(number, completion_column, completion, fix)

    def convert(row: dict) -> dict:
        completion = row[completion_column]
        if has_messages and isinstance(completion, str):
            completion = [{"role": "assistant", "content": completion}]
        return {"prompt": row["prompt"], "completion": completion}

    removed = [name for name in dataset.column_names if name != "tools"]
    rows = dataset.map(convert, remove_columns=removed, desc="Reading rows")
    return with_template_kwargs(rows, dataset, numbers)


def with_template_kwargs(rows: Dataset, dataset: Dataset, numbers: Iterable[int]) -> Dataset:
    """
    Add the column `chat_template_kwargs` of the dataset that rows were made from, if it has one, in the form that
    TRL's trainers read: a dictionary in every row, with what the row itself gives.

    Args:
        rows ([`~datasets.Dataset`]):
            Rows without the column.
        dataset ([`~datasets.Dataset`]):
            The rows that they were made from, in the same order.
        numbers (`Iterable[int]`):
            Numbers of the rows for the error message.

    Raises:
        [`~rlmec_trl.data.errors.DatasetError`]: If a value is not a dictionary, or has an argument that the package
            sets.
    """
    if _TEMPLATE_KWARGS not in dataset.column_names:
        return rows
    values = zip(numbers, dataset[_TEMPLATE_KWARGS], strict=True)
    template_kwargs = [given_template_kwargs(value, number) for number, value in values]
    features = Features({_TEMPLATE_KWARGS: Json()})
    return concatenate_datasets([rows, Dataset.from_dict({_TEMPLATE_KWARGS: template_kwargs}, features)], axis=1)


def _calls_tools(value: Any) -> bool:
    """Whether a value is messages, the last of which has no text but calls of tools."""
    return is_conversational(value) and bool(value[-1].get("tool_calls")) and not value[-1]["content"]
