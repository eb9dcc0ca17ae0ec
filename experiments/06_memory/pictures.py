"""Loss against lag, and how it came there."""

from typing import Any

import numpy as np

from . import cells

__all__ = ["memory", "pixels"]


def memory(found: dict[str, list[dict[str, Any]]]):
    """A row a task: what is left of the no-memory line by lag, and the curves at two lags."""
    from matplotlib.figure import Figure

    drawn = {task: rows for task, rows in found.items() if rows}
    figure = Figure(figsize=(12, 3.5 * len(drawn)), layout="constrained")
    for (task, rows), (by_lag, *curves) in zip(drawn.items(), figure.subplots(len(drawn), 3, squeeze=False)):
        lags = sorted({row["lag"] for row in rows})
        for name, color in cells.COLORS.items():
            own = [row for row in rows if row["cell"] == name]
            by_lag.plot([row["lag"] for row in own], [row["share"] for row in own], "o-", color=color, label=name)
        by_lag.set(xscale="log", xlabel="lag", ylabel="loss / loss without memory", ylim=(-0.03, 1.25))
        by_lag.set_title(f"{task}: loss by lag (1: remembers nothing)")
        by_lag.set_xticks(lags, [str(lag) for lag in lags])
        by_lag.set_xticks([], minor=True)
        by_lag.axhline(1, color="#555555", linestyle=":", linewidth=1)
        for axes, lag in zip(curves, (lags[0], lags[min(1, len(lags) - 1)])):
            for row in rows:
                if row["lag"] == lag:
                    steps, losses = zip(*row["curve"])
                    axes.plot(steps, losses, color=cells.COLORS[row["cell"]], label=row["cell"], linewidth=1.2)
            line = next(row["no_memory"] for row in rows if row["lag"] == lag)
            axes.axhline(line, color="#555555", linestyle=":", linewidth=1, label="remembers\nnothing")
            unit = "nats" if task == "copy" else "squared error"
            axes.set(yscale="log", xlabel="update", ylabel=f"training loss, {unit}", title=f"{task}, lag {lag}")
    _finish(figure)
    return figure


def pixels(orders: dict[str, list[dict[str, Any]]]):
    """Test accuracy by cell, and the curves of both orders."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.7), layout="constrained")
    bars, *curves = figure.subplots(1, 3)
    names = [row["cell"] for row in next(iter(orders.values()))]
    for offset, (order, rows) in zip((-0.2, 0.2), orders.items()):
        values = [row["test_accuracy"] for row in rows]
        places = np.arange(len(names)) + offset
        faces = [cells.COLORS[name] for name in names]
        bars.bar(places, values, 0.36, color=faces, alpha=1.0 if order == "sequential" else 0.45)
        for place, value in zip(places, values):
            bars.text(place, value, f"{value:.0%}", ha="center", va="bottom", fontsize=7)
    bars.set(title="test accuracy (pale: permuted)", ylim=(0, 1.05))
    bars.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names], fontsize=8)
    bars.axhline(0.1, color="#555555", linestyle=":", linewidth=1, label="chance")
    for axes, (order, rows) in zip(curves, orders.items()):
        for row in rows:
            steps, losses = zip(*row["curve"])
            axes.plot(steps, losses, color=cells.COLORS[row["cell"]], label=row["cell"], linewidth=1.2)
        axes.set(xlabel="update", ylabel="training loss, nats", title=order)
    _finish(figure)
    return figure


def _finish(figure) -> None:
    """One legend for all, beside what it would hide."""
    entries = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels()):
            entries.setdefault(label, handle)
        axes.grid(color="#eeeeee", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    figure.legend(entries.values(), entries.keys(), loc="outside right upper", fontsize=8, frameon=False)
