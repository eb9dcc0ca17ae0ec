"""The picture of a training: losses against the baselines, and the gradient norm; what it is drawn from."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from rnnjax.fit.logs import read_rows

__all__ = ["loss_curve", "read_metrics"]

# Okabe and Ito (2008): told apart with every kind of colour vision.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#555555"
_NAMES = {"unigram": "unigram", "witten_bell": "Witten-Bell", "xz": "xz -9e"}
_LABEL_STRIP = 0.36  # room for labels right of the data, as a share of its width
_SMOOTHING = 0.08  # half the width of the average, as a share of what came before: even on the log scale


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a metrics file, by `rnnjax.fit.logs.read_rows`; each has a ``kind``."""
    return [row for row in read_rows(path) if "kind" in row]


def loss_curve(rows: Sequence[Mapping[str, Any]], baselines: Mapping[str, float]) -> Figure:
    """Draws a training; save it with ``.savefig(path)``.

    Above, over symbols seen (log scale): the training loss, as logged and smoothed, the validation loss with its
    best (its number is that of the last evaluation, on up to 10 million symbols, where the training has ended), in
    nats a symbol (right: bits), and a line for each baseline. Below: mean and largest gradient norm of each
    interval, and the learning rate. Dotted verticals mark where the training was rolled back.

    Args:
        rows: from `read_metrics`; the kinds ``train``, ``eval``, ``rollback`` and ``done`` are used.
        baselines: nats a symbol by name: ``unigram``, ``witten_bell``, ``xz`` or any other name.

    Raises:
        ValueError: if no row is of kind ``train``.
    """
    train = _usable(rows, "train")
    evals = [row for row in _usable(rows, "eval") if row["symbols"] > 0]
    if not train:
        raise ValueError("loss_curve: rows must hold at least one of kind 'train', got none; train for longer.")
    figure = Figure(figsize=(9.0, 6.0), dpi=100, layout="constrained")
    losses, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.6, 1))
    seen = _column(train, "symbols")
    low, high = seen[0], max(seen[-1], evals[-1]["symbols"] if evals else 0, 3 * seen[0])
    known = {_NAMES.get(name, name): float(value) for name, value in baselines.items() if _finite(value)}
    done = [row["val_loss"] for row in rows if row["kind"] == "done" and _finite(row.get("val_loss"))]
    _draw_losses(losses, train, evals, known, low, high, done[-1] if done else None)
    figure.suptitle("Loss and gradient of the training", x=0.01, ha="left")
    _draw_gradients(lower, train)
    per_step = train[-1]["symbols"] / train[-1]["step"]
    label: str | None = "rolled back"
    for row in _usable(rows, "rollback"):
        for axes in (losses, lower):
            where = max(low, row["to_step"] * per_step)
            axes.axvline(where, color=_GREY, linestyle=":", linewidth=1, zorder=1, label=label)
        label = None
    losses.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, borderaxespad=0.2)
    lower.set_xscale("log")
    lower.set_xlim(low, high * (high / low) ** _LABEL_STRIP)
    lower.set_xlabel("symbols seen")
    figure.align_ylabels([losses, lower])
    return figure


def _draw_losses(
    axes: Axes,
    train: Sequence[Mapping[str, Any]],
    evals: Sequence[Mapping[str, Any]],
    baselines: Mapping[str, float],
    low: float,
    high: float,
    whole: float | None,
) -> None:
    seen, loss = _column(train, "symbols"), _column(train, "loss")
    smooth = _smooth(loss)
    axes.plot(seen, loss, color=_BLUE, linewidth=0.7, alpha=0.35, label="training")
    axes.plot(seen, smooth, color=_BLUE, linewidth=1.6, label="training, smoothed")
    labels = [(value, f"{name} {value:.3f}", _GREY) for name, value in baselines.items()]
    shown = [*smooth, *baselines.values()]
    if evals:
        where, values = _column(evals, "symbols"), _column(evals, "val_loss")
        axes.plot(where, values, color=_ORANGE, linewidth=1.6, marker="o", markersize=3.5, label="validation")
        best = int(values.argmin())
        axes.plot(where[best], values[best], "*", color=_ORANGE, markersize=14, markeredgecolor="white", zorder=4)
        # One number for one thing: the loss of the last evaluation, once it is known; dots are of a part of it.
        told = values[best] if whole is None else whole
        labels.append((values[best], f"best {told:.3f} ({_bits(told):.3f} bits)", _ORANGE))
        shown += [*values]
        axes.plot([where[best], high], [values[best]] * 2, color=_ORANGE, linewidth=0.8, linestyle=(0, (1, 2)))
    for value in baselines.values():
        axes.plot([low, high], [value] * 2, color=_GREY, linewidth=1, linestyle=(0, (5, 3)), zorder=1)
    bottom, top = min(shown), max(shown)
    margin = 0.06 * max(top - bottom, 0.1)
    axes.set_ylim(bottom - margin, top + margin)
    _label_right(axes, labels, high, high * (high / low) ** 0.02)
    axes.set_ylabel("loss [nats a symbol]")
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines["top"].set_visible(False)
    right = axes.secondary_yaxis("right", functions=(_bits, _nats))
    right.set_ylabel("bits a symbol")


