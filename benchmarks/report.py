"""Tables of results: on the terminal, and in Markdown for the README, between two markers."""

import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table

from benchmarks.grid import Point
from benchmarks.results_file import point_of

__all__ = [
    "BEGIN",
    "END",
    "by_point",
    "default_row",
    "geometric_mean",
    "gru_against_lstm",
    "line",
    "markdown",
    "parts_table",
    "ratios",
    "short_name",
    "step_table",
    "terminal_table",
    "update_readme",
]

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
Row = dict[str, Any]


def by_point(rows: Iterable[Row]) -> dict[Point, dict[str, Row]]:
    """Rows by point and contestant, in the order of the file."""
    found: dict[Point, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(point_of(row), {})[row["contestant"]] = row
    return found


def short_name(cell: str) -> str:
    """Of a cell from a file the class alone."""
    return cell.rpartition(":")[2] if ".py:" in cell else cell


def default_row(contestants: dict[str, Row]) -> Row | None:
    """The row of rnnjax with its default implementation."""
    return next((row for row in contestants.values() if row["default"]), None)


def ratios(contestants: dict[str, Row]) -> dict[str, float]:
    """Time of every other contestant over that of rnnjax: above 1, rnnjax is faster."""
    ours = default_row(contestants)
    if ours is None:
        return {}
    mine = ours["seconds"]["median"]
    return {name: row["seconds"]["median"] / mine for name, row in contestants.items() if row is not ours}


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers; NaN of none."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def terminal_table(rows: Sequence[Row]) -> Table:
    """All that is known about the rows of one point."""
    (point, contestants), *_ = by_point(rows).items()
    against = ratios(contestants)
    table = Table("contestant", "compile s", "ms (quartiles)", "steps/s", "GFLOP/s", "MB", "ratio", title=str(point))
    for name, row in sorted(contestants.items(), key=lambda item: item[1]["seconds"]["median"]):
        seconds, compiled, peak = row["seconds"], row["compile_seconds"], row["peak_bytes"]
        low, middle, high = (f"{seconds[key] * 1e3:.3g}" for key in ("low", "median", "high"))
        table.add_row(
            f"[bold]{name}[/bold]" if row["default"] else name,
            f"{compiled['median']:.2f}" if compiled else "",
            f"{middle} ({low}-{high})",
            f"{row['steps_per_second']:,.0f}",
            f"{row['flops_per_second'] / 1e9:.3g} ({row['share_of_peak']:.0%})",
            f"{peak / 1e6:.1f}" if peak is not None else "",
            f"{against[name]:.2f}" if name in against else "",
        )
    return table


def markdown(rows: Sequence[Row]) -> str:
    """The README's tables, a section a machine: milliseconds of rnnjax, and how many times as long each rival takes."""
    machines = dict.fromkeys((row["device"], row["cores"]) for row in rows)
    sections = [_section([row for row in rows if (row["device"], row["cores"]) == machine]) for machine in machines]
    return "\n".join(sections) if sections else "No results yet.\n"


def _section(rows: Sequence[Row]) -> str:
    points = by_point(rows)
    parts = [_where(rows)]
    for mode, dtype in dict.fromkeys((point.mode, point.dtype) for point in points):
        here = {point: found for point, found in points.items() if (point.mode, point.dtype) == (mode, dtype)}
        parts.append(f"**{mode.capitalize()}, {dtype}**\n\n{_ratio_table(here)}")
    compiled = _compile_table(points)
    if compiled:
        parts.append(f"**Seconds to compile a training step, geometric mean**\n\n{compiled}")
    textbook = gru_against_lstm(rows)
    if textbook:
        parts.append(f"**A GRU against an LSTM of the same width (rnnjax, GRU / LSTM)**\n\n{textbook}")
    return "\n".join(parts)


def _where(rows: Sequence[Row]) -> str:
    lines = []
    for key in dict.fromkeys(
        tuple(row[k] for k in ("device", "cores", "python", "jax", "commit", "date")) for row in rows
    ):
        device, cores, python, jax, commit, date = key
        lines.append(f"{device}, {cores} cores, Python {python}, jax {jax}, commit {commit}, {date}")
    versions = {row["contestant"]: f"{row['library']} {row['version']}" for row in rows if row["library"] != "rnnjax"}
    rounds = min(row["rounds"] for row in rows)
    notes = dict.fromkeys(
        f"{row['contestant']} ({short_name(row['cell'])}): {row['note']}" for row in rows if row["note"]
    )
    kept = any(row["memory_reused"] for row in rows)
    return (
        f"Measured on {'; '.join(lines)}. Rivals: {', '.join(sorted(set(versions.values())))}. Medians of at least "
        f"{rounds} interleaved rounds; a ratio is the rival's time over that of rnnjax, above 1 rnnjax is faster."
        + (
            " After `rnnjax.use_cores()`: batches split over CPU devices, freed memory kept for everyone."
            if kept
            else ""
        )
        + (f" Notes: {'; '.join(notes)}." if notes else "")
        + "\n"
    )


def parts_table(rows: Iterable[Row]) -> str:
    """Milliseconds of every part of `benchmarks.parts`, rnnjax's and torch's, a section a shape."""
    found: dict[tuple[Any, ...], dict[str, dict[str, float]]] = {}
    for row in rows:
        parts = found.setdefault(tuple(row[axis] for axis in "TBIH"), {})
        parts.setdefault(row["part"], {})[row["library"]] = row["seconds"]["median"] * 1e3
    lines = [line(["T, B, I, H", "part", "rnnjax ms", "torch ms"]), line(["---"] * 4)]
    for shape, parts in found.items():
        for name, taken in parts.items():
            times = [f"{taken[library]:.3g}" if library in taken else "" for library in ("rnnjax", "torch")]
            lines.append(line([", ".join(map(str, shape)), name, *times]))
    return "\n".join(lines)


def line(cells: Iterable[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def _ratio_table(points: dict[Point, dict[str, Row]]) -> str:
    names = list(dict.fromkeys(name for found in points.values() for name in ratios(found)))
    lines = [line(["cell", "T, B, I, H", "rnnjax ms", *names]), line(["---"] * (3 + len(names)))]
    collected: dict[str, list[float]] = {name: [] for name in names}
    for point, found in points.items():
        ours, against = default_row(found), ratios(found)
        if ours is None:
            continue
        for name, value in against.items():
            collected[name].append(value)
        cells = [f"{against[name]:.2f}" if name in against else "" for name in names]
        sizes = ", ".join(map(str, point.sizes))
        lines.append(line([short_name(point.cell), sizes, f"{ours['seconds']['median'] * 1e3:.3g}", *cells]))
    means = [f"**{geometric_mean(collected[name]):.2f}**" if collected[name] else "" for name in names]
    lines.append(line(["geometric mean", "", "", *means]))
    return "\n".join(lines) + "\n"


def _compile_table(points: dict[Point, dict[str, Row]]) -> str:
    """Only of those points where a contestant and rnnjax were both compiled, so that the ratio compares the same."""
    collected: dict[str, list[tuple[float, float]]] = {}
    for point, found in points.items():
        ours = default_row(found)
        if point.mode != "training" or ours is None or not ours["compile_seconds"]:
            continue
        for name, row in found.items():
            if row["compile_seconds"]:
                key = "rnnjax" if row is ours else name
                pair = (row["compile_seconds"]["median"], ours["compile_seconds"]["median"])
                collected.setdefault(key, []).append(pair)
    if not collected:
        return ""
    lines = [line(["", *collected]), line(["---"] * (1 + len(collected)))]
    lines.append(line(["seconds", *(f"{geometric_mean([a for a, _ in v]):.2f}" for v in collected.values())]))
    lines.append(line(["over rnnjax", *(f"{geometric_mean([a / b for a, b in v]):.2f}" for v in collected.values())]))
    return "\n".join(lines) + "\n"


def gru_against_lstm(rows: Iterable[Row]) -> str:
    """Time, operations and peak memory of the GRU over those of the LSTM, of the same sizes and contestant."""
    points = by_point(rows)
    lines = [line(["mode", "dtype", "T, B, I, H", "time", "FLOPs", "peak memory"]), line(["---"] * 6)]
    for point, found in points.items():
        other = points.get(point._replace(cell="lstm"))
        gru, lstm = default_row(found), default_row(other) if other else None
        if point.cell != "gru" or gru is None or lstm is None:
            continue
        memory = f"{gru['peak_bytes'] / lstm['peak_bytes']:.2f}" if gru["peak_bytes"] and lstm["peak_bytes"] else ""
        time = gru["seconds"]["median"] / lstm["seconds"]["median"]
        lines.append(
            line(
                [
                    point.mode,
                    point.dtype,
                    ", ".join(map(str, point.sizes)),
                    f"{time:.2f}",
                    f"{gru['flops'] / lstm['flops']:.2f}",
                    memory,
                ]
            )
        )
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def step_table(rows: Iterable[Row]) -> str:
    """Microseconds a step of every contestant, for sizes where the launch of each step is what counts."""
    points = by_point(rows)
    names = list(dict.fromkeys(row["contestant"] for found in points.values() for row in found.values()))
    lines = [line(["cell, mode, dtype", "T, B, I, H", *names]), line(["---"] * (2 + len(names)))]
    for point, found in points.items():
        cells = [
            f"{found[name]['seconds']['median'] * 1e6 / point.sizes.T:.3g}" if name in found else "" for name in names
        ]
        lines.append(line([f"{point.cell} {point.mode} {point.dtype}", ", ".join(map(str, point.sizes)), *cells]))
    return "\n".join(lines) + "\n"


def update_readme(path: pathlib.Path, text: str, kind: str = "") -> None:
    """Puts the text between the two markers of a file; those of a smaller measurement name its kind.

    Raises:
        ValueError: if the file does not have both, in order.
    """
    content = path.read_text(encoding="utf-8")
    first, last = (
        marker.replace("benchmarks:", f"benchmarks:{kind}:" if kind else "benchmarks:") for marker in (BEGIN, END)
    )
    head, begin, rest = content.partition(first)
    _, end, tail = rest.partition(last)
    if not begin or not end:
        raise ValueError(
            f"tables: {str(path)!r} must have the lines {first} and {last}; add them where the table belongs."
        )
    path.write_text(f"{head}{first}\n\n{text.strip()}\n\n{last}{tail}", encoding="utf-8")
