"""Puts the data of runs, packed, the style and the scripts into one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import html
import importlib.resources
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rnnjax.analysis.plots import DIVERGING, SEQUENTIAL
from rnnjax.checks import describe
from rnnjax.report.site import COURSE, site_address

__all__ = ["asset", "pack", "page", "page_size", "quantize", "to_json"]

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


_SCRIPTS = (
    "core.js",
    "scales.js",
    "charts.js",
    "tables.js",
    "text.js",
    "units.js",
    "sections.js",
    "writer.js",
    "terms.js",
    "main.js",
)
_SLOT = re.compile(r"<!--(\w+)-->")


def page(runs: Sequence[Mapping[str, Any]], site: str | None = None) -> str:
    """The file: no address is in it that a browser would load by itself, and its own policy forbids it any.

    Args:
        runs: from `collect_run`; the first is shown first, and several are compared.
        site: the address of the documentation, or the folder where it is built, which each "?" then links to; None is
            where it is published, and without that there are no links.

    Raises:
        ValueError: if there is no run, or no site there.
        TypeError: for what `collect_run` has not made.
    """
    if isinstance(runs, str | bytes | Mapping) or not hasattr(runs, "__iter__"):
        raise TypeError(f"page: runs must be a sequence of what collect_run makes, got {describe(runs)}.")
    for run in runs:
        if not isinstance(run, Mapping) or "name" not in run:
            raise TypeError(f"page: every run must be what collect_run makes, got {describe(run)}.")
    if not runs:
        raise ValueError("page: there must be at least one run to show, got none; name one.")
    names = [str(run["name"]) for run in runs]
    shared = {
        "runs": names,
        "diverging": DIVERGING,
        "sequential": SEQUENTIAL,
        "site": site_address(site, "page: site"),
        "course": COURSE,
    }
    blocks = [f'<script type="application/json" id="shared">{to_json(shared)}</script>']
    steps = ",\n".join(str(run.get("steps", "[]")) for run in runs)  # JavaScript that we made
    runs = [{key: value for key, value in run.items() if key != "steps"} for run in runs]
    blocks += [f'<script type="application/json" id="run-{k}">{to_json(run)}</script>' for k, run in enumerate(runs)]
    parts = {
        "TITLE": html.escape(f"{', '.join(names)} - rnnjax report"),
        "STYLE": asset("report.css"),
        "THEME": asset("theme.js"),
        "DATA": "\n".join(blocks),
        "SCRIPT": "\n".join([f"const WRITERS = [{steps}];", *map(asset, _SCRIPTS)]),
    }
    # One pass: what is put in is not looked at again.
    return _SLOT.sub(lambda slot: parts[slot[1]], asset("template.html"))


def page_size() -> int:
    """Bytes of a page without the data of its runs."""
    return sum(len(asset(name).encode()) for name in ("template.html", "report.css", "theme.js", *_SCRIPTS)) + 1000


def asset(name: str) -> str:
    """The text of a file that pages are made of."""
    return importlib.resources.files("rnnjax.report").joinpath("assets", name).read_text(encoding="utf-8")
