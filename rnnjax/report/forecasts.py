"""The page of a forecast: facts, the backtest, what comes, what surprised, and the training, drawn without scripts."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

from rnnjax.files import CheckpointError, read_json
from rnnjax.forecast.run import ForecastPaths
from rnnjax.lm.plots import read_metrics
from rnnjax.report.page import asset
from rnnjax.report.site import COURSE, course_link, site_address

__all__ = ["forecast_page"]

_WIDTH, _HEIGHT, _LEFT, _BELOW = 900, 230, 62, 24
# Of each number its short and its long name, and what it says.
_TITLES = {
    "smape": (
        "sMAPE",
        "symmetric mean absolute percentage error",
        "The distance of forecast and value over the mean of both, in percent: 0 is exact, 200 the most. Small values "
        "weigh as much as large ones, so it says little where values come near zero.",
    ),
    "mase": (
        "MASE",
        "mean absolute error over that of seasonal naive in the history",
        "How far off the median is, in units of the error that “as one season ago” made in the past: below 1 is better "
        "than that. It can be compared between series of any size.",
    ),
    "rmsse": (
        "RMSSE",
        "the same of squares, under a root",
        "As MASE, but with squares, so that a few large errors count more than many small ones.",
    ),
    "wql": (
        "wQL",
        "weighted quantile loss",
        "How good the whole forecast is, and not its median alone: each quantile pays for values on its wrong side, "
        "the more, the surer it was. In shares of the mean size of the values; a single number pays its error.",
    ),
    "msis": (
        "MSIS",
        "mean scaled interval score",
        "The width of the 95 % interval, and 40 times the distance of each value that lies outside, in the units of "
        "MASE: narrow is good, and wrong is dear.",
    ),
    "cover80": (
        "in 80 %",
        "share of values in the interval that should hold 80 %",
        "0.8 is right. Less: the model is too sure of itself. More: its bands are wider than they need to be.",
    ),
    "cover95": ("in 95 %", "share of values in the interval that should hold 95 %", "The same; 0.95 is right."),
}
_STYLE = """
.fan { width: 100%; height: auto; background: var(--panel); border: 1px solid var(--line); border-radius: 8px; }
.fan text { fill: var(--soft); font: 11px var(--sans); }
.fan .grid { stroke: var(--grid); } .fan .now { stroke: var(--soft); stroke-dasharray: 2 3; }
.fan .past { fill: none; stroke: var(--c6); stroke-width: 1.3; }
.fan .ahead { fill: none; stroke: var(--c0); stroke-width: 1.8; } .fan .band { fill: var(--c0); opacity: .16; }
.fan .said { fill: none; stroke: var(--c1); stroke-width: 1.6; } .fan .said-band { fill: var(--c1); opacity: .14; }
.fan .odd { fill: var(--c1); } .fan .bar { stroke: var(--soft); } .fan .bar.much { stroke: var(--c1); }
.key { font-size: .85rem; color: var(--soft); } .key b { font-weight: 600; }
.scores { border-collapse: collapse; } .scores th, .scores td { padding: .2rem .8rem; text-align: right; }
.scores th:first-child, .scores td:first-child { text-align: left; }
.fan-box { overflow-x: auto; } @media (max-width: 600px) { .fan { min-width: 620px; } }
.words { font-size: .9rem; max-width: 46rem; margin-top: .5rem; }
.words summary { cursor: pointer; color: var(--accent); width: fit-content; }
.words dt { font-weight: 600; margin-top: .4rem; } .words dd { margin: 0; }
.scores tr + tr { border-top: 1px solid var(--line); } .scores .own { font-weight: 600; }
"""


def forecast_page(paths: ForecastPaths, site: str | None = None) -> str:
    """One HTML file that needs nothing else, from what lies in the folder of the run.

    Args:
        paths: of the run.
        site: the address of the documentation, or the folder where it is built, as in `rnnjax.report.page`.

    Raises:
        FileNotFoundError: if the run has not come to its end yet.
        ValueError: if its files are damaged, or there is no site.
    """
    address = site_address(site, "forecast_page: site")
    if not paths.result.is_file():
        raise FileNotFoundError(
            f"report: {paths.root} has no result yet; go on with rnnjax forecast --resume {paths.root}."
        )
    data = read_json(paths.result, "report")
    try:
        return _page(paths, data, address)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"report: {paths.result} does not hold the result of a forecast ({error!r:.80})."
        ) from error


def _page(paths: ForecastPaths, data: dict[str, Any], address: str) -> str:
    name = html.escape(paths.root.resolve().name)
    sections = [
        ("about", "The run", _facts(data["facts"])),
        ("backtest", "Backtest", _scores(data, address)),
        ("forecasts", "Forecasts", _forecasts(data)),
        ("surprise", "Surprise", _surprises(data, address)),
        ("training", "Training", _training(paths)),
    ]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in sections)
    body = "".join(f'<section id="{key}"><h2>{title}</h2>{content}</section>' for key, title, content in sections)
    return f"""<!doctype html>
