"""Pictures of what this package measures, for papers and pages: one function each, which returns the figure.

Nothing is shown and nothing written; save a figure with ``.savefig(path)``. matplotlib is imported when one is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnjax.analysis.fixed_points import FixedPoints
from rnnjax.analysis.gradient_flow import GradientFlow
from rnnjax.analysis.jacobians import LyapunovSpectrum
from rnnjax.analysis.search import LabelSearch
from rnnjax.extras import require
from rnnjax.kinds import public

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "DIVERGING",
    "SEQUENTIAL",
    "color_of",
    "new_figure",
    "plot_fixed_points",
    "plot_gradient_flow",
    "plot_lyapunov",
    "plot_ranking",
    "plot_text",
    "value_scale",
]


# Okabe and Ito (2008): told apart with every kind of colour vision; the markers do it without colours.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_GREY = "#555555"
_MARKERS = "os^Dv<>"
_FLOOR = 1e-40  # what lies below is drawn on the lower edge of a logarithmic axis


@public
def plot_gradient_flow(
    flows: GradientFlow | Mapping[str, GradientFlow], *, layers: bool = False, title: str = ""
) -> Figure:
    r"""The gradient's norm by lag on a logarithmic axis, relative to lag 1, with the cut of the chunks.

    Args:
        flows: from `gradient_flow`; several by name share the axes.
        layers: whether every layer has a line of its own.
        title: above the picture.

    Raises:
        ValueError: if there is nothing to draw.
        ModuleNotFoundError: without matplotlib.
    """
    named = _named("plot_gradient_flow", flows, GradientFlow)
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    for number, (name, flow) in enumerate(named.items()):
        color = _COLORS[number % len(_COLORS)]
        table = flow.by_layer if layers else flow.norm[:, None]
        for layer, values in enumerate(table.T):
            label = f"{name} layer {layer + 1}".strip() if layers else name
            first = values[0] if values[0] > 0 else 1.0
            style = ("-", (0, (4, 1)), (0, (1, 1)), (0, (4, 1, 1, 1)))[layer % 4]
            axes.plot(
                flow.lags,
                np.maximum(values / first, _FLOOR),
                color=color,
                linestyle=style,
                marker=_MARKERS[number % len(_MARKERS)],
                markevery=max(1, len(values) // 8),
                markersize=4,
                label=label or None,
            )
    for chunk_len in sorted({flow.chunk_len for flow in named.values() if flow.chunk_len is not None}):
        lost = [f"{100 * f.lost:.0f} %" for f in named.values() if f.chunk_len == chunk_len and f.lost is not None]
        axes.axvline(
            chunk_len, color=_GREY, linewidth=1, linestyle=":", label=f"cut at {chunk_len}: {', '.join(lost)} lost"
        )
        axes.axvspan(chunk_len, max(chunk_len, *(flow.lags[-1] for flow in named.values())), color="#eeeeee", zorder=0)
    axes.set_yscale("log")
    _finish(axes, title, "lag k [steps]", r"$|dL_t / ds_{t-k}|$, relative to lag 1")
    return _legend(figure)


@public
def plot_lyapunov(spectra: LyapunovSpectrum | Mapping[str, LyapunovSpectrum], *, title: str = "") -> Figure:
    """Lyapunov exponents by rank, with the range over start states, and how the first ones settled.

    Args:
        spectra: from `lyapunov_spectrum`; several by name share the axes.
        title: above the picture.

    Raises:
        ValueError: if there is nothing to draw.
        ModuleNotFoundError: without matplotlib.
    """
    named = _named("plot_lyapunov", spectra, LyapunovSpectrum)
    figure = new_figure(9.0, 3.8)
    ranks, settling = figure.subplots(1, 2)
    for number, (name, spectrum) in enumerate(named.items()):
        color = _COLORS[number % len(_COLORS)]
        rank = np.arange(1, len(spectrum.exponents) + 1)
        each = spectrum.by_example.reshape(-1, len(rank))
        marker = _MARKERS[number % len(_MARKERS)]
        # Minus infinity has no place on an axis: such exponents are left out.
        ranks.plot(rank, _finite(spectrum.exponents), color=color, marker=marker, markersize=3, label=name or None)
        ranks.fill_between(
            rank, _finite(each.min(axis=0)), _finite(each.max(axis=0)), color=color, alpha=0.25, linewidth=0
        )
        steps = np.arange(1, len(spectrum.running) + 1)
        for i in range(min(3, len(rank))):
            settling.plot(steps, _finite(spectrum.running[:, i]), color=color, linewidth=1.5 - 0.4 * i)
    for axes in (ranks, settling):
        axes.axhline(0, color=_GREY, linewidth=0.8)
    _finish(ranks, title, "rank", "Lyapunov exponent [nats a step]")
    _finish(settling, "", "steps counted", "the first three, so far")
    return _legend(figure)


@public
def plot_fixed_points(found: FixedPoints, *, states: Any | None = None, title: str = "") -> Figure:
    """Fixed and slow points in the plane of the first two principal components, and the eigenvalues of all of them.

    Filled circles are stable, open ones are not, crosses are slow points.

    Args:
        found: from `find_fixed_points`.
        states: flat visited states ``[..., D]`` (`flatten_state`), drawn as dots; they give the plane where they are
            given, and the points themselves otherwise.
        title: above the picture.

    Raises:
        ValueError: if there is nothing to draw.
        ModuleNotFoundError: without matplotlib.
    """
    if not len(found.points):
        raise ValueError("plot_fixed_points: found must hold at least one point, got none.")
    figure = new_figure(9.0, 4.2)
    plane, spectrum = figure.subplots(1, 2)
    visited = found.points if states is None else np.asarray(states).reshape(-1, found.points.shape[-1])
    mean = visited.mean(axis=0)
    axes_2d = np.linalg.svd(visited - mean, full_matrices=False)[2][:2].T  # [D, 2], or [D, 1]
    if states is not None:
        x, y = _project(visited - mean, axes_2d)
        plane.plot(x, y, ".", color="#bbbbbb", markersize=2, zorder=1, label="visited")
    x, y = _project(found.points - mean, axes_2d)
    kinds = (
        ("stable", found.stable, {"color": _COLORS[0], "marker": "o"}),
        ("unstable", found.fixed & ~found.stable, {"color": _COLORS[1], "marker": "o", "fillstyle": "none"}),
        ("slow", ~found.fixed, {"color": _COLORS[2], "marker": "x"}),
    )
    circle = np.exp(2j * np.pi * np.linspace(0, 1, 200))
    spectrum.plot(circle.real, circle.imag, color=_GREY, linewidth=0.8)
    for name, own, style in kinds:
        if own.any():
            label = f"{name} ({int(own.sum())})"
            plane.plot(x[own], y[own], linestyle="none", markersize=7, zorder=3, label=label, **style)
            values = found.eigenvalues[own].ravel()
            spectrum.plot(values.real, values.imag, linestyle="none", markersize=4, label=label, **style)
    spectrum.set_aspect("equal", adjustable="datalim")
    _finish(plane, title, "first principal component", "second")
    _finish(spectrum, "eigenvalues of dF/ds", "Re eigenvalue", "Im eigenvalue")
    return _legend(figure)


def _project(points: np.ndarray, axes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    flat = points @ axes
    return flat[:, 0], flat[:, 1] if flat.shape[1] > 1 else np.zeros(len(flat))


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)


def _named(where: str, values: Any, kind: type) -> dict[str, Any]:
    """One value as a dictionary with an empty name; raises where there is none."""
    named = {"": values} if isinstance(values, kind) else dict(values)
    if not named:
        raise ValueError(f"{where}: there must be at least one entry to draw, got none.")
    return named


def _finish(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if title:
        axes.set_title(title, fontsize=10)


def _legend(figure: Figure) -> Figure:
    """One legend for all axes, on the right of them, where it hides nothing."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        figure.legend(entries.values(), entries.keys(), loc="outside right upper", frameon=False, fontsize=8)
    return figure


