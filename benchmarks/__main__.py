"""``python -m benchmarks``: measures on this machine and writes a result file with its provenance."""

import json
import pathlib
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import lm
from benchmarks.provenance import provenance


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds, about a minute.")] = False,
    out: Annotated[pathlib.Path | None, typer.Option(help="Where to write the results as JSON.")] = None,
) -> None:
    """Training speed of the language model against torch, and sampling speed. Keep the machine quiet meanwhile."""
    rows = lm.training_speed(rounds=5 if quick else 21, burst_seconds=0.5 if quick else 2.0)
    sampling = lm.sampling_speed()
    result = {
        "command": "python -m benchmarks" + (" --quick" if quick else ""),
        "provenance": provenance(),
        "training": rows,
        "sampling": sampling,
    }
    console = Console()
    table = Table("LSTM language model, training", "rnnjax char/s", "torch char/s", "ratio")
    for row in rows:
        cells = [
            f"{row[who]['characters_per_second']:,} ({row[who]['quartiles'][0]:,}-{row[who]['quartiles'][1]:,})"
            if who in row
            else "not installed"
            for who in ("rnnjax", "torch")
        ]
        table.add_row(row["configuration"], *cells, str(row.get("ratio", "")))
    console.print(table)
    drawn = f"{sampling['characters']:,} characters from {sampling['configuration']}"
    console.print(f"sampling {drawn}: {sampling['seconds']} s")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")
        console.print(f"written to {out}")


if __name__ == "__main__":
    typer.run(main)
