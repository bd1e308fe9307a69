"""The check of the datasets that a trainer is given."""

from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from .errors import DatasetError


def check_input(dataset: Any, dataset_name: str) -> None:
    """
    Check that an object is a dataset that a trainer can use, and that it has rows. Of a stream, the first row is read.

    Args:
        dataset (`Any`):
            The object to check.
        dataset_name (`str`):
            Name of the dataset in the error: `"train"`, `"eval"`, or the name of one of several evaluation sets.

    Raises:
        `DatasetError`: If it is neither a [`~datasets.Dataset`] nor an [`~datasets.IterableDataset`], has no
            rows, or is a [`~datasets.Dataset`] with a transform.
    """
    if not isinstance(dataset, Dataset | IterableDataset):
        raise DatasetError(f"The {dataset_name} dataset is {_what_it_is(dataset)}")
    if isinstance(dataset, Dataset):
        if dataset.format["type"] == "custom":
            raise DatasetError(
                f"The {dataset_name} dataset has a transform (`Dataset.with_transform`), whose rows cannot be checked "
                "ahead. Apply the function with `Dataset.map` instead."
            )
        is_empty = len(dataset) == 0
    else:
        first = next(iter(dataset), None)
        is_empty = first is None
        if not is_empty and not isinstance(first, dict):
            raise DatasetError(
                f"The {dataset_name} dataset gives {_short(first)} as a row. A row must be a dictionary of columns."
            )
    if is_empty:
        raise DatasetError(
            f"The {dataset_name} dataset has no rows. Check the stage or the file that it comes from, and what it was "
            "filtered by."
        )


def _what_it_is(value: Any) -> str:
    if value is None:
        return "missing (None). Pass a `datasets.Dataset` with at least one row."
    if isinstance(value, str):
        return f"the text {_short(value)}. Load it first, with `datasets.load_from_disk` or `datasets.load_dataset`."
    if isinstance(value, DatasetDict | IterableDatasetDict):
        splits = ", ".join(map(repr, value)) or "none"
        return f"a `{type(value).__name__}` with the splits {splits}. Pass one of the splits."
    kind = f"an object of type `{type(value).__name__}`"
    if isinstance(value, list):
        return f"{kind}. Pass `Dataset.from_list(rows)`."
    return f"{kind}. Pass a `datasets.Dataset`."


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 100 else shown[:100] + "..."
