"""Tiny runs with everything a page shows, and what stands in a page."""

import base64
import json
import pathlib
import re
import zlib
from typing import Any

import numpy as np
import pytest

from rnnjax.lm.options import ModelOptions
from tests.lm import tiny_run

# What would end a script or become an element, were it not escaped; and enough of everything for labels to vary.
NASTY = "</script><img src=x onerror=alert(1)><!-- &amp; \"q 'é\t"
TEXT = "".join(
    NASTY + "".join(np.random.default_rng(k).choice(list("abcdefghij (,)\n"), 60)) + '"in"\n' for k in range(14)
)


def make_full_run(folder: pathlib.Path, model: ModelOptions, **text: Any) -> pathlib.Path:
    """A tiny run on `TEXT`, with metrics, baselines and samples as training writes them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_run, "TEXT", TEXT)
        tiny_run.make_run(folder, model=model, **text)
    rows: list[dict[str, Any]] = []
    for k in range(1, 9):
        where = {"step": k, "epoch": 0, "symbols": 512 * k, "seconds": 1.5 * k}
        norms = {"grad_norm": 0.5 / k, "grad_norm_max": 2.0 / k, "clip_rate": 1.0 / k, "lr": 0.008}
        rows.append({"kind": "train", **where, "loss": 3.0 - 0.1 * k, **norms})
        if k % 4 == 0:
            rows.append({"kind": "eval", **where, "val_loss": 3.1 - 0.1 * k})
    rows.append({"kind": "done", "step": 8, "val_loss": 2.25, "test_loss": None, "seconds": 13.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "baselines.json").write_text('{"nats": {"unigram": 2.9, "xz": null}}', encoding="utf-8")
    (folder / "samples.txt").write_text("--- step 4 ---\nab\n\n--- step 8 ---\n<b>c</b> &\n\n", encoding="utf-8")
    return folder


def headings() -> dict[str, set[str]]:
    """The anchors of every page of the course as it stands in docs: titles in small letters, joined by dashes."""
    found = {}
    for path in (pathlib.Path(__file__).resolve().parents[2] / "docs" / "course").glob("[0-9]*.md"):
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        titles = re.findall(r"^##+ (.+)$", text, re.MULTILINE)
        found[path.stem] = {"-".join(re.findall(r"[a-z0-9]+", title.lower())) for title in titles}
    return found


def make_site(folder: pathlib.Path) -> pathlib.Path:
    """A folder as `make docs` builds it, as far as links into the course go."""
    (folder / "course").mkdir(parents=True)
    for name, anchors in headings().items():
        sections = "".join(f'<section id="{anchor}"></section>' for anchor in anchors)
        (folder / "course" / f"{name}.html").write_text(f"<title>{name}</title>{sections}", encoding="utf-8")
    return folder


def unpack(packed: str) -> np.ndarray:
    """The flat array in a page, little-endian behind the short name of its dtype."""
    name, _, data = packed.partition(":")
    dtype = {"u8": "|u1", "u16": "<u2", "u32": "<u4", "f32": "<f4"}[name]
    return np.frombuffer(zlib.decompress(base64.b64decode(data)), dtype)


def data_of(page: pathlib.Path, index: int = 0) -> dict[str, Any]:
    """The data of a run in a page."""
    html = page.read_text(encoding="utf-8")
    (block,) = re.findall(rf'<script type="application/json" id="run-{index}">(.*?)</script>', html, re.DOTALL)
    return json.loads(block)


def values_of(unit: dict[str, Any]) -> np.ndarray:
    """The values of a unit in a page."""
    return unit["low"] + (unit["high"] - unit["low"]) / 255 * unpack(unit["values"])
