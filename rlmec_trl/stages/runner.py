"""Long work over a dataset, in shards on disk: re-running resumes it, and several processes share it."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from datasets import Dataset, concatenate_datasets, load_from_disk

from ..generation.processes import process_state
from .output import check_not_input, claim, is_finished, publish, resolve, save_rows


def map_shards(
    dataset: Dataset,
    function: Callable[[Dataset, int], Dataset],
    output_dir: str | os.PathLike,
    settings: dict[str, Any],
    shard_size: int = 1000,
) -> Dataset:
    """
    Apply a function to a dataset shard by shard, and save the result.

    A shard is on disk as soon as it is done. Re-running with the same rows and settings computes only the shards that
    are missing, and loads a result that is finished; with others, it computes all of them. Processes take turns at the
    shards. When all are done, they are joined in order. At any time, only the rows of one shard are in memory.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows to work on.
        function (`Callable[[Dataset, int], Dataset]`):
            Receives the rows of a shard and its index, returns the rows to save, as many as it likes, with the same
            columns for every shard. Random numbers must be seeded by the index, so that the result does not depend on
            the number of processes.
        output_dir (`str` or `os.PathLike`):
            Folder of the result, as `Dataset.save_to_disk` writes it.
        settings (`dict`):
            What the result depends on, besides the rows: JSON values.
        shard_size (`int`, *optional*, defaults to `1000`):
            Number of rows in a shard, and so the most that is lost when a run is killed. Another size keeps the
            finished shards that cover the same rows.

    Returns:
        [`~datasets.Dataset`]: The saved result, on every process.

    Raises:
        `ValueError`: If there are no rows to work on.
        [`~rlmec_trl.stages.output.OutputError`]: If the folder holds files that no run of ours wrote, or the dataset
            itself, or another run is writing to it.
    """
    if len(dataset) == 0:
        raise ValueError(f"There are no rows to work on for {str(output_dir)!r}: the dataset is empty.")
    check_not_input(output_dir, dataset)
    state = process_state()
    key = hashlib.sha256(json.dumps([content_hash(dataset), settings], sort_keys=True).encode()).hexdigest()
    with claim(output_dir, key) if state.is_main_process else nullcontext() as work_dir:
        # The main process decides for all: one that looked later might already see the finished result
        finished = state.is_main_process and is_finished(output_dir, key)
        finished, work_dir = broadcast_object_list([finished, work_dir])
        shards_dir = work_dir / f"{key[:16]}.shards"
        if not finished:
            paths = _compute_shards(dataset, function, shards_dir, shard_size)
            if state.is_main_process:
                shards = concatenate_datasets([load_from_disk(str(path)) for path in paths])
                publish(partial(save_rows, shards), output_dir, key, work_dir)
        if state.is_main_process:
            shutil.rmtree(shards_dir, ignore_errors=True)
        state.wait_for_everyone()
    return load_from_disk(str(resolve(output_dir)))


def content_hash(dataset: Dataset) -> str:
    """Hash of the rows and the types of their columns. `_fingerprint` is random for datasets made in memory."""
    digest = hashlib.sha256(repr(dataset.features).encode())
    for batch in dataset.with_format("arrow").iter(1000):
        digest.update(repr(batch.to_pylist()).encode())
    return digest.hexdigest()


def _compute_shards(
    dataset: Dataset, function: Callable[[Dataset, int], Dataset], shards_dir: Path, shard_size: int
) -> list[Path]:
    state = process_state()
    starts = range(0, len(dataset), shard_size)
    # Named by their rows: shards of another size must not be taken for these
    ranges = [range(start, min(start + shard_size, len(dataset))) for start in starts]
    paths = [shards_dir / f"{rows.start:09d}-{rows.stop:09d}" for rows in ranges]
    for index in range(state.process_index, len(ranges), state.num_processes):
        if paths[index].exists():
            continue
        result = function(dataset.select(ranges[index]), index)
        # A shard appears under its name only when it is complete
        unfinished = paths[index].with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        save_rows(result, unfinished)
        unfinished.rename(paths[index])
    # Not at a barrier: another process may need longer for its last shard than a trainer's `ddp_timeout`
    while not all(path.exists() for path in paths):
        time.sleep(0.1)
    state.wait_for_everyone()
    return paths
