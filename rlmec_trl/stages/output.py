"""
Output folders that are replaced only where everything in them is our own.

A finished result carries a mark, `rlmec_trl.json`, with the key of what it was made from, and the names, sizes and
hashes of the files that were written. A folder without it, or with other files, is refused by name before any work
begins. A result whose files are missing, truncated or changed is named, moved aside and recomputed.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from datasets import Dataset
from filelock import FileLock, Timeout

from ..data.errors import UserError
from ..data.marks import MARK, find_damage, list_files, make_mark, read_mark, read_object


logger = logging.getLogger(__name__)

# In the output folder of a training whose parent cannot be written to. `Trainer` does not push what begins with "_"
LOCK = "_rlmec_trl.lock"
_CACHE = re.compile(r"(.*/)?(cache-[0-9a-f]{16}(_\d+_of_\d+)?\.arrow)")


class OutputError(UserError, RuntimeError):
    """An output folder cannot be used; the message says which, why, and what to do."""


def check_replaceable(output_dir: str | os.PathLike) -> None:
    """
    Check that a folder holds nothing but what an earlier run wrote.

    Raises:
        [`OutputError`]: If the path is not a folder, or holds a file that no run of ours wrote.
    """
    path = resolve(output_dir)
    if path.exists() and not path.is_dir():
        raise OutputError(f"{str(output_dir)!r} is a file, not a folder. Choose another `--output_dir`.")
    found = list_files(path)
    mark = read_mark(path)
    if mark is None and found:
        raise OutputError(
            f"{str(output_dir)!r} holds files that this stage did not write ({a_few(found)}). Nothing was changed. "
            "Choose another `--output_dir`, or move these files elsewhere."
        )
    known = {MARK: float("inf"), **mark["files"]} if mark else {}
    # A longer one was written over ours. A shorter one may be ours, truncated: `publish` moves it aside
    foreign = {name for name, size in found.items() if size > known.get(name, -1) and not is_cache(name)}
    if foreign:
        raise OutputError(
            f"{str(output_dir)!r} holds an earlier result, and files that were added or replaced since then "
            f"({a_few(foreign)}). Nothing was changed. Choose another `--output_dir`, or move these files elsewhere."
        )


def check_not_input(output_dir: str | os.PathLike, dataset: Dataset) -> None:
    """
    Check that a result would not replace the very rows that it is made of.

    Raises:
        [`OutputError`]: If the dataset was loaded from the output folder.
    """
    target = resolve(output_dir)
    if any(target in resolve(file["filename"]).parents for file in dataset.cache_files):
        raise OutputError(
            f"{str(output_dir)!r} is where the rows to work on were loaded from. Choose another `--output_dir`."
        )


def is_finished(output_dir: str | os.PathLike, key: str) -> bool:
    """Whether a folder holds the whole result of a run with this key, as it was written."""
    folder = resolve(output_dir)
    mark = read_mark(folder)
    if mark is None or mark["key"] != key:
        return False
    paths = {folder / name: size for name, size in mark["files"].items()}
    whole = all(path.is_file() and path.stat().st_size == size for path, size in paths.items())
    return whole and not find_damage(folder, contents=True)


@contextmanager
def claim(output_dir: str | os.PathLike, key: str | None = None) -> Iterator[Path]:
    """
    Hold an output folder for one run, and yield a hidden folder next to it in which unfinished work is kept.

    Args:
        output_dir (`str` or `os.PathLike`):
            The output folder.
        key (`str`, *optional*):
            If the folder holds the whole result of this key, it will not be replaced and may hold other files too.

    Raises:
        [`OutputError`]: If the output folder cannot be used, holds files of others, or another run is writing to it.
    """
    target = check_path(output_dir)
    with _locked(target, output_dir) as work_dir:
        with writing(output_dir):
            # Checked under the lock: a run that is publishing its result moves files
            _check_work_dir(work_dir)
            _restore(target, work_dir)
            if key is None or not is_finished(output_dir, key):
                check_replaceable(output_dir)
                _report_damage(output_dir)
        try:
            yield work_dir
        finally:
            _restore(target, work_dir)
            shutil.rmtree(work_dir / "result", ignore_errors=True)


@contextmanager
def hold(output_dir: str | os.PathLike) -> Iterator[None]:
    """
    Keep other runs from writing to an output folder that is written file by file, such as that of a training. The lock
    is next to the folder or, where nothing can be written there, in it. It ends with the process.

    Raises:
        [`OutputError`]: If there can be no such folder, it is the working directory or a folder around it, it cannot
            be written, or another run is writing to it.
    """
    target = check_path(output_dir)
    if not target.exists() and Path(output_dir).expanduser().is_symlink():
        with writing(output_dir):
            target.mkdir(parents=True, exist_ok=True)  # of a link that leads nowhere, `Trainer` could not
    if target.is_dir() and not os.access(target.parent, os.W_OK):
        with hold_lock(target / LOCK, output_dir, _in_use(output_dir)):
            yield
    else:
        with _locked(target, output_dir):
            yield


@contextmanager
def _locked(target: Path, output_dir: str | os.PathLike) -> Iterator[Path]:
    """Hold the lock of an output folder, in the hidden folder next to it, which is yielded."""
    work_dir = target.with_name(f".{target.name}.rlmec_trl")
    if work_dir.exists() and not work_dir.is_dir():
        raise OutputError(
            f"{str(work_dir)!r} is a file, but unfinished work is kept under that name. Move it elsewhere, or "
            "choose another `--output_dir`."
        )
    try:
        with hold_lock(work_dir / "lock", output_dir, _in_use(output_dir)):
            yield work_dir
    finally:
        # Gone unless there are unfinished shards, or another run has it by now
        with suppress(OSError):
            work_dir.rmdir()


def _in_use(output_dir: str | os.PathLike) -> str:
    return f"Another run is writing to {str(output_dir)!r}. Wait for it to end, or choose another `--output_dir`."


@contextmanager
def hold_lock(path: Path, output: str | os.PathLike, message: str) -> Iterator[None]:
    """
    Hold a lock file for one run. It is created with its folder, and removed in the end.

    Args:
        path (`Path`):
            The lock file.
        output (`str` or `os.PathLike`):
            The output that it locks, for an error.
        message (`str`):
            What to tell a second run.

    Raises:
        [`OutputError`]: If another run holds the lock, or the lock file cannot be written.
    """
    with writing(output):
        lock = _acquire(path, message)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def _acquire(path: Path, message: str) -> FileLock:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise OutputError(message) from None
        except FileNotFoundError:
            # The run that held it has just removed the folder
            continue
        if path.exists():
            return lock
        # What was locked is the file that the other run has just removed
        lock.release()


@contextmanager
def writing(output: str | os.PathLike) -> Iterator[None]:
    """
    Name the output folder or file when writing fails: no permission, no space, a file where a folder should be.

    Raises:
        [`OutputError`]: Instead of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        where = f" ({error.filename})" if error.filename is not None else ""
        raise OutputError(
            f"{str(output)!r} cannot be written: {reason}{where}. Fix this, or choose another path, and run the "
            "command again."
        ) from None


