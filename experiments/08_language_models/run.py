"""Which cell, and how deep? Language models with equally many parameters, of characters and of words.

Every model has the same number of parameters (within 2 %), reads the same text in the same order for the same number of
updates, and has the same optimizer; what differs is the cell, the depth, and the width that follows from both.

python -m experiments.08_language_models.run [--quick] [--data FOLDER] [--out FOLDER] [--seed N]
"""

import json
import math
import pathlib
import statistics
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments import common
from rnnjax.fit.optimizers import OptimizerOptions
from rnnjax.lm.baselines import unigram, witten_bell
from rnnjax.lm.options import BudgetOptions, ModelOptions, RunConfig, TrainOptions
from rnnjax.lm.run import RunPaths
from rnnjax.lm.train import train
from rnnjax.text.corpus import Corpus, TextOptions, load_corpus

from . import models

HERE = pathlib.Path(__file__).resolve().parent
DATASETS = {"tinyshakespeare": "input.txt, a million characters of plays"}
COLORS = {"Elman": "#D55E00", "LSTM": "#0072B2", "GRU": "#009E73", "minGRU": "#CC79A7", "LRU": "#E69F00"}


class Level(NamedTuple):
    """What differs between characters and words."""

    name: str
    min_count: int  # rarer symbols become one, the unknown
    embed: int
    parameters: int
    batch_size: int
    steps: int
    order: int  # of the n-gram model beside it


class Settings(NamedTuple):
    """How long everything takes."""

    levels: tuple[Level, ...] = (
        Level("char", 1, embed=64, parameters=200_000, batch_size=32, steps=500, order=5),
        Level("word", 30, embed=64, parameters=300_000, batch_size=8, steps=900, order=3),
    )
    cells: tuple[str, ...] = tuple(models.CELLS)
    depths: tuple[int, ...] = (1, 2, 3)
    lr: float = 8e-3
    chunk_len: int = 64
    evals: int = 5
    eval_symbols: int = 20_000
    text_symbols: int | None = None


QUICK = Settings(
    levels=(Level("char", 1, embed=8, parameters=3000, batch_size=2, steps=2, order=2),),
    cells=("LSTM",),
    depths=(1,),
    chunk_len=8,
    evals=1,
    eval_symbols=200,
    text_symbols=2000,
)


