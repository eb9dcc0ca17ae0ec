r"""The loop under every training: exact to resume, and able to survive an explosion.

Everything that the next update depends on is in a checkpoint: parameters, optimizer state, carried state, and the
history of the learning rate; batches and random keys are functions of the step. Evaluations and checkpoints only read
that state. What is trained, a `Task`, stands beside the loop: `rnnjax.fit.fit` has one for any loss, the language model
one of its own.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.fit import checkpoint as checkpoints
from rnnjax.fit.checkpoint import Checkpoint, CheckpointError
from rnnjax.fit.progress import Place, TrainingFailedError
from rnnjax.fit.task import Interval, Task
from rnnjax.update import Info

__all__ = ["MAX_ROLLBACKS", "Loop", "Plan", "Report"]

MAX_ROLLBACKS = 8  # in a row, without an evaluation between them

Report = Callable[[dict[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long, and how often one looks.

    Attributes:
        steps: the budget in updates, or None.
        minutes: the budget in minutes of wall-clock time, or None; exactly one of the two is set.
        evals: evaluations, spread evenly over the budget.
        patience: stop after so many evaluations without a new best; 0 never stops early.
        log_every: updates between lines of metrics; explosions are looked for as often.
        on_time: whether an evaluation ends an interval, or waits for its end.
    """

    steps: int | None
    minutes: float | None
    evals: int
    patience: int
    log_every: int
    on_time: bool = True


