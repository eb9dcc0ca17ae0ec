r"""The training loop of the language model: exact to resume, and able to survive an explosion.

Everything that the next update depends on is in a checkpoint: parameters, optimizer state, carried state, the place in
the text and the learning rate's history; random keys are functions of the run's seed and the step. Evaluations,
samples and checkpoints only read that state.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rnnjax.lm import checkpoint as checkpoints
from rnnjax.lm import corpus as corpora
from rnnjax.lm.checkpoint import Checkpoint, CheckpointError
from rnnjax.lm.corpus import Chunk, Corpus
from rnnjax.lm.evaluate import evaluate
from rnnjax.lm.model import LanguageModel
from rnnjax.lm.optimizers import learning_rate, make_optimizer
from rnnjax.lm.progress import Outcome, Progress, TrainingFailedError
from rnnjax.lm.run import RunConfig, RunPaths, make_model
from rnnjax.lm.sample import default_prime, generate
from rnnjax.tbptt import TBPTTInfo, tbptt

__all__ = ["MAX_ROLLBACKS", "Carry", "train", "update"]

MAX_ROLLBACKS = 8  # in a row, without an evaluation between them
EXPLOSION = 1.5  # nats above the best interval so far
EVAL_STREAMS = 32
_INIT_KEY, _SAMPLE_KEY, _DROPOUT_KEY = range(3)  # what the seed is split into

Report = Callable[[dict[str, Any]], None]


class Carry(NamedTuple):
    """What goes from update to update on the device."""

    params: Any
    opt_state: Any
    state: Any


@functools.partial(jax.jit, static_argnames=("model", "optimizer"), donate_argnames=("carry",))
def update(
    model: LanguageModel,
    optimizer: optax.GradientTransformation,
    carry: Carry,
    chunk: Chunk,
    rate: jax.Array,
    key: jax.Array,
    step: jax.Array,
) -> tuple[Carry, TBPTTInfo]:
    """One update on one chunk with the given learning rate; dropout's key is a function of ``key`` and ``step``."""
    hyperparams = {**carry.opt_state.hyperparams, "learning_rate": rate}
    result = tbptt(
        model.loss,
        optimizer,
        carry.params,
        carry.opt_state._replace(hyperparams=hyperparams),
        carry.state,
        chunk,
        chunk_len=chunk.inputs.shape[0],
        key=jax.random.fold_in(jax.random.fold_in(key, _DROPOUT_KEY), step) if model.dropout else None,
    )
    return Carry(result.params, result.opt_state, result.state), result.info