def check_path(output_dir: str | os.PathLike) -> Path:
    """
    The folder that an output path leads to, which need not exist.

    Raises:
        [`OutputError`]: If there can be no such folder, or it is the working directory or a folder around it.
    """
    target = resolve(output_dir)
    if target in (Path.cwd(), *Path.cwd().parents):
        raise OutputError(
            f"{str(output_dir)!r} is the working directory, or a folder around it. Choose another `--output_dir`."
        )
    return target


def _check_work_dir(work_dir: Path) -> None:
    names = {"lock", "result", "replaced"}
    foreign = {path.name for path in work_dir.iterdir() if path.name not in names and path.suffix != ".shards"}
    if foreign:
        raise OutputError(
            f"{str(work_dir)!r}, the folder of unfinished work, contains other files ({a_few(foreign)}). Nothing "
            "was changed. Choose another `--output_dir`, or move these files elsewhere."
        )


def _restore(target: Path, work_dir: Path) -> None:
    """Put a result back whose replacement was interrupted, or remove it where its replacement is in place."""
    replaced = work_dir / "replaced"
    if replaced.exists() and not target.exists():
        # A run was killed between the two renames of `publish`
        replaced.rename(target)
    shutil.rmtree(replaced, ignore_errors=True)


def _report_damage(output_dir: str | os.PathLike) -> None:
    damage = find_damage(resolve(output_dir), contents=True)
    if damage:
        logger.warning(
            f"{str(output_dir)!r} holds a damaged result ({a_few(damage)}). It is recomputed; what is left of it "
            f"will be moved to {str(_aside(resolve(output_dir)))!r}."
        )


def _aside(target: Path) -> Path:
    """A free name for a damaged result."""
    paths = (target.with_name(f"{target.name}.damaged-{number}") for number in range(1, 10_000))
    return next(path for path in paths if not os.path.lexists(path))


