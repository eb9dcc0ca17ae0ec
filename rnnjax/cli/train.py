"""``rnnjax train``: options in, a run's folder out, and what is shown meanwhile."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import math
import pathlib
import threading
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import jax
import typer
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from rnnjax.cli.distributed import processes as several
from rnnjax.cli.live import check_live, describe_live, progress_words
from rnnjax.cli.options import MACHINES, PRESETS, TRUST_CODE, check_partners, given_options, options_command
from rnnjax.cli.output import nats
from rnnjax.cli.start import DEFAULT_MINUTES, Started, begin, go_on
from rnnjax.cli.training import stop_on_signal
from rnnjax.cli.verdicts import spoken
from rnnjax.files import save_figure, write_json
from rnnjax.fit.checkpoint import best, find_checkpoints
from rnnjax.fit.optimizers import OptimizerOptions
from rnnjax.fit.printer import Printer, duration
from rnnjax.fit.processes import crew
from rnnjax.lm.baselines import compute_baselines, read_baselines
from rnnjax.lm.options import BudgetOptions, ModelOptions, RunConfig, StreamOptions, TrainOptions
from rnnjax.lm.plots import loss_curve, read_metrics
from rnnjax.lm.run import RunPaths, make_model
from rnnjax.lm.train import FINAL_SYMBOLS, Outcome
from rnnjax.lm.train import train as run_training
from rnnjax.options import option
from rnnjax.text.corpus import Corpus, TextOptions
from rnnjax.text.shown import shown

__all__ = ["Display", "train"]


class Display(Printer):
    """Takes the rows of the metrics as they come; a context manager, so that the terminal is left clean."""

    def __init__(self, console: Console, log: pathlib.Path) -> None:
        super().__init__(console=console, log=log)
        self.baselines: dict[str, float] = {}
        self.best: tuple[float, int] = (math.inf, 0)

    def __enter__(self) -> Display:
        super().__enter__()
        return self

    def is_better(self, row: dict[str, Any]) -> bool:
        """Whether the validation loss is the lowest so far."""
        better: bool = row["val_loss"] < self.best[0]
        if better:
            self.best = row["val_loss"], row["step"]
        return better

    def eval_line(self, row: dict[str, Any], better: bool) -> str:
        """The validation loss, beside the baselines."""
        mark = "best so far" if better else f"best {self.best[0]:.4f} at step {self.best[1]}"
        return (
            f"{duration(row['seconds']):>7}  step {row['step']:>6}  validation {nats(row['val_loss'])}  {mark}"
            f"{self.beside()}"
        )

    def other(self, row: dict[str, Any]) -> None:
        """Samples, and what any training shows but its end, for which the command has words of its own."""
        if row["kind"] not in ("sample", "done"):
            super().other(row)
        if row["kind"] == "sample" and row["text"] and self.console.is_terminal:
            title = f"sample at step {row['step']}"
            self.console.print(Panel(Text(shown(row["text"].strip("\n"))), title=title, border_style="dim"))

    def beside(self) -> str:
        """The baselines, to be read beside a validation loss."""
        names = {"unigram": "unigram", "witten_bell": "5-gram", "xz": "xz"}
        known = [f"{names.get(k, k)} {v:.3f}" for k, v in self.baselines.items() if math.isfinite(v)]
        return f"  [{', '.join(known)}]" if known else ""

    def train_line(self, row: dict[str, Any]) -> str:
        """What a line of metrics says in the log file."""
        return (
            f"{duration(row['seconds']):>7}  step {row['step']:>6}  epoch {row['epoch']}  loss {nats(row['loss'])}  "
            f"gradient {row['grad_norm']:.3f}  lr {row['lr']:.2e}  {row['symbols_per_second']:,.0f} characters/s"
            + (f"  {words}" if (words := progress_words(row)) else "")
        )

    def panel(self) -> Any:
        """What the terminal shows while the training goes on."""
        row = self.row
        if not row:
            return super().panel()
        gradient = f"gradient {row['grad_norm']:.3f}, clipped {100 * row['clip_rate']:.0f} %"
        best = f"best {self.best[0]:.4f} at step {self.best[1]}" if math.isfinite(self.best[0]) else ""
        speed = f"{row['symbols_per_second']:,.0f} characters/s"
        lines = [
            ("loss", nats(row["loss"]), gradient),
            ("validation", nats(self.last_eval.get("val_loss")), best),
            (f"step {row['step']}", f"epoch {row['epoch']}, learning rate {row['lr']:.2e}", speed),
        ]
        if words := progress_words(row):
            lines.append(("stream", words, ""))
        return self.grid(lines, bar=True)


BASELINE_SYMBOLS = 8_000_000  # they take more memory than the text from there on


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a run begins, and in whose place."""

    out: str | None = option(None, "Folder of the run; by default runs/ and the time.", "FOLDER")
    force: bool = option(False, "Replace the run there, at the first checkpoint.")
    resume: str | None = option(
        None,
        "Folder of a run to go on with, where it stopped. A larger budget stretches the schedule of the learning rate "
        "over the whole.",
        "RUN",
    )
    init_from: str | None = option(
        None,
        "Begin with the parameters of this run, on TEXT or, without one, on its own; symbols that it does not know get "
        "new rows.",
        "RUN",
    )
    trust_code: bool = option(False, TRUST_CODE)
    preset: str | None = option(None, "Start from these options.", "|".join(PRESETS))


