r"""The loop under every training: exact to resume, and able to survive an explosion.

Everything that the next update depends on is in a checkpoint: parameters, optimizer state, carried state, and the
history of the learning rate; batches and random keys are functions of the step. Evaluations and checkpoints only read
that state. What is trained, a `Task`, stands beside the loop: `rnnjax.fit.fit` has one for any loss, the language model
one of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.averaging import judged, judged_prefix
from rnnjax.files import plain
from rnnjax.fit import checkpoint as checkpoints
from rnnjax.fit.checkpoint import CheckpointError
from rnnjax.fit.devices import finite, placed, without_keys
from rnnjax.fit.folder import own_folder, remember, written
from rnnjax.fit.logs import Log
from rnnjax.fit.processes import Clock, on_host
from rnnjax.fit.progress import Place, Progress, TrainingFailedError, Trouble
from rnnjax.fit.task import Interval, Task
from rnnjax.update import Carry, Info

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
        self.started = self.announced = time.monotonic()
        self.crew, self.clock, self.preempted = task.crew, Clock(task.crew), False
        report({"kind": "compiling", "step": 0, "programs": task.programs})  # the start has programs, too
        self.carry = task.start()
        self.progress = Progress(calm_loss=task.calm_loss)
        self.history: list[dict[str, Any]] = []
        self.kept: Any = None  # the best parameters, where no folder keeps them
        paths = {} if folder is None else {"metrics": folder / "metrics.jsonl", **task.logs}
        self.logs = {name: Log(path, task.where) for name, path in paths.items()}
        # To go back to: the state after the last good interval, and after the last evaluation.
        self.safe = self.anchor = self.carry, self.progress

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """The folder belongs to this training alone as long as the context lasts; `run` needs it."""
        with contextlib.ExitStack() as stack:
            if self.folder is not None:  # process 0 owns it for all
                folder, where = self.folder, self.task.where
                self.crew.by_lead(lambda: stack.enter_context(own_folder(folder, where)))
            yield

    def run(self, resume: bool, should_stop: Callable[[], bool]) -> str:
        """Trains until the budget is used up; returns ``budget``, ``patience``, ``stopped`` or ``data``."""
        if self.folder is not None:
            self.open_folder(self.folder, resume)
        self.started = time.monotonic() - self.progress.seconds
        self.safe = self.anchor = self.copied()
        self.clock.agree(self.seconds())
        for interval in self.intervals():
            stop = self.clock.agree(self.seconds(), should_stop())
            trouble = self.judge(interval)
            if trouble:
                self.roll_back(interval, trouble)
                if interval.last and self.used_up():  # no time to take again what was taken back
                    self.evaluate_and_save()
            else:
                self.safe = self.copied()
                self.anchor = self.safe if interval.evaluate else self.anchor
            if stop:
                if trouble or not interval.evaluate:  # an evaluation now would count for patience and schedule
                    self.save(math.nan)
                return "stopped"
            if interval.evaluate and self.plan.patience and self.progress.since_best >= self.plan.patience:
                return "patience"
            if interval.evaluate:  # which took some time
                self.clock.agree(self.seconds())
        if self.preempted:  # no time to end the interval: it comes again, the same
            self.carry, self.progress = self.safe
            self.save(math.nan)
            return "stopped"
        return "budget" if self.fraction() >= 1.0 else "data"

    def intervals(self) -> Iterator[Interval]:
        """Trains, from wherever carry and progress are, and stops at every place where one looks."""
        plan, update, last = self.plan, self.first_update, self.used_up()
        while not last:
            looked, begin = self.due(), (self.progress.step, self.seconds())
            pending: list[tuple[Info, float | None]] = []
            while True:
                pending.append(update())
                update = self.one_update
                if len(pending) > 2:  # the host stays two updates ahead: enough to hide its work, and clocks stay right
                    pending[-3][0].loss.block_until_ready()
                if self.preempted:
                    return
                last = self.used_up()
                evaluate = last or self.due() > looked
                if last or self.progress.step % plan.log_every == 0 or (evaluate and plan.on_time):
                    break
            yield self.interval(pending, begin, evaluate, last)
            last = last and self.used_up()  # a roll-back gives updates back

    def judge(self, interval: Interval) -> Trouble | None:
        """The verdict: what is wrong; or None, once what is right has been recorded, measured and saved."""
        row, progress = self.task.train_row(interval), self.progress
        if not math.isfinite(progress.first_loss):
            progress.first_loss = float(interval.losses[0])
        if trouble := self.trouble(row, interval):
            return trouble
        progress.calm_loss = min(progress.calm_loss, row["loss"])
        self.record(row)
        return self.evaluate_and_save() if interval.evaluate else None

    def trouble(self, row: dict[str, Any], interval: Interval) -> Trouble | None:
        """What is wrong with an interval, or nothing."""
        if math.isfinite(row["loss"]) and math.isfinite(row["grad_norm_max"]):
            what = self.task.explosion(row["loss"], self.progress)
            return Trouble(what, interval.step, self.task.remedy) if what else None
        bad = ~(np.isfinite(interval.losses) & np.isfinite(interval.norms))
        step = interval.step - len(bad) + int(np.argmax(bad))  # from 0, as batches are numbered
        what = "loss" if not np.isfinite(interval.losses[np.argmax(bad)]) else "gradient"
        cause = self.task.bad_batch(step)
        if step == 0 and what == "loss":
            raise TrainingFailedError(
                f"{self.task.where}: the loss of the first batch is {interval.losses[0]} before any update, which no "
                f"learning rate can help; {cause or 'look for what is not finite in the batches and the parameters'}."
            )
        what = f"a {what} that is not finite"
        remedy = "mend that batch or mask it, as no learning rate helps" if cause else self.task.remedy
        return Trouble(what, step + 1, remedy, cause)

    def used_up(self) -> bool:
        """Whether the budget is, or the data are."""
        return self.fraction() >= 1.0 or not self.task.more()

    def copied(self) -> tuple[Carry, Progress]:
        """A copy of the present state; a copy, because updates reuse the buffers of the original."""
        return jax.tree.map(jnp.copy, self.carry), dataclasses.replace(self.progress)

    def seconds(self) -> float:
        """Since the start, earlier parts of a resumed run included."""
        return time.monotonic() - self.started

    def fraction(self) -> float:
        """The share of the budget that is used up."""
        if self.plan.minutes is not None:
            return self.clock.seconds(self.seconds()) / (60.0 * self.plan.minutes)
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
        self.preempted = self.clock.counted(self.seconds()) or self.preempted
        return info, rate

    def first_update(self) -> tuple[Info, float | None]:
        """The update that is compiled, which may take longer than all others together."""
        info, rate = self.one_update()
        info.loss.block_until_ready()
        seconds = time.monotonic() - self.announced
        self.report({"kind": "compiled", "step": self.progress.step, "seconds": round(seconds, 3)})
        return info, rate

    def interval(
        self, pending: list[tuple[Info, float | None]], begin: tuple[int, float], evaluate: bool, last: bool
    ) -> Interval:
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
            steps_per_second=(self.progress.step - begin[0]) / max(seconds - begin[1], 1e-9),
            evaluate=evaluate,
            last=last,
        )

    def roll_back(self, interval: Interval, trouble: Trouble) -> None:
        """To the last good interval; if that does not help, the next times to the last checkpoint."""
        now, task = self.progress, self.task
        carry, progress = self.safe if now.rollbacks == 0 else self.anchor
        self.carry = jax.tree.map(jnp.copy, carry)
        self.progress = dataclasses.replace(progress, rollbacks=now.rollbacks + 1, lr_scale=now.lr_scale / 2)
        row = {"kind": "rollback", "step": interval.step, "to_step": self.progress.step}
        row |= {"lr_scale": self.progress.lr_scale, "reason": trouble.sentence(interval.step)}
        self.record({**row, "seconds": round(interval.seconds, 3)})
        if self.progress.rollbacks >= MAX_ROLLBACKS:
            self.save(math.nan)
            saved = "" if self.folder is None else f" The last good state is saved in {self.folder}."
            raise TrainingFailedError(
                f"{task.where}: {trouble.sentence()}, for the {self.progress.rollbacks}th time in a "
                f"row although the learning rate was halved each time; {trouble.remedy}.{saved}"
            )

    def evaluate_and_save(self) -> Trouble | None:
        """Saves a checkpoint with its metrics, unless they show trouble, which is returned."""
        progress, params = self.progress, judged(self.carry.params, self.carry.opt_state)
        if not finite(self.carry.params):  # a loss precedes its update: what the last one broke is seen here first
            return Trouble("parameters that are not finite", progress.step, self.task.remedy)
        if what := self.task.bad_params(self.carry, progress):
            return Trouble(what, progress.step, self.task.remedy)
        metrics, score = self.task.evaluate(params), math.nan
        metrics = self.crew.by_lead(lambda: metrics)
        if metrics is not None:
            score = self.task.score(metrics)
            if what := self.task.bad_evaluation(score, progress):
                return Trouble(what, progress.step, self.task.remedy)
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
            self.carry = self.task.judged(self.carry, progress)
        progress.rollbacks = 0
        self.crew.by_lead(self.after_evaluation)
        self.save(score)
        return None

    def after_evaluation(self) -> None:
        """Samples and the like."""
        for found in self.task.evaluated(judged(self.carry.params, self.carry.opt_state), self.progress.step):
            if isinstance(found, dict):
                self.report(found)
            else:
                self.append(*found)

    def best(self) -> tuple[Any, int]:
        """The parameters of the best evaluation and their step; the newest where nothing was measured."""
        step, measured = self.progress.best_step, math.isfinite(self.progress.best_loss)
        now = judged(self.carry.params, self.carry.opt_state)
        if self.folder is None:
            return (self.kept, step) if measured else (now, self.progress.step)
        folder, like = self.folder / "checkpoints", self.carry.params

        def choose() -> tuple[str, int] | None:
            if not (found := checkpoints.find_checkpoints(folder)):
                return None
            chosen = (checkpoints.of_step(found, step) if measured else None) or checkpoints.best(found)
            return chosen.path.name, chosen.step

        if (chosen := self.crew.by_lead(choose)) is None:
            return now, self.progress.step
        with checkpoints.open_checkpoint(folder / chosen[0]) as stored:
            return placed(stored.tree(like, judged_prefix(stored.shapes)), like), chosen[1]

    def done(self, reason: str, best_step: int, metrics: dict[str, float]) -> None:
        """The row of the end."""
        row = {"kind": "done", "step": self.progress.step, "best_step": best_step, "reason": reason}
        self.record(row | metrics | {"seconds": round(self.seconds(), 3)})

    def record(self, row: dict[str, Any]) -> None:
        """Writes a row to the metrics and reports it."""
        self.append("metrics", json.dumps(plain(row)) + "\n")
        self.report(row)

    def append(self, name: str, text: str) -> None:
        """Process 0 writes to one of the logs, such that a resumed run can cut off what it will write again."""
        if name in self.logs and self.crew.is_lead:
            self.logs[name].append(text)

    def save(self, score: float) -> None:
        """Writes a checkpoint, where there is a folder for it."""
        self.progress.seconds = self.seconds()
        if self.folder is not None:
            folder, carry = self.folder, on_host(without_keys(self.carry))
            self.crew.by_lead(lambda: self.write(folder, carry, score))

    def write(self, root: pathlib.Path, carry: Any, score: float) -> None:
        """Writes a checkpoint of these arrays, which lie on this process, and removes those that it replaces."""
        progress, folder = self.progress, root / "checkpoints"
        logs = {name: log.mark for name, log in self.logs.items()}
        meta = {"progress": plain(dataclasses.asdict(progress)), "logs": logs, **self.task.identity}
        saved = checkpoints.save(folder, carry, meta, step=progress.step, val_loss=score)
        checkpoints.prune(folder, progress.best_step if math.isfinite(progress.best_loss) else None)
        remember(root, [f"checkpoints/{saved.path.name}"])
        self.report({"kind": "checkpoint", "step": progress.step, "path": str(saved.path)})

    def open_folder(self, folder: pathlib.Path, resume: bool) -> None:
        """Takes up the newest checkpoint, and cuts off the logs there: what follows comes again, the same bytes."""
        newest = self.crew.by_lead(lambda: self.newest(folder, resume))
        marks = {name: Log(log.path, log.where).mark for name, log in self.logs.items()}  # of empty ones
        if newest is not None:
            marks = self.crew.together(lambda: self.load(folder / "checkpoints" / newest))
        self.history = self.crew.by_lead(lambda: self.begin_logs(folder, marks))
        if newest is None and self.task.saves_start:
            self.save(math.nan)

    def newest(self, folder: pathlib.Path, resume: bool) -> str | None:
        """The name of the checkpoint to go on with, if there is one."""
        if found := checkpoints.find_checkpoints(folder / "checkpoints"):
            if not resume:
                raise ValueError(
                    f"{self.task.where}: {folder} holds checkpoints already; resume, or take another folder."
                )
            return found[-1].path.name
        ours = written(folder)
        for log in self.logs.values():
            if log.path.name not in ours and log.path.exists() and log.path.stat().st_size:
                raise ValueError(
                    f"{self.task.where}: {folder} holds {log.path.name}, which no run wrote; take another folder."
                )
        return None

    def begin_logs(self, folder: pathlib.Path, marks: dict[str, Any]) -> list[dict[str, Any]]:
        """The logs up to the marks; returns the evaluations in them."""
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        remember(folder, [log.path.relative_to(folder).as_posix() for log in self.logs.values()])
        for name, log in self.logs.items():
            log.cut(marks[name])
        return [
            {name: math.nan if value is None else value for name, value in row.items()}
            for row in self.logs["metrics"].rows()
            if row.get("kind") == "eval"
        ]

    def load(self, path: pathlib.Path) -> dict[str, Any]:
        """Takes up a checkpoint; returns the marks of the logs."""
        with checkpoints.open_checkpoint(path) as stored:
            meta = stored.meta
            for name, value in self.task.identity.items():
                if meta.get(name) != value:
                    raise ValueError(
                        f"{self.task.where}: {self.folder} holds another run, whose {name} is {meta.get(name)}, got "
                        f"{value}; go on with the same, or take another folder."
                    )
            self.carry = placed(stored.tree(without_keys(self.carry)), self.carry)
        known: dict[str, Any] = {k: math.inf if v is None else v for k, v in meta.get("progress", {}).items()}
        names = {field.name for field in dataclasses.fields(self.progress)}
        if known.keys() != names or meta.get("logs", {}).keys() != self.logs.keys():
            raise CheckpointError(f"checkpoint: {path} was written by another version; start a new run.")
        self.progress = type(self.progress)(**known)
        return meta["logs"]
