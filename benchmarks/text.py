"""``python -m benchmarks text``: how long a large text takes to open, and how much memory it needs until it trains.

The text is the source of Python's standard library, its files in one random order after another until it is long
enough. Every measurement is a process of its own, whose memory is looked at a hundred times a second: what it has
allocated for itself (``RssAnon``) apart from the pages of files that it has mapped, which the system takes back when
somebody needs the room.
"""

import contextlib
import json
import os
import pathlib
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from typing import Annotated, Any

import typer

from benchmarks.provenance import provenance
from benchmarks.report import line
from benchmarks.results_file import write_json

__all__ = ["make_text", "text_command", "text_table"]

_HERE = pathlib.Path(__file__).resolve().parent.parent
SMALL = 1_000_000  # bytes of the text that others are compared with


def make_text(path: pathlib.Path, size: int) -> None:
    """Writes a text of so many bytes."""
    from rnnjax.text.sources import stdlib_files

    pieces = [file.read_bytes() for file in stdlib_files()]
    rng, left = random.Random(0), size
    with path.open("wb") as file:
        while left > 0:
            rng.shuffle(pieces)
            for piece in pieces:
                file.write(piece[:left])
                left -= len(piece[:left])


def text_command(
    megabytes: Annotated[str, typer.Option(help="Sizes of texts, separated by commas.")] = "100,1000",
    levels: Annotated[str, typer.Option(help="Of char, byte and word, separated by commas.")] = "char,byte,word",
    steps: Annotated[int, typer.Option(help="Updates of the training that is measured too.", min=1)] = 200,
    folder: Annotated[
        pathlib.Path | None, typer.Option(help="For texts and ids, removed afterwards. None: a temporary one.")
    ] = None,
    out: Annotated[pathlib.Path | None, typer.Option(help="Where to write the results, as JSON.")] = None,
) -> None:
    """Opening large texts and training on them: time, and memory beyond that of a small text."""
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    found: dict[str, Any] = {"provenance": provenance(), "command": command, "texts": []}
    with tempfile.TemporaryDirectory(prefix="rnnjax-text-", dir=folder) as place:
        text, cache = pathlib.Path(place, "text.txt"), pathlib.Path(place, "cache")
        for size in [SMALL, *(int(float(part) * 1e6) for part in megabytes.split(","))]:
            make_text(text, size)
            for level in levels.split(","):
                for visit in ("first", "again"):
                    found_now = _child(text, level, steps if visit == "first" else 0, cache)
                    row = {"bytes": size, "level": level, "visit": visit, **found_now}
                    found["texts"].append(row)
                    typer.echo(json.dumps(row))
                if out is not None:
                    write_json(out, found)
                shutil.rmtree(cache, ignore_errors=True)
    typer.echo(text_table(found))


def text_table(document: dict[str, Any]) -> str:
    """The rows in Markdown; memory is what a process allocates beyond one that reads the small text."""
    rows = document["texts"]
    small = {row["level"]: row for row in rows if row["bytes"] == SMALL and row["visit"] == "first"}
    head = (
        "text, MB", "level", "symbols", "opens, s", "CPU s", "MB a CPU second", "opens again, s", "to open, MB",
        "to train, MB", "pages of files, MB",
    )  # fmt: skip
    lines = [line(head), line(["---"] * len(head))]
    for first, again in zip(rows[::2], rows[1::2], strict=True):
        size, base = first["bytes"] / 1e6, small[first["level"]]
        if first["bytes"] != SMALL:
            more = [max(0.0, first[name] - base[name]) / 1e6 for name in ("open_anon", "train_anon")]
            lines.append(
                line(
                    [
                        f"{size:,.0f}", first["level"], f"{first['vocabulary']:,}", f"{first['seconds']:.1f}",
                        f"{first['cpu']:.1f}", f"{size / first['cpu']:.0f}", f"{again['seconds']:.3f}",
                        *(f"{one:.0f}" for one in more),
                        f"{max(0, first['train_file'] - base['train_file']) / 1e6:.0f}",
                    ]
                )
            )  # fmt: skip
    return "\n".join(lines)


def _child(text: pathlib.Path, level: str, steps: int, cache: pathlib.Path) -> dict[str, Any]:
    environment = os.environ | {"RNNJAX_TEXT_CACHE": str(cache), "JAX_PLATFORMS": "cpu"}
    words = [sys.executable, "-m", "benchmarks.text", str(text), level, str(steps)]
    ended = subprocess.run(words, cwd=_HERE, env=environment, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


class _Watch(threading.Thread):
    """The most memory that this process has had at a time, by kind, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = {"anon": 0, "file": 0}

    def run(self) -> None:
        while True:
            for said in pathlib.Path("/proc/self/status").read_text().splitlines():
                for name, word in (("anon", "RssAnon:"), ("file", "RssFile:")):
                    if said.startswith(word):
                        self.most[name] = max(self.most[name], 1024 * int(said.split()[1]))
            time.sleep(0.02)


def _measure_here(text: str, level: str, steps: int) -> None:
    from rnnjax.cli.options import PRESETS
    from rnnjax.fit.optimizers import OptimizerOptions
    from rnnjax.lm.options import BudgetOptions, ModelOptions, RunConfig, TrainOptions
    from rnnjax.lm.run import RunPaths
    from rnnjax.lm.train import train
    from rnnjax.text.corpus import TextOptions, load_corpus

    assert PRESETS  # the command line is imported as well
    # Of words, those that are frequent, as many in a long text as in a short one: a large table of them would be most
    # of what is measured.
    often = 20 * pathlib.Path(text).stat().st_size // SMALL
    options = TextOptions((text,), level=level, min_count=often if level == "word" else 1)
    load_corpus(TextOptions((__file__,), level=level))  # codecs and the like
    watch = _Watch()
    watch.start()
    begin, cpu = time.perf_counter(), time.process_time()
    corpus = load_corpus(options)
    found: dict[str, Any] = {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - cpu}
    found |= {f"open_{name}": value for name, value in watch.most.items()}
    config = RunConfig(
        options,
        ModelOptions(hidden=64, embed=32),
        OptimizerOptions(),
        TrainOptions(evals=2, baselines=False, sample_length=50),
        BudgetOptions(steps=max(steps, 1)),
    )
    with tempfile.TemporaryDirectory() if steps else contextlib.nullcontext() as folder:
        short = corpus._replace(valid=corpus.valid[:50_000], test=corpus.test[:0])
        if folder is not None:
            train(config, RunPaths(pathlib.Path(folder)), short)
    found |= {f"train_{name}": value for name, value in watch.most.items()}
    found |= {"n_symbols": corpus.n_symbols, "vocabulary": len(corpus.vocabulary)}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    _measure_here(sys.argv[1], sys.argv[2], int(sys.argv[3]))