def read_text(options: common.Options, level: Level, settings: Settings) -> Corpus:
    """The text of the run, at a level."""
    paths: tuple[str, ...] = ()
    fractions = (0.9, 0.05, 0.05)
    if options.data is not None:
        path = options.data / "input.txt"
        if not path.is_file():
            raise common.DataError(path, None, "the text must be in this file, which is missing")
        if not path.read_text(encoding="utf-8").strip():
            raise common.DataError(path, None, "must hold text, got an empty file")
        paths, fractions = (str(path),), (0.9, 0.1, 0.0)  # the split that others report on
    corpus = load_corpus(TextOptions(paths=paths, level=level.name, min_count=level.min_count, fractions=fractions))
    if settings.text_symbols is None:
        return corpus
    n = settings.text_symbols
    return corpus._replace(train=corpus.train[:n], valid=corpus.valid[: n // 4], test=corpus.test[: n // 4])


def baselines(corpus: Corpus, level: Level) -> dict[str, float]:
    """What models without a network reach, in nats a symbol of the validation text."""
    size = len(corpus.vocabulary)
    return {
        "unigram": unigram(corpus.train, corpus.valid, size),
        f"{level.order}-gram": witten_bell(corpus.train, corpus.valid, size, level.order),
    }


def train_model(
    model: ModelOptions, corpus: Corpus, level: Level, settings: Settings, text: TextOptions, seed: int
) -> dict[str, Any]:
    """Trains one model: its losses, its speed, and its curve."""
    config = RunConfig(
        text,
        model,
        OptimizerOptions(lr=settings.lr, warmup=0.05),
        TrainOptions(
            batch_size=level.batch_size,
            chunk_len=settings.chunk_len,
            seed=seed,
            evals=settings.evals,
            eval_symbols=settings.eval_symbols,
            sample_length=0,
        ),
        BudgetOptions(steps=level.steps),
    )
    with tempfile.TemporaryDirectory() as folder:
        paths = RunPaths(pathlib.Path(folder))
        outcome = train(config, paths, corpus)
        rows = [json.loads(line) for line in paths.metrics.read_text().splitlines()]
    speeds = [row["symbols_per_second"] for row in rows if row["kind"] == "train"]
    curve = [(row["symbols"], row["val_loss"]) for row in rows if row["kind"] == "eval"]
    return {
        "valid_nats": outcome.valid_loss,
        "valid_bits": outcome.valid_loss / math.log(2),
        "test_nats": outcome.test_loss,
        "symbols_per_second": statistics.median(speeds[1:] or speeds),  # the first interval compiles
        "minutes": rows[-1]["seconds"] / 60,
        "rollbacks": sum(row["kind"] == "rollback" for row in rows),
        "curve": curve,
    }


def run_level(options: common.Options, level: Level, settings: Settings) -> dict[str, Any]:
    """All models of one level."""
    corpus = read_text(options, level, settings)
    size = len(corpus.vocabulary)
    found: dict[str, Any] = {
        "vocabulary": size,
        "train_symbols": len(corpus.train),
        "valid_symbols": len(corpus.valid),
        "baselines": baselines(corpus, level),
        "models": [],
    }
    if corpus.vocabulary.unknown is not None:
        found["unknown_share"] = float((corpus.valid == corpus.vocabulary.unknown).mean())
    lines = ", ".join(f"{name} {loss:.3f}" for name, loss in found["baselines"].items())
    common.say(options, f"{level.name}: {size} symbols, {len(corpus.train)} to train on; {lines} nats")
    text = TextOptions(level=level.name, min_count=level.min_count)
    for depth in settings.depths:
        for cell in settings.cells:
            model, parameters = models.same_size(
                cell, depth, embed=level.embed, vocab_size=size, target=level.parameters
            )
            row = {"cell": cell, "layers": depth, "hidden": model.hidden, "parameters": parameters}
            row |= train_model(model, corpus, level, settings, text, options.seed)
            found["models"].append(row)
            common.say(
                options,
                f"{level.name} {cell:6} {depth} x {model.hidden:3}, {parameters} parameters: {row['valid_nats']:.3f} "
                f"nats, {row['symbols_per_second']:.0f} symbols/s, {row['minutes']:.2f} minutes",
            )
    return found


def picture(levels: dict[str, Any]):
    """A row a level: loss by depth, the curves of one depth, and loss against speed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.6 * len(levels)), layout="constrained")
    for (name, found), row in zip(levels.items(), figure.subplots(len(levels), 3, squeeze=False)):
        by_depth, curves, speed = row
        depths = sorted({model["layers"] for model in found["models"]})
        for cell, color in COLORS.items():
            of_cell = [model for model in found["models"] if model["cell"] == cell]
            if not of_cell:
                continue
            losses = [model["valid_nats"] for model in of_cell]
            by_depth.plot([model["layers"] for model in of_cell], losses, "o-", color=color)
            best = min(of_cell, key=lambda model: model["valid_nats"])
            symbols, values = zip(*best["curve"])
            label = f"{cell}, best {best['layers']} x {best['hidden']}"
            curves.plot([count / 1e6 for count in symbols], values, ".-", color=color, label=label)
            for model in of_cell:
                at = (model["symbols_per_second"] / 1000, model["valid_nats"])
                speed.plot(*at, "o", color=color)
                speed.annotate(str(model["layers"]), at, xytext=(5, 3), textcoords="offset points", fontsize=8)
        order, line = next((key, value) for key, value in found["baselines"].items() if key != "unigram")
        for axes in row:
            axes.axhline(line, color="#555555", linestyle=":", linewidth=1, label=f"{order} model")
            axes.set_ylabel(f"validation, nats a {'character' if name == 'char' else 'word'}")
            axes.grid(color="#eeeeee", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_axisbelow(True)
        entries = curves.get_legend_handles_labels()  # one legend for the row, beside what it would hide
        speed.legend(*entries, fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.02, 1.0))
        millions = f"{found['models'][0]['parameters'] / 1e6:.1f} million parameters"
        by_depth.set(xlabel="layers", xticks=depths, title=f"{name} level, {millions}")
        curves.set(xlabel="symbols read, millions", title="best depth of each cell, while it trains")
        speed.set(xlabel="thousand symbols trained a second", title="loss and speed (number: layers)")
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    options = common.parse(argv, here=HERE, doc=__doc__, datasets=DATASETS)
    settings = QUICK if options.quick else Settings()
    if options.data is not None and not options.quick:  # words are fewer and rarer in a million characters
        char, word = settings.levels
        levels = (char, word._replace(min_count=15, steps=700))
        settings = settings._replace(levels=levels)
    levels = {level.name: run_level(options, level, settings) for level in settings.levels}
    result = {
        "question": "Which cell and which depth models a text best with equally many parameters and updates?",
        "settings": {**settings._asdict(), "levels": [level._asdict() for level in settings.levels]},
        "levels": levels,
    }
    suffix = "" if options.data is None else f"_{options.dataset}"
    common.finish(options, result, {f"language_models{suffix}.png": picture(levels)})


if __name__ == "__main__":
    common.run(main)
