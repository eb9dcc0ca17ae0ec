"""Which cell remembers for how long? The copy and the adding problem at growing lags; digits read pixel by pixel.

Every cell starts anew at every lag, learns for the same number of updates on sequences that are made as they are
needed, and is measured on others. Once it remembers nothing at a lag, it is not tried at longer ones.

python -m experiments.06_memory.run [--quick] [--data FOLDER [--full]] [--out FOLDER] [--seed N]
"""

import argparse
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import rnnjax
from experiments import common
from rnnjax.data import ShuffledBatches
from rnnjax.topologies import ManyToMany, ManyToOne, accuracy, mse_loss, softmax_loss

from . import cells, pictures, tasks

HERE = pathlib.Path(__file__).resolve().parent
DATASETS = {"mnist": "the four idx files; digits read pixel by pixel, in the order of the rows and in a random one"}


class Settings(NamedTuple):
    """How long everything takes."""

    copy_lags: tuple[int, ...] = (10, 30, 100, 300)
    adding_lags: tuple[int, ...] = (30, 100, 300)
    cells: tuple[str, ...] = cells.NAMES
    width: float = 1.0
    copy_steps: int = 2000
    adding_steps: int = 1200
    batch_size: int = 32
    evals: int = 12
    eval_sequences: int = 256
    log_every: int = 20
    learned: float = 0.05  # of the no-memory line: then it stops
    nothing: float = 0.95  # of the no-memory line: then longer lags are not tried


class PixelSettings(NamedTuple):
    """The same for digits."""

    pool: int = 2  # squares of 2 x 2 pixels averaged: 196 steps
    train: int = 20_000
    valid: int = 2000
    test: int | None = None
    steps: int = 450
    batch_size: int = 64
    evals: int = 5
    cells: tuple[str, ...] = cells.NAMES
    width: float = 1.0


QUICK = Settings(
    copy_lags=(3,), adding_lags=(), cells=("LSTM",), width=0.1, copy_steps=2, batch_size=2, evals=1, eval_sequences=4
)
FULL = PixelSettings(pool=1, train=60_000, valid=5000, steps=20_000, batch_size=128, evals=20, width=2.0)


def make_model(task: str, cell: Any) -> Any:
    """The topology of a task: an answer at every step, or one at the end."""
    if task == "copy":
        return ManyToMany(cell, tasks.SYMBOLS + 2, vocab_size=tasks.SYMBOLS + 2)
    return ManyToOne(cell, 1, input_size=2) if task == "adding" else ManyToOne(cell, 10, input_size=1)


def make_loss(task: str, model: Any) -> Any:
    def loss(params, batch, *, key=None):
        outputs = model.apply(params, batch["xs"])
        if task == "adding":
            return mse_loss(outputs[..., 0], batch["labels"])
        return softmax_loss(outputs, batch["labels"])

    return loss


