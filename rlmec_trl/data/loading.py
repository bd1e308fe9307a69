"""Data sets by path or name."""

from pathlib import Path

from datasets import Dataset, load_dataset, load_from_disk

from .schema import DatasetError


def load_rows(
    name_or_path: str, split: str = "train", max_rows: int | None = None, config_name: str | None = None
) -> Dataset:
    """
    Load a data set.

    Args:
        name_or_path (`str`):
            A folder that `Dataset.save_to_disk` wrote, a file of JSON lines, or a name on the Hub.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a data set on the Hub.
        max_rows (`int`, *optional*):
            Number of rows to take from the start. All by default.
        config_name (`str`, *optional*):
            Configuration of a data set on the Hub that has several.
    """
    path = Path(name_or_path)
    if path.is_dir():
        dataset = load_from_disk(str(path))
    elif path.suffix in (".json", ".jsonl"):
        if not path.exists():
            raise FileNotFoundError(f"There is no file {name_or_path!r}.")
        dataset = load_dataset("json", data_files=str(path), split="train")
    else:
        dataset = load_dataset(name_or_path, name=config_name, split=split)
    if not isinstance(dataset, Dataset):
        raise DatasetError(
            f"{name_or_path!r} holds several splits ({', '.join(dataset)}). Name the folder of one of them."
        )
    return dataset if max_rows is None else dataset.select(range(min(max_rows, len(dataset))))
