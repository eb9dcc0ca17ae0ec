"""What a trained model gives: forecasts, a backtest and surprises, as files and as data of a page."""

from __future__ import annotations

import csv
import io
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from rnnjax.files import plain, save_figure, write_atomic, write_json
from rnnjax.forecast.backtesting import LEVELS, Backtest, backtest
from rnnjax.forecast.marks import Anomalies, anomalies
from rnnjax.forecast.model import Forecaster
from rnnjax.forecast.plots import Panel, forecast_figure, surprise_figure
from rnnjax.forecast.run import ForecastPaths
from rnnjax.forecast.sampling import quantiles
from rnnjax.forecast.series import Series

__all__ = ["SHOWN", "Results", "compute_results", "write_results"]

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
