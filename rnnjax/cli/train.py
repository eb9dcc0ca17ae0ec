"""``rnnjax train``: options in, a run's folder out."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import json
import math
import os
import pathlib
import platform
import shutil
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import jax
import typer
from rich.console import Console

from rnnjax.cells import CELLS
from rnnjax.cli.display import Display, nats
from rnnjax.cli.presets import PRESETS, preset_options
from rnnjax.cpu import reuse_memory
from rnnjax.fit.checkpoint import best, find_checkpoints
from rnnjax.fit.optimizers import OptimizerOptions
from rnnjax.fit.printer import duration
from rnnjax.lm.baselines import compute_baselines
from rnnjax.lm.devices import choose_devices, prepare_devices, without_rows
from rnnjax.lm.plots import loss_curve, read_metrics
from rnnjax.lm.run import (
    BudgetOptions,
    ModelOptions,
    RunConfig,
    RunPaths,
    TrainOptions,
    make_model,
    read_config,
    write_json,
)
from rnnjax.lm.train import Outcome
from rnnjax.lm.train import train as run_training
from rnnjax.text import corpus as corpora
from rnnjax.text.corpus import Corpus, TextOptions, load_corpus

__all__ = ["train"]

GROUPS: dict[str, Any] = {
    "model": ModelOptions,
    "optimizer": OptimizerOptions,
    "train": TrainOptions,
    "budget": BudgetOptions,
    "text": TextOptions,  # last: what is wrong elsewhere is better told by the others
}
BUDGETS = {field.name for field in dataclasses.fields(BudgetOptions)}
# What a resumed run may change: how long, and how often one looks. All else would be another run.
RESUMABLE = BUDGETS | {"evals", "eval_symbols", "patience", "sample_length", "log_every", "devices"}
DEFAULT_MINUTES = 5.0
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
    force: Annotated[bool, typer.Option("--force", help="Replace the run that is in that folder.")] = False,
    resume: Annotated[str | None, typer.Option(help="Folder of a run to go on with, where it stopped.")] = None,
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
    if resume is not None:
        paths, config, corpus, provenance = _resume(resume, values, given)
    else:
        paths, config, corpus, provenance = _start(values, given)
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
        count_devices = config.train.devices
        split = f", the batch split over {count_devices} devices" if count_devices > 1 else ""
        display.say(
            f"{config.model.layers} x {config.model.hidden} {config.model.cell}, {count:,} parameters, batch "
            f"{config.train.batch_size} x {config.train.chunk_len}, on {provenance['device']}{split}; run folder "
            f"{paths.root}"
        )
        thread = None
        if baselines or (baselines is None and corpus.n_symbols <= BASELINE_SYMBOLS):
            thread = _start_baselines(corpus, paths, display)
        with _stop_on_signal() as should_stop, _tensorboard(tensorboard, paths) as write:

            def report(row: dict[str, Any]) -> None:
                display(row)
                write(row)

            outcome = run_training(
                config, paths, corpus, resume=resume is not None, report=report, should_stop=should_stop
            )
        if thread is not None and outcome.reason != "stopped":
            thread.join()
        _conclude(outcome, paths, display)


def _start(values: dict[str, Any], given: set[str]) -> tuple[RunPaths, RunConfig, Corpus, dict[str, Any]]:
    """A new run: everything is checked before anything of an old one is removed."""
    if values["preset"] is not None:
        values |= {k: v for k, v in preset_options(values["preset"]).items() if k not in given}
    if given & BUDGETS:
        values |= dict.fromkeys(BUDGETS - given)
    elif all(values[name] is None for name in BUDGETS):
        values["minutes"] = DEFAULT_MINUTES
    config = _config(values)
    root = pathlib.Path(values["out"] or time.strftime("runs/%Y-%m-%d_%H-%M-%S"))
    occupied = root.exists() and (not root.is_dir() or any(root.iterdir()))
    if occupied and not values["force"]:
        raise ValueError(
            f"--out: {root} exists already; take another folder, --resume {root}, or --force to replace it."
        )
    paths = RunPaths(root)
    if occupied and (not root.is_dir() or (foreign := paths.foreign())):
        what = f"holds {foreign[0]}" if root.is_dir() else "is a file"
        raise ValueError(f"--force: {root} {what}, which no run wrote, so it is left alone; take another folder.")
    for name in config.text.paths if occupied else ():
        if pathlib.Path(name).is_relative_to(root.absolute()):
            raise ValueError(f"--force: the text {name} lies in {root}, which would be removed; copy it out first.")
    config = _with_devices(config)
    corpus = load_corpus(config.text)
    corpora.require_length(len(corpus.train), config.train.batch_size, config.train.chunk_len)
    make_model(config.model, len(corpus.vocabulary))
    if occupied:
        shutil.rmtree(root)
    root.mkdir(parents=True, exist_ok=True)
    provenance = _provenance(corpus)
    write_json(paths.vocabulary, corpus.vocabulary.to_json())
    write_json(paths.config, {"options": config.to_json(), "provenance": provenance})
    return paths, config, corpus, provenance


def _resume(root: str, values: dict[str, Any], given: set[str]) -> tuple[RunPaths, RunConfig, Corpus, dict[str, Any]]:
    """The options of the run, with those changes that leave it the same run."""
    paths, old, provenance, vocabulary = read_config(root)
    for name in sorted(given & {"out", "force", "preset"}):
        raise ValueError(f"--{name}: does not go together with --resume, which stays in its folder; leave it out.")
    stored = {k: v for group in GROUPS for k, v in dataclasses.asdict(getattr(old, group)).items()}
    asked = {k: values[k] for k in given & stored.keys()}
    if "fractions" in asked:
        asked["fractions"] = _fractions(values["fractions"])
    for name in sorted(asked.keys() - RESUMABLE):
        if asked[name] != stored[name]:
            raise ValueError(
                f"--resume: {root} was trained with --{name.replace('_', '-')} {stored[name]}, got {asked[name]}; "
                "leave it out to go on, or start a new run."
            )
    if asked.keys() & BUDGETS:
        asked = dict.fromkeys(BUDGETS) | asked
    config = _config(stored | {k: v for k, v in asked.items() if k in RESUMABLE})
    config = _with_devices(config)
    if "text" in given:
        config = dataclasses.replace(config, text=dataclasses.replace(config.text, paths=_absolute(values["text"])))
    elif "-" in config.text.paths:
        raise ValueError(f"--resume: {root} read its text from standard input; rnnjax train - --resume {root} < TEXT.")
    corpus = load_corpus(config.text)
    if corpus.sha256 != provenance["sha256"] or corpus.vocabulary != vocabulary:
        raise ValueError(
            f"--resume: the text has changed since {root} was started ({provenance['sources']}, "
            f"{provenance['n_symbols']:,} symbols then, {corpus.n_symbols:,} now); restore it or start a new run."
        )
    write_json(paths.config, {"options": config.to_json(), "provenance": provenance})
    return paths, config, corpus, provenance


def _with_devices(config: RunConfig) -> RunConfig:
    """With the number of devices that the batch is split over in the place of 0."""
    train = config.train
    reuse_memory()
    prepare_devices(train.devices, train.batch_size)
    count = choose_devices(train.devices, train.batch_size)
    if count > 1 and not train.devices:
        state = jax.eval_shape(lambda: make_model(config.model, 1).initial_state((train.batch_size,)))
        count = 1 if without_rows(state, train.batch_size) else count
    return dataclasses.replace(config, train=dataclasses.replace(train, devices=count))


def _config(values: dict[str, Any]) -> RunConfig:
    values = dict(values)
    if "text" in values:  # from the command line rather than from a config
        values |= {"paths": _absolute(values["text"] or ()), "rows": values["batch_size"]}
        values["fractions"] = _fractions(values["fractions"])
    groups = {name: kind(**{f.name: values[f.name] for f in dataclasses.fields(kind)}) for name, kind in GROUPS.items()}
    return RunConfig(**groups)


def _absolute(names: Iterable[str]) -> tuple[str, ...]:
    """Paths that still hold when the run goes on from another folder."""
    return tuple(name if name == "-" else os.path.abspath(name) for name in names)


def _fractions(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"--fractions: must be three numbers like 0.9,0.05,0.05, got {text!r}.") from error


def _provenance(corpus: Corpus) -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "sha256": corpus.sha256,
        "sources": corpus.sources,
        "n_symbols": corpus.n_symbols,
        "n_bytes": corpus.n_bytes,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device": f"{device.device_kind} ({os.cpu_count()} cores)" if device.platform == "cpu" else device.device_kind,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


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
