"""Datasets by path or name."""

from pathlib import Path
from typing import TYPE_CHECKING

from datasets import Dataset, Features, List, Value, load_dataset, load_from_disk

from .schema import DatasetError, column_features


if TYPE_CHECKING:
    from datasets.features.features import FeatureType


def load_rows(
    name_or_path: str, split: str = "train", max_rows: int | None = None, config_name: str | None = None
) -> Dataset:
    """
    Load a dataset.

    Args:
        name_or_path (`str`):
            A folder that `Dataset.save_to_disk` wrote, a file of JSON lines, or a name on the Hub.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a dataset on the Hub.
        max_rows (`int`, *optional*):
            Number of rows to take from the start. All by default.
        config_name (`str`, *optional*):
            Configuration of a dataset on the Hub that has several.

    Raises:
        `FileNotFoundError`: If `name_or_path` names a file of JSON lines that does not exist.
        [`~rlmec_trl.data.schema.DatasetError`]: If the folder holds several splits.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        dataset = load_from_disk(str(path))
    elif path.suffix in (".json", ".jsonl"):
        if not path.exists():
            raise FileNotFoundError(f"There is no file {name_or_path!r}.")
        dataset = load_dataset("json", data_files=str(path), split="train", features=_json_features(path))
    else:
        dataset = load_dataset(name_or_path, name=config_name, split=split)
    if not isinstance(dataset, Dataset):
        raise DatasetError(
            f"{name_or_path!r} holds several splits ({', '.join(dataset)}). Name the folder of one of them."
        )
    return dataset if max_rows is None else dataset.select(range(min(max_rows, len(dataset))))


def _json_features(path: Path) -> Features | None:
    """
    Types of the columns of a file: as `datasets` infers them from the first 10 MB, completed for our own columns. A
    column that begins with thousands of `None` would otherwise get a type that its later values do not fit.
    """
    # Opening a stream reads the first chunk. No types are inferred where the file is one JSON array
    inferred = load_dataset("json", data_files=str(path), split="train", streaming=True).features
    if inferred is None:
        return None
    # A rewrite has the form of its completion
    messages = any(isinstance(inferred.get(name), List) for name in ("completion", "rewrite", "prompt"))
    known = column_features(messages)
    return Features({name: _complete(feature, known.get(name)) for name, feature in inferred.items()})


def _complete(inferred: "FeatureType", known: "FeatureType | None") -> "FeatureType":
    """`known` where `inferred` comes from `None` alone, or from integers where floats belong; else `inferred`."""
    if isinstance(inferred, List) and isinstance(known, List):
        return List(_complete(inferred.feature, known.feature))
    if known is not None and inferred == Value("null"):
        return known
    if known == Value("float64") and inferred == Value("int64"):
        return known
    return inferred
