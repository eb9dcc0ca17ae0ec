"""Pictures of results: a heat-map of ratios, and how time grows with T, B and H."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from benchmarks.grid import Point
from benchmarks.report import Row, by_point, default_row, geometric_mean, ratios, short_name

__all__ = ["draw_all", "growth_figure", "ratio_figure"]


def ratio_figure(rows: Sequence[Row], mode: str, dtype: str) -> Figure | None:
    """Time of every rival over that of rnnjax: a line a point, a column a rival; None without such rows."""
    points = {p: found for p, found in by_point(rows).items() if (p.mode, p.dtype) == (mode, dtype) and ratios(found)}
    names = list(dict.fromkeys(name for found in points.values() for name in ratios(found)))
    if not points or not names:
        return None
    grid = np.full((len(points), len(names)), np.nan)
    for i, found in enumerate(points.values()):
        for name, value in ratios(found).items():
            grid[i, names.index(name)] = np.log2(value)
    figure = Figure(figsize=(2.5 + 0.85 * len(names), 1.8 + 0.3 * len(points)), layout="constrained")
    axes = figure.add_subplot()
    bound = max(1.0, float(np.nanmax(np.abs(grid))))
    axes.imshow(grid, cmap="BrBG", norm=TwoSlopeNorm(0, -bound, bound), aspect="auto")
    means = [geometric_mean([2**value for value in column if not np.isnan(value)]) for column in grid.T]
    axes.set_xticks(range(len(names)), [f"{n}\n{m:.2f}" for n, m in zip(names, means, strict=True)], fontsize=8)
    axes.set_yticks(range(len(points)), [f"{short_name(p.cell)} {tuple(p.sizes)}" for p in points], fontsize=8)
    for (i, j), value in np.ndenumerate(grid):
        if not np.isnan(value):
            colour = "white" if abs(value) > 0.7 * bound else "black"  # of the darkest cells
            axes.text(j, i, f"{2**value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_title(f"time / time of rnnjax, {mode}, {dtype}; green: rnnjax is faster\n{_machine(rows)}", fontsize=9)
    return figure


def growth_figure(rows: Sequence[Row], mode: str, dtype: str) -> Figure | None:
    """Milliseconds against T, B and H while the other sizes stay, on logarithmic axes; None without two values."""
    points = {p: found for p, found in by_point(rows).items() if (p.mode, p.dtype) == (mode, dtype)}
    cells = list(dict.fromkeys(p.cell for p in points))
    panels = {
        (cell, letter): series
        for cell in cells
        for letter in "TBH"
        if (series := _longest_series({p: f for p, f in points.items() if p.cell == cell}, letter))
    }
    if not panels:
        return None
    drawn = [cell for cell in cells if any((cell, letter) in panels for letter in "TBH")]
    everyone = dict.fromkeys(name for found in points.values() for name in found)
    colours = {name: f"C{number}" for number, name in enumerate(everyone)}  # one legend for all panels
    figure = Figure(figsize=(12, 1 + 3.2 * len(drawn)), layout="constrained")
    grid = figure.subplots(len(drawn), 3, squeeze=False)
    for (row, cell), (column, letter) in ((a, b) for a in enumerate(drawn) for b in enumerate("TBH")):
        axes = grid[row][column]
        series = panels.get((cell, letter))
        if series is None:
            axes.set_axis_off()
            continue
        names = list(dict.fromkeys(name for found in series.values() for name in found))
        for name in names:
            xs = [getattr(p.sizes, letter) for p, found in series.items() if name in found]
            taken = [found[name] for found in series.values() if name in found]
            ours = any(one["default"] for one in taken)
            ys = [one["seconds"]["median"] * 1e3 for one in taken]
            width = 2.5 if ours else 1
            axes.loglog(xs, ys, marker=".", label=name, color=colours[name], linewidth=width, zorder=2 + ours)
        fixed = ", ".join(f"{k} = {v}" for k, v in next(iter(series)).sizes._asdict().items() if k != letter)
        axes.set(xlabel=letter, ylabel="ms", title=f"{short_name(cell)}, {fixed}")
        sizes = sorted({getattr(p.sizes, letter) for p in series})
        axes.set_xticks(sizes, [str(size) for size in sizes], fontsize=8)
        axes.minorticks_off()
        axes.grid(alpha=0.3, which="both")
    figure.legend(*_handles(grid), loc="outside lower center", ncols=6, fontsize=8)
    figure.suptitle(f"{mode}, {dtype}, {_machine(rows)}", fontsize=9)
    return figure


def _handles(grid: Any) -> tuple[list[Any], list[str]]:
    found: dict[str, Any] = {}
    for axes in grid.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)


def _longest_series(points: dict[Point, dict[str, Row]], letter: str) -> dict[Point, dict[str, Row]] | None:
    """The most points that differ in one size only, in its order."""
    groups: dict[Any, dict[Point, dict[str, Row]]] = {}
    for point, found in points.items():
        groups.setdefault(point.sizes._replace(**{letter: 0}), {})[point] = found
    best = max(groups.values(), key=len, default={})
    if len(best) < 2:
        return None
    return dict(sorted(best.items(), key=lambda item: getattr(item[0].sizes, letter)))


def _machine(rows: Sequence[Row]) -> str:
    row = rows[0]
    kept = ", after use_cores()" if row["memory_reused"] else ""
    return f"{row['device']}, {row['cores']} cores, jax {row['jax']}, {row['date']}{kept}"


def draw_all(rows: Sequence[Row], folder: pathlib.Path, stem: str) -> list[pathlib.Path]:
    """Every picture that the rows allow, as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    have_default = [row for found in by_point(rows).values() if default_row(found) for row in found.values()]
    for mode, dtype in dict.fromkeys((row["mode"], row["dtype"]) for row in rows):
        for kind, figure in (
            ("ratio", ratio_figure(have_default, mode, dtype) if have_default else None),
            ("growth", growth_figure(rows, mode, dtype)),
        ):
            if figure is not None:
                written.append(folder / f"{stem}_{kind}_{mode}_{dtype}.png")
                figure.savefig(written[-1], dpi=120)
    return written