@dataclasses.dataclass(frozen=True)
class _Machine:
    """What the process keeps and logs, and how it finds others."""

    no_cache: bool = option(
        False, "Keep the ids of a text of more than 16 MB in a temporary file, not in the cache folder.", panel="Text"
    )
    distributed: str | None = option(
        None,
        "One of several processes, which share the batch: with the address of process 0, --processes and --process; "
        "alone on a cluster that JAX detects (SLURM, Open MPI, Kubernetes, Cloud TPU).",
        "[HOST:PORT]",
    )
    processes: int | None = option(None, "How many there are.", "NUMBER")
    process: int | None = option(None, "Which one this is, from 0.", "NUMBER")
    wait: float = option(300.0, "For all of them to come.", "SECONDS")
    tensorboard: bool = option(False, "Also log to RUN/tensorboard.", panel="What is looked at")


@options_command(
    {
        "Options": _Place,
        "Budget, one of": BudgetOptions,
        "Text": TextOptions,
        "Text without an end": StreamOptions,
        "Model": ModelOptions,
        "Optimizer": OptimizerOptions,
        "Training": TrainOptions,
        "Several processes": _Machine,
    },
    defaults={"devices": 0},
    more_help={"minutes": f" By default {DEFAULT_MINUTES:g}, if no budget is given."},
)
def train(
    context: typer.Context,
    text: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT", help="Files (also gzip), folders, - for standard input. None: Python's standard library."
        ),
    ] = None,
    **options: Any,
) -> None:
    """Train a language model on text.

    A run folder holds the options, metrics (JSON lines), the best and the last checkpoint, samples, and a picture
    of the losses. Ctrl-C saves and says how to go on.

    [bold]rnnjax train[/bold]                                  five minutes on Python's standard library
    [bold]rnnjax train book.txt --out runs/book --minutes 30[/bold]
    [bold]rnnjax train --resume runs/book --minutes 60[/bold]
    [bold]rnnjax train other.txt --init-from runs/book[/bold]       begins with its parameters
    """
    values, given = options | {"text": text}, given_options(context)
    if values["document_separator"] is not None:
        values["document_separator"] = values["document_separator"].replace("\\n", "\n").replace("\\t", "\t")
    console = Console(highlight=False)
    if values["tensorboard"] and importlib.util.find_spec("tensorboardX") is None:
        raise ValueError("--tensorboard: tensorboardX is not installed; pip install 'rnnjax[tensorboard]'.")
    check_partners(MACHINES, values, given)
    resume = values["resume"]
    if resume is None:
        check_live(values, given)
    machines = (values[name] for name in ("distributed", "processes", "process", "wait", "devices"))
    with several(*machines), contextlib.ExitStack() as stack:
        started = begin(values, given, stack) if resume is None else go_on(resume, values, given, stack)
        _train(started, console, resume is not None, values["tensorboard"])


