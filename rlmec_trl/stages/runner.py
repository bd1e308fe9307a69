"""Long work over a dataset, in shards on disk: re-running resumes it, and several processes share it."""

import hashlib
import json
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from datasets import Dataset, concatenate_datasets, load_from_disk

from ..data.errors import UserError
from ..data.marks import MARK, find_damage, read_mark
from ..generation.processes import process_state
from .bad_rows import BadRow, write_bad_rows
from .output import (
    check_not_input,
    check_path,
    claim,
    is_finished,
    publish,
    resolve,
    save_rows,
    write_mark,
    writing,
)


logger = logging.getLogger(__name__)


class EmptyResultError(UserError, ValueError):
    """A stage yielded nothing that could be saved. An earlier result is kept."""


def map_shards(
    dataset: Dataset,
    function: Callable[[Dataset, int], Dataset],
    output_dir: str | os.PathLike,
    settings: dict[str, Any],
    shard_size: int = 1000,
    check: Callable[[Dataset], None] | None = None,
    bad_rows: Sequence[BadRow] = (),
    costs: Counter[str] | None = None,
) -> Dataset:
    """
    Apply a function to a dataset shard by shard, and save the result.

    A shard is on disk as soon as it is done. Re-running with the same rows and settings computes only the shards that
    are missing or damaged, and loads a result that is finished; with others, it computes all of them. Processes take
    turns at the shards. When all are done, they are joined in order. At any time, only the rows of one shard are in
    memory.

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
        check (`Callable[[Dataset], None]`, *optional*):
            Called on every process with the joined rows, before they replace an earlier result. If it raises an
            [`EmptyResultError`], the earlier result stays and the shards, which hold nothing of use, are removed.
        bad_rows (`Sequence[BadRow]`, *optional*):
            Rows that were left out of `dataset`: part of the key, and listed in a file next to the rows.
        costs (`Counter[str]`, *optional*):
            What the work of this process has cost so far, to which `function` adds. Each shard's mark has what the
            shard has added, and that of the result the sum over its shards, whatever runs and processes made them.

    Returns:
        [`~datasets.Dataset`]: The saved result, on every process.

    Raises:
        [`~rlmec_trl.data.errors.UserError`]: If there are no rows to work on.
        [`~rlmec_trl.stages.output.OutputError`]: If the folder holds files that no run of ours wrote, or the dataset
            itself, or another run is writing to it.
    """
    check_path(output_dir)
    if len(dataset) == 0:
        raise EmptyResultError(f"There are no rows to work on for {str(output_dir)!r}: the dataset is empty.")
    check_not_input(output_dir, dataset)
    state = process_state()
    if bad_rows:
        settings = {**settings, "bad_rows": [asdict(bad_row) for bad_row in bad_rows]}
    key = hashlib.sha256(json.dumps([content_hash(dataset), settings], sort_keys=True).encode()).hexdigest()
    with claim(output_dir, key) if state.is_main_process else nullcontext() as work_dir:
        # The main process decides for all: a process that checks later might already see the finished result
        finished = False
        if state.is_main_process:
            finished = is_finished(output_dir, key) and _is_loadable(output_dir)
            _remove_damaged_shards(work_dir / f"{key[:16]}.shards")
        finished, work_dir = broadcast_object_list([finished, work_dir])
        shards_dir = work_dir / f"{key[:16]}.shards"
        if not finished:
            costs = Counter() if costs is None else costs  # an empty one is false, and the caller's
            paths = _compute_shards(dataset, function, shards_dir, shard_size, output_dir, costs)
            shards = concatenate_datasets([load_from_disk(str(path)) for path in paths])
            if check is not None:
                try:
                    check(shards)
                except EmptyResultError:
                    state.wait_for_everyone()
                    if state.is_main_process:
                        shutil.rmtree(shards_dir, ignore_errors=True)
                    raise
            # All have opened the shards, which the main process is about to remove
            state.wait_for_everyone()
            if state.is_main_process:
                publish(partial(_save_result, shards, bad_rows), output_dir, key, work_dir, _sum_costs(paths))
        if state.is_main_process:
            shutil.rmtree(shards_dir, ignore_errors=True)
            _report_other_shards(work_dir)
        state.wait_for_everyone()
    return load_from_disk(str(resolve(output_dir)))


def content_hash(dataset: Dataset) -> str:
    """Hash of the rows and the types of their columns. `_fingerprint` is random for datasets made in memory."""
    digest = hashlib.sha256(repr(dataset.features).encode())
    for batch in dataset.with_format("arrow").iter(1000):
        digest.update(repr(batch.to_pylist()).encode())
    return digest.hexdigest()


def _compute_shards(
    dataset: Dataset,
    function: Callable[[Dataset, int], Dataset],
    shards_dir: Path,
    shard_size: int,
    output_dir: str | os.PathLike,
    costs: Counter[str],
) -> list[Path]:
    state = process_state()
    starts = range(0, len(dataset), shard_size)
    # Named by their rows: shards of another size must not be taken for these
    ranges = [range(start, min(start + shard_size, len(dataset))) for start in starts]
    paths = [shards_dir / f"{rows.start:09d}-{rows.stop:09d}" for rows in ranges]
    for index in range(state.process_index, len(ranges), state.num_processes):
        if paths[index].exists():
            continue
        before = costs.copy()
        result = function(dataset.select(ranges[index]), index)
        # A shard appears under its name only when it is complete
        unfinished = paths[index].with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        with writing(output_dir):
            save_rows(result, unfinished)
            write_mark(unfinished, key="", costs=costs - before)  # the key is in the name of the folder
            unfinished.rename(paths[index])
    # Not at a barrier: another process may need longer for its last shard than a trainer's `ddp_timeout`
    while not all(path.exists() for path in paths):
        time.sleep(0.1)
    state.wait_for_everyone()
    return paths


def _remove_damaged_shards(shards_dir: Path) -> None:
    """Remove the shards whose files are not those that were written, so that they are computed again."""
    for path in sorted(shards_dir.glob("*")):
        if path.suffix == ".unfinished":
            continue
        if path.is_dir() and not (path / MARK).exists():
            logger.info(f"The shard {str(path)!r} is of an earlier version, which kept no hashes. It is recomputed.")
            shutil.rmtree(path)
        elif read_mark(path) is None or find_damage(path, contents=True):
            logger.warning(f"The finished shard {str(path)!r} is damaged. Its rows are recomputed.")
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _sum_costs(shards: list[Path]) -> Counter[str] | None:
    """What all shards have cost. `None` if one is of an earlier version, which did not count it."""
    total = Counter()
    for path in shards:
        costs = read_mark(path).get("costs")
        if costs is None:
            return None
        total.update(costs)
    return total


def _is_loadable(output_dir: str | os.PathLike) -> bool:
    """Whether a result whose files have their sizes can be read."""
    try:
        load_from_disk(str(resolve(output_dir)))
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = f"{type(error).__name__}: {error}"
        logger.warning(f"{str(output_dir)!r} holds a damaged result ({reason}). It is recomputed.")
        return False
    return True


def _save_result(rows: Dataset, bad_rows: Sequence[BadRow], folder: Path) -> None:
    save_rows(rows, folder)
    if bad_rows:
        write_bad_rows(bad_rows, folder)


def _report_other_shards(work_dir: Path) -> None:
    shards = sorted(path.name for path in work_dir.glob("*.shards"))
    if shards:
        logger.warning(
            f"{str(work_dir)!r} has unfinished work of runs with other rows or settings, which would resume it. If "
            "they will not be run again, delete the folder."
        )