def publish(
    save: Callable[[Path], None],
    output_dir: str | os.PathLike,
    key: str,
    work_dir: Path,
    costs: Mapping[str, int] | None = None,
) -> None:
    """
    Save a result, replacing that of an earlier run. The output folder never holds an incomplete one.

    Args:
        save (`Callable[[Path], None]`):
            Writes the result to the folder that it is given.
        output_dir (`str` or `os.PathLike`):
            Folder to save them to, held by [`claim`].
        key (`str`):
            What they were made from and how.
        work_dir (`Path`):
            What [`claim`] yielded.
        costs (`Mapping[str, int]`, *optional*):
            What it has cost, for its mark. Not known by default.

    Raises:
        [`OutputError`]: If files of others have appeared in the folder.
    """
    target, result, replaced = resolve(output_dir), work_dir / "result", work_dir / "replaced"
    for leftover in (result, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    with writing(output_dir):
        save(result)
        write_mark(result, key, costs)
        check_replaceable(output_dir)
        if target.exists():
            # What is not as we wrote it may be what somebody else wrote over it
            target.rename(_aside(target) if find_damage(target, contents=True) else replaced)
        result.rename(target)
    shutil.rmtree(replaced, ignore_errors=True)


def write_mark(folder: Path, key: str, costs: Mapping[str, int] | None = None) -> None:
    """Mark a folder as finished, and see that all of it is on the disk before it gets its final name."""
    (folder / MARK).write_text(json.dumps(make_mark(folder, key, costs), indent=2) + "\n", encoding="utf-8")
    # Without this, a power failure could leave a folder with its final name and truncated files
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def save_rows(dataset: Dataset, folder: Path) -> None:
    """Save a dataset so that it can be loaded again even without rows."""
    # With the number given, a dataset without rows gets a file too, without which it could not be loaded
    dataset.save_to_disk(str(folder), num_shards=None if len(dataset) > 0 else 1)


def check_result_file(
    output_file: str | os.PathLike | None,
    names: Iterable[str],
    setting: str = "--output_file",
    lines: bool = False,
) -> None:
    """
    Check that a file may be written: it does not exist, or is an earlier result: a JSON object with these names or,
    with `lines`, JSON lines with just these.

    Raises:
        [`OutputError`]: If there is another file, or a folder.
    """
    is_ours = _has_result_lines if lines else is_result_file
    if output_file is not None:
        _check_own_file(output_file, lambda path: is_ours(path, names), setting)


def _check_own_file(
    output_file: str | os.PathLike, is_ours: Callable[[str | os.PathLike], bool], setting: str
) -> None:
    path = resolve(output_file)
    if path.exists() and not is_ours(path):
        raise OutputError(
            f"{str(output_file)!r} exists and is not a result of this stage. Nothing was changed. Choose another "
            f"`{setting}`."
        )


@contextmanager
def claim_file(
    output_file: str | os.PathLike | None,
    names: Iterable[str],
    setting: str = "--output_file",
    lines: bool = False,
) -> Iterator[None]:
    """
    Hold a result file for one run, if there is to be one.

    Args:
        output_file (`str` or `os.PathLike`, *optional*):
            The file.
        names (`Iterable[str]`):
            As in [`check_result_file`].
        setting (`str`, *optional*, defaults to `"--output_file"`):
            The setting that names the file, for an error.
        lines (`bool`, *optional*, defaults to `False`):
            Whether it is a file of JSON lines.

    Raises:
        [`OutputError`]: If the file may not or cannot be written, or another run is about to write it.
    """
    if output_file is None:
        yield
        return
    is_ours = _has_result_lines if lines else is_result_file
    with claim_own_file(output_file, lambda path: is_ours(path, names), setting):
        yield


@contextmanager
def claim_own_file(
    output_file: str | os.PathLike, is_ours: Callable[[str | os.PathLike], bool], setting: str = "--output_file"
) -> Iterator[None]:
    """
    Hold a file of any kind for one run.

    Args:
        output_file (`str` or `os.PathLike`):
            The file.
        is_ours (`Callable[[str], bool]`):
            Whether a file was written by an earlier run, so that it may be replaced.
        setting (`str`, *optional*, defaults to `"--output_file"`):
            The setting that names the file, for an error.

    Raises:
        [`OutputError`]: If the file may not or cannot be written, or another run is about to write it.
    """
    _check_own_file(output_file, is_ours, setting)
    path = resolve(output_file)  # of a link, the file behind it, which is what is replaced
    message = f"Another run will write {str(output_file)!r}. Wait for it to end, or choose another `{setting}`."
    with hold_lock(path.with_name(f".{path.name}.lock"), output_file, message):
        yield


def is_result_file(path: str | os.PathLike, names: Iterable[str]) -> bool:
    """Whether a file is a JSON object with these names."""
    content = read_object(Path(path))
    return content is not None and set(names) <= content.keys()


def _has_result_lines(path: str | os.PathLike, names: Iterable[str]) -> bool:
    """Whether a file has a JSON object with exactly these names on each line."""
    try:
        with Path(path).open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
    except (OSError, ValueError):
        return False
    return bool(rows) and all(isinstance(row, dict) and row.keys() == set(names) for row in rows)


def write_atomically(path: str | os.PathLike, text: str) -> None:
    """
    Write a file in one step: whenever the process is killed, the file has its old content or the new one. Its folder
    is created where there is none.

    Raises:
        [`OutputError`]: If it cannot be written.
    """
    path = Path(path).expanduser()
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.unfinished")
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)


def resolve(path: str | os.PathLike) -> Path:
    """
    The folder that a path leads to: `~` is the home folder, and a link the folder behind it.

    Raises:
        [`OutputError`]: If it leads nowhere: a link to itself, or a name that no file can have.
    """
    try:
        resolved = Path(path).expanduser().resolve()
        resolved.exists()
        os.fsencode(resolved)
    except (OSError, RuntimeError, ValueError) as error:
        raise OutputError(f"{str(path)!r} is not a path ({error}). Choose another.") from None
    return resolved


def is_cache(name: str) -> bool:
    """Whether a file next to a dataset of ours is one that `datasets` has put there."""
    return _CACHE.fullmatch(name) is not None


def a_few(names: Iterable[str]) -> str:
    """The first of several names, for a message."""
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
