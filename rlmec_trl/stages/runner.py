"""Long work over a data set, in shards on disk: a run that was cut off goes on, and several processes share it."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets, load_from_disk

from ..generation.processes import process_state


# Beside the rows, what they were made from and how
_KEY_FILE = "made_from.txt"


def map_shards(
    dataset: Dataset,
    function: Callable[[Dataset, int], Dataset],
    output_dir: str | os.PathLike,
    settings: dict[str, Any],
    shard_size: int = 1000,
) -> Dataset:
    """
    Apply a function to a data set shard by shard, and save the result.

    Each shard is on disk as soon as it is done, under a folder named by the data set and the settings. Started again
    with the same, the run goes on with the shards that are missing, and a finished one is loaded; with others, it
    starts anew. Processes take turns at the shards. When all are done, they are joined in order.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows to work on.
        function (`Callable[[Dataset, int], Dataset]`):
            Gets the rows of a shard and its index, gives back the rows to save, as many as it likes. Random numbers
            have to be seeded by the index, for the result not to depend on the number of processes.
        output_dir (`str` or `os.PathLike`):
            Folder of the result, as `Dataset.save_to_disk` writes it.
        settings (`dict`):
            What the result depends on, besides the rows: JSON values.
        shard_size (`int`, *optional*, defaults to `1000`):
            Number of rows in a shard: what is lost at most when a run is cut off.

    Returns:
        [`~datasets.Dataset`]: The saved result, on every process.

    Raises:
        `ValueError`: If there are no rows to work on.
    """
    if len(dataset) == 0:
        raise ValueError(f"There are no rows to work on for {str(output_dir)!r}: the data set is empty.")
    state = process_state()
    output_dir = Path(output_dir)
    key = json.dumps([_content_hash(dataset), settings, shard_size], sort_keys=True)
    key = hashlib.sha256(key.encode()).hexdigest()
    finished = output_dir / _KEY_FILE
    if finished.exists() and finished.read_text(encoding="utf-8") == key:
        return load_from_disk(str(output_dir))
    shards_dir = output_dir.parent / f".{output_dir.name}-{key[:16]}"
    starts = range(0, len(dataset), shard_size)
    paths = [shards_dir / f"{index:05d}" for index in range(len(starts))]
    for index in range(state.process_index, len(starts), state.num_processes):
        if paths[index].exists():
            continue
        start = starts[index]
        result = function(dataset.select(range(start, min(start + shard_size, len(dataset)))), index)
        # A shard appears under its name only when it is whole
        unfinished = paths[index].with_suffix(".unfinished")
        # With the number given, a result without rows gets a file too, without which it could not be loaded
        result.save_to_disk(str(unfinished), num_shards=1)
        unfinished.rename(paths[index])
    # Not at a barrier: another process may need longer for its last shard than a trainer's `ddp_timeout`
    while not all(path.exists() for path in paths):
        time.sleep(0.1)
    state.wait_for_everyone()
    if state.is_main_process:
        save_whole(concatenate_datasets([load_from_disk(str(path)) for path in paths]), output_dir, key)
        shutil.rmtree(shards_dir)
    state.wait_for_everyone()
    return load_from_disk(str(output_dir))


def save_whole(dataset: Dataset, output_dir: str | os.PathLike, key: str | None = None) -> None:
    """
    Save a data set in the place of what the folder held before. A half-written one never stands under its name.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows to save.
        output_dir (`str` or `os.PathLike`):
            Folder to save them to.
        key (`str`, *optional*):
            What they were made from and how.
    """
    output_dir = Path(output_dir)
    unfinished = output_dir.with_name(output_dir.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    # With the number given, a result without rows gets a file too, without which it could not be loaded
    dataset.save_to_disk(str(unfinished), num_shards=None if len(dataset) > 0 else 1)
    if key is not None:
        (unfinished / _KEY_FILE).write_text(key, encoding="utf-8")
    shutil.rmtree(output_dir, ignore_errors=True)
    unfinished.rename(output_dir)


def _content_hash(dataset: Dataset) -> str:
    # `_fingerprint` is random for a data set that was made in memory; the rows themselves are not
    digest = hashlib.sha256(json.dumps(dataset.column_names).encode())
    for batch in dataset.with_format("arrow").iter(1000):
        digest.update(repr(batch.to_pylist()).encode())
    return digest.hexdigest()