<html lang="en" data-scheme="light"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<meta name="color-scheme" content="light dark"><title>{name} - rnnjax report</title>
<style>{asset("report.css")}{_STYLE}</style><script>{asset("theme.js")}</script></head>
<body><header class="top"><div class="bar"><h1>{name} <small>forecast</small></h1></div>
<nav aria-label="Sections">{links}</nav></header><main>{body}</main></body></html>
"""


def _facts(facts: dict[str, str]) -> str:
    rows = "".join(f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in facts.items())
    return f'<dl class="facts">{rows}</dl>'


def _scores(data: dict[str, Any], address: str) -> str:
    if data["scores"] is None:
        return '<p class="hint">No window was left that the model was not trained on.</p>'
    names = [name for name in _TITLES if any(row.get(name) is not None for row in data["scores"].values())]
    head = "".join(f'<th title="{_TITLES[name][1]}">{_TITLES[name][0]}</th>' for name in names)
    lines = []
    for who, row in data["scores"].items():
        values = (row.get(name) for name in names)
        cells = "".join(f"<td>{'-' if value is None else f'{value:.3f}'}</td>" for value in values)
        lines.append(f'<tr class="{"own" if who == "model" else ""}"><td>{html.escape(who)}</td>{cells}</tr>')
    words = "".join(f"<dt>{_TITLES[name][0]}</dt><dd>{_TITLES[name][2]}</dd>" for name in names)
    return (
        f'<p class="note">{html.escape(data["verdict"])}</p><p class="hint">Means over windows that were not trained '
        "on, each forecast from what was known before it alone.</p>"
        f'<div class="table-box"><table class="scores"><tr><th></th>{head}</tr>{"".join(lines)}</table></div>'
        f'<details class="words"><summary>What these numbers mean</summary><dl>{words}</dl><p>The lower the better, '
        "but for the shares. <b>Naive</b> says the last value again, <b>seasonal naive</b> that of one season ago, "
        "<b>drift</b> goes on along the line from the first value to the last.</p>"
        f"{_at_length(address, 'first-the-forecast-that-costs-nothing')}</details>"
    )


def _at_length(address: str, heading: str) -> str:
    """Where the course explains it, with a link where its place is known."""
    title, link = html.escape(COURSE[10][1]), html.escape(course_link(address, 10, heading))
    named = f'<a href="{link}" target="_blank" rel="noopener">{title}</a>' if link else title
    return f'<p class="hint">At length: page 10 of the course in the documentation, “{named}”.</p>'


def _forecasts(data: dict[str, Any]) -> str:
    levels = data["levels"]
    outer = f"{100 * (levels[-1] - levels[0]):.0f} %"
    more = data["count"] - len(data["series"])
    rest = f" {more:,} more series are in forecast.csv." if more else ""
    key = (
        f'<p class="key"><b>Grey</b>: measured. <b>Orange</b>: what was said of the last {data["horizon"]} steps '
        f"before they were known. <b>Blue</b>: what comes. Lines are medians, bands reach to {outer}.{rest}</p>"
    )
    return key + "".join(_fan(one, levels) for one in data["series"])


def _fan(one: dict[str, Any], levels: Sequence[float]) -> str:
    values, ahead, earlier = one["values"], one["forecast"], one["earlier"]
    count, horizon, middle = len(values), len(ahead[0]), len(levels) // 2
    every = [v for row in (values, *ahead, *(earlier or [])) for v in row if v is not None]
    x, y = _scales(count + horizon, min(every), max(every))
    parts = [_axes(one["times"], x, y, min(every), max(every))]
    for rows, first, band, line in ((earlier, count - horizon, "said-band", "said"), (ahead, count, "band", "ahead")):
        if rows:
            for k in range(middle):
                low, high = rows[k], rows[len(levels) - 1 - k]
                points = [f"{x(first + t)},{y(v)}" for t, v in enumerate(low)]
                points += [f"{x(first + t)},{y(v)}" for t, v in reversed([*enumerate(high)])]
                parts.append(f'<polygon class="{band}" points="{" ".join(points)}"/>')
            parts.append(_line(rows[middle], first, x, y, line))
    parts.append(_line(values, 0, x, y, "past"))
    parts.append(f'<line class="now" x1="{x(count - 1)}" x2="{x(count - 1)}" y1="0" y2="{_HEIGHT}"/>')
    return _figure(one["name"], f"forecast of {one['name']} with quantiles", parts)


def _surprises(data: dict[str, Any], address: str) -> str:
    hint = (
        '<p class="hint">How far out each value was in the forecast that was made one step before, in bits: 10 is a '
        f"value as rare as one in a thousand. Marked from {data['limit']:.3g} bits on.</p>"
        f"{_at_length(address, 'what-was-not-expected')}"
    )
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(time)}</td><td>{value:.6g}</td><td>{bits:.1f}</td></tr>"
        for name, time, value, bits in data["surprising"]
    )
    table = (
        f'<div class="table-box"><table class="scores"><tr><th>series</th><th>time</th><th>value</th><th>bits</th></tr>'
        f"{rows}</table></div>"
        if rows
        else "<p>No value is marked.</p>"
    )
    return hint + "".join(_bits(one, data["limit"]) for one in data["series"]) + table


def _bits(one: dict[str, Any], limit: float) -> str:
    values, bits = one["values"], one["bits"]
    there = [v for v in values if v is not None] or [0.0]
    x, y = _scales(len(values), min(there), max(there))
    parts = [_axes(one["times"][: len(values)], x, y, min(there), max(there)), _line(values, 0, x, y, "past")]
    for k, (value, own) in enumerate(zip(values, bits, strict=True)):
        if own is not None:
            much = " much" if own >= limit else ""
            parts.append(
                f'<line class="bar{much}" x1="{x(k)}" x2="{x(k)}" y1="{_HEIGHT}" y2="{_HEIGHT - 2.5 * own:.1f}"/>'
            )
            if much and value is not None:
                label = html.escape(f"{one['times'][k]}: {value:g}, {own:.1f} bits")
                parts.append(f'<circle class="odd" cx="{x(k)}" cy="{y(value)}" r="4"><title>{label}</title></circle>')
    return _figure(one["name"], f"values of {one['name']} and their surprise", parts)


def _training(paths: ForecastPaths) -> str:
    rows = read_metrics(paths.metrics) if paths.metrics.is_file() else []
    rows = [row for row in rows if all(isinstance(row.get(key), int | float) for key in ("step", "loss"))]
    train = [(row["step"], row["loss"]) for row in rows if row.get("kind") == "train"]
    held = [(row["step"], row["loss"]) for row in rows if row.get("kind") == "eval"]
    if len(train) < 2:
        return '<p class="hint">Too short to draw.</p>'
    losses = [loss for _, loss in train + held]
    last = max(step for step, _ in train + held)
    x, y = _scales(last + 1, min(losses), max(losses))
    parts = [_axes([f"step {step}" for step in (0, last // 2, last)], x, y, min(losses), max(losses), last / 2)]
    for points, name in ((train, "past"), (held, "said")):
        if points:
            path = " ".join(f"{x(step)},{y(loss)}" for step, loss in points)
            parts.append(f'<polyline class="{name}" points="{path}"/>')
    key = '<p class="key"><b>Grey</b>: loss of the training. <b>Orange</b>: of what is held out.</p>'
    return key + _figure("loss", "losses by step", parts)


def _scales(count: int, low: float, high: float) -> tuple[Any, Any]:
    room = (high - low) or 1.0

    def x(k: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - 8) * k / max(count - 1, 1), 1)

    def y(value: float) -> float:
        return round(8 + (_HEIGHT - 16) * (1 - (value - low) / room), 1)

    return x, y


def _axes(times: Sequence[str], x: Any, y: Any, low: float, high: float, stride: float = 1.0) -> str:
    parts = []
    for value in _ticks(low, high):
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH}" y1="{y(value)}" y2="{y(value)}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(value) + 4}" text-anchor="end">{value:g}</text>')
    places = sorted({round(share * (len(times) - 1)) for share in (0.0, 0.25, 0.5, 0.75)})
    for k in places:
        anchor = ' text-anchor="end"' if x(k * stride) > _WIDTH - 120 else ""
        parts.append(f'<text x="{x(k * stride)}" y="{_HEIGHT + 16}"{anchor}>{html.escape(str(times[k]))}</text>')
    return "".join(parts)


def _ticks(low: float, high: float) -> Iterable[float]:
    step = 10 ** math.floor(math.log10((high - low) / 3)) if high > low else 1.0
    step = next((step * k for k in (1, 2, 5, 10) if (high - low) / (step * k) <= 5), step)
    first = math.ceil(low / step)
    return [round((first + k) * step, 10) for k in range(int((high - first * step) / step + 1e-9) + 1)]


def _line(values: Sequence[float | None], first: int, x: Any, y: Any, name: str) -> str:
    """A line with gaps where values are missing."""
    pieces: list[list[str]] = [[]]
    for k, value in enumerate(values):
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append(f"{x(first + k)},{y(value)}")
    return "".join(f'<polyline class="{name}" points="{" ".join(piece)}"/>' for piece in pieces if piece)


def _figure(name: str, label: str, parts: Sequence[str]) -> str:
    return (
        f'<h3>{html.escape(name)}</h3><div class="fan-box"><svg class="fan" viewBox="0 0 {_WIDTH} {_HEIGHT + _BELOW}" '
        f'role="img" aria-label="{html.escape(label)}">{"".join(parts)}</svg></div>'
    )
