"""Pictures of units: a text in the colours of one, and the best of them for a label.

Nothing is shown and nothing written; save a figure with ``.savefig(path)``. matplotlib is imported when one is drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rnnjax.analysis.search import LabelSearch
from rnnjax.extras import require
from rnnjax.kinds import public

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "DIVERGING",
    "SEQUENTIAL",
    "color_of",
    "new_figure",
    "plot_ranking",
    "plot_text",
    "value_scale",
]

# Low, middle, high: blue and vermilion of Okabe and Ito (2008), told apart with every kind of colour vision.
DIVERGING = ((0, 114, 178), (247, 247, 247), (213, 94, 0))
# From the ground of a page to dark purple, evenly darker: what is more can be told without colours.
SEQUENTIAL = ((251, 251, 250), (224, 209, 233), (167, 124, 186), (112, 46, 134), (61, 0, 82))
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#555555"


def value_scale(values: np.ndarray, kind: str = "state") -> tuple[float, float]:
    """The middle of a diverging scale for the values of a unit, and how far it reaches to both sides.

    Zero where values lie on both sides of it, one half for gates, else the middle of the values; the outermost
    hundredths may lie outside.
    """
    if kind == "gate":
        return 0.5, 0.5
    low, high = (float(v) for v in np.percentile(values, (1, 99))) if np.size(values) else (-1.0, 1.0)
    middle = 0.0 if low <= 0 <= high else (low + high) / 2
    return middle, max(high - middle, middle - low, 1e-6)


def color_of(share: float) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, for -1 (low) to 1 (high) on the diverging scale; what lies beyond is cut off.

    >>> color_of(0.0), color_of(-2.0)
    ((247, 247, 247), (0, 114, 178))
    """
    low, middle, high = DIVERGING
    share = min(1.0, max(-1.0, share))
    end = high if share > 0 else low
    red, green, blue = (round(m + abs(share) * (e - m)) for m, e in zip(middle, end, strict=True))
    return red, green, blue


def new_figure(width: float, height: float, dpi: int = 100) -> Figure:
    """An empty figure; sizes in inches."""
    module = require("matplotlib.figure", "matplotlib", "rnnjax.analysis")
    return module.Figure(figsize=(width, height), dpi=dpi, layout="constrained")


@public
def plot_text(text: str, values: np.ndarray, *, title: str = "", kind: str = "state", columns: int = 96) -> Figure:
    """A page of text, every character on the colour of the unit's value after it; newlines are drawn as well.

    Args:
        text: n characters, for a page up to some thousand.
        values: ``[n]``.
        title: above the page, such as the name of the unit.
        kind: of the unit's `Leaf`: gates have a scale from 0 to 1.
        columns: longer lines are broken.

    Raises:
        ValueError: if text and values differ in length, or there is none.
        ModuleNotFoundError: without matplotlib.
    """
    if len(text) != len(values) or not text:
        raise ValueError(f"plot_text: there must be one value a character, got {len(text)} and {len(values)}.")
    middle, reach = value_scale(values, kind)
    colors = [color_of((value - middle) / reach) for value in values.tolist()]
    places, row, column = [], 0, 0
    for character in text:
        if column == columns:
            row, column = row + 1, 0
        places.append((row, column))
        row, column = (row + 1, 0) if character == "\n" else (row, column + 1)
    rows = places[-1][0] + 1
    figure = new_figure(0.085 * columns + 0.4, 0.17 * rows + 1.0, dpi=150)
    axes = figure.subplots()
    page = np.full((rows, columns, 3), 255, np.uint8)
    for (r, c), character, color in zip(places, text, colors, strict=True):
        page[r, c] = color
        shown = "\N{DOWNWARDS ARROW WITH TIP LEFTWARDS}" if character == "\n" else character
        if shown.isprintable() and not shown.isspace():
            ink = "black" if sum(color) > 330 else "white"
            # Not as mathematics: a dollar sign is a character like any other.
            axes.text(
                c, r, shown, ha="center", va="center", fontsize=6.5, family="monospace", color=ink, parse_math=False
            )
    axes.imshow(page, aspect="auto", interpolation="nearest")
    axes.set_axis_off()
    about = f"{title}  blue {middle - reach:.3g}, white {middle:.3g}, orange {middle + reach:.3g}".strip()
    axes.set_title(about, fontsize=8)
    return figure


@public
def plot_ranking(found: LabelSearch, *, count: int = 20) -> Figure:
    """The best units for a label, with their held-out scores, against the bar that the control sets.

    Args:
        found: from `search_units`.
        count: of units.

    Raises:
        ModuleNotFoundError: without matplotlib.
    """
    best = found.top(count)
    figure = new_figure(6.4, 0.22 * len(best) + 1.6, dpi=150)
    axes = figure.subplots()
    at = np.arange(len(best))
    axes.hlines(at, 0.5 if found.binary else 0.0, [unit.score for unit in best], color=_BLUE, linewidth=1.2)
    axes.plot([unit.score for unit in best], at, "o", color=_BLUE, markersize=5, label="held out")
    axes.plot([unit.first for unit in best], at, "|", color=_GREY, markersize=9, label="first half, which ranks")
    label = f"control: best of {len(found.units):,} units on {len(found.control)} shifted labels"
    axes.axvline(found.bar, color=_ORANGE, linestyle="--", linewidth=1.2, label=label)
    axes.set_yticks(at, [f"{unit.unit} {'+' if unit.direction > 0 else '-'}" for unit in best], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("AUC" if found.binary else "correlation")
    axes.set_title(f"units that tell {found.label!r}", fontsize=9)
    figure.legend(loc="outside lower center", fontsize=7, frameon=False, ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
