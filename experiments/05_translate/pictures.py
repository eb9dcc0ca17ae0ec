"""Pictures: attention as a matrix of words, and learning curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["attention_picture", "curves_picture"]

COLORS = ("#D55E00", "#0072B2", "#009E73")


def attention_picture(panels: Sequence[tuple[str, Sequence[str], Sequence[str], np.ndarray]], columns: int = 2) -> Any:
    """A matrix a panel: title, source tokens, tokens written, weights ``[T_out, T_in]``."""
    from matplotlib.figure import Figure

    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(6.2 * columns, 4.6 * rows), layout="constrained")
    all_axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes in all_axes[len(panels) :]:
        axes.remove()
    for axes, (title, source, written, weights) in zip(all_axes, panels):
        axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(source)), source, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_yticks(range(len(written)), written, fontsize=8)
        axes.set_title(title, fontsize=9)
    return figure


def curves_picture(histories: Mapping[str, Sequence[Mapping[str, float]]], metric: str, label: str) -> Any:
    """A line a model over its updates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for color, (name, rows) in zip(COLORS, histories.items()):
        axes.plot([row["step"] for row in rows], [row[metric] for row in rows], "o-", ms=3, color=color, label=name)
    axes.set(xlabel="update", ylabel=label, yscale="log")
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.yaxis.set_minor_formatter("{x:.2g}")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#eeeeee", linewidth=0.6)
    return figure
