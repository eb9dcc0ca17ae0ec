"""A source coloured by its classes: as a picture and as an HTML page."""

import html
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .source import CLASSES

__all__ = ["COLORS", "colored_html", "colored_picture"]

_HUES = "222222 0033B3 00809D B3006B 7A4B00 222222 C04000 067D17 4F9A5B 8C8C8C 8A2BE2"
COLORS = {name: f"#{hue}" for name, hue in zip(CLASSES, _HUES.split())}
_WRONG = "#FFB3B3"


def _runs(text: str, *marks: Sequence[Any]) -> list[tuple[int, str, tuple[Any, ...]]]:
    """Stretches of a line with the same marks: column, text and marks."""
    runs, column = [], 0
    for mark, stretch in itertools.groupby(zip(text, *marks), key=lambda item: item[1:]):
        part = "".join(item[0] for item in stretch)
        runs.append((column, part, mark))
        column += len(part)
    return runs


def _lines(text: str) -> list[slice]:
    ends = list(itertools.accumulate(len(line) for line in text.splitlines(keepends=True)))
    return [slice(start, stop) for start, stop in zip([0, *ends], ends)]


def colored_picture(text: str, versions: Mapping[str, np.ndarray], *, columns: int = 78, points: float = 6.5) -> Any:
    """Pages side by side, one a version of the classes; what differs from the first version has a red ground."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    lines, truth = _lines(text), next(iter(versions.values()))
    width = columns * points * 0.602 / 72  # inches; a character of DejaVu Sans Mono is 0.602 of its size wide
    height = len(lines) * points * 1.3 / 72
    figure = Figure(figsize=(width * len(versions), height + 0.6))
    for place, (name, classes) in enumerate(versions.items()):
        box = (place / len(versions), 0.3 / (height + 0.6), 1 / len(versions), height / (height + 0.6))
        axes = figure.add_axes(box, xlim=(-1, columns - 1), ylim=(len(lines), 0))
        axes.set_title(name, fontsize=9)
        axes.axis("off")
        for row, line in enumerate(lines):
            wrong = classes[line] != truth[line]
            for column, part, (kind, bad) in _runs(text[line].rstrip("\n"), classes[line], wrong):
                part = part[: max(columns - 2 - column, 0)]
                if bad and part:
                    axes.add_patch(Rectangle((column, row), len(part), 1, color=_WRONG, linewidth=0))
                if part.strip():
                    look = {"color": COLORS[CLASSES[kind]], "family": "DejaVu Sans Mono", "fontsize": points}
                    axes.text(column, row + 0.8, part, parse_math=False, **look)
    for place, name in enumerate((*CLASSES[1:], "wrong")):
        look = {"backgroundcolor": _WRONG} if name == "wrong" else {"color": COLORS[name]}
        figure.text((place + 0.2) / len(CLASSES), 0.1 / (height + 0.6), name, fontsize=8, weight="bold", **look)
    return figure


def colored_html(title: str, text: str, versions: Mapping[str, np.ndarray]) -> str:
    """A whole page; what differs from the first version is marked, and says what is true and what was said."""
    truth = next(iter(versions.values()))
    parts = [
        "<!doctype html>",
        f'<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><style>',
        "body{font:14px sans-serif;margin:1em} main{display:flex;gap:1em} section{flex:1;overflow-x:auto}",
        f"pre{{font:12px/1.35 monospace}} .wrong{{background:{_WRONG}}}",
        *(f".{name}{{color:{color}}}" for name, color in COLORS.items()),
        f"</style><h1>{html.escape(title)}</h1><p>",
        " ".join(f'<b class="{name}">{name}</b>' for name in CLASSES[1:]),
        '<b class="wrong">wrong</b></p><main>',
    ]
    for name, classes in versions.items():
        page = []
        for _, part, (kind, true) in _runs(text, classes, truth):
            escaped = html.escape(part)
            if kind != true:
                said = f"{CLASSES[kind]}, is {CLASSES[true]}"
                page.append(f'<span class="{CLASSES[kind]} wrong" title="{said}">{escaped}</span>')
            elif part.strip():
                page.append(f'<span class="{CLASSES[kind]}">{escaped}</span>')
            else:
                page.append(escaped)
        share = float(np.mean(classes == truth))
        parts.append(f"<section><h2>{html.escape(name)}: {100 * share:.1f} %</h2><pre>{''.join(page)}</pre></section>")
    return "\n".join([*parts, "</main></html>", ""])
