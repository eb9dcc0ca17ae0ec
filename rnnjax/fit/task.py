"""What a `rnnjax.fit.loop.Loop` trains, and what goes between the two."""

from __future__ import annotations

import abc
import dataclasses
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from rnnjax.fit.processes import ALONE, Crew
from rnnjax.fit.progress import Place, Progress
from rnnjax.update import Carry, Info

__all__ = ["Interval", "Task"]


class Interval(NamedTuple):
    """What happened between two lines of metrics."""

    step: int  # at the end
    epoch: int
    progress: float  # share of the budget that is used up
    losses: np.ndarray  # [N], of every update
    norms: np.ndarray  # [N]
    metrics: dict[str, float]  # means
    rate: float | None  # of the last update
    seconds: float  # since the start of the training
    steps_per_second: float
    evaluate: bool  # whether an evaluation is due
    last: bool  # whether the budget is used up


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """What is trained: values and functions over values. A task knows nothing of the loop and changes nothing.

    Attributes:
        where: opens error messages.
        remedy: what to try when the loss explodes without end.
        steps_per_epoch: None where an epoch has no length.
        programs: how often an update is compiled, at most, where that is known.
        calm_loss: a loss that is no explosion, from the start.
        logs: files beside the metrics, for the texts of `evaluated`; a resumed run cuts them off at its checkpoint.
        crew: the processes that train together.
        saves_start: whether the carry before the first step is saved at once, as it cannot be made again.
        identity: what JSON can hold and a resumed run must have in common with the checkpoint.
    """

    where: str = "fit"
    remedy: str = "lower the learning rate or clip the gradient, and start again"
    steps_per_epoch: int | None = None
    programs: int = 1
    calm_loss: float = math.inf
    crew: Crew = ALONE
    saves_start: bool = False
    logs: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    identity: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @abc.abstractmethod
    def start(self) -> Carry:
        """The carry before the first step; its buffers are given up."""

    @abc.abstractmethod
    def update(self, carry: Carry, step: int, rate: float | None, scale: float) -> tuple[Carry, Info]:
        """Update number ``step``, from 0; ``rate`` has been multiplied by ``scale`` (1 unless rolled back) already."""

    @abc.abstractmethod
    def score(self, metrics: dict[str, float]) -> float:
        """What evaluations are compared by, the lower the better."""

    @abc.abstractmethod
    def eval_row(self, metrics: dict[str, float], progress: Progress, better: bool) -> dict[str, Any]:
        """The line of an evaluation, without its clock."""

    def train_row(self, interval: Interval) -> dict[str, Any]:
        """The line of metrics; ``loss`` and ``grad_norm_max`` must be there."""
        return {
            "kind": "train",
            "step": interval.step,
            "epoch": interval.epoch,
            "progress": round(interval.progress, 6),
            "loss": float(interval.losses.mean(dtype=np.float64)),
            "grad_norm": float(interval.norms.mean(dtype=np.float64)),
            "grad_norm_max": float(interval.norms.max()),
            "lr": interval.rate,
            **interval.metrics,
            "seconds": round(interval.seconds, 3),
            "steps_per_second": round(interval.steps_per_second, 2),
        }

    def rate(self, place: Place) -> float | None:
        """The learning rate, where the task sets one."""
        return None

    def more(self) -> bool:
        """Whether there is anything left to train on."""
        return True

    def evaluate(self, params: Any) -> dict[str, float] | None:
        """The metrics of these parameters; None where nothing is measured."""
        return None

    def judged(self, carry: Carry, progress: Progress) -> Carry:
        """The carry after an evaluation, where how it went changes what comes."""
        return carry

    def evaluated(self, params: Any, step: int) -> Iterable[tuple[str, str] | dict[str, Any]]:
        """After an evaluation of these: texts for the logs, as ``(name, text)``, and rows to report, as samples."""
        return ()

    def explosion(self, loss: float, progress: Progress) -> str:
        """What is wrong with a mean loss that is finite, or nothing."""
        return ""

    def bad_params(self, carry: Carry, progress: Progress) -> str:
        """What is wrong with finite parameters that are about to be evaluated and saved, or nothing."""
        return ""

    def bad_evaluation(self, score: float, progress: Progress) -> str:
        """What is wrong with an evaluation, or nothing."""
        return "" if math.isfinite(score) else "an evaluation that is not finite"

    def bad_batch(self, step: int) -> str:
        """What is wrong with the batch of this step, or nothing; what a loss that is not finite is explained by."""
        return ""
