"""Puts the data of runs, the style and the scripts into one HTML file that needs nothing else."""

from __future__ import annotations

import html
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rnnjax.analysis.plots import DIVERGING, SEQUENTIAL
from rnnjax.checks import describe
from rnnjax.report.packing import to_json
from rnnjax.report.site import COURSE, site_address

__all__ = ["asset", "page", "page_size"]

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
