"""Pictures of what this package measures, for papers and pages: one function each, which returns the figure.

Nothing is shown and nothing written; save a figure with ``.savefig(path)``. matplotlib is imported when one is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnjax.analysis.fixed_points import FixedPoints
from rnnjax.analysis.gradient_flow import GradientFlow
from rnnjax.analysis.jacobians import JacobianSpectrum
from rnnjax.analysis.lyapunov import LyapunovSpectrum
from rnnjax.kinds import public

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "plot_fixed_points",
    "plot_forget_gates",
    "plot_gradient_flow",
    "plot_lyapunov",
    "plot_singular_values",
]

# Okabe and Ito (2008): told apart with every kind of colour vision; the markers do it without colours.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_GREY = "#555555"
_MARKERS = "os^Dv<>"
_FLOOR = 1e-40  # what lies below is drawn on the lower edge of a logarithmic axis


@public
def plot_gradient_flow(
    flows: GradientFlow | Mapping[str, GradientFlow],
    *,
    layers: bool = False,
    gates: Mapping[str, np.ndarray] | None = None,
    title: str = "",
) -> Figure:
    r"""The gradient's norm by lag on a logarithmic axis, relative to lag 1, with the cut of the chunks.

    Args:
        flows: from `gradient_flow`; several by name share the axes.
        layers: whether every layer has a line of its own.
        gates: forget gates ``[T, *batch, H]`` by the names of ``flows``: their product over the last k steps, the part
            of the gradient that runs through the memory alone, is drawn dashed on the same axis (geometric mean over
            the batch and all stretches of k steps; mean over the units).
        title: above the picture.

    Raises:
        ValueError: if there is nothing to draw.
        ModuleNotFoundError: without matplotlib.
    """
    named = _named("plot_gradient_flow", flows, GradientFlow)
    figure, axes = _figure((6.4, 4.2))
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
        if gates is not None and name in gates:
            kept = _kept_through_gates(gates[name], len(flow.lags))
            axes.plot(flow.lags[: len(kept)], kept, color=color, linewidth=1, linestyle="--", label=f"{name} gates")
    for chunk_len in sorted({flow.chunk_len for flow in named.values() if flow.chunk_len is not None}):
        lost = [f"{100 * f.lost:.0f} %" for f in named.values() if f.chunk_len == chunk_len and f.lost is not None]
        axes.axvline(
            chunk_len, color=_GREY, linewidth=1, linestyle=":", label=f"cut at {chunk_len}: {', '.join(lost)} lost"
        )
        axes.axvspan(chunk_len, max(chunk_len, *(flow.lags[-1] for flow in named.values())), color="#eeeeee", zorder=0)
    axes.set_yscale("log")
    axes.set_xlabel("lag k [steps]")
    axes.set_ylabel(r"$|dL_t / ds_{t-k}|$, relative to lag 1")
    _finish(axes, title)
    return _legend(figure)


@public
def plot_singular_values(
    spectra: JacobianSpectrum | Mapping[str, JacobianSpectrum], *, bound: float | None = None, title: str = ""
) -> Figure:
    """Singular values of the Jacobians over time (median, quartiles and extremes), and the growth of their product.

    Args:
        spectra: from `jacobian_spectrum`; several by name get a panel each on the left.
        bound: that of `recurrent_bound`, drawn as a line.
        title: above the picture.

    Raises:
        ValueError: if there is nothing to draw.
        ModuleNotFoundError: without matplotlib.
    """
    named = _named("plot_singular_values", spectra, JacobianSpectrum)
    figure, _ = _figure((4.2 * (len(named) + 1), 3.8), empty=True)
    panels = figure.subplots(1, len(named) + 1, squeeze=False)[0]
    growth = panels[-1]
    for number, (name, spectrum) in enumerate(named.items()):
        color, axes = _COLORS[number % len(_COLORS)], panels[number]
        length = spectrum.singular_values.shape[0]
        time = np.arange(1, length + 1)
        values = np.maximum(spectrum.singular_values.reshape(length, -1), _FLOOR)
        low, first, median, third, high = np.quantile(values, [0, 0.25, 0.5, 0.75, 1], axis=1)
        axes.fill_between(time, low, high, color=color, alpha=0.15, linewidth=0, label="all")
        axes.fill_between(time, first, third, color=color, alpha=0.4, linewidth=0, label="middle half")
        axes.plot(time, median, color=color, label="median")
        axes.axhline(1, color=_GREY, linewidth=0.8)
        if bound is not None:
            axes.axhline(bound, color="black", linewidth=1, linestyle="--", label=f"bound {bound:.3g}")
        axes.set_yscale("log")
        axes.set_xlabel("step t")
        axes.set_ylabel("singular values of $J_t$")
        _finish(axes, name)
        largest = spectrum.log_product[..., 0].reshape(length, -1).mean(axis=1)
        growth.plot(time, largest, color=color, label=name or None)
        if bound is not None and bound > 0:
            growth.plot(time, time * np.log(bound), color="black", linewidth=1, linestyle="--")
    growth.axhline(0, color=_GREY, linewidth=0.8)
    growth.set_xlabel("step t")
    growth.set_ylabel(r"$\log \sigma_{max}(J_t \cdots J_1)$ [nats]")
    _finish(growth, "growth of the product")
    if title:
        figure.suptitle(title)
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
    figure, _ = _figure((9.0, 3.8), empty=True)
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
    ranks.set_xlabel("rank")
    ranks.set_ylabel("Lyapunov exponent [nats a step]")
    settling.set_xlabel("steps counted")
    settling.set_ylabel("the first three, so far")
    _finish(ranks, title)
    _finish(settling, "")
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
    figure, _ = _figure((9.0, 4.2), empty=True)
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
    plane.set_xlabel("first principal component")
    plane.set_ylabel("second")
    spectrum.set_aspect("equal", adjustable="datalim")
    spectrum.set_xlabel("Re eigenvalue")
    spectrum.set_ylabel("Im eigenvalue")
    _finish(plane, title)
    _finish(spectrum, "eigenvalues of dF/ds")
    return _legend(figure)


@public
def plot_forget_gates(values: np.ndarray | Mapping[str, np.ndarray], *, title: str = "") -> Figure:
    """How often a forget gate (the share of the old state that a step keeps) has which value, and its time constants.

    Args:
        values: forget gates ``[T, *batch, H]`` in [0, 1] by name, as the cell names them (``f``, ``z`` or ``keep``).
        title: above the picture.

    Raises:
        ValueError: if there is nothing to draw.
        ModuleNotFoundError: without matplotlib.
    """
    named = _named("plot_forget_gates", values, np.ndarray)
    figure, _ = _figure((9.0, 3.8), empty=True)
    shares, constants = figure.subplots(1, 2)
    for number, (name, gates) in enumerate(named.items()):
        color = _COLORS[number % len(_COLORS)]
        gates = np.asarray(gates, np.float64)
        edges = np.linspace(0, 1, 41)
        weights = np.full(gates.size, 1 / gates.size)
        shares.hist(
            gates.ravel(), edges, weights=weights, color=color, histtype="step", linewidth=1.5, label=name or None
        )
        mean = gates.reshape(-1, gates.shape[-1])
        with np.errstate(divide="ignore"):
            steps = -1 / np.minimum(np.log(np.maximum(mean, _FLOOR)).mean(axis=0), -1e-9)
        constants.plot(
            np.arange(1, len(steps) + 1),
            np.sort(steps)[::-1],
            color=color,
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=3,
            label=name or None,
        )
    shares.set_xlabel("forget gate")
    shares.set_ylabel("share of all steps and units")
    constants.set_yscale("log")
    constants.set_xlabel("unit, sorted")
    constants.set_ylabel("time constant [steps]")
    _finish(shares, title)
    _finish(constants, "")
    return _legend(figure)


def _kept_through_gates(gates: np.ndarray, lags: int) -> np.ndarray:
    """Mean over units of the product of the gates over k steps, for k = 1, 2, ..: ``[min(lags, T)]``."""
    logs = np.log(np.maximum(np.asarray(gates, np.float64), _FLOOR))
    total = np.concatenate([np.zeros((1, *logs.shape[1:])), np.cumsum(logs, axis=0)])
    kept = []
    for k in range(1, min(lags, len(logs)) + 1):
        stretches = (total[k:] - total[:-k]).reshape(-1, logs.shape[-1])
        kept.append(np.exp(stretches.mean(axis=0)).mean())
    return np.maximum(kept, _FLOOR)


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


def _figure(size: Sequence[float], empty: bool = False) -> tuple[Figure, Any]:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise ModuleNotFoundError(
            "rnnjax.analysis.plots: matplotlib is needed, which is not installed; pip install matplotlib.",
            name=error.name,
        ) from None
    figure = Figure(figsize=(size[0], size[1]), dpi=100, layout="constrained")
    return figure, None if empty else figure.subplots()


def _finish(axes: Axes, title: str) -> None:
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
