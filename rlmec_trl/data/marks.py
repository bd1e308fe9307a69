"""The mark of a finished dataset, which says what was written, so that damage is noticed before the rows are used."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


MARK = "rlmec_trl.json"


def make_mark(folder: Path, key: str, costs: Mapping[str, int] | None = None) -> dict[str, Any]:
    """
    What the mark of a folder says.

    Args:
        folder (`Path`):
            The finished folder, without a mark.
        key (`str`):
            What it was made from and how.
        costs (`Mapping[str, int]`, *optional*):
            What making it has cost, by the names of [`~rlmec_trl.stages.costs.COSTS`]; a name that is left out stands
            for 0. Not known by default.

    Returns:
        `dict`: `key`, the `costs` if they are known, and the sizes of the `files` and their `hashes` by name.
    """
    files = list_files(folder)
    hashes = {name: _hash(folder / name) for name in files}
    known = {} if costs is None else {"costs": dict(costs)}
    return {"key": key, **known, "files": files, "hashes": hashes}


def read_mark(folder: Path) -> dict[str, Any] | None:
    """The mark of a finished dataset, `None` where it has none. Earlier versions wrote no `hashes`, and no `costs`."""
    mark = read_object(folder / MARK)
    if mark is None or not isinstance(mark.get("key"), str) or not isinstance(mark.get("files"), dict):
        return None
    mark.setdefault("hashes", {})
    valid = isinstance(mark["hashes"], dict) and all(isinstance(size, int) for size in mark["files"].values())
    return mark if valid else None


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, `None` where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # the last of brackets in thousands of others
        return None
    return content if isinstance(content, dict) else None


def find_damage(folder: Path, contents: bool = False, below: str = "") -> list[str]:
    """
    What is wrong with each file of a finished dataset that is missing or truncated.

    Args:
        folder (`Path`):
            The dataset. One without a mark has no damage.
        contents (`bool`, *optional*, defaults to `False`):
            Whether to read all files (about a second per gigabyte), and to find those that have changed, too.
        below (`str`, *optional*):
            Beginning of the names of the files to check. All by default.
    """
    mark = read_mark(folder)
    if mark is None:
        return []
    found = list_files(folder)
    damage = []
    for name, size in mark["files"].items():
        if not name.startswith(below):
            continue
        if name not in found:
            damage.append(f"{name} is missing")
        elif found[name] < size:
            damage.append(f"{name} has {found[name]} of {size} bytes")
        elif contents and mark["hashes"].get(name) not in (None, _hash(folder / name)):
            damage.append(f"{name} has changed")
    return damage


def list_files(folder: Path) -> dict[str, int]:
    """
    Files below a folder by their paths relative to it, with their sizes in bytes; links and empty folders have size 0.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        is_link = path.is_symlink()
        is_folder = path.is_dir() and not is_link
        if not is_folder or not any(path.iterdir()):
            found[path.relative_to(folder).as_posix()] = 0 if is_link or is_folder else path.stat().st_size
    return found


def _hash(path: Path) -> str | None:
    """Hash of a file; `None` for a link or a folder."""
    if path.is_symlink() or not path.is_file():
        return None
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