def _train(started: Started, console: Console, resume: bool, tensorboard: bool) -> None:
    paths, config, corpus, provenance = started[:4]
    params, batches, code = started.params, started.batches, provenance.get("code")
    run: Callable[..., Outcome] = functools.partial(
        run_training, config, paths, corpus, resume=resume, code=code, params=params, batches=batches
    )
    if not crew().is_lead:
        with stop_on_signal() as should_stop:
            run(should_stop=should_stop)
        return
    model = make_model(config.model, len(corpus.vocabulary))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))))
    saved = find_checkpoints(paths.checkpoints)
    so_far = best(saved) if saved else None
    with Display(console, paths.log) as display:
        if so_far is not None:
            display.best = so_far.val_loss, so_far.step
        display.say(_describe(config, corpus) if started.batches is None else describe_live(config, corpus))
        for note in (*map(spoken, corpus.notes), *started.notes):
            display.say(note)
        count_devices = config.train.devices
        split = f", the batch split over {count_devices} devices" if count_devices > 1 else ""
        split += f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
        display.say(
            f"{config.model.layers} x {config.model.hidden} {config.model.cell}, {count:,} parameters, batch "
            f"{config.train.batch_size} x {config.train.chunk_len}, on {provenance['device']}{split}; run folder "
            f"{paths.root}"
        )
        thread, wanted = None, config.train.baselines
        if wanted or (wanted is None and 0 < corpus.n_symbols <= BASELINE_SYMBOLS):
            thread = _start_baselines(corpus, paths, display)
        with stop_on_signal() as should_stop, _tensorboard(tensorboard, paths) as write:

            def report(row: dict[str, Any]) -> None:
                if row["kind"] == "checkpoint" and started.replaced is not None:
                    started.replaced.finish()
                display(row)
                write(row)

            outcome = run(report=report, should_stop=should_stop)
        if thread is not None and outcome.reason != "stopped":
            thread.join()
        _conclude(outcome, started, display)


def _describe(config: RunConfig, corpus: Corpus) -> str:
    documents = "" if corpus.documents is None else f" in {corpus.documents:,} documents"
    rare = f", {corpus.n_unknown:,} of them rare and unknown" if corpus.n_unknown else ""
    return (
        f"{corpus.sources}: {corpus.n_symbols:,} {config.text.level}s{documents}, {len(corpus.vocabulary)} symbols"
        f"{rare}; train {len(corpus.train):,}, validation {len(corpus.valid):,}, test {len(corpus.test):,}"
    )


def _start_baselines(corpus: Corpus, paths: RunPaths, display: Display) -> threading.Thread | None:
    """Computes them beside the training, once a run; the display shows them when they are there."""
    if known := read_baselines(paths.baselines):  # one that is damaged is made again
        display.baselines = known
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


def _losses(outcome: Outcome, started: Started, beside: str) -> str:
    """Of the best checkpoint, and on what."""
    loss, ids = nats(outcome.valid_loss), started.corpus.valid
    if started.batches is not None:
        return f"{loss} a symbol on {started.config.stream.valid or 'what was held out of the stream'}"
    what = "the whole" if len(ids) <= FINAL_SYMBOLS else f"the first {FINAL_SYMBOLS:,} symbols of the"
    return f"{loss} a symbol on {what} validation text{beside}, {nats(outcome.test_loss)} on the test text"


def _conclude(outcome: Outcome, started: Started, display: Display) -> None:
    progress, paths = outcome.progress, started.paths
    rows = read_metrics(paths.metrics)
    if any(row["kind"] == "train" for row in rows):
        save_figure(loss_curve(rows, display.baselines), paths.curve, dpi=150)
    if outcome.reason == "stopped":
        display.say(f"stopped at step {progress.step}, all is saved; go on with: rnnjax train --resume {paths.root}")
        return
    if outcome.reason == "data":
        display.say("the stream has ended")
    if outcome.reason == "patience":
        display.say(f"no new best in {progress.since_best} evaluations, stopped early")
    display.say(
        f"done in {duration(progress.seconds)}, {progress.step} steps: the best checkpoint (step {outcome.best_step}) "
        f"has {_losses(outcome, started, display.beside())}",
        "bold",
    )
    display.say(f"picture {paths.curve}, samples {paths.samples}; now: rnnjax sample {paths.root}")
