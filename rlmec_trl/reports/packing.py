"""Numbers and texts for a web page, small enough to be embedded in it."""

import base64
import json
import zlib
from typing import Any

import numpy as np


# The largest code, which stands for a value that is not there, and the largest one of a value
_NO_VALUE = 65535
STEPS = 65534


class Quantized:
    """
    Numbers between two bounds as codes of two bytes: the error is at most half of `(high - low) / 65534`. The code
    65535 is NaN. The middle of the bounds is exact.

    Args:
        values (`np.ndarray` of shape `(n,)`, float64):
            The numbers, NaN where there is none.
        low, high (`float`):
            Their bounds. Numbers outside become the bounds.
        keep_below (`float`, *optional*):
            A number such that what is below it stays below it, and what is not does not get below it.
    """

    def __init__(self, values: np.ndarray, low: float, high: float, keep_below: float | None = None):
        self.low, self.high = low, high
        missing = np.isnan(values)
        scaled = (np.clip(np.where(missing, low, values), low, high) - low) / (high - low)
        codes = np.rint(scaled * STEPS).astype(np.int64)
        if keep_below is not None:
            is_below, stays_below = values < keep_below, low + codes * (high - low) / STEPS < keep_below
            codes += (~is_below & stays_below).astype(np.int64) - (is_below & ~stays_below)
        self.codes = np.where(missing, _NO_VALUE, np.clip(codes, 0, STEPS)).astype("<u2")


def pack(header: dict[str, Any], arrays: dict[str, np.ndarray | Quantized]) -> str:
    """
    Compress a header and arrays to one text of base64, which `readData` of `web/data.js` reads.

    The bytes before compression are the length of the header (four bytes, little endian), the header as ASCII JSON,
    and the arrays. The bytes of an array are ordered by significance: all lowest bytes first. Its description is added
    to the header as `arrays`. As texts are escaped to ASCII, any text of Python can be stored, also half of a
    surrogate pair.

    Args:
        header (`dict`):
            What JSON can hold, without NaN.
        arrays (`dict[str, np.ndarray | Quantized]`):
            Unsigned integers of at most four bytes, or quantized numbers.
    """
    described, parts = [], []
    for name, array in arrays.items():
        described.append({"name": name})
        if isinstance(array, Quantized):
            described[-1] |= {"low": array.low, "high": array.high}
            array = array.codes
        array = array.astype("<u2" if array.max(initial=0) <= _NO_VALUE else "<u4")
        described[-1] |= {"size": array.itemsize, "length": len(array)}
        parts.append(array.view(np.uint8).reshape(-1, array.itemsize).T.tobytes())
    text = json.dumps({**header, "arrays": described}, allow_nan=False, separators=(",", ":")).encode("ascii")
    compressed = zlib.compress(b"".join([len(text).to_bytes(4, "little"), text, *parts]))
    return base64.b64encode(compressed).decode("ascii")
