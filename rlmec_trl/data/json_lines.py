"""Files of JSON lines, read strictly: a broken line is named, and all lines decide the types of the columns."""

import json
import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from datasets import Dataset, Features, Json, List, Value

from .schema import DatasetError, column_features


if TYPE_CHECKING:
    from datasets.features.features import FeatureType


_CHUNK = 1_000
_MAX_DEPTH = 32
_FORM = "The file must have one JSON object on each line, or be one array of them, in UTF-8."
# Half of a surrogate pair, which Python allows in a text and UTF-8 does not; also what stands for a byte that is not
# UTF-8 in a text that was read with `surrogateescape`
_HALF = re.compile("[\ud800-\udfff]")
_ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def load_json_lines(path: Path) -> Dataset:
    """
    Load a file of JSON lines, or of one JSON array of objects. Lines end with LF, CRLF or CR; blank ones and a byte
    order mark are skipped.

    The type of a column is the one that fits all of its values: integers and floats are floats, a key that a line
    lacks is `None`, and texts stay texts, also those that look like dates. Where no type fits all, it is `Json`, which
    keeps each value as it is in the file.

    Args:
        path (`Path`):
            The file. As long as it stays the same, `datasets` caches what was read.

    Raises:
        [`~rlmec_trl.data.schema.DatasetError`]: If the file cannot be read or has no rows, or at the first line that
            is not a JSON object.
    """
    try:
        features = _infer_features(path)
        status = path.stat()
    except OSError as error:
        raise DatasetError(f"{str(path)!r} cannot be read: {error.strerror}.") from None
    stamp = (status.st_size, status.st_mtime_ns)
    # Tuples: `datasets` divides lists among shards
    as_json = tuple(name for name in features if isinstance(features[name], Json))
    gen_kwargs = {"path": str(path), "names": tuple(features), "as_json": as_json, "stamp": stamp}
    return Dataset.from_generator(_rows, features=features, gen_kwargs=gen_kwargs)


def _rows(
    path: str, names: tuple[str, ...], as_json: tuple[str, ...], stamp: tuple[int, int]
) -> Iterator[dict[str, Any]]:
    # `stamp` is here for the key of the cache alone
    for row in _read(Path(path)):
        # `Json` takes a text such as "2" for JSON, which would make a number of it
        texts = {name: json.dumps(row[name]) for name in as_json if isinstance(row.get(name), str)}
        yield {name: row.get(name) for name in names} | texts


def _infer_features(path: Path) -> Features:
    columns: dict[str, pa.DataType | None] = {}  # `None` where no type fits
    rows = _read(path)
    while chunk := list(islice(rows, _CHUNK)):
        for name in dict.fromkeys(chain.from_iterable(chunk)):
            columns[name] = _common_type(columns.get(name, pa.null()), [row.get(name) for row in chunk])
    if not columns:
        raise DatasetError(f"{str(path)!r} has no rows. {_FORM}")
    fitting = {name: kind for name, kind in columns.items() if kind is not None}
    inferred = Features.from_arrow_schema(pa.schema(fitting))
    # A rewrite has the form of its completion
    messages = any(isinstance(inferred.get(name), List) for name in ("completion", "rewrite", "prompt"))
    known = column_features(messages)
    return Features(
        {name: _complete(inferred[name], known.get(name)) if name in inferred else Json() for name in columns}
    )


def _common_type(before: pa.DataType | None, values: list[Any]) -> pa.DataType | None:
    """The type of the values and those before them; `None` if there is none, as for a text and a number."""
    if before is None:
        return None
    try:
        schemas = [pa.schema({"": kind}) for kind in (before, pa.array(values).type)]
        kind = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # the last: an integer over 64 bits
        return None
    return kind if _is_writable(kind) else None


def _is_writable(kind: pa.DataType, depth: int = 0) -> bool:
    """Whether `datasets` can write a type: not if it is nested too deeply, or an object without keys."""
    if pa.types.is_list(kind):
        return depth < _MAX_DEPTH and _is_writable(kind.value_type, depth + 1)
    if pa.types.is_struct(kind):
        return depth < _MAX_DEPTH and kind.num_fields > 0 and all(_is_writable(f.type, depth + 1) for f in kind)
    return True


def _complete(inferred: "FeatureType", known: "FeatureType | None") -> "FeatureType":
    """`known` where `inferred` comes from `None` alone, or from integers where floats belong; else `inferred`."""
    if isinstance(inferred, List) and isinstance(known, List):
        return List(_complete(inferred.feature, known.feature))
    if known is not None and inferred == Value("null"):
        return known
    if known == Value("float64") and inferred == Value("int64"):
        return known
    return inferred


def _read(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            if line.lstrip().startswith("["):
                # One array is read as a whole; errors count lines from the one where it begins
                yield from _read_array(path, line + lines.read(), number)
                return
            if line.strip():
                yield _as_row(_parse(path, line, number), f"{str(path)!r}, line {number}")


def _read_array(path: Path, text: str, first_line: int) -> Iterator[dict[str, Any]]:
    for index, value in enumerate(_parse(path, text, first_line)):
        yield _as_row(value, f"{str(path)!r}, entry {index} of its array")


def _parse(path: Path, text: str, first_line: int) -> Any:
    where = f"{str(path)!r}, line "
    if wrong := _HALF.search(text):
        line = first_line + text.count("\n", 0, wrong.start())
        raise DatasetError(f"{where}{line}: found bytes that are not UTF-8. {_FORM}")
    try:
        value = json.loads(text, object_pairs_hook=_with_sound_keys)
    except json.JSONDecodeError as error:
        # Where something is missing at the end of a line, the error is after it
        before = text[: error.pos].rstrip("\n").split("\n")
        shown = text.split("\n")[len(before) - 1][:60]
        raise DatasetError(
            f"{where}{first_line + len(before) - 1}: found {shown!r}, which is not JSON ({error.msg}, at character "
            f"{len(before[-1]) + 1}). {_FORM}"
        ) from None
    except RecursionError:
        raise DatasetError(f"{where}{first_line}: found lists that are nested too deeply. {_FORM}") from None
    except ValueError as error:  # such a key, or a number of thousands of digits
        raise DatasetError(f"{where}{first_line}: {error}. {_FORM}") from None
    if _ESCAPED_HALF.search(text) and _HALF.search(json.dumps(value, ensure_ascii=False)):
        raise DatasetError(
            f"{where}{first_line}: found a lone surrogate, half of a character (such as \\ud800). No text can be "
            "stored with it: remove it, or write the whole pair."
        )
    return value


def _with_sound_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} appears twice in an object")
    for name in found:
        if "\0" in name:
            raise ValueError(f"the key {name!r} has a NUL character, with which no column can be named")
    return found


def _as_row(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DatasetError(f"{where}: found {str(value)[:60]}, which is not an object. {_FORM}")
    return value