# Low, middle, high: blue and vermilion of Okabe and Ito (2008), told apart with every kind of colour vision.
DIVERGING = ((0, 114, 178), (247, 247, 247), (213, 94, 0))
# From the ground of a page to dark purple, evenly darker: what is more can be told without colours.
SEQUENTIAL = ((251, 251, 250), (224, 209, 233), (167, 124, 186), (112, 46, 134), (61, 0, 82))


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
    axes.hlines(at, 0.5 if found.binary else 0.0, [unit.score for unit in best], color=_COLORS[0], linewidth=1.2)
    axes.plot([unit.score for unit in best], at, "o", color=_COLORS[0], markersize=5, label="held out")
    axes.plot([unit.first for unit in best], at, "|", color=_GREY, markersize=9, label="first half, which ranks")
    label = f"control: best of {len(found.units):,} units on {len(found.control)} shifted labels"
    axes.axvline(found.bar, color=_COLORS[1], linestyle="--", linewidth=1.2, label=label)
    axes.set_yticks(at, [f"{unit.unit} {'+' if unit.direction > 0 else '-'}" for unit in best], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("AUC" if found.binary else "correlation")
    axes.set_title(f"units that tell {found.label!r}", fontsize=9)
    figure.legend(loc="outside lower center", fontsize=7, frameon=False, ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