class Loop:
    """One training: the fixed things of it in ``task`` and ``plan``, the moving ones in ``carry`` and ``progress``."""

    def __init__(self, task: Task, plan: Plan, folder: pathlib.Path | None, report: Report) -> None:
        self.task, self.plan, self.folder, self.report = task, plan, folder, report
        self.progress = task.progress()
        self.history: list[dict[str, Any]] = []
        self.kept: Any = None  # the best parameters, where no folder keeps them
        self.logs = {} if folder is None else {"metrics": folder / "metrics.jsonl", **task.logs}
        self.started = time.monotonic()

    def run(self, resume: bool, should_stop: Callable[[], bool]) -> str:
        """Trains until the budget is used up; returns ``budget``, ``patience`` or ``stopped``."""
        task, plan = self.task, self.plan
        self.carry = task.start()
        if self.folder is not None:
            self.open_folder(self.folder, resume)
        self.started = time.monotonic() - self.progress.seconds
        self.snapshot(anchor=True)
        pending: list[tuple[Info, float | None]] = []
        mark = (self.progress.step, self.seconds())
        evaluated, ended = self.due(), self.fraction() >= 1.0
        while not ended:
            pending.append(self.one_update())
            if len(pending) > 2:  # the host stays two updates ahead: enough to hide its work, and clocks stay right
                pending[-3][0].loss.block_until_ready()
            ended = self.fraction() >= 1.0
            looking = plan.on_time and self.due() > evaluated
            if self.progress.step % plan.log_every and not ended and not looking:
                continue
            stop = should_stop()
            evaluating = ended or self.due() > evaluated
            interval = self.interval(pending, mark)
            pending = []
            row = task.train_row(interval)
            task.note(self.progress, interval)
            trouble = self.trouble(row["loss"], row["grad_norm_max"])
            if not trouble:
                self.progress.calm_loss = min(self.progress.calm_loss, row["loss"])
                self.record(row)
                if evaluating:
                    trouble = self.evaluate_and_save()
            if trouble:
                self.roll_back(interval, trouble)
                ended = self.fraction() >= 1.0  # steps that were taken back are there to be taken again
                if ended:
                    self.evaluate_and_save()
            else:
                self.snapshot(anchor=evaluating)
            evaluated = self.due()
            if stop and (trouble or not evaluating):  # an evaluation now would count for patience and schedule
                self.save(math.nan)
            if stop:
                return "stopped"
            if evaluating and plan.patience and self.progress.since_best >= plan.patience:
                return "patience"
            mark = (self.progress.step, self.seconds())
        return "budget"

    def seconds(self) -> float:
        """Since the start, earlier parts of a resumed run included."""
        return time.monotonic() - self.started

    def fraction(self) -> float:
        """The share of the budget that is used up."""
        if self.plan.minutes is not None:
            return self.seconds() / (60.0 * self.plan.minutes)
        return self.progress.step / (self.plan.steps or 1)

    def due(self) -> int:
        """How many evaluations the budget so far has room for."""
        return int(self.fraction() * self.plan.evals)

    def one_update(self) -> tuple[Info, float | None]:
        progress = self.progress
        rate = self.task.rate(Place(self.fraction(), progress.epoch, progress.plateaus, progress.step))
        if rate is not None:
            rate *= progress.lr_scale
        self.carry, info = self.task.update(self.carry, progress.step, rate, progress.lr_scale)
        progress.step += 1
        if self.task.steps_per_epoch:
            progress.epoch = progress.step // self.task.steps_per_epoch
        return info, rate

    def interval(self, pending: list[tuple[Info, float | None]], mark: tuple[int, float]) -> Interval:
        infos = jax.device_get([info for info, _ in pending])
        seconds = self.seconds()
        return Interval(
            step=self.progress.step,
            epoch=self.progress.epoch,
            progress=min(1.0, self.fraction()),
            losses=np.concatenate([np.atleast_1d(info.loss) for info in infos]),
            norms=np.concatenate([np.atleast_1d(info.grad_norm) for info in infos]),
            metrics={
                name: float(np.mean([info.metrics[name] for info in infos], dtype=np.float64))
                for name in infos[0].metrics
            },
            rate=pending[-1][1],
            seconds=seconds,
            steps_per_second=(self.progress.step - mark[0]) / max(seconds - mark[1], 1e-9),
        )

    def trouble(self, loss: float, grad_norm: float = 0.0) -> str:
        """What is wrong with an interval, or nothing."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return "a loss or gradient that is not finite"
        return self.task.explosion(loss, self.progress)

    def snapshot(self, *, anchor: bool = False) -> None:
        """Keeps a copy of a good state; a copy, because updates reuse the buffers of the original."""
        self.safe = jax.tree.map(jnp.copy, self.carry), dataclasses.replace(self.progress)
        if anchor:
            self.anchor = self.safe

    def roll_back(self, interval: Interval, trouble: str) -> None:
        """To the last good interval; if that does not help, the next times to the last checkpoint."""
        now, task = self.progress, self.task
        carry, progress = self.safe if now.rollbacks == 0 else self.anchor
        self.carry = jax.tree.map(jnp.copy, carry)
        lengths = {f"{name}_bytes": getattr(now, f"{name}_bytes") for name in self.logs}
        self.progress = dataclasses.replace(progress, rollbacks=now.rollbacks + 1, lr_scale=now.lr_scale / 2, **lengths)
        self.record(
            {
                "kind": "rollback",
                "step": interval.step,
                "to_step": self.progress.step,
                "lr_scale": self.progress.lr_scale,
                "reason": trouble,
                "seconds": round(interval.seconds, 3),
            }
        )
        if self.progress.rollbacks >= MAX_ROLLBACKS:
            self.save(math.nan)
            saved = "" if self.folder is None else f" The last good state is saved in {self.folder}."
            raise TrainingFailedError(
                f"{task.where}: {trouble} at step {interval.step}, for the {self.progress.rollbacks}th time in a row "
                f"although the learning rate was halved each time; {task.remedy}.{saved}"
            )

    def evaluate_and_save(self) -> str:
        """Saves a checkpoint with its metrics, unless they show trouble, which is returned."""
        progress, params = self.progress, self.carry.params
        if not _finite(params):  # a loss is taken before its update: this is the first to see what the last one broke
            return "parameters that are not finite"
        if trouble := self.task.bad_params(self.carry, progress):
            return trouble
        metrics, score = self.task.evaluate(params), math.nan
        if metrics is not None:
            score = self.task.score(metrics)
            if trouble := self.task.bad_evaluation(score, progress):
                return trouble
            better = score < progress.best_loss
            if better:
                progress.best_loss, progress.best_step, progress.since_best = score, progress.step, 0
                if self.folder is None:
                    self.kept = jax.tree.map(jnp.copy, params)
            else:
                progress.plateaus, progress.since_best = progress.plateaus + 1, progress.since_best + 1
            row = self.task.eval_row(metrics, progress, better) | {"seconds": round(self.seconds(), 3)}
            self.history.append(row)
            self.record(row)
        progress.rollbacks = 0
        self.task.evaluated(self)
        self.save(score)
        return ""

    def best(self) -> tuple[Any, int]:
        """The parameters of the best evaluation and their step; the newest where nothing was measured."""
        step, measured = self.progress.best_step, math.isfinite(self.progress.best_loss)
        if self.folder is None:
            return (self.kept, step) if measured else (self.carry.params, self.progress.step)
        found = checkpoints.find_checkpoints(self.folder / "checkpoints")
        if not found:
            return self.carry.params, self.progress.step
        chosen = (checkpoints.of_step(found, step) if measured else None) or checkpoints.best(found)
        arrays, like = checkpoints.load(chosen.path)[0], self.carry.params
        return _placed(checkpoints.restore(arrays, like, prefix="params", where=str(chosen.path)), like), chosen.step

    def record(self, row: dict[str, Any]) -> None:
        """Writes a row to the metrics and reports it."""
        self.append("metrics", json.dumps(_plain(row)) + "\n")
        self.report(row)

    def append(self, name: str, text: str) -> None:
        """Writes to one of the logs, such that a resumed run can cut off what it will write again."""
        if name in self.logs:
            data = text.encode("utf-8", errors="replace")
            with open(self.logs[name], "ab") as file:
                file.write(data)
            setattr(self.progress, f"{name}_bytes", getattr(self.progress, f"{name}_bytes") + len(data))

    def save(self, score: float) -> None:
        """Writes a checkpoint, where there is a folder for it."""
        progress = self.progress
        progress.seconds = self.seconds()
        if self.folder is None:
            return
        folder = self.folder / "checkpoints"
        meta = {"progress": _plain(dataclasses.asdict(progress)), **self.task.identity}
        saved = checkpoints.save(folder, _without_keys(self.carry), meta, step=progress.step, val_loss=score)
        checkpoints.prune(folder, progress.best_step if math.isfinite(progress.best_loss) else None)
        self.report({"kind": "checkpoint", "step": progress.step, "path": str(saved.path)})

    def open_folder(self, folder: pathlib.Path, resume: bool) -> None:
        """Takes up the newest checkpoint, and cuts off the logs there: what follows comes again, the same bytes."""
        if found := checkpoints.find_checkpoints(folder / "checkpoints"):
            if not resume:
                raise ValueError(
                    f"{self.task.where}: {folder} holds checkpoints already; resume, or take another folder."
                )
            self.load(found[-1])
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        for name, path in self.logs.items():
            path.touch()
            length = min(getattr(self.progress, f"{name}_bytes"), path.stat().st_size)
            setattr(self.progress, f"{name}_bytes", length)
            os.truncate(path, length)
        rows = (json.loads(line) for line in self.logs["metrics"].read_text(encoding="utf-8").splitlines())
        self.history = [
            {name: math.nan if value is None else value for name, value in row.items()}
            for row in rows
            if row["kind"] == "eval"
        ]

    def load(self, saved: Checkpoint) -> None:
        arrays, meta = checkpoints.load(saved.path)
        for name, value in self.task.identity.items():
            if meta.get(name) != value:
                raise ValueError(
                    f"{self.task.where}: {self.folder} holds another run, whose {name} is {meta.get(name)}, got "
                    f"{value}; go on with the same, or take another folder."
                )
        stored = checkpoints.restore(arrays, _without_keys(self.carry), where=str(saved.path))
        self.carry = _placed(stored, self.carry)
        known: dict[str, Any] = {k: math.inf if v is None else v for k, v in meta.get("progress", {}).items()}
        if known.keys() != {field.name for field in dataclasses.fields(self.progress)}:
            raise CheckpointError(f"checkpoint: {saved.path} was written by another version; start a new run.")
        self.progress = type(self.progress)(**known)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no infinity and no nan: None stands for both."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _finite(params: Any) -> bool:
    leaves = [leaf for leaf in jax.tree.leaves(params) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return all(bool(np.isfinite(leaf).all()) for leaf in jax.device_get(leaves))


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _without_keys(tree: Any) -> Any:
    """Typed random keys as the integers they are made of, which files can hold."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree)


def _placed(tree: Any, like: Any) -> Any:
    """Host arrays on the devices of ``like``, with its typed keys."""

    def place(array: Any, like: Any) -> Any:
        if _is_key(like):
            return jax.random.wrap_key_data(jnp.array(array), impl=jax.random.key_impl(like))
        # An array of a single device stays free to move, as one that jax made itself.
        return jax.device_put(array, like.sharding) if len(like.sharding.device_set) > 1 else jnp.array(array)

    return jax.tree.map(place, tree, like)
