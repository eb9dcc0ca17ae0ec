"""Pictures of forecasts and of surprises; each returns a figure of matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rnnjax.checks import short
from rnnjax.extras import require

__all__ = ["Panel", "forecast_figure", "surprise_figure"]

_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#555555"  # Okabe and Ito (2008)


class Panel(NamedTuple):
    """One series of a picture.

    Attributes:
        name: of the series.
        times: dates or numbers ``[T + H]``.
        values: ``[T]``, NaN where missing.
        levels: L, of the quantiles.
        forecast: quantiles ``[L, H]`` of the steps behind the values, or None.
        earlier: quantiles ``[L, H]`` that were said of the last H values before they were known, or None.
    """

    name: str
    times: Any
    values: Any
    levels: Sequence[float]
    forecast: Any
    earlier: Any = None


def _drawable(panel: Panel) -> Panel:
    """With steps in the place of dates before or behind those that matplotlib knows, the years 1 to 9999."""
    times = np.asarray(panel.times)
    known = times.dtype.kind != "M" or bool(
        (times > np.datetime64("0001-02")).all() & (times < np.datetime64("9999")).all()
    )
    return panel if known else panel._replace(times=np.arange(len(times)))


def forecast_figure(panels: Sequence[Panel]) -> Any:
    """Every series with its end, what was said of that end before it was known, and what comes, with quantiles.

    Args:
        panels: at most eight are drawn well.
    """
    panels = [*map(_drawable, panels)]
    figure, axes = _figure(len(panels), 2.3)
    for ax, panel in zip(axes, panels, strict=True):
        count, drawn = len(panel.values), panel.earlier if panel.forecast is None else panel.forecast
        horizon = drawn.shape[1]
        first = max(0, count - max(4 * horizon, 60))
        ax.plot(panel.times[first:count], panel.values[first:], color=_GREY, linewidth=1.1, label="measured")
        if panel.earlier is not None and np.isfinite(panel.earlier).all():
            _fan(ax, panel.times[count - horizon : count], panel.earlier, panel.levels, _ORANGE, "said before the end")
        if panel.forecast is not None:
            _fan(ax, panel.times[count : count + horizon], panel.forecast, panel.levels, _BLUE, "forecast")
            ax.axvline(panel.times[count - 1], color="0.6", linewidth=0.8, linestyle=":")
        ax.set_title(short(panel.name).strip("'\""), loc="left", fontsize=10, parse_math=False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncols=len(labels), frameon=False, fontsize=9)
    return figure


def surprise_figure(panels: Sequence[Panel], odd: Any) -> Any:
    """Every series with the values that `anomalies` marked, over the bits of all."""
    panels = [*map(_drawable, panels)]
    figure, axes = _figure(2 * len(panels), 1.5)
    for k, (panel, own, there) in enumerate(zip(panels, odd.bits, odd.marked, strict=False)):
        count = len(panel.values)
        above, below = axes[2 * k : 2 * k + 2]
        own, values, times = np.asarray(own), np.asarray(panel.values), panel.times[:count]
        above.plot(times, values, color=_GREY, linewidth=0.9)
        above.plot(times[there], values[there], "o", color=_ORANGE, markersize=4)
        above.set_title(short(panel.name).strip("'\""), loc="left", fontsize=10, parse_math=False)
        below.vlines(times, 0, np.nan_to_num(own), color=np.where(there, _ORANGE, "0.6").tolist(), linewidth=0.8)
        below.axhline(odd.limit, color=_ORANGE, linewidth=0.8, linestyle=":")
        below.set_ylabel("bits", fontsize=8)
        below.set_ylim(0, 21)
    return figure


def _fan(ax: Any, times: Any, found: np.ndarray, levels: Sequence[float], color: str, label: str) -> None:
    pairs = len(levels) // 2
    for k in range(pairs):
        low, high = found[k], found[len(levels) - 1 - k]
        ax.fill_between(times, low, high, color=color, alpha=0.12 + 0.1 * k, linewidth=0)
    outer = f", bands to {100 * (levels[-1] - levels[0]):.0f} %" if pairs else ""
    ax.plot(times, found[pairs], color=color, linewidth=1.6, label=f"{label} (median{outer})")


def _figure(count: int, height: float) -> tuple[Any, Any]:
    module = require("matplotlib.figure", "matplotlib", "rnnjax.forecast.plots", "'rnnjax[lm]'")
    figure = module.Figure(figsize=(9, 0.5 + height * count), layout="constrained")
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0, 0, 1, 1 - 0.3 / (0.5 + height * count)))
    axes = np.atleast_1d(figure.subplots(count, 1))
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    return figure, axes
