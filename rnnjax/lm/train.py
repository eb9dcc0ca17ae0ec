r"""Training of the language model: text fed in streams, as a task of the loop in `rnnjax.fit`.

What the next update depends on is the loop's business. Here are the corpus and its place, the learning rate, samples,
the rows of the metrics, and the losses of the best checkpoint on the validation and the test text.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from rnnjax.averaging import AveragedState
from rnnjax.fit import devices
from rnnjax.fit.any_loss import Split, split_update
from rnnjax.fit.loop import Loop, Plan, Report
from rnnjax.fit.processes import crew
from rnnjax.fit.progress import Place, Progress
from rnnjax.fit.task import Interval, Task
from rnnjax.lm.batches import Batches, CorpusBatches
from rnnjax.lm.evaluate import evaluate
from rnnjax.lm.model import LanguageModel, LMParams
from rnnjax.lm.options import RunConfig
from rnnjax.lm.run import RunPaths, make_model, run_identity
from rnnjax.lm.sample import default_prime, generate
from rnnjax.online import Cut
from rnnjax.online.across import AnyBorder, begin
from rnnjax.online.names import border_from_name
from rnnjax.programs import kept
from rnnjax.text.corpus import Chunk, Corpus
from rnnjax.text.vocabulary import Vocabulary
from rnnjax.update import Carry, Info

__all__ = ["FINAL_SYMBOLS", "Outcome", "train", "update"]

EXPLOSION = 1.5  # nats above the best interval so far
EVAL_STREAMS = 32
FINAL_SYMBOLS = 10_000_000  # of the validation and the test text, at most, that the last evaluation takes
_INIT_KEY, _SAMPLE_KEY, _DROPOUT_KEY, _BORDER_KEY = range(4)  # what the seed is split into


class Outcome(NamedTuple):
    """How a training ended."""

    reason: str  # "budget", "patience" or "stopped"
    progress: Progress
    best_step: int  # of the best checkpoint
    valid_loss: float  # of the best checkpoint, on the first FINAL_SYMBOLS of the validation text, in nats
    test_loss: float  # the same on the test text; nan where there is none


def update(
    model: LanguageModel,
    optimizer: optax.GradientTransformation,
    carry: Carry,
    chunk: Chunk,
    rate: jax.Array,
    key: jax.Array,
    step: jax.Array,
    mesh: Mesh | None = None,
    border: AnyBorder = Cut(),  # noqa: B008  (a frozen value)
) -> tuple[Carry, Info]:
    """One update on one chunk with the given learning rate; dropout's key is a function of ``key`` and ``step``.

    With a mesh the batch is split over its devices, see `rnnjax.fit.devices`. With a border but `Cut`, the state of the
    carry is what `rnnjax.online.across.begin` makes. The carry is given up. The compiled update
    lives as long as ``model`` and ``optimizer``: the same objects find it again.
    """
    compiled = kept(_update, model.loss, optimizer, options=(mesh, model.random, border), donate_argnums=(0,))
    found: tuple[Carry, Info] = compiled(carry, chunk, rate, key, step)
    return found


def _update(
    loss_fn: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None,
    random: bool,
    border: AnyBorder,
    carry: Carry,
    chunk: Chunk,
    rate: jax.Array,
    key: jax.Array,
    step: jax.Array,
) -> tuple[Carry, Info]:
    def loss(params: Any, state: Any, chunk: Chunk, *, key: jax.Array) -> Any:
        return loss_fn(params, state, chunk, key=key if random else None)

    split = None if mesh is None else Split(mesh, devices.carry_specs(border), devices.CHUNK)
    key = jax.random.fold_in(key, _DROPOUT_KEY)
    return split_update(loss, optimizer, "train", True, border, split, carry, chunk, rate, None, key, step)


def train(
    config: RunConfig,
    paths: RunPaths,
    corpus: Corpus,
    *,
    resume: bool = False,
    report: Report = lambda row: None,
    should_stop: Callable[[], bool] = lambda: False,
    code: str | None = None,
    params: LMParams | None = None,
    batches: Batches | None = None,
) -> Outcome:
    """Trains until the budget is used up, and leaves metrics, samples and checkpoints in the run's folder.

    Args:
        config: all options.
        paths: the run's folder, which exists.
        corpus: the text that ``config.text`` describes.
        resume: go on from the newest checkpoint, or start if there is none yet.
        report: gets every row of the metrics, samples besides, as they come.
        should_stop: asked at every line of metrics; True saves a checkpoint and returns.
        code: the digest of the file that the cell's code is in, if it is in one.
        params: to begin with, which are saved at once; None for new ones.
        batches: chunks and validation text from elsewhere, see `rnnjax.lm.batches`; None takes those of the corpus.

    Raises:
        ValueError: if the text is too short, the budget too large, or a checkpoint does not fit the model.
        CheckpointError: if a checkpoint cannot be written or read.
        TrainingFailedError: if the loss exploded `rnnjax.fit.loop.MAX_ROLLBACKS` times in a row.
    """
    options, budget = config.train, config.budget
    batches = CorpusBatches(corpus, options.batch_size, options.chunk_len) if batches is None else batches
    task = _text_task(config, paths, corpus, batches, code, params)
    if budget.epochs is not None and task.steps_per_epoch is None:
        raise ValueError("train: epochs must be those of a text that ends, got a stream; give steps or minutes.")
    steps = budget.updates(task.steps_per_epoch or 1)
    if steps is not None and steps >= 2**31:
        raise ValueError(f"train: epochs must come to fewer than {2**31:,} updates, got {steps:,}; take fewer.")
    plan = Plan(steps, budget.minutes, options.evals, options.patience, options.log_every, on_time=False)
    batches.until(should_stop)
    loop = Loop(task, plan, paths.root, report)
    batches.until(lambda: should_stop() or loop.fraction() >= 1.0)
    with loop.owned():
        reason = loop.run(resume, should_stop)
        if reason == "stopped":
            return Outcome(reason, loop.progress, loop.progress.step, math.nan, math.nan)
        params, best_step = loop.best()
        valid, test = (
            task.loss(params, ids, starts, FINAL_SYMBOLS) if len(ids) > 1 else math.nan
            for ids, starts in (batches.validation(), (corpus.test, corpus.test_starts))
        )
        loop.done(reason, best_step, {"val_loss": valid, "test_loss": test})
        return Outcome(reason, loop.progress, best_step, valid, test)


def _text_task(
    config: RunConfig, paths: RunPaths, corpus: Corpus, batches: Batches, code: str | None, params: LMParams | None
) -> _Text:
    options = config.train
    mesh = devices.make_mesh(devices.choose_devices(options.devices, options.batch_size))
    model = make_model(config.model, len(corpus.vocabulary))
    state = jax.eval_shape(lambda: model.initial_state((options.batch_size,)))
    wrong = devices.without_rows(state, options.batch_size)
    if mesh is not None and wrong:
        raise ValueError(
            f"TrainOptions: devices must be 1 for a cell whose state has an array without an axis of the batch of "
            f"{options.batch_size}, which cannot be split, as one of shape {wrong[0]}, got {options.devices}."
        )
    uniform = math.log(max(len(corpus.vocabulary), 2))
    return _Text(
        where="train",
        remedy="lower the learning rate (lr) or the bound on the gradient (clip), and start again",
        steps_per_epoch=batches.steps_per_epoch,
        calm_loss=uniform,
        crew=crew(),
        saves_start=params is not None,
        first=params,
        logs={"samples": paths.samples},
        identity=run_identity(config, {"sha256": corpus.sha256, "code": code}, corpus.vocabulary),
        config=config,
        vocabulary=corpus.vocabulary,
        batches=batches,
        mesh=mesh,
        model=model,
        optimizer=config.optimizer.make_optimizer(),
        uniform=uniform,
        key=jax.random.key(options.seed),
        border=border_from_name(
            options.border, model.stack, model.read, key=jax.random.fold_in(jax.random.key(options.seed), _BORDER_KEY)
        ),
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Text(Task):
    """A language model and its text."""

    config: RunConfig
    vocabulary: Vocabulary
    batches: Batches
    mesh: Mesh | None
    model: LanguageModel
    optimizer: optax.GradientTransformation
    uniform: float  # loss of a guess
    key: jax.Array
    border: AnyBorder
    first: LMParams | None  # to begin with, instead of new ones

    @property
    def symbols(self) -> int:
        """Of one update."""
        return self.config.train.batch_size * self.config.train.chunk_len

    def start(self) -> Carry:
        params = jax.tree.map(jnp.array, self.first)  # a copy, whose buffers are given up
        if params is None:
            params = self.model.init(jax.random.fold_in(self.key, _INIT_KEY))
        carry = Carry(params, self.optimizer.init(params), self.fresh_state(params))
        return devices.place(self.mesh, carry, devices.carry_specs(self.border))

    def fresh_state(self, params: Any) -> Any:
        """At the beginning of the text, where nothing has crossed a border yet."""
        shape = self.config.train.chunk_len, self.config.train.batch_size
        state: Any = self.model.initial_state(shape[1:])
        if not isinstance(self.border, Cut):
            resets = np.zeros(shape, bool) if self.batches.documents else None
            ids = np.zeros(shape, np.int32)
            whole = Chunk(ids, ids, resets)  # of all rows, for its shapes
            state = begin(self.border, devices.on_one(self.mesh, params), state, whole)
        return devices.place(self.mesh, state, devices.carry_specs(self.border).state)

    def chunk(self, step: int) -> Chunk:
        """The rows of this process."""
        return self.batches.chunk(step, devices.own_rows(self.mesh, self.config.train.batch_size))

    def more(self) -> bool:
        return self.batches.more()

    def rate(self, place: Place) -> float:
        return self.config.optimizer.learning_rate(place)

    def update(self, carry: Carry, step: int, rate: float | None, scale: float) -> tuple[Carry, Info]:
        """Feeds the next chunk; the state starts afresh at the beginning of the text."""
        chunk = devices.place_rows(self.mesh, self.chunk(step), self.config.train.batch_size)
        carry, info = update(
            self.model, self.optimizer, carry, chunk, jnp.float32(rate), self.key, jnp.uint32(step + 1), self.mesh,
            self.border,
        )  # fmt: skip
        if self.steps_per_epoch is not None and (step + 1) % self.steps_per_epoch == 0:
            carry = carry._replace(state=self.fresh_state(carry.params))
        return carry, info

    def train_row(self, interval: Interval) -> dict[str, Any]:
        row, bound = super().train_row(interval), self.config.optimizer.norm_bound or math.inf
        del row["steps_per_second"]
        row["loss"] = row.pop("nats")  # without the penalties
        return row | {
            "symbols": interval.step * self.symbols,
            "clip_rate": float((interval.norms > bound).mean()),
            "symbols_per_second": round(interval.steps_per_second * self.symbols, 1),
            **self.batches.facts(),
        }

    def explosion(self, loss: float, progress: Progress) -> str:
        calm = progress.calm_loss
        if loss > max(calm + EXPLOSION, self.uniform + 0.5):  # worse than guessing: hard text alone is no explosion
            return f"a loss of {loss:.2f} nats, {loss - calm:.2f} above the best so far"
        return ""

    def evaluate(self, params: Any) -> dict[str, float] | None:
        valid = self.batches.validation()
        if len(valid.ids) < 2:
            return None
        return {"val_loss": self.loss(params, *valid, self.config.train.eval_symbols or None)}

    def score(self, metrics: dict[str, float]) -> float:
        return metrics["val_loss"]

    def bad_evaluation(self, score: float, progress: Progress) -> str:
        return "a loss that is not finite" if not math.isfinite(score) else self.explosion(score, progress)

    def eval_row(self, metrics: dict[str, float], progress: Progress, better: bool) -> dict[str, Any]:
        position = {"step": progress.step, "epoch": progress.epoch, "symbols": progress.step * self.symbols}
        return {"kind": "eval", **position, **metrics}

    def judged(self, carry: Carry, progress: Progress) -> Carry:
        """Averaging begins after so many evaluations without a new best, and goes on."""
        if not (isinstance(carry.opt_state, AveragedState) and self.config.optimizer.average_after):
            return carry
        begun = carry.opt_state.averaging | (progress.plateaus >= self.config.optimizer.average_after)
        return carry._replace(opt_state=carry.opt_state._replace(averaging=begun))

    def evaluated(self, params: Any, step: int) -> Iterable[tuple[str, str] | dict[str, Any]]:
        """A sample; its key depends on the step alone."""
        length, vocabulary = self.config.train.sample_length, self.vocabulary
        if not length:
            return
        pieces = generate(
            self.model,
            devices.on_one(self.mesh, params),
            default_prime(vocabulary),
            key=jax.random.fold_in(jax.random.fold_in(self.key, _SAMPLE_KEY), step),
            length=length,
            banned=vocabulary.unknown,
        )
        text = vocabulary.decode(np.concatenate([piece[0] for piece in pieces]))
        yield "samples", f"--- step {step} ---\n{text}\n\n"
        yield {"kind": "sample", "step": step, "text": text}

    def loss(self, params: Any, ids: np.ndarray, starts: np.ndarray | None, limit: int | None = None) -> float:
        """Nats a symbol, on all devices."""
        return evaluate(self.model, params, ids, streams=EVAL_STREAMS, starts=starts, limit=limit, mesh=self.mesh).loss