def make_optimizer(lr: float, steps: int) -> optax.GradientTransformation:
    """Adam with its rate falling to a tenth, gradients clipped to norm 1."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(lr, steps, alpha=0.1)))


def count(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def learn(task: str, name: str, lag: int, settings: Settings, seed: int) -> dict[str, Any]:
    """One cell at one lag: its loss on new sequences, and how it came there."""
    found = cells.entry(name, lag, settings.width)
    steps = settings.copy_steps if task == "copy" else settings.adding_steps
    model = make_model(task, found.cell)
    loss_fn, line = make_loss(task, model), tasks.no_memory(task, lag)
    draw = getattr(tasks, task)
    test = draw(np.random.default_rng((seed, lag, 1)), lag, settings.eval_sequences)
    measure = jax.jit(loss_fn)
    rows: list[dict[str, Any]] = []
    params = model.init(jax.random.key(seed))
    # A network that explodes has failed at this lag: that is a result. Single high losses are none, since gradients are
    # clipped, so only what is not finite is rolled back.
    try:
        outcome = rnnjax.fit.fit(
            loss_fn,
            params,
            make_optimizer(found.lr, steps),
            lambda step: draw(np.random.default_rng((seed, lag, 0, step)), lag, settings.batch_size),
            steps=steps,
            evaluate=lambda params: float(measure(params, test)),
            evals=settings.evals,
            log_every=settings.log_every,
            explosion=math.inf,
            report=rows.append,
            should_stop=lambda: any(row["kind"] == "eval" and row["loss"] < settings.learned * line for row in rows),
        )
        loss, updates, seconds = outcome.metrics["loss"], outcome.step, outcome.seconds
    except rnnjax.fit.TrainingFailedError:
        loss, updates, seconds = math.inf, rows[-1]["step"], rows[-1]["seconds"]
    return {
        "cell": name,
        "lag": lag,
        "parameters": count(params),
        "no_memory": line,
        "loss": loss,  # inf, in the file null: it exploded whatever the learning rate
        "share": loss / line,  # 1 remembers nothing, 0 everything
        "updates": updates,
        "seconds": seconds,
        "rollbacks": sum(row["kind"] == "rollback" for row in rows),
        "curve": [(row["step"], row["loss"]) for row in rows if row["kind"] == "train"],
    }


def run_task(options: common.Options, task: str, lags: tuple[int, ...], settings: Settings) -> list[dict[str, Any]]:
    """All cells, from the shortest lag to the first at which they remember nothing."""
    found = []
    for name in settings.cells:
        for lag in lags:
            row = learn(task, name, lag, settings, options.seed)
            found.append(row)
            common.say(
                options,
                f"{task} {name:11} lag {lag:3}: loss {row['loss']:.4f}, {row['share']:.2f} of what remembers nothing, "
                f"{row['updates']} updates, {row['seconds']:.0f} s",
            )
            if row["share"] > settings.nothing:
                break
    return found


def learn_pixels(name: str, parts: dict[str, tasks.Pixels], settings: PixelSettings, seed: int) -> dict[str, Any]:
    """One cell on digits: its accuracy on the test part, with the parameters of the best validation accuracy."""
    found = cells.entry(name, parts["train"].xs.shape[1], settings.width)
    model = make_model("pixels", found.cell)

    def loss_fn(params, batch, *, key=None):
        logits = model.apply(params, batch.xs.T[..., None])
        return softmax_loss(logits, batch.labels), {"accuracy": accuracy(logits, batch.labels)}

    score = jax.jit(lambda params, part: accuracy(model.apply(params, part.xs.T[..., None]), part.labels))

    def measure(params: Any, part: tasks.Pixels) -> float:
        size = min(500, len(part.labels))
        cuts = range(0, len(part.labels) - size + 1, size)
        return float(np.mean([score(params, tasks.Pixels(*(array[at : at + size] for array in part))) for at in cuts]))

    rows: list[dict[str, Any]] = []
    params = model.init(jax.random.key(seed))
    outcome = rnnjax.fit.fit(
        loss_fn,
        params,
        make_optimizer(found.lr, settings.steps),
        ShuffledBatches(parts["train"], settings.batch_size, key=jax.random.key(seed + 1)),
        steps=settings.steps,
        evaluate=lambda params: {"accuracy": measure(params, parts["valid"])},
        monitor="accuracy",
        mode="max",
        evals=settings.evals,
        log_every=10,
        report=rows.append,
    )
    return {
        "cell": name,
        "parameters": count(params),
        "valid_accuracy": outcome.metrics["accuracy"],
        "test_accuracy": measure(outcome.params, parts["test"]),
        "updates": outcome.step,
        "seconds": outcome.seconds,
        "rollbacks": sum(row["kind"] == "rollback" for row in rows),
        "curve": [(row["step"], row["loss"]) for row in rows if row["kind"] == "train"],
    }


def run_pixels(options: common.Options, settings: PixelSettings) -> dict[str, list[dict[str, Any]]]:
    """All cells, in both orders."""
    found: dict[str, list[dict[str, Any]]] = {}
    for order in ("sequential", "permuted"):
        parts = tasks.read_pixels(
            options.data,
            pool=settings.pool,
            permuted=order == "permuted",
            train=settings.train,
            valid=settings.valid,
            test=settings.test,
        )
        found[order] = []
        for name in settings.cells:
            row = learn_pixels(name, parts, settings, options.seed)
            found[order].append(row)
            common.say(
                options,
                f"{order} {name:11} {parts['train'].xs.shape[1]} steps: test {row['test_accuracy']:.1%}, "
                f"{row['updates']} updates, {row['seconds']:.0f} s",
            )
    return found


def main(argv: Sequence[str] | None = None) -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        help_text = "with --data: all 784 pixels, all images, cells twice as wide, 20,000 updates; for an accelerator"
        parser.add_argument("--full", action="store_true", help=help_text)

    options = common.parse(argv, here=HERE, doc=__doc__, datasets=DATASETS, add=add)
    if options.data is None:
        if options.extra["full"]:
            raise ValueError("--full: is about the digits, got no --data; give the folder mnist with it.")
        settings = QUICK if options.quick else Settings()
        found = {
            "copy": run_task(options, "copy", settings.copy_lags, settings),
            "adding": run_task(options, "adding", settings.adding_lags, settings),
        }
        result = {
            "question": "Which cell remembers for how long?",
            "settings": settings._asdict(),
            "tasks": found,
        }
        common.finish(options, result, {"memory.png": pictures.memory(found)})
        return
    pixel_settings = FULL if options.extra["full"] else PixelSettings()
    if options.quick:
        pixel_settings = pixel_settings._replace(
            pool=7, train=64, valid=16, test=16, steps=2, batch_size=8, evals=1, cells=("LSTM",), width=0.1
        )
    orders = run_pixels(options, pixel_settings)
    result = {
        "question": "Which cell reads digits pixel by pixel?",
        "settings": {**pixel_settings._asdict(), "full": options.extra["full"]},
        "orders": orders,
    }
    common.finish(options, result, {"pixels.png": pictures.pixels(orders)})


if __name__ == "__main__":
    common.run(main)
