"""``rnnjax train``: options in, a run's folder out."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import json
import math
import os
import signal
import threading
from collections.abc import Iterator
from typing import Annotated, Any

import jax
import typer
from rich.console import Console

from rnnjax.cells import CELLS
from rnnjax.cli.display import Display, nats
from rnnjax.cli.options import TrustCode
from rnnjax.cli.presets import PRESETS
from rnnjax.cli.start import DEFAULT_MINUTES, Started, begin, go_on
from rnnjax.files import write_json
from rnnjax.fit.checkpoint import best, find_checkpoints
from rnnjax.fit.optimizers import OptimizerOptions
from rnnjax.fit.printer import duration
from rnnjax.lm.baselines import compute_baselines
from rnnjax.lm.options import ModelOptions, TrainOptions
from rnnjax.lm.plots import loss_curve, read_metrics
from rnnjax.lm.run import RunPaths, make_model
from rnnjax.lm.train import Outcome
from rnnjax.lm.train import train as run_training
from rnnjax.text import corpus as corpora
from rnnjax.text.corpus import Corpus

__all__ = ["train"]

_CELL_HELP = f"{', '.join(sorted(CELLS.keys() - {'conv_lstm'}))}; with options: elman(activation=relu); file.py:Cell."
BASELINE_SYMBOLS = 8_000_000  # they take more memory than the text from there on


_budget = functools.partial(typer.Option, rich_help_panel="Budget, one of")
_text = functools.partial(typer.Option, rich_help_panel="Text")
_model = functools.partial(typer.Option, rich_help_panel="Model")
_optimizer = functools.partial(typer.Option, rich_help_panel="Optimizer")
_feed = functools.partial(typer.Option, rich_help_panel="Training")
_watch = functools.partial(typer.Option, rich_help_panel="What is looked at")


def _default(group: Any, name: str) -> Any:
    return {field.name: field.default for field in dataclasses.fields(group)}[name]


def train(
    context: typer.Context,
    text: Annotated[
        list[str] | None,
        typer.Argument(help="Files (also gzip), folders, - for standard input. None: Python's standard library."),
    ] = None,
    out: Annotated[str | None, typer.Option(help="Folder of the run; by default runs/ and the time.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the run there, at the first checkpoint.")] = False,
    resume: Annotated[
        str | None,
        typer.Option(
            help="Folder of a run to go on with, where it stopped. A larger budget stretches the schedule of the "
            "learning rate over the whole."
        ),
    ] = None,
    trust_code: TrustCode = False,
    preset: Annotated[str | None, typer.Option(help=f"Start from these options: {', '.join(PRESETS)}.")] = None,
    steps: Annotated[int | None, _budget(help="Budget: updates.")] = None,
    epochs: Annotated[float | None, _budget(help="Budget: passes through the training text.")] = None,
    minutes: Annotated[
        float | None, _budget(help=f"Budget: minutes in all; {DEFAULT_MINUTES:g} if no budget is given.")
    ] = None,
    level: Annotated[str, _text(help="Symbols of the text: char, byte or word.")] = "char",
    min_count: Annotated[int, _text(help="Rarer symbols become the unknown symbol.")] = 1,
    encoding: Annotated[str, _text(help="Encoding of the text.")] = "utf-8",
    glob: Annotated[str, _text(help="Which files of a folder, for example '*.txt'.")] = "*",
    split: Annotated[str, _text(help="tail: one after the other; columns: spread through the text.")] = "tail",
    fractions: Annotated[str, _text(help="Shares of train, validation and test.")] = "0.9,0.05,0.05",
    document_separator: Annotated[
        str | None, _text(help="Text between documents; the state is reset after it. \\n stands for a newline.")
    ] = None,
    cell: Annotated[str, _model(help=_CELL_HELP)] = "lstm",
    layers: Annotated[int, _model(help="Layers.")] = _default(ModelOptions, "layers"),
    hidden: Annotated[int, _model(help="Units a layer.")] = _default(ModelOptions, "hidden"),
    embed: Annotated[int, _model(help="Size of the embedding; 0: one-hot; -1: 128, or 256 from 257 symbols on.")] = -1,
    tie: Annotated[bool, _model("--tie", help="Use the embedding's weights for the output too.")] = False,
    dropout: Annotated[float, _model(help="Dropout rate on embedding, between layers and on the output.")] = 0.0,
    dtype: Annotated[str, _model(help="Of the matmuls: float32 or bfloat16.")] = "float32",
    optimizer: Annotated[str, _optimizer(help="adamw, rmsprop, sgd or adagrad.")] = "adamw",
    lr: Annotated[float, _optimizer(help="Peak learning rate.")] = _default(OptimizerOptions, "lr"),
    schedule: Annotated[str, _optimizer(help="After the warm-up: cosine, constant, step or plateau.")] = "cosine",
    warmup: Annotated[float, _optimizer(help="Share of the budget over which the rate rises.")] = 0.02,
    decay: Annotated[float, _optimizer(help="Factor of step (each epoch) and plateau (each bad evaluation).")] = 0.97,
    decay_from: Annotated[int, _optimizer(help="First epoch at which step lowers the rate.")] = 10,
    clip: Annotated[float, _optimizer(help="Bound on the gradient; 0: none.")] = 1.0,
    clip_by: Annotated[str, _optimizer(help="norm: the global norm; value: each element.")] = "norm",
    weight_decay: Annotated[float, _optimizer(help="Decoupled decay of the matrices.")] = 0.0,
    batch_size: Annotated[int, _feed(help="Parallel streams of text.")] = _default(TrainOptions, "batch_size"),
    chunk_len: Annotated[int, _feed(help="Symbols between updates, and as far as gradients reach back.")] = 64,
    seed: Annotated[int, _feed(help="Of initialisation, dropout and samples.")] = 0,
    devices: Annotated[
        int, _feed(help="That share the batch; 0: on a CPU one a core, up to 4 with 8 streams each or more; else 1.")
    ] = 0,
    log_every: Annotated[int, _watch(help="Updates between lines of metrics.")] = 20,
    evals: Annotated[int, _watch(help="Evaluations, each with a checkpoint and a sample, over the budget.")] = 20,
    eval_symbols: Annotated[int, _watch(help="Validation symbols used while training; 0: all.")] = 100_000,
    patience: Annotated[int, _watch(help="Stop after so many evaluations without a new best; 0: never.")] = 0,
    sample_length: Annotated[int, _watch(help="Symbols of the samples while training.")] = 300,
    baselines: Annotated[
        bool | None, _watch(help="N-gram and xz losses of the same split; by default up to 8 million symbols.")
    ] = None,
    tensorboard: Annotated[bool, _watch("--tensorboard", help="Also log to RUN/tensorboard.")] = False,
) -> None:
    """Train a language model on text.

    A run folder holds the options, metrics (JSON lines), the best and the last checkpoint, samples, and a picture
    of the losses. Ctrl-C saves and says how to go on.

    [bold]rnnjax train[/bold]                                  five minutes on Python's standard library
    [bold]rnnjax train book.txt --out runs/book --minutes 30[/bold]
    [bold]rnnjax train --resume runs/book --minutes 60[/bold]
    """
    values = {k: v for k, v in locals().items() if k != "context"}
    given = {k for k in values if getattr(context.get_parameter_source(k), "name", "") == "COMMANDLINE"}
    if document_separator is not None:
        values["document_separator"] = document_separator.replace("\\n", "\n").replace("\\t", "\t")
    console = Console(highlight=False)
    if tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise ValueError("--tensorboard: tensorboardX is not installed; pip install 'rnnjax[tensorboard]'.")
    with contextlib.ExitStack() as stack:
        started = begin(values, given, stack) if resume is None else go_on(resume, values, given, stack)
        _train(started, console, resume is not None, tensorboard)


def _train(started: Started, console: Console, resume: bool, tensorboard: bool) -> None:
    paths, config, corpus, provenance = started[:4]
    model = make_model(config.model, len(corpus.vocabulary))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))))
    steps_per_epoch = corpora.num_chunks(corpora.streams(corpus.train, config.train.batch_size), config.train.chunk_len)
    saved = find_checkpoints(paths.checkpoints)
    so_far = best(saved) if saved else None
    with Display(console, paths.log, config.budget, steps_per_epoch) as display:
        if so_far is not None:
            display.best = so_far.val_loss, so_far.step
        display.say(
            f"{corpus.sources}: {corpus.n_symbols:,} {config.text.level}s, {len(corpus.vocabulary)} symbols; train "
            f"{len(corpus.train):,}, validation {len(corpus.valid):,}, test {len(corpus.test):,}"
        )
        for note in started.notes:
            display.say(note)
        count_devices = config.train.devices
        split = f", the batch split over {count_devices} devices" if count_devices > 1 else ""
        display.say(
            f"{config.model.layers} x {config.model.hidden} {config.model.cell}, {count:,} parameters, batch "
            f"{config.train.batch_size} x {config.train.chunk_len}, on {provenance['device']}{split}; run folder "
            f"{paths.root}"
        )
        thread, wanted = None, config.train.baselines
        if wanted or (wanted is None and corpus.n_symbols <= BASELINE_SYMBOLS):
            thread = _start_baselines(corpus, paths, display)
        with _stop_on_signal() as should_stop, _tensorboard(tensorboard, paths) as write:

            def report(row: dict[str, Any]) -> None:
                if row["kind"] == "checkpoint" and started.replaced is not None:
                    started.replaced.finish()
                display(row)
                write(row)

            outcome = run_training(
                config,
                paths,
                corpus,
                resume=resume,
                report=report,
                should_stop=should_stop,
                code=provenance.get("code"),
            )
        if thread is not None and outcome.reason != "stopped":
            thread.join()
        _conclude(outcome, paths, display)


def _start_baselines(corpus: Corpus, paths: RunPaths, display: Display) -> threading.Thread | None:
    """Computes them beside the training, once a run; the display shows them when they are there."""
    if paths.baselines.is_file():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a damaged file is made again
            display.baselines = json.loads(paths.baselines.read_text(encoding="utf-8"))["nats"]
            return None
    if len(corpus.valid) < 2:
        return None

    def work() -> None:
        try:
            found = compute_baselines(corpus)
        except (ValueError, MemoryError, OSError) as error:
            display.say(f"no baselines: {error}")
            return
        losses = {k: v for k, v in found._asdict().items() if isinstance(v, float)}
        write_json(paths.baselines, {"nats": losses, **{k: v for k, v in found._asdict().items() if k not in losses}})
        display.baselines = losses

    thread = threading.Thread(target=work, name="baselines", daemon=True)
    thread.start()
    return thread


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[Any]:
    """The first Ctrl-C (or SIGTERM) asks the training to stop after the interval; the second ends it at once."""
    stop = threading.Event()

    def handle(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        os.write(2, b"\nstopping: saving at the end of this interval; once more to stop at once\n")

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop.is_set
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _tensorboard(wanted: bool, paths: RunPaths) -> Iterator[Any]:
    if not wanted:
        yield lambda row: None
        return
    from tensorboardX import SummaryWriter

    found = find_checkpoints(paths.checkpoints)
    with SummaryWriter(str(paths.tensorboard), purge_step=found[-1].step + 1 if found else 0) as writer:

        def write(row: dict[str, Any]) -> None:
            for name in row.keys() & {"loss", "grad_norm", "lr", "val_loss", "symbols_per_second", "clip_rate"}:
                if row[name] is not None:
                    writer.add_scalar(name, row[name], row["step"])

        yield write


def _conclude(outcome: Outcome, paths: RunPaths, display: Display) -> None:
    progress = outcome.progress
    rows = read_metrics(paths.metrics)
    if any(row["kind"] == "train" for row in rows):
        loss_curve(rows, display.baselines).savefig(paths.curve, dpi=150)
    if outcome.reason == "stopped":
        display.say(f"stopped at step {progress.step}, all is saved; go on with: rnnjax train --resume {paths.root}")
        return
    if outcome.reason == "patience":
        display.say(f"no new best in {progress.since_best} evaluations, stopped early")
    display.say(
        f"done in {duration(progress.seconds)}, {progress.step} steps: the best checkpoint (step {outcome.best_step}) "
        f"has {nats(outcome.valid_loss)} a symbol on the whole validation text{display.beside()}, "
        f"{nats(outcome.test_loss)} on the test text",
        "bold",
    )
    display.say(f"picture {paths.curve}, samples {paths.samples}; now: rnnjax sample {paths.root}")
