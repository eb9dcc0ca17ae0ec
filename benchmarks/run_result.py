"""``python -m benchmarks.run_result RUN OUT COMMAND``: the result file of a trained run, with its provenance."""

import json
import pathlib
from typing import Annotated

import typer

from benchmarks.provenance import provenance
from rnnjax.lm.plots import read_metrics
from rnnjax.lm.run import read_config


def main(
    run: Annotated[pathlib.Path, typer.Argument(help="Folder of the run.")],
    out: Annotated[pathlib.Path, typer.Argument(help="Where to write the result.")],
    command: Annotated[str, typer.Argument(help="The command that made the run.")],
) -> None:
    """Condense a run to what a table needs: options, validation curve, final losses, baselines, hardware."""
    paths, config, of_run, _ = read_config(run)
    rows = read_metrics(paths.metrics)
    trained = [row for row in rows if row["kind"] == "train"]
    result = {
        "command": command,
        "provenance": provenance(),
        "text": {key: of_run[key] for key in ("n_symbols", "n_bytes", "sha256")},
        "options": {group: config.to_json()[group] for group in ("model", "optimizer", "train", "budget")},
        "baselines": json.loads(paths.baselines.read_text())["nats"] if paths.baselines.is_file() else None,
        "validation": [{key: r[key] for key in ("seconds", "step", "val_loss")} for r in rows if r["kind"] == "eval"],
        "characters_per_second_median": sorted(row["symbols_per_second"] for row in trained)[len(trained) // 2],
        "done": next((row for row in reversed(rows) if row["kind"] == "done"), None),
    }
    out.write_text(json.dumps(result, indent=1) + "\n")
    typer.echo(f"{out}: {result['done']}")


if __name__ == "__main__":
    typer.run(main)
