"""What ``rnnjax forecast`` says of its data, its model and its results."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from rnnjax.cli.output import echo, echo_table
from rnnjax.fit import Printer
from rnnjax.forecast.files import Source
from rnnjax.forecast.results import Results, time_text
from rnnjax.forecast.run import ForecastConfig
from rnnjax.forecast.series import MADE, Series

__all__ = ["data_lines", "facts", "is_constant", "say_results", "which"]

_FIRST = 8  # steps of a forecast that are printed


def is_constant(row: np.ndarray) -> bool:
    """Whether all values that are there are equal."""
    return bool(np.nanmin(row) == np.nanmax(row))


def which(series: Series, n: int) -> str:
    """Which of several series, for the end of a clause."""
    return f" of series {series.names[n]}" if len(series) > 1 and series.names else ""


def data_lines(config: ForecastConfig, series: Series, source: Source | None, model: Any) -> list[str]:
    """What was found in the data."""
    low, high = int(series.lengths.min()), int(series.lengths.max())
    length = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    what = f"{len(series)} series of {length} values" if len(series) > 1 else f"{high:,} values"
    lines = []
    if source is None:
        lines.append(f"{MADE}: {what}, every hour")
    else:
        dates = ""
        if series.clock is not None:
            start = min(clock.start for clock in series.clock)
            end = max(clock.at(count - 1) for clock, count in zip(series.clock, series.lengths, strict=True))
            span = f"from {time_text(start)} to {time_text(end)}"
            dates = f", {config.columns.time} ({source.dates}) every {series.clock[0]} {span}"
        lines.append(
            f"{source.path}: {source.rows:,} rows between {source.delimiter}, {config.columns.target}: {what}{dates}"
        )
        lines += source.notes
        gaps = [(n, one) for n, one in enumerate(source.ends) if one.gap is not None]
        if gaps:
            n, first = gaps[0]
            total = sum(one.missing for _, one in gaps)
            lines.append(
                f"{total:,} times are left out and count as missing, the first before {source.place(first.gap or 0)}"
                f"{which(series, n)}"
            )
        for n, values in enumerate(series.values):
            if is_constant(values):
                lines.append(f"{source.place(source.ends[n].first)}: the values never change{which(series, n)}")
                break
    short = [n for n, count in enumerate(series.lengths) if count < model.context_used + config.horizon]
    if short:
        lines.append(
            f"{len(short)} series are shorter than the context of {model.context_used} and the horizon, and read from "
            "their start"
        )
    found = " and ".join(map(str, config.season)) or "none"
    lines.append(f"season: {found}, {config.about.get('season', 'as given')}")
    return lines


def facts(config: ForecastConfig, series: Series, source: Source | None, model: Any) -> dict[str, str]:
    """What the run is, for the page."""
    options = config.options
    sizes = jax.eval_shape(lambda: model.init(jax.random.key(0), features=1, horizon=config.horizon))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(sizes.network))
    way = "step by step" if options.recursive else "all steps at once"
    return {
        "data": MADE if source is None else source.path,
        "series": f"{len(series)}, {int(series.lengths.sum()):,} values",
        "season": " and ".join(map(str, config.season)) or "none",
        "horizon": str(config.horizon),
        "model": f"{options.layers} x {options.hidden} {options.cell}, about {count:,} parameters in the network, "
        f"{options.head}, {way}, context {model.context_used}",
        "ran on": ", ".join(f"{k} {v}" for k, v in config.about.items() if k in ("device", "python", "jax")),
    }


def say_results(results: Results, printer: Printer) -> None:
    """The backtest, the first steps of the forecast, and what surprised most."""
    if results.tested is not None:
        windows = len({row["window"] for row in results.tested.windows})
        printer.say(f"backtest of {windows} windows of {results.horizon} that were not trained on, means:")
        for line in str(results.tested).splitlines():
            printer.say(line, "bold" if line == results.tested.verdict else "")
        if (calibration := results.tested.calibration) is not None:
            wide = [calibration.stretch[[at, -1 - at]].mean() for at in (1, 0)]
            printer.say(
                f"bands of 80 % and 95 % are {wide[0]:.2f} and {wide[1]:.2f} times as wide as the model has them, so "
                "that those of the backtest would have held their share"
            )
    else:
        printer.say("no backtest: no window is left that was not trained on; lower --horizon")
    low, middle, high = (results.levels.index(level) for level in (0.1, 0.5, 0.9))
    name, own, first = results.series.names[0], results.forecast[0], len(results.series.values[0])  # type: ignore[index]
    rows = [
        [time_text(results.times(0)[first + k]), f"{own[middle, k]:.5g}", f"{own[low, k]:.5g}", f"{own[high, k]:.5g}"]
        for k in range(min(_FIRST, results.horizon))
    ]
    more = f" (the first {len(rows)} of {results.horizon} steps of the first of {len(results.series)} series)"
    echo(f"forecast of {name}{more}")
    echo_table(["time", "median", "10 %", "90 %"], rows)
    found, limit = results.surprising(), results.odd.limit
    if found:
        what = "1 value" if len(found) == 1 else f"{len(found)} values"
        echo(f"{what} surprised by {limit:.3g} bits or more, where chance alone has half a one:")
        echo_table(["series", "time", "value", "bits"], [[s, t, f"{v:.5g}", f"{b:.1f}"] for s, t, v, b in found[:5]])
    else:
        echo(f"no value surprised by {limit:.3g} bits or more")
