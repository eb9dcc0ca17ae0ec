"""What can be learned beyond the chunk, and by which border? Echo, adding, copy, and a language model.

Chunks are shorter than what has to be remembered. Times are seconds of processor time, of all threads together, so that
other programs on the machine do not count.

python -m experiments.09_beyond_the_chunk.run [--quick] [--out FOLDER] [--part echo|quarters|text]
"""

import argparse
import functools
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from experiments import common
from rnnjax.lm.evaluate import evaluate
from rnnjax.lm.model import LanguageModel
from rnnjax.online import Immediate
from rnnjax.online.names import border_from_name
from rnnjax.text.corpus import Chunk, TextOptions, load_corpus, streams

from . import tasks

HERE = pathlib.Path(__file__).resolve().parent
CHUNK, BATCH, HIDDEN = 4, 16, 16  # of the echo
BLUE, ORANGE, GREEN, RED, PURPLE, BROWN, GREY = (f"C{n}" for n in (0, 1, 2, 3, 4, 5, 7))
PARTS = ("echo", "quarters", "text")
COLOURS = dict(
    zip(
        ("cut", "immediate", "look-back", "e-prop", "SnAp-1", "RTRL", "UORO"),
        (BLUE, GREY, GREEN, PURPLE, ORANGE, RED, BROWN),
        strict=True,
    )
)


class Settings(NamedTuple):
    """How long everything takes."""

    lags: tuple[int, ...] = (2, 6, 10, 14)
    updates: int = 2000
    seeds: int = 2
    sequences: int = 800
    length: int = 24
    chunks: tuple[int, ...] = (8, 16, 64)
    steps: int = 9600  # of the language model, at least
    symbols: int = 400_000
    seconds: float = 8.0  # of processor time, in which the language models are compared
    cells: tuple[str, ...] = ("GRU", "minGRU")
    tasks: tuple[str, ...] = ("adding", "copy")
    names: tuple[str, ...] = tuple(COLOURS)


QUICK = Settings((2,), 20, 1, 6, 12, (8,), 64, 20_000, 0.1, ("minGRU",), ("copy",), ("SnAp-1",))


def train(cell: Any, task: str, stream: Any, outputs: int, border: Any, chunk: int, keys: jax.Array) -> Any:
    """The loss of every update, ``[seeds, updates]``, and the processor seconds of one update of one seed."""
    optimizer, loss_fn = tasks.optimizer_of(border), tasks.loss_of(cell, task)

    def one(key: jax.Array) -> jax.Array:
        key_cell, key_out, key_data = jax.random.split(key, 3)
        data = stream(key_data)
        size = data["x"].shape[-1]
        w_out = jax.random.normal(key_out, (cell.hidden_size, outputs)) / cell.hidden_size**0.5
        params = tasks.Params(cell.init(key_cell, size), w_out, jnp.zeros(outputs))
        result = rnnjax.tbptt(
            loss_fn, optimizer, params, optimizer.init(params), cell.initial_state(data["x"].shape[1:2]), data,
            chunk_len=chunk, border=border,
        )  # fmt: skip
        return result.info.loss

    run = jax.jit(jax.vmap(one)).lower(keys).compile()
    began = time.process_time()
    losses = np.asarray(run(keys))
    return losses, (time.process_time() - began) / losses.size


