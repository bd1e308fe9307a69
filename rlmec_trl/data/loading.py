"""Datasets by path or name."""

import os
from pathlib import Path

from datasets import Dataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError

from .errors import ConfigError
from .json_lines import load_json_lines
from .marks import MARK, find_damage
from .schema import DatasetError


_FORMS = "Name a folder that `save_to_disk` wrote, a file of JSON lines (.json or .jsonl), or a dataset on the Hub."


def load_rows(
    name_or_path: str, split: str = "train", max_rows: int | None = None, config_name: str | None = None
) -> Dataset:
    """
    Load a dataset.

    Args:
        name_or_path (`str`):
            A folder that `save_to_disk` wrote, a file of JSON lines, or a name on the Hub.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a dataset that has several: of one on the Hub, or of a saved `DatasetDict`.
        max_rows (`int`, *optional*):
            Number of rows to take from the start. All by default.
        config_name (`str`, *optional*):
            Configuration of a dataset on the Hub that has several.

    Raises:
        [`~rlmec_trl.data.schema.DatasetError`]: If there is no such dataset or split, it cannot be read, or it has no
            rows.
        [`~rlmec_trl.data.errors.ConfigError`]: If `max_rows` is under 1.
    """
    if max_rows is not None and max_rows < 1:
        raise ConfigError(f"`max_rows` must be at least 1, got {max_rows}.")
    path = Path(os.path.expanduser(name_or_path))
    if name_or_path and os.path.isdir(path):
        dataset = _load_folder(path, split)
    elif os.path.isfile(path):
        if path.suffix not in (".json", ".jsonl"):
            raise DatasetError(f"{name_or_path!r} is a file whose name does not end with .json or .jsonl. {_FORMS}")
        dataset = load_json_lines(path)
    elif _is_path(name_or_path):
        raise DatasetError(f"There is no file or folder {name_or_path!r}. {_FORMS}")
    else:
        dataset = _load_from_hub(name_or_path, split, config_name)
    if len(dataset) == 0:
        raise DatasetError(f"{name_or_path!r} has no rows. Check how it was made, or name another dataset.")
    return dataset if max_rows is None else dataset.select(range(min(max_rows, len(dataset))))


def _is_path(name: str) -> bool:
    """Whether a name can only be that of a file or folder: a name on the Hub is `name` or `user/name`."""
    return (
        not name
        or os.path.isabs(name)
        or name.startswith((".", "~"))
        or name.count("/") > 1
        or name.endswith((".json", ".jsonl"))
    )


def _load_folder(path: Path, split: str) -> Dataset:
    if not any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
        names = sorted(os.listdir(path))
        found = f"it holds {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else "it is empty"
        raise DatasetError(f"{str(path)!r} is not a folder that `save_to_disk` wrote: {found}. {_FORMS}")
    # The mark may be that of a result of several datasets
    for marked, below in ((path, ""), (path.resolve().parent, f"{path.resolve().name}/")):
        damage = find_damage(marked, contents=True, below=below)
        if damage:
            raise DatasetError(
                f"The dataset in {str(path)!r} is not as it was written ({'; '.join(damage[:3])}). Delete "
                f"{str(marked)!r} and run the stage that wrote it again. If you have changed the dataset yourself, "
                f"delete {MARK} in that folder."
            )
    try:
        dataset = load_from_disk(str(path))
    except IndexError:  # `save_to_disk` writes no file for a dataset without rows
        raise DatasetError(f"{str(path)!r} has no rows. Check how it was made, or name another dataset.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        # A file that is missing or has no end, or another description than `datasets` writes
        raise DatasetError(
            f"The dataset in {str(path)!r} cannot be read ({describe(error)}): it was changed, or not written to its "
            "end. Write it again."
        ) from None
    if isinstance(dataset, Dataset):
        return dataset
    if split not in dataset:
        raise DatasetError(
            f"{str(path)!r} has no split {split!r}; its splits are {', '.join(dataset)}. Name one of them, or the "
            "folder of one."
        )
    return dataset[split]


def _load_from_hub(name: str, split: str, config_name: str | None) -> Dataset:
    try:
        return load_dataset(name, name=config_name, split=split)
    except (DatasetsError, OSError, ValueError) as error:
        # Not there, private, offline; or an unknown split or configuration, which the message lists
        raise DatasetError(
            f"There is no file or folder {name!r}, and the split {split!r} of a dataset of that name cannot be loaded "
            f"from the Hub: {describe(error)}"
        ) from None


def describe(error: Exception) -> str:
    """An error of a library on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
