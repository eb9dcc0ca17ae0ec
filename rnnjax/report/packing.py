"""Numbers in a page: typed arrays, compressed and in base64; and JSON that can stand in HTML."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import numpy as np

__all__ = ["pack", "quantize", "to_json"]

_NAMES = {"uint8": "u8", "uint16": "u16", "uint32": "u32", "float32": "f32"}


def pack(values: np.ndarray) -> str:
    r"""An array of uint8, uint16, uint32 or float32 as ``dtype:base64 of zlib``, C order, little-endian.

    >>> kind, _, data = pack(np.arange(3, dtype=np.uint8)).partition(":")
    >>> kind, zlib.decompress(base64.b64decode(data))
    ('u8', b'\x00\x01\x02')
    """
    raw = np.ascontiguousarray(values)
    data = zlib.compress(raw.astype(raw.dtype.newbyteorder("<")).tobytes(), 9)
    return f"{_NAMES[raw.dtype.name]}:{base64.b64encode(data).decode('ascii')}"


def quantize(values: np.ndarray) -> tuple[float, float, np.ndarray]:
    """The least and largest value, and uint8 from 0 to 255 between them: exact to a 510th of the range.

    >>> low, high, levels = quantize(np.array([-1.0, 0.0, 1.0]))
    >>> (low, high), levels.tolist()
    ((-1.0, 1.0), [0, 128, 255])
    """
    low, high = float(values.min()), float(values.max())
    levels = np.rint((np.asarray(values, np.float64) - low) * (255 / max(high - low, 1e-30)))
    return low, high, levels.astype(np.uint8)


def to_json(value: Any) -> str:
    r"""JSON in ASCII that can stand in a script element of HTML: nothing in it ends the element or starts a comment.

    >>> to_json({"text": "</script><!-- \u2028 & é"})
    '{"text":"\\u003c/script\\u003e\\u003c!-- \\u2028 \\u0026 \\u00e9"}'
    """
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
