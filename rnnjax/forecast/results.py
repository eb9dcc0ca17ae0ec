"""What a trained model gives: forecasts, a backtest and surprises, as files, as pictures and as data of a page."""

from __future__ import annotations

import csv
import io
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rnnjax.checks import short
from rnnjax.extras import require
from rnnjax.files import plain, save_figure, write_atomic, write_json
from rnnjax.forecast.backtesting import LEVELS, Backtest, backtest
from rnnjax.forecast.marks import Anomalies, anomalies
from rnnjax.forecast.model import Forecaster
from rnnjax.forecast.run import ForecastPaths
from rnnjax.forecast.sampling import quantiles
from rnnjax.forecast.series import Series

__all__ = ["SHOWN", "Panel", "Results", "compute_results", "forecast_figure", "surprise_figure", "write_results"]

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
    module = require("matplotlib.figure", "matplotlib", "rnnjax.forecast.results", "'rnnjax[lm]'")
    figure = module.Figure(figsize=(9, 0.5 + height * count), layout="constrained")
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0, 0, 1, 1 - 0.3 / (0.5 + height * count)))
    axes = np.atleast_1d(figure.subplots(count, 1))
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    return figure, axes


SHOWN = 6  # series in pictures and in the page
_MARKED = 50  # surprising values in the page


class Results(NamedTuple):
    """Everything that is told of a model."""

    series: Series
    horizon: int
    levels: tuple[float, ...]
    forecast: np.ndarray  # [N, L, H]
    tested: Backtest | None  # None where no series is long enough
    odd: Anomalies

    def times(self, n: int) -> np.ndarray:
        """Dates or numbers ``[T_n + H]``."""
        count = len(self.series.values[n]) + self.horizon
        clock = self.series.clock
        return np.arange(count) if clock is None else clock[n].at(np.arange(count))

    def panel(self, n: int) -> Panel:
        """A series as pictures take it."""
        earlier = None if self.tested is None else self.tested.forecasts[-1, n]
        name, values = self.series.names[n], self.series.values[n]  # type: ignore[index]
        return Panel(name, self.times(n), values, self.levels, self.forecast[n], earlier)

    def surprising(self) -> list[tuple[str, str, float, float]]:
        """Series, time, value and bits of what is marked, the most first."""
        found = []
        for n, own in enumerate(self.odd.bits):
            for k in np.flatnonzero(self.odd.marked[n]):
                name = self.series.names[n]  # type: ignore[index]
                found.append((name, time_text(self.times(n)[k]), float(self.series.values[n][k]), float(own[k])))
        return sorted(found, key=lambda row: -row[3])


def time_text(time: Any) -> str:
    """``2024-12-31 23:00``, the date alone at midnight of a daily clock, or the number."""
    text = str(time).replace("T", " ")
    return text.removesuffix(":00") if ":" in text else text


def compute_results(
    model: Forecaster, params: Any, series: Series, *, horizon: int, windows: int, samples: int, key: jax.Array
) -> Results:
    """Forecasts behind the end, a backtest of the held-out windows, and the surprise of every value."""
    key_ahead, key_back = jax.random.split(key)
    found = quantiles(model, params, series, horizon=horizon, levels=LEVELS, num_samples=samples, key=key_ahead)
    windows = min(windows, max(0, int(params.holdout) // horizon))
    tested = None
    if windows and int(series.lengths.max()) > windows * horizon + 1:
        tested = backtest(
            model, params, series, horizon=horizon, windows=windows, num_samples=samples, calibrated=True, key=key_back
        )
        found = tested.calibration.apply(found) if tested.calibration is not None else found
    return Results(series, horizon, LEVELS, found, tested, anomalies(model, params, series))


def write_results(results: Results, paths: ForecastPaths, facts: Mapping[str, str]) -> None:
    """Forecasts and surprises as CSV, both pictures, and the data of the page."""
    series = results.series
    head = ["series", "time", "median", *(f"q{level:g}" for level in results.levels)]
    middle = results.levels.index(0.5)
    rows: list[list[Any]] = []
    for n, name in enumerate(series.names or ()):
        for k, time in enumerate(results.times(n)[len(series.values[n]) :]):
            own = [f"{value:.6g}" for value in results.forecast[n, :, k]]
            rows.append([name, time_text(time), own[middle], *own])
    _write_csv(paths.forecast, head, rows)
    rows = []
    for n, name in enumerate(series.names or ()):
        odd = zip(results.odd.bits[n], results.odd.marked[n], strict=True)
        for time, value, (own, marked) in zip(results.times(n), series.values[n], odd, strict=False):
            surprise = "" if math.isnan(own) else f"{own:.2f}"
            rows.append([name, time_text(time), "" if math.isnan(value) else f"{value:.10g}", surprise, int(marked)])
    _write_csv(paths.surprise, ["series", "time", "value", "surprise", "marked"], rows)
    panels = [results.panel(n) for n in range(min(SHOWN, len(series)))]
    save_figure(forecast_figure(panels), paths.picture, dpi=130)
    save_figure(surprise_figure(panels, results.odd), paths.surprise_picture, dpi=130)
    write_json(paths.result, page_data(results, facts))


def page_data(results: Results, facts: Mapping[str, str]) -> dict[str, Any]:
    """What the page shows, as JSON can hold it."""
    shown = []
    for n in range(min(SHOWN, len(results.series))):
        panel = results.panel(n)
        tail = max(4 * results.horizon, 60)
        first = max(0, len(panel.values) - tail)
        earlier = panel.earlier
        shown.append(
            {
                "name": panel.name,
                "times": [time_text(time) for time in panel.times[first:]],
                "values": panel.values[first:],
                "forecast": panel.forecast,
                "earlier": None if earlier is None or not np.isfinite(earlier).all() else earlier,
                "bits": results.odd.bits[n][first:],
            }
        )
    tested = results.tested
    data = {
        "facts": facts,
        "levels": results.levels,
        "horizon": results.horizon,
        "series": shown,
        "count": len(results.series),
        "scores": None if tested is None else tested.scores,
        "verdict": "" if tested is None else tested.verdict,
        "limit": results.odd.limit,
        "surprising": results.surprising()[:_MARKED],
    }
    found: dict[str, Any] = plain(data, 6)
    return found


def _write_csv(path: pathlib.Path, head: list[str], rows: list[list[Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    write_atomic(path, text.getvalue().encode("utf-8"))