def _log_scale(axes: Axes, values: np.ndarray) -> None:
    """A logarithmic axis, where there is anything to show on one: a network that learned all has gradients of zero."""
    if (values > 0).any():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(FixedLocator(_ticks(*axes.get_ylim())))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _ticks(low: float, high: float, most: int = 5) -> list[float]:
    """1, 2 and 5 of each power of ten, or powers alone, or some of them: no more than find room on a low axis.

    >>> _ticks(0.07, 3.0), _ticks(0.01, 20.0)
    ([0.1, 0.2, 0.5, 1.0, 2.0], [0.01, 0.1, 1.0, 10.0])
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1,)):
        found = [float(f"{digit}e{k}") for k in powers for digit in digits if low <= float(f"{digit}e{k}") <= high]
        if len(found) <= most:
            break
    if len(found) < 2:  # less than a factor of two
        found = sorted({float(f"{value:.2g}") for value in (low, math.sqrt(low * high), high)})
    return found[:: -(-len(found) // most)]


def _draw_gradients(axes: Axes, train: Sequence[Mapping[str, Any]]) -> None:
    seen, norm, largest = (_column(train, name) for name in ("symbols", "grad_norm", "grad_norm_max"))
    axes.fill_between(seen, norm, largest, color=_GREEN, alpha=0.25, linewidth=0)
    axes.plot(seen, norm, color=_GREEN, linewidth=1.2)
    _log_scale(axes, largest)
    axes.set_ylabel("gradient norm\n(mean to largest)", color=_GREEN)
    axes.spines["top"].set_visible(False)
    right = axes.twinx()
    right.plot(seen, _column(train, "lr"), color="black", linewidth=1.2, linestyle="--")
    right.set_ylim(bottom=0)
    right.set_ylabel("learning rate (dashed)")
    right.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2), useMathText=True)
    right.spines["top"].set_visible(False)


def _label_right(axes: Axes, labels: list[tuple[float, str, str]], x: float, x_label: float) -> None:
    """Writes labels right of the ends of their lines, moved apart where they would overlap."""
    labels = sorted(labels)
    bottom, top = axes.get_ylim()
    height = 0.055 * (top - bottom)
    places: list[float] = []
    for value, _, _ in labels:  # upwards: none below the one before ...
        places.append(max(value, places[-1] + height) if places else value)
    for i in reversed(range(len(places))):  # ... and downwards: none outside
        places[i] = min(places[i], top - height / 2 if i == len(places) - 1 else places[i + 1] - height)
    for (value, text, color), place in zip(labels, places, strict=True):
        axes.plot([x, x_label], [value, place], color=color, linewidth=0.8)
        axes.annotate(text, (x_label, place), xytext=(3, 0), textcoords="offset points", color=color, va="center")


def _smooth(values: np.ndarray) -> np.ndarray:
    """Means over a window that grows with the place; the end of the values cuts it off."""
    place = np.arange(len(values))
    half = (_SMOOTHING * place).astype(int)
    stop = np.minimum(place + half + 1, len(values))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[stop] - sums[place - half]) / (stop - place + half)


_NUMBERS = {
    "train": ("step", "symbols", "loss", "grad_norm", "grad_norm_max", "lr"),
    "eval": ("symbols", "val_loss"),
    "rollback": ("to_step",),
}


def _usable(rows: Sequence[Mapping[str, Any]], kind: str) -> list[Mapping[str, Any]]:
    """The rows that hold all numbers of their kind; files of metrics may be edited or damaged."""
    lowest = 1 if kind == "train" else 0
    return [
        row
        for row in rows
        if row["kind"] == kind
        and all(name in row and (row[name] is None or _finite(row[name])) for name in _NUMBERS[kind])
        and all(_finite(row[name]) and row[name] >= lowest for name in ("step", "symbols", "to_step") if name in row)
        and (kind != "eval" or _finite(row["val_loss"]))
    ]


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows], np.float64)


def _bits(nats: Any) -> Any:
    return nats / math.log(2)


def _nats(bits: Any) -> Any:
    return bits * math.log(2)


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < 1e300  # which nan is not either