def echoes(options: common.Options, settings: Settings) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in settings.cells:
        cell = {"GRU": rnnjax.GRU(HIDDEN), "minGRU": rnnjax.MinGRU(HIDDEN)}[name]
        for lag in settings.lags:
            keys = jax.random.split(jax.random.fold_in(jax.random.key(options.seed), lag), settings.seeds)
            stream = functools.partial(tasks.echo, steps=settings.updates * CHUNK, batch=BATCH, lag=lag)
            among = tasks.borders(cell, CHUNK * (1 + -(-lag // CHUNK)))
            for border, value in ((border, among[border]) for border in settings.names):
                losses, seconds = train(cell, "echo", stream, 1, value, CHUNK, keys)
                last = losses[:, -max(1, settings.updates // 20) :].mean(axis=1)
                row = {"loss": last.tolist(), "ms_an_update": 1e3 * seconds}
                found.setdefault(name, {}).setdefault(border, {})[str(lag)] = row
                common.say(options, f"echo {name:6} lag {lag:2} {border:9}: {np.round(last, 3)}")
    return found


def quarters(options: common.Options, settings: Settings) -> dict[str, Any]:
    found: dict[str, Any] = {}
    cell, length = rnnjax.GRU(24), settings.length
    for task in settings.tasks:
        outputs = {"adding": 1, "copy": tasks.KINDS}[task]
        make = {"adding": tasks.adding, "copy": tasks.copy}[task]
        stream = functools.partial(make, sequences=settings.sequences, batch=32, length=length)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(options.seed), outputs), settings.seeds)
        asked = {"adding": 1, "copy": tasks.SYMBOLS}[task]
        among = tasks.borders(cell, length)
        for border, value in ((border, among[border]) for border in settings.names):
            losses, seconds = train(cell, task, stream, outputs, value, length // 4, keys)
            # The last chunk of each sequence holds all that is asked; as a share of what remembers nothing.
            last = losses[:, 3::4][:, -max(1, settings.sequences // 20) :].mean(axis=1)
            share = last * (length // 4) / asked / tasks.no_memory(task)
            found.setdefault(task, {})[border] = {"share": share.tolist(), "ms_an_update": 1e3 * seconds}
            common.say(options, f"{task:6} in quarters {border:9}: {np.round(share, 3)}")
    return found


def language(options: common.Options, settings: Settings) -> dict[str, Any]:
    """Validation loss after equal updates, and after equal processor time."""
    corpus = load_corpus(TextOptions(level="char"))
    ids, valid = corpus.train[: settings.symbols], corpus.valid[:20_000]
    model = LanguageModel(len(corpus.vocabulary), rnnjax.Stack((rnnjax.GRU(64),)), embed_size=24)
    rows, found = streams(ids, 8).T.astype(np.int32), {}
    for chunk in settings.chunks:
        back = {8: 64, 16: 64, 64: 128}[chunk]
        spoken = {
            "cut": "cut", "immediate": "immediate", "look-back": f"lookback:{back}", "e-prop": "eprop",
            "SnAp-1": "snap1", "UORO": "uoro",
        }  # fmt: skip
        for label, name in ((label, spoken[label]) for label in settings.names if label in spoken):
            border = border_from_name(name, model.stack, model.read, key=jax.random.key(7))
            curve = _curve(model, border, rows, valid, chunk, settings, options.seed)
            found.setdefault(str(chunk), {})[label] = curve
            common.say(options, f"text, chunks of {chunk:2}, {label:9}: {curve['equal']} {curve['timed']}")
    return found


def _curve(model: Any, border: Any, rows: Any, valid: Any, chunk: int, settings: Settings, seed: int) -> dict[str, Any]:
    rate = 1e-3 if isinstance(border, Immediate) else 4e-3
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.rmsprop(rate, decay=0.99) if isinstance(border, Immediate) else optax.adam(rate),
    )
    params = model.init(jax.random.key(seed))
    opt_state, state, trace = optimizer.init(params), model.initial_state((rows.shape[1],)), None
    part = chunk * max(1, settings.steps // chunk // 10)  # a tenth
    first, losses, seconds, equal, at = True, [], 0.0, None, 0
    while equal is None or seconds < settings.seconds:
        if at + part + 1 > len(rows):
            at, state, trace = 0, model.initial_state((rows.shape[1],)), None
        stream = Chunk(rows[at : at + part], rows[at + 1 : at + part + 1])
        arrays = (params, opt_state, state, stream)
        if first or trace is None:  # compiled beside the clock
            jax.block_until_ready(
                rnnjax.tbptt(model.loss, optimizer, *arrays, chunk_len=chunk, border=border, trace=trace)
            )
        began = time.process_time()
        result = rnnjax.tbptt(model.loss, optimizer, *arrays, chunk_len=chunk, border=border, trace=trace)
        jax.block_until_ready(result)
        seconds += time.process_time() - began
        first = first and trace is None and result.trace is not None
        params, opt_state, state, _, trace = result
        at += part
        losses.append([len(losses) + 1, seconds])
        if len(losses) == 10:
            equal = evaluate(model, params, valid, streams=16).loss
    return {
        "equal": equal,
        "timed": evaluate(model, params, valid, streams=16).loss,
        "updates": settings.steps // chunk,
        "ms_an_update": 1e3 * seconds / (len(losses) * (part // chunk)),
        "updates_in_time": len(losses) * (part // chunk),
    }


def picture(result: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    echo, tasks_here, text = (result.get(part, {}) for part in PARTS)
    panels = len(echo) + bool(tasks_here) + 2 * bool(text)
    rows = -(-panels // 3)
    figure = Figure(figsize=(11, 0.4 + 3 * rows), layout="constrained")
    axes = list(figure.subplots(rows, 3, squeeze=False).flat)
    for ax in axes[panels:]:
        ax.axis("off")
    marks = [Line2D([], [], marker="o", ms=3, label=border, color=colour) for border, colour in COLOURS.items()]
    figure.legend(handles=marks, fontsize=8, frameon=False, loc="outside upper center", ncols=len(marks))
    for name, found in echo.items():
        ax = axes.pop(0)
        for border, by_lag in found.items():
            losses = [np.median(by_lag[lag]["loss"]) for lag in by_lag]
            ax.plot([int(lag) for lag in by_lag], losses, marker="o", ms=3, label=border, color=COLOURS[border])
        ax.axhline(np.log(2), color="#888888", linewidth=0.8, linestyle="--")
        ax.axvline(CHUNK, color="#cccccc", linewidth=0.8)
        ax.set(title=f"echo, {name}, chunks of {CHUNK}", xlabel="lag [steps]", ylabel="loss at the end [nats]")
    if tasks_here:
        ax = axes.pop(0)
        for place, task in enumerate(tasks_here):
            for n, (border, row) in enumerate(tasks_here[task].items()):
                ax.bar(place + 0.12 * (n - 3), np.median(row["share"]), 0.11, color=COLOURS[border])
        ax.set_xticks(range(len(tasks_here)), list(tasks_here))
        ax.set(title="chunks of a quarter", ylabel="share of the loss without memory")
    for kind, title in (("equal", "text, equal updates"), ("timed", "text, equal time")) if text else ():
        ax = axes.pop(0)
        for border in next(iter(text.values())):
            ax.plot(
                [int(c) for c in text], [text[c][border][kind] for c in text], marker="o", ms=3, color=COLOURS[border]
            )
        ax.set_xscale("log", base=2)
        ax.set_xticks([int(c) for c in text], list(text))
        ax.set(title=title, xlabel="steps of a chunk", ylabel="validation loss [nats]")
    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--part", choices=PARTS, help="one of the three; the others stay in result.json as they are"
        )

    options = common.parse(argv, here=HERE, doc=__doc__, add=add)
    settings = QUICK if options.quick else Settings()
    path = options.out / "result.json"
    known = json.loads(path.read_text(encoding="utf-8")).get(options.dataset, {}) if path.is_file() else {}
    result = {
        "question": "What can be learned beyond the chunk, and by which border?",
        "settings": {**settings._asdict(), "chunk": CHUNK, "batch": BATCH, "hidden": HIDDEN},
        **{part: known[part] for part in PARTS if part in known and not options.quick},
    }
    for part, measure in zip(PARTS, (echoes, quarters, language), strict=True):
        if options.extra["part"] in (None, part):
            result[part] = measure(options, settings)
            common.finish(options, result, {"beyond_the_chunk.png": picture(result)})


if __name__ == "__main__":
    common.run(main)
