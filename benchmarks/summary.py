"""A grid in a few lines: against the fastest JAX rival of every point, and against torch."""

from collections.abc import Callable, Iterable, Sequence

from benchmarks.grid import MODES
from benchmarks.report import Row, by_point, geometric_mean, line, ratios

__all__ = ["summary"]


def summary(rows: Sequence[Row]) -> str:
    """Geometric mean and worst of the ratios (the rival's time over ours), a column a mode and way of running."""
    runs = [
        (
            f"{mode}{', after use_cores()' if kept else ''}",
            [row for row in rows if (row["mode"], row["memory_reused"]) == (mode, kept)],
        )
        for kept in (False, True)
        for mode in reversed(MODES)
    ]
    runs = [(name, found) for name, found in runs if found]
    lines = [line(["", *(name for name, _ in runs)]), line(["---"] * (1 + len(runs)))]
    for name, best in ROWS.items():
        lines.append(line([name, *(_cell(found, best) for _, found in runs)]))
    return "\n".join(lines) + "\n"


def _cell(rows: Iterable[Row], best: Callable[[str, dict[str, float]], list[float]]) -> str:
    values = [v for point, found in by_point(rows).items() for v in best(point.cell, ratios(found))]
    if not values:
        return ""
    behind = f", below 1 at {sum(v < 1 for v in values)} of {len(values)}" if min(values) < 1 else ""
    return f"{geometric_mean(values):.2f}, {min(values):.2f}{behind}"


def _fastest(cell: str, against: dict[str, float]) -> list[float]:
    del cell
    rivals = [v for name, v in against.items() if not name.startswith(("torch", "bare", "rnnjax"))]
    return [min(rivals)] if rivals else []


ROWS: dict[str, Callable[[str, dict[str, float]], list[float]]] = {
    "the fastest JAX rival at each point: mean, worst": _fastest,
    "bare `lax.scan`: mean, worst": lambda cell, against: [v for n, v in against.items() if n == "bare scan"],
    "torch, GRU and Elman: mean, worst": lambda cell, against: [
        v for n, v in against.items() if n == "torch" and cell != "lstm"
    ],
    "torch, LSTM (oneDNN): mean, worst": lambda cell, against: [
        v for n, v in against.items() if n == "torch" and cell == "lstm"
    ],
}
