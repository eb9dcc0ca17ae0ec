"""``python -m benchmarks scale``: all-reduces and updates on several processes, beside what the model says."""

import pathlib
import shlex
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.provenance import provenance
from benchmarks.results_file import write_json
from benchmarks.scale import Link, Model, allreduce_seconds, fit_link, measure

__all__ = ["scale_command"]


def scale_command(
    megabytes: Annotated[str, typer.Option(help="Sizes of all-reduces, separated by commas.")] = "1,6,24",
    repetitions: Annotated[
        int, typer.Option(help="Of everything; the fastest counts, the median is kept.", min=1)
    ] = 40,
    hidden: Annotated[int, typer.Option(help="Units of the LSTM that is trained.", min=1)] = 256,
    batch: Annotated[int, typer.Option(help="Rows of all devices together, a multiple of 8.", min=8)] = 64,
    steps: Annotated[int, typer.Option(help="T, of a chunk.", min=1)] = 64,
    out: Annotated[pathlib.Path | None, typer.Option(help="Where to write the results, as JSON.")] = None,
) -> None:
    """1, 2 and 4 processes on this machine, 1 to 8 simulated devices, and the model of benchmarks/scale.py."""

    def save(found: dict[str, Any]) -> None:
        if out is not None:
            write_json(out, {"provenance": provenance(), "command": command, **found})

    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    sizes = [float(size) * 1e6 for size in megabytes.split(",")]
    found = measure(sizes, repetitions, Model(1, hidden), batch, steps, save)
    link = fit_link(found["allreduce"])
    found["link"] = link._asdict()
    save(found)
    console = Console()
    console.print(f"a link of {1e6 * link.latency:.0f} microseconds and {link.bandwidth / 1e9:.2f} GB/s explains:")
    for table in tables(found, link):
        console.print(table)


def tables(found: dict[str, Any], link: Link) -> list[Table]:
    """What was measured, beside the model."""
    reduces = Table("all-reduce, MB", "processes", "fastest, ms", "median, ms", "model, ms")
    for row in found["allreduce"]:
        model = allreduce_seconds(row["bytes"], row["processes"], link)
        milliseconds = [f"{1e3 * value:.2f}" for value in (row["seconds"], row["median"], model)]
        reduces.add_row(f"{row['bytes'] / 1e6:g}", str(row["processes"]), *milliseconds)
    updates = Table("processes", "devices in all", "fastest update, ms", "median, ms", "symbols/s")
    for row in found["updates"]:
        speed = found["batch"] * found["steps"] / row["seconds"]
        times = (f"{1e3 * row['seconds']:.1f}", f"{1e3 * row['median']:.1f}", f"{speed:,.0f}")
        updates.add_row(str(row["processes"]), str(row["devices"]), *times)
    return [reduces, updates]
