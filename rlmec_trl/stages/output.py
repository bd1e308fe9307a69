"""
Output folders that are replaced only where everything in them is our own.

A finished dataset carries a mark, `rlmec_trl.json`, with the key of what it was made from and the files that were
written. A folder without it, or with a file that it does not list, is refused by name before any work begins.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datasets import Dataset
from filelock import FileLock, Timeout


MARK = "rlmec_trl.json"
# What `Dataset.map` made of a dataset, which `datasets` keeps beside it, finished or cut off
_CACHE = re.compile(r"cache-.*\.arrow|tmp[a-z0-9_]{8}")


class OutputError(RuntimeError):
    """An output folder cannot be used; the message says which, why, and what to do."""


def check_replaceable(output_dir: str | os.PathLike) -> None:
    """
    Check that a folder holds nothing but what an earlier run wrote.

    Raises:
        [`OutputError`]: If the path is not a folder, or holds a file that no run of ours wrote.
    """
    path = Path(output_dir)
    if path.exists() and not path.is_dir():
        raise OutputError(f"{str(output_dir)!r} is a file, not a folder. Choose another `--output_dir`.")
    found = list_files(path)
    mark = read_mark(path)
    if mark is None and found:
        raise OutputError(
            f"{str(output_dir)!r} holds files that this stage did not write ({_some(found)}). Nothing was changed. "
            "Choose another `--output_dir`, or move these files elsewhere."
        )
    foreign = found - {MARK, *mark["files"]} if mark else set()
    if foreign:
        raise OutputError(
            f"{str(output_dir)!r} holds an earlier result, and files that were added to it ({_some(foreign)}). "
            "Nothing was changed. Choose another `--output_dir`, or move these files elsewhere."
        )


def is_finished(output_dir: str | os.PathLike, key: str) -> bool:
    """Whether a folder holds the whole result of a run with this key."""
    mark = read_mark(output_dir)
    return (
        mark is not None
        and mark["key"] == key
        and all(
            Path(output_dir, name).is_file() and Path(output_dir, name).stat().st_size == size
            for name, size in mark["files"].items()
        )
    )


@contextmanager
def claim(output_dir: str | os.PathLike) -> Iterator[Path]:
    """
    Hold an output folder for one run, and yield a hidden folder beside it in which unfinished work is kept.

    Raises:
        [`OutputError`]: If the output folder holds files of others, or another run is writing to it.
    """
    target = _target(output_dir)
    work_dir = target.with_name(f".{target.name}.rlmec_trl")
    if work_dir.exists():
        names = {"lock", "result", "replaced"}
        foreign = {path.name for path in work_dir.iterdir() if path.name not in names and path.suffix != ".shards"}
        if foreign:
            raise OutputError(
                f"{str(work_dir)!r}, which keeps unfinished work, holds files of others ({_some(foreign)}). Nothing "
                "was changed. Choose another `--output_dir`, or move these files elsewhere."
            )
    else:
        check_replaceable(output_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work_dir / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputError(
            f"Another run is writing to {str(output_dir)!r}. Wait for it to end, or choose another `--output_dir`."
        ) from None
    try:
        replaced = work_dir / "replaced"
        if replaced.exists() and not target.exists():
            # A run was killed between the two renames of `publish`
            replaced.rename(target)
        check_replaceable(output_dir)
        yield work_dir
        if not any(work_dir.glob("*.shards")):
            shutil.rmtree(work_dir)
    finally:
        lock.release()


def publish(dataset: Dataset, output_dir: str | os.PathLike, key: str, work_dir: Path) -> None:
    """
    Save a dataset in place of what an earlier run left. An incomplete one never stands under its name.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows to save.
        output_dir (`str` or `os.PathLike`):
            Folder to save them to, held by [`claim`].
        key (`str`):
            What they were made from and how.
        work_dir (`Path`):
            What [`claim`] yielded.

    Raises:
        [`OutputError`]: If files of others have appeared in the folder.
    """
    target, result, replaced = _target(output_dir), work_dir / "result", work_dir / "replaced"
    for leftover in (result, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    # With the number given, a result without rows gets a file too, without which it could not be loaded
    dataset.save_to_disk(str(result), num_shards=None if len(dataset) > 0 else 1)
    files = {name: (result / name).stat().st_size for name in sorted(list_files(result))}
    (result / MARK).write_text(json.dumps({"key": key, "files": files}, indent=2) + "\n", encoding="utf-8")
    check_replaceable(output_dir)
    if target.exists():
        target.rename(replaced)
    result.rename(target)
    shutil.rmtree(replaced, ignore_errors=True)


def write_atomically(path: str | os.PathLike, text: str) -> None:
    """
    Write a file in one step: whenever the process is killed, the file has its old content or the new one. Its folder
    is created where there is none.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def read_mark(output_dir: str | os.PathLike) -> dict | None:
    """The mark of a finished dataset: its `key` and the sizes of its `files` by name. `None` where it has none."""
    try:
        mark = json.loads(Path(output_dir, MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    valid = isinstance(mark, dict) and isinstance(mark.get("key"), str) and isinstance(mark.get("files"), dict)
    return mark if valid else None


def list_files(folder: Path) -> set[str]:
    """
    Files below a folder, with links and empty folders, as paths relative to it. What `datasets` caches there does not
    count.
    """
    found = set()
    for path in folder.rglob("*"):
        is_folder = path.is_dir() and not path.is_symlink()
        if not _CACHE.fullmatch(path.name) and (not is_folder or not any(path.iterdir())):
            found.add(path.relative_to(folder).as_posix())
    return found


def _target(output_dir: str | os.PathLike) -> Path:
    # Of a link, the folder that it leads to: a rename would replace the link itself
    return Path(output_dir).resolve()


def _some(names: set[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