def train(
    config: RunConfig,
    paths: RunPaths,
    corpus: Corpus,
    *,
    resume: bool = False,
    report: Report = lambda row: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Trains until the budget is used up, and leaves metrics, samples and checkpoints in the run's folder.

    Args:
        config: all options.
        paths: the run's folder, which exists.
        corpus: the text that ``config.text`` describes.
        resume: go on from the newest checkpoint, or start if there is none yet.
        report: gets every row of the metrics, samples besides, as they come.
        should_stop: asked at every line of metrics; True saves a checkpoint and returns.

    Raises:
        ValueError: if the text is too short, or a checkpoint does not fit the model.
        CheckpointError: if a checkpoint cannot be written or read.
        TrainingFailedError: if the loss exploded `MAX_ROLLBACKS` times in a row.
    """
    return _Training(config, paths, corpus, report).run(resume, should_stop)


class _Training:
    """One call of `train`: the fixed things in attributes, the moving ones in ``carry`` and ``progress``."""

    def __init__(self, config: RunConfig, paths: RunPaths, corpus: Corpus, report: Report) -> None:
        options = config.train
        corpora.require_length(len(corpus.train), options.batch_size, options.chunk_len)
        self.config, self.paths, self.corpus, self.report = config, paths, corpus, report
        self.model = make_model(config.model, len(corpus.vocabulary))
        self.optimizer = make_optimizer(config.optimizer)
        self.rows = corpora.streams(corpus.train, options.batch_size)
        self.chunks_per_epoch = corpora.num_chunks(self.rows, options.chunk_len)
        self.key = jax.random.key(options.seed)
        self.progress = Progress(calm_loss=math.log(max(len(corpus.vocabulary), 2)))
        self.started = time.monotonic()

    def run(self, resume: bool, should_stop: Callable[[], bool]) -> Outcome:
        self.carry = self.fresh_carry()
        if found := checkpoints.find_checkpoints(self.paths.checkpoints):
            if not resume:
                raise ValueError(f"train: {self.paths.root} holds checkpoints already; resume, or take another folder.")
            self.load(found[-1])
        self.truncate_logs()
        self.started = time.monotonic() - self.progress.seconds
        self.snapshot(anchor=True)
        pending: list[tuple[TBPTTInfo, float]] = []
        mark = (self.progress.step, self.seconds())
        evaluated, ended = self.due(), self.fraction() >= 1.0
        patience = self.config.train.patience
        while not ended:
            pending.append(self.one_update())
            if len(pending) > 2:  # the host stays two updates ahead: enough to hide its work, and clocks stay right
                pending[-3][0].loss.block_until_ready()
            ended = self.fraction() >= 1.0
            if self.progress.step % self.config.train.log_every and not ended:
                continue
            stop = should_stop()
            evaluating = ended or self.due() > evaluated
            row = self.interval_row(pending, mark)
            pending = []
            trouble = self.trouble(row["loss"], row["grad_norm_max"])
            if not trouble:
                self.progress.calm_loss = min(self.progress.calm_loss, row["loss"])
                self.record(row)
                if evaluating:
                    trouble = self.evaluate_and_save()
            if trouble:
                self.roll_back(row, trouble)
                ended = self.fraction() >= 1.0  # steps that were taken back are there to be taken again
                if ended:
                    self.evaluate_and_save()
            else:
                self.snapshot(anchor=evaluating)
            evaluated = self.due()
            if stop and (trouble or not evaluating):  # an evaluation now would count for patience and schedule
                self.save(math.nan)
            if stop:
                return self.finish("stopped")
            if evaluating and patience and self.progress.since_best >= patience:
                return self.finish("patience")
            mark = (self.progress.step, self.seconds())
        return self.finish("budget")

    def fresh_carry(self) -> Carry:
        params = self.model.init(jax.random.fold_in(self.key, _INIT_KEY))
        return Carry(params, self.optimizer.init(params), self.fresh_state())

    def fresh_state(self) -> Any:
        return self.model.initial_state((self.config.train.batch_size,))

    def seconds(self) -> float:
        return time.monotonic() - self.started

    def fraction(self) -> float:
        """The share of the budget that is used up."""
        budget = self.config.budget
        if budget.minutes is not None:
            return self.seconds() / (60.0 * budget.minutes)
        if budget.epochs is not None:
            return self.progress.step / max(1, round(budget.epochs * self.chunks_per_epoch))
        return self.progress.step / (budget.steps or 1)

    def one_update(self) -> tuple[TBPTTInfo, float]:
        """Feeds the next chunk; the state starts afresh at the beginning of the text."""
        progress, options = self.progress, self.config.train
        chunk = corpora.chunk(self.rows, progress.cursor, options.chunk_len, self.corpus.train_starts)
        chunk = Chunk(chunk.inputs.astype(np.int32), chunk.targets.astype(np.int32), chunk.resets)
        rate = progress.lr_scale * learning_rate(
            self.config.optimizer, progress=self.fraction(), epoch=progress.epoch, plateaus=progress.plateaus
        )
        self.carry, info = update(
            self.model, self.optimizer, self.carry, chunk, jnp.float32(rate), self.key, jnp.uint32(progress.step + 1)
        )
        progress.step += 1
        progress.cursor += options.chunk_len
        if progress.step % self.chunks_per_epoch == 0:
            progress.cursor, progress.epoch = 0, progress.epoch + 1
            self.carry = self.carry._replace(state=self.fresh_state())
        return info, rate

    def due(self) -> int:
        """How many evaluations the budget so far has room for."""
        return int(self.fraction() * self.config.train.evals)

    def interval_row(self, pending: list[tuple[TBPTTInfo, float]], mark: tuple[int, float]) -> dict[str, Any]:
        losses = np.concatenate([info.loss for info, _ in pending])
        norms = np.concatenate([info.grad_norm for info, _ in pending])
        seconds = self.seconds()
        options, optimizer = self.config.train, self.config.optimizer
        symbols = options.batch_size * options.chunk_len
        clips = optimizer.clip if optimizer.clip and optimizer.clip_by == "norm" else math.inf
        return {
            "kind": "train",
            "step": self.progress.step,
            "epoch": self.progress.epoch,
            "symbols": self.progress.step * symbols,
            "loss": float(losses.mean(dtype=np.float64)),
            "grad_norm": float(norms.mean(dtype=np.float64)),
            "grad_norm_max": float(norms.max()),
            "clip_rate": float((norms > clips).mean()),
            "lr": pending[-1][1],
            "seconds": round(seconds, 3),
            "symbols_per_second": round((self.progress.step - mark[0]) * symbols / max(seconds - mark[1], 1e-9), 1),
        }

    def trouble(self, loss: float, grad_norm: float = 0.0) -> str:
        """What is wrong with an interval or an evaluation, or nothing."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return "a loss or gradient that is not finite"
        calm, uniform = self.progress.calm_loss, math.log(max(len(self.corpus.vocabulary), 2))
        if loss > max(calm + EXPLOSION, uniform + 0.5):  # worse than guessing: hard text alone is no explosion
            return f"a loss of {loss:.2f} nats, {loss - calm:.2f} above the best so far"
        return ""

    def snapshot(self, *, anchor: bool = False) -> None:
        """Keeps a copy of a good state; a copy, because updates reuse the buffers of the original."""
        self.safe = jax.tree.map(jnp.copy, self.carry), dataclasses.replace(self.progress)
        if anchor:
            self.anchor = self.safe

    def roll_back(self, row: dict[str, Any], trouble: str) -> None:
        """To the last good interval; if that does not help, the next times to the last checkpoint."""
        now = self.progress
        carry, progress = self.safe if now.rollbacks == 0 else self.anchor
        self.carry = jax.tree.map(jnp.copy, carry)
        self.progress = dataclasses.replace(
            progress,
            rollbacks=now.rollbacks + 1,
            lr_scale=now.lr_scale / 2,
            metrics_bytes=now.metrics_bytes,
            samples_bytes=now.samples_bytes,
        )
        self.record(
            {
                "kind": "rollback",
                "step": row["step"],
                "to_step": self.progress.step,
                "lr_scale": self.progress.lr_scale,
                "reason": trouble,
                "seconds": row["seconds"],
            }
        )
        if self.progress.rollbacks >= MAX_ROLLBACKS:
            self.save(math.nan)
            raise TrainingFailedError(
                f"train: {trouble} at step {row['step']}, for the {self.progress.rollbacks}th time in a row "
                "although the learning rate was halved each time; lower --lr or --clip and start again. "
                f"The last good state is saved in {self.paths.root}."
            )

    def evaluate_and_save(self) -> str:
        """Saves a checkpoint with its validation loss, unless that loss shows trouble, which is returned."""
        progress = self.progress
        loss = math.nan
        if len(self.corpus.valid) > 1:
            loss = self.valid_loss(self.carry.params, self.config.train.eval_symbols)
            if trouble := self.trouble(loss):
                return trouble
            if loss < progress.best_loss:
                progress.best_loss, progress.best_step, progress.since_best = loss, progress.step, 0
            else:
                progress.plateaus, progress.since_best = progress.plateaus + 1, progress.since_best + 1
            symbols = progress.step * self.config.train.batch_size * self.config.train.chunk_len
            position = {"step": progress.step, "epoch": progress.epoch, "symbols": symbols}
            self.record({"kind": "eval", **position, "val_loss": loss, "seconds": round(self.seconds(), 3)})
        elif not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(self.carry.params)):
            return "parameters that are not finite"
        progress.rollbacks = 0
        if self.config.train.sample_length:
            self.sample()
        self.save(loss)
        return ""

    def valid_loss(self, params: Any, limit: int | None) -> float:
        corpus = self.corpus
        return evaluate(
            self.model, params, corpus.valid, streams=EVAL_STREAMS, starts=corpus.valid_starts, limit=limit or None
        ).loss

    def sample(self) -> None:
        """A sample of the present parameters; its key depends on the step alone."""
        vocabulary = self.corpus.vocabulary
        pieces = generate(
            self.model,
            self.carry.params,
            default_prime(vocabulary),
            key=jax.random.fold_in(jax.random.fold_in(self.key, _SAMPLE_KEY), self.progress.step),
            length=self.config.train.sample_length,
            banned=vocabulary.unknown,
        )
        text = vocabulary.decode(np.concatenate([piece[0] for piece in pieces]))
        heading = f"--- step {self.progress.step} ---\n"
        self.progress.samples_bytes += _append(self.paths.samples, f"{heading}{text}\n\n")
        self.report({"kind": "sample", "step": self.progress.step, "text": text})

    def record(self, row: dict[str, Any]) -> None:
        self.progress.metrics_bytes += _append(self.paths.metrics, json.dumps(_plain(row)) + "\n")
        self.report(row)

    def save(self, loss: float) -> None:
        self.progress.seconds = self.seconds()
        meta = {"progress": _plain(dataclasses.asdict(self.progress))}
        saved = checkpoints.save(self.paths.checkpoints, self.carry, meta, step=self.progress.step, val_loss=loss)
        checkpoints.prune(self.paths.checkpoints)
        self.report({"kind": "checkpoint", "step": self.progress.step, "path": str(saved.path)})

    def load(self, saved: Checkpoint) -> None:
        arrays, meta = checkpoints.load(saved.path)
        self.carry = jax.tree.map(jnp.asarray, checkpoints.restore(arrays, self.carry, where=str(saved.path)))
        known: dict[str, Any] = {k: math.inf if v is None else v for k, v in meta.get("progress", {}).items()}
        if known.keys() != {field.name for field in dataclasses.fields(Progress)}:
            raise CheckpointError(f"checkpoint: {saved.path} was written by another version; start a new run.")
        self.progress = Progress(**known)

    def truncate_logs(self) -> None:
        """Drops what was written after the checkpoint: it comes again, the same to the last bit."""
        self.paths.checkpoints.mkdir(parents=True, exist_ok=True)
        for path, counter in ((self.paths.metrics, "metrics_bytes"), (self.paths.samples, "samples_bytes")):
            path.touch()
            setattr(self.progress, counter, min(getattr(self.progress, counter), path.stat().st_size))
            os.truncate(path, getattr(self.progress, counter))

    def finish(self, reason: str) -> Outcome:
        """Measures the best checkpoint on the whole validation and test text."""
        corpus, valid, test = self.corpus, math.nan, math.nan
        found = checkpoints.find_checkpoints(self.paths.checkpoints)
        step = self.progress.step
        if reason != "stopped" and found:
            best = checkpoints.best(found)
            step = best.step
            params = checkpoints.restore(checkpoints.load(best.path)[0], self.carry.params, prefix="params")
            if len(corpus.valid) > 1:
                valid = self.valid_loss(params, None)
            if len(corpus.test) > 1:
                test = evaluate(self.model, params, corpus.test, streams=EVAL_STREAMS, starts=corpus.test_starts).loss
            row = {"kind": "done", "step": self.progress.step, "best_step": step, "reason": reason}
            self.record({**row, "val_loss": valid, "test_loss": test, "seconds": round(self.seconds(), 3)})
        return Outcome(reason, self.progress, step, valid, test)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no infinity and no nan: None stands for both."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _append(path: Any, text: str) -> int:
    data = text.encode("utf-8", errors="replace")
    with open(path, "ab") as file:
        file.write(data)
    return len(data)
