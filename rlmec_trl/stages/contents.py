"""Hashes of what a training starts from, fast enough for large datasets and models."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from ..data.errors import ModelError
from ..generation.loading import model_fingerprint


# What decides, beside the weights, what a training makes of a model
_SETTINGS = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.gguf")
_SAMPLE = 4096  # bytes


def rows_hash(dataset: Dataset) -> str:
    """
    Hash of the rows of a dataset: columns, types and values, however they are cut into files and batches.

    [`~rlmec_trl.stages.runner.content_hash`], which the keys of finished results are made of, turns all values into
    Python objects. Tokenized rows have a hundred times as many of them as texts.
    """
    digest = hashlib.sha256()
    for batch in dataset.with_format("arrow").iter(1000):
        for name in sorted(batch.column_names):
            digest.update(f"{name} {batch.num_rows} ".encode())
            _update(digest, batch.column(name).combine_chunks())
    return digest.hexdigest()


def _update(digest, array: pa.Array) -> None:
    digest.update(str(array.type).encode())
    if array.null_count > 0:
        digest.update(array.is_null().to_numpy(zero_copy_only=False).tobytes())
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        lengths = pc.fill_null(pc.list_value_length(array), -1)
        digest.update(lengths.to_numpy(zero_copy_only=False).astype(np.int64).tobytes())
        _update(digest, array.flatten())
    elif pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_boolean(array.type):
        digest.update(array.drop_null().to_numpy(zero_copy_only=False).tobytes())
    else:
        digest.update(repr(array.to_pylist()).encode("utf-8", "surrogatepass"))


def named_model(name: str, revision: str = "main") -> dict[str, str | None]:
    """
    The name of a model, and what tells its content from another's: [`model_hash`] of a folder, the commit on the Hub.
    `None` for a folder that is no longer there.
    """
    if Path(name).is_dir():
        return {"name": name, "content": model_hash(Path(name))}
    try:
        return {"name": name, "content": model_fingerprint(name, revision)}
    except ModelError:
        return {"name": name, "content": None}


def model_hash(folder: Path) -> str:
    """
    Hash of a model in a folder, wherever it is and whenever it was copied: its settings and tokenizer, and of its
    weights the names, types and shapes, and a few bytes from the middle of each tensor. A training changes these in
    nearly every tensor, and reading all of a large model would take minutes.
    """
    digest = hashlib.sha256()
    for file in (folder / name for name in _SETTINGS):
        if file.exists():
            digest.update(f"{file.name} ".encode() + hashlib.sha256(_read_settings(file)).digest())
    for path in sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern)):
        digest.update(f"{path.name} {path.stat().st_size} ".encode())
        with path.open("rb") as file:
            if path.suffix == ".safetensors":
                header = file.read(int.from_bytes(file.read(8), "little"))
                digest.update(header)
                spans = _tensor_spans(json.loads(header), offset=file.tell())
            else:
                step = max(path.stat().st_size // 1000, _SAMPLE)
                spans = ((start, start + step) for start in range(0, path.stat().st_size, step))
            for start, end in spans:
                file.seek(max(start, (start + end - _SAMPLE) // 2))
                digest.update(file.read(min(end - start, _SAMPLE)))
    return digest.hexdigest()


def _read_settings(file: Path) -> bytes:
    """The content of a file, of JSON without its spaces and the order of its names."""
    content = file.read_bytes()
    try:
        return json.dumps(json.loads(content), sort_keys=True).encode()
    except ValueError:  # a template, or broken, which is noticed where it is loaded
        return content


def _tensor_spans(header: dict, offset: int) -> Iterator[tuple[int, int]]:
    """Where the tensors of a safetensors file begin and end."""
    for name, tensor in header.items():
        if name != "__metadata__":
            start, end = tensor["data_offsets"]
            yield offset + start, offset + end
