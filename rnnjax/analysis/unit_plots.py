"""Pictures of units and texts: a text in the colours of a unit or of its loss, the best units for a label, saturation.

Nothing is shown and nothing written; save a figure with ``.savefig(path)``. matplotlib is imported when one is drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rnnjax.analysis.gates import UnitStatistics
from rnnjax.analysis.search import LabelSearch
from rnnjax.kinds import public

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "DIVERGING",
    "SEQUENTIAL",
    "color_of",
    "plot_losses",
    "plot_ranking",
    "plot_saturation",
    "plot_text",
    "shade_of",
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


def shade_of(share: float) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, for 0 to 1 on the sequential scale; what lies beyond is cut off.

    >>> shade_of(0.0), shade_of(2.0)
    ((251, 251, 250), (61, 0, 82))
    """
    place = min(1.0, max(0.0, share)) * (len(SEQUENTIAL) - 1)
    below = min(int(place), len(SEQUENTIAL) - 2)
    pair = zip(SEQUENTIAL[below], SEQUENTIAL[below + 1], strict=True)
    red, green, blue = (round(low + (place - below) * (high - low)) for low, high in pair)
    return red, green, blue


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "unit_plots: pictures need matplotlib, which is not installed; pip install 'rnnjax[lm]'.", name=error.name
        ) from error
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


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
    about = f"{title}  blue {middle - reach:.3g}, white {middle:.3g}, orange {middle + reach:.3g}".strip()
    return _page(text, colors, about, columns)


@public
def plot_losses(
    text: str, losses: np.ndarray, *, title: str = "", most: float | None = None, columns: int = 96
) -> Figure:
    """A page of text, every character the darker the more it surprised the model.

    Args:
        text: n characters, for a page up to some thousand.
        losses: ``[n]``, nats of each character given what stands before it (`rnnjax.lm.evaluate.symbol_losses`, which
            begins with the second); nan, as for the first, is left white.
        title: above the page.
        most: the loss that has the darkest colour; by default only one in a hundred is above it.
        columns: longer lines are broken.

    Raises:
        ValueError: if text and losses differ in length, or there is none.
        ModuleNotFoundError: without matplotlib.
    """
    if len(text) != len(losses) or not text:
        raise ValueError(f"plot_losses: there must be one loss a character, got {len(text)} and {len(losses)}.")
    known = np.nan_to_num(np.asarray(losses, np.float64))
    most = max(float(np.percentile(known, 99)), 1e-6) if most is None else most
    colors = [shade_of(loss / most) for loss in known.tolist()]
    return _page(text, colors, f"{title}  white 0, darkest {most:.3g} nats".strip(), columns)


def _page(text: str, colors: list[tuple[int, int, int]], title: str, columns: int) -> Figure:
    """A page of text, every character on its colour."""
    places, row, column = [], 0, 0
    for character in text:
        if column == columns:
            row, column = row + 1, 0
        places.append((row, column))
        row, column = (row + 1, 0) if character == "\n" else (row, column + 1)
    rows = places[-1][0] + 1
    figure = _figure(0.085 * columns + 0.4, 0.17 * rows + 1.0)
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
    axes.set_title(title, fontsize=8)
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
    figure = _figure(6.4, 0.22 * len(best) + 1.6)
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


@public
def plot_saturation(statistics: UnitStatistics) -> Figure:
    """Right against left saturation of every gate, as in figure 3 of Karpathy et al. (2015); a panel for each layer.

    Args:
        statistics: from `unit_statistics`.

    Raises:
        ValueError: if no gate is in them.
        ModuleNotFoundError: without matplotlib.
    """
    gates = {name: leaf for name, leaf in statistics.leaves.items() if leaf.kind == "gate"}
    if not gates:
        raise ValueError("plot_saturation: the statistics must be of cells with gates, got none; take another cell.")
    layers = sorted({name.partition(".")[0] for name in gates}, key=lambda layer: int(layer[1:]))
    figure = _figure(3.4 * len(layers) + 0.4, 3.6)
    colors = (_BLUE, _ORANGE, "#009E73", "#CC79A7", "#000000")
    for axes, layer in zip(figure.subplots(1, len(layers), squeeze=False)[0], layers, strict=True):
        mine = [name for name in gates if name.startswith(f"{layer}.")]
        for number, name in enumerate(mine):
            color, marker = colors[number % len(colors)], "o^sDv"[number % 5]
            leaf, label = gates[name], name.partition(".")[2]
            axes.plot(leaf.right, leaf.left, marker, color=color, markersize=3.5, alpha=0.6, label=label, linestyle="")
        axes.plot([0, 1], [1, 0], color=_GREY, linewidth=0.8)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="share of time above 0.9", title=layer)
        axes.set_ylabel("share of time below 0.1")
        axes.legend(fontsize=7, frameon=False, loc="upper right")  # above the diagonal no dot can be
        axes.spines[["top", "right"]].set_visible(False)
    return figure
