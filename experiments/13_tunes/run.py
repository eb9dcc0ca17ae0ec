"""Does a network that only ever saw letters know that a bar of 6/8 holds six eighths? Folk tunes as text.

O'Neill's, Ryan's and Aird's collections in ABC notation, from the package music21 (pip install music21), are one text;
`rnnjax train` learns it, and the bars of what it writes are counted. With --quick, a made tune shows that it runs.

python -m experiments.13_tunes.run [--quick] [--out FOLDER] [--seed N]
"""

import collections
import contextlib
import importlib.util
import io
import json
import pathlib
import tempfile
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments import common
from rnnjax import cli

from . import abc

HERE = pathlib.Path(__file__).resolve().parent
FOLDERS = ("oneills1850", "ryansMammoth", "airdsAirs")


class Settings(NamedTuple):
    """How long everything takes."""

    hidden: int = 256
    steps: int = 400
    chunk_len: int = 128
    batch_size: int = 32
    order: int = 8  # of the n-gram
    length: int = 20_000  # characters that each writes
    temperatures: tuple[float, ...] = (1.0, 0.7)


QUICK = Settings(hidden=8, steps=2, chunk_len=16, batch_size=4, order=3, length=200, temperatures=(1.0,))


def corpus_folder() -> pathlib.Path:
    """The collections of music21; nothing of it is imported.

    Raises:
        ValueError: if it is not installed.
    """
    found = importlib.util.find_spec("music21")
    for root in found.submodule_search_locations if found and found.submodule_search_locations else ():
        folder = pathlib.Path(root) / "corpus"
        if all((folder / name).is_dir() for name in FOLDERS):
            return folder
    raise ValueError(
        "13_tunes: the tunes are in the package music21, which is not installed; pip install music21, or --quick."
    )


def tunes(quick: bool, seed: int) -> list[str]:
    """All of them, in a random order."""
    if quick:
        found = [f"T:Made {n}\nM:2/4\nL:1/8\nK:G\n|{'GABc|d2cB|' * 8}\n" for n in range(20)]
    else:
        found = [tune for name in FOLDERS for tune in abc.read(corpus_folder() / name)]
    return [found[n] for n in np.random.default_rng(seed).permutation(len(found))]


class NGram:
    """Interpolated Witten-Bell of characters, to draw from (Witten and Bell, 1991): the longest context first.

    With the share that its different successors have, the next shorter context decides; 1 / V at the end.
    """

    def __init__(self, text: str, order: int) -> None:
        self.order, self.symbols = order, sorted(set(text))
        self.counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for size in range(order):
            for t in range(size, len(text)):
                self.counts[text[t - size : t]][text[t]] += 1

    def write(self, length: int, seed: int, start: str = "\n\n") -> str:
        draw, written = np.random.default_rng(seed), start
        while len(written) < length + len(start):
            written += self._next(written, draw)
        return written[len(start) :]

    def _next(self, written: str, draw: np.random.Generator) -> str:
        for size in range(min(self.order - 1, len(written)), -1, -1):
            counts = self.counts.get(written[len(written) - size :])
            if counts and draw.random() * (counts.total() + len(counts)) < counts.total():
                at = draw.integers(counts.total())
                for symbol, count in counts.items():
                    at -= count
                    if at < 0:
                        return symbol
        return self.symbols[draw.integers(len(self.symbols))]


def parses(tune: str) -> bool:
    """Whether music21 reads it and finds notes."""
    from music21 import converter
    from music21.exceptions21 import Music21Exception

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return bool(converter.parse("X:1\n" + tune, format="abc").recurse().notes)
    except (Music21Exception, ValueError, TypeError, KeyError, IndexError, AttributeError, ZeroDivisionError):
        return False  # what a parser raises for notation that is none depends on where it stumbles


def judge(text: str, quick: bool) -> dict[str, Any]:
    """Whole tunes of a text: how many parse, and how many of their bars are full."""
    found = abc.split(text)[1:-1]  # the first begins, and the last ends anywhere
    counted = [abc.bars(tune) for tune in found]
    bars = sum(one.count for one in counted)
    known = importlib.util.find_spec("music21") is not None and not quick
    return {
        "tunes": len(found),
        "bars": bars,
        "valid_bars": sum(one.valid for one in counted) / max(bars, 1),
        "parse": float(np.mean([parses(tune) for tune in found])) if known and found else None,
    }


def rnnjax(*words: Any) -> str:
    """What the command line prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            cli.main([str(word) for word in words])
        except SystemExit as ended:
            if ended.code:
                raise ValueError(f"13_tunes: rnnjax {words[0]} ended with exit code {ended.code}.") from ended
    return said.getvalue()


def picture(found: dict[str, dict[str, Any]]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.9 + 0.5 * len(found)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(found))[::-1]
    colors = ["#0072B2" if name.startswith("network") else "#AAAAAA" for name in found]
    axes.barh(places, [100 * row["valid_bars"] for row in found.values()], color=colors)
    for place, row in zip(places, found.values()):
        axes.text(100 * row["valid_bars"], place, f" {100 * row['valid_bars']:.1f} %", va="center")
    axes.set_yticks(places, list(found))
    axes.set(xlim=(0, 112), xlabel="full bars that last as long as the metre says [%]")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    options = common.parse(argv, here=HERE, doc=__doc__)
    settings = QUICK if options.quick else Settings()
    known = tunes(options.quick, options.seed)
    text = "\n".join(known)
    common.say(options, f"{len(known)} tunes, {len(text):,} characters")
    with tempfile.TemporaryDirectory() as folder:
        source, run = pathlib.Path(folder) / "tunes.txt", pathlib.Path(folder) / "run"
        source.write_text(text, encoding="utf-8")
        rnnjax(
            "train", source, "--out", run, "--hidden", settings.hidden, "--steps", settings.steps, "--lr", 0.004,
            "--chunk-len", settings.chunk_len, "--batch-size", settings.batch_size, "--no-baselines", "--seed",
            options.seed, *(["--fractions", "0.6,0.2,0.2"] if options.quick else []),
        )  # fmt: skip
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        loss = min(row["val_loss"] for row in rows if row["kind"] == "eval")
        common.say(options, f"trained, validation loss {loss:.3f} nats a character")
        written = {
            f"network, temperature {one:g}": rnnjax(
                "sample", run, "--length", settings.length, "--seed", options.seed, "--temperature", one
            )
            for one in settings.temperatures
        }
    train = text[: int(0.9 * len(text))]
    written[f"{settings.order}-gram"] = NGram(train, settings.order).write(settings.length, options.seed)
    found = {name: judge(one, options.quick) for name, one in written.items()}
    found["the collections"] = judge("\n".join(["", *known[: len(known) // 10], ""]), options.quick)
    for name, row in found.items():
        common.say(options, f"{name:26} {row}")
    first = next(iter(written.values()))
    example = max(abc.split(first)[1:-1] or [first], key=lambda tune: abc.bars(tune).valid)
    result = {
        "question": "Does a network that only ever saw letters know how long a bar is?",
        "data": "made" if options.quick else "ABC collections of music21",
        "settings": settings._asdict(),
        "tunes": len(known),
        "characters": len(text),
        "validation_loss": loss,
        "written": found,
        "example": example,
    }
    common.finish(options, result, {"tunes.png": picture(found)})


if __name__ == "__main__":
    common.run(main)
