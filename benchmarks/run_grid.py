"""Measures a grid, point after point."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.contestants import build, make_problem, precision
from benchmarks.grid import Point
from benchmarks.provenance import provenance, row_provenance
from benchmarks.results_file import ResultFile
from benchmarks.timing import clear_caches, compile_all, flops, interleave, matmul_peak

__all__ = ["Settings", "run_grid"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a grid is measured.

    Attributes:
        implementations: of rnnjax: names, ``"default"`` or ``"all"``.
        rivals: names from `benchmarks.contestants.RIVALS`.
        rounds: turns of every contestant.
        compile_rounds: how often each is compiled.
        burst_seconds: length of a turn.
        memory_reused: whether the allocator was told to keep freed memory; for the record.
    """

    implementations: tuple[str, ...]
    rivals: tuple[str, ...]
    rounds: int = 15
    compile_rounds: int = 3
    burst_seconds: float = 0.05
    memory_reused: bool = False


def run_grid(
    points: Sequence[Point],
    settings: Settings,
    *,
    command: str,
    out: pathlib.Path | None = None,
    resume: bool = False,
    say: Callable[[str], None] = lambda text: None,
    show: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
) -> ResultFile:
    """Measures the points that the file does not have yet.

    Args:
        points: see `benchmarks.grid.points`.
        settings: see `Settings`.
        command: for the record.
        out: the result file; None writes none.
        resume: whether to go on with an existing file.
        say: gets what happens, a line each.
        show: gets the rows of every point that was measured.
    """
    record = provenance(settings.memory_reused)
    peaks: dict[str, Any] = {}
    skipped: dict[str, dict[str, str]] = {}
    header = {
        "command": command,
        "provenance": record,
        "settings": dataclasses.asdict(settings),
        "matmul_peak": peaks,
        "skipped": skipped,
    }
    file = ResultFile(out, header, resume=resume)
    for number, point in enumerate(points, 1):
        problem = make_problem(point)
        contestants, reasons = build(problem, settings.implementations, settings.rivals)
        for name, reason in reasons.items():
            if reason not in skipped.setdefault(point.cell, {}).values():
                say(f"without {name}: {reason}")
            skipped[point.cell][name] = reason
        skipped.setdefault(point.cell, {})
        if file.has(point, {one.name: one.version for one in contestants}, settings.rounds):
            say(f"[{number}/{len(points)}] {point}: already measured")
            continue
        say(f"[{number}/{len(points)}] {point}")
        if point.dtype not in peaks:
            peaks[point.dtype] = matmul_peak(point.dtype)
        failed: dict[str, str] = {}
        with precision(point.dtype):
            prepared = {one.name: one.prepare(point.mode) for one in contestants}
            compiled = compile_all(prepared, settings.compile_rounds, failed)
            prepared = {name: one for name, one in prepared.items() if name not in failed}
            seconds = interleave(
                {name: one.call for name, one in prepared.items()},
                rounds=settings.rounds,
                burst_seconds=settings.burst_seconds,
                failed=failed,
            )
            memory = {name: one.memory() for name, one in prepared.items() if name not in failed}
        for name, reason in failed.items():
            say(f"without {name}: {reason}")
            skipped[point.cell][f"{name}, {point.dtype}"] = reason
        contestants = [one for one in contestants if one.name not in failed]
        work = flops(problem, point.mode)
        rows = []
        for one in contestants:
            median = seconds[one.name]["median"]
            speed = work / median
            rows.append(
                {
                    "cell": point.cell,
                    **point.sizes._asdict(),
                    "dtype": point.dtype,
                    "mode": point.mode,
                    "contestant": one.name,
                    # The one that ratios are against: what implementation=None takes, unless others were asked for.
                    "default": one is contestants[0] and one.name.startswith("rnnjax"),
                    "detail": one.detail,
                    "note": one.note,
                    "library": one.distribution or "rnnjax",
                    "version": one.version,
                    "compile_seconds": compiled[one.name],
                    "seconds": seconds[one.name],
                    "steps_per_second": round(point.sizes.T / median, 1),
                    "flops": work,
                    "flops_per_second": round(speed),
                    "share_of_peak": round(speed / peaks[point.dtype]["flops_per_second"], 4),
                    "peak_bytes": memory[one.name].get("peak_bytes"),
                    "temp_bytes": memory[one.name].get("temp_bytes"),
                    "rounds": settings.rounds,
                    **row_provenance(record),
                }
            )
        file.add(point, rows)
        show(rows)
        del contestants, prepared, problem  # their arrays and programs
        clear_caches()
    file.write()
    return file
