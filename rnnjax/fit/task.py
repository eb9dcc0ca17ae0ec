"""What a `rnnjax.fit.loop.Loop` trains, and what goes between the two."""

from __future__ import annotations

import abc
import math
import pathlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rnnjax.fit.progress import Place, Progress
from rnnjax.update import Carry, Info

if TYPE_CHECKING:
    from rnnjax.fit.loop import Loop

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


class Task(abc.ABC):
    """What is trained. The loop calls these methods; a task changes nothing of the loop's but what they return.

    Attributes:
        where: opens error messages.
        remedy: what to try when the loss explodes without end.
        steps_per_epoch: None where an epoch has no length.
        logs: files beside the metrics, which `Loop.append` writes and a resumed run cuts off at its checkpoint; the
            progress has an attribute ``<name>_bytes`` for each.
        identity: what JSON can hold and a resumed run must have in common with the checkpoint.
    """

    where: str = "fit"
    remedy: str = "lower the learning rate or clip the gradient, and start again"
    steps_per_epoch: int | None = None

    def __init__(self) -> None:
        self.logs: dict[str, pathlib.Path] = {}
        self.identity: dict[str, Any] = {}

    def progress(self) -> Progress:
        """The place before the first step."""
        return Progress()

    @abc.abstractmethod
    def start(self) -> Carry:
        """The carry before the first step; its buffers are given up."""

    def rate(self, place: Place) -> float | None:
        """The learning rate, where the task sets one."""
        return None

    @abc.abstractmethod
    def update(self, carry: Carry, step: int, rate: float | None, scale: float) -> tuple[Carry, Info]:
        """Update number ``step``, from 0; ``rate`` has been multiplied by ``scale`` (1 unless rolled back) already."""

    @abc.abstractmethod
    def train_row(self, interval: Interval) -> dict[str, Any]:
        """The line of metrics; ``loss`` and ``grad_norm_max`` must be there."""

    def note(self, progress: Progress, interval: Interval) -> None:  # noqa: B027  (a task may have none to take)
        """Takes notes of an interval in the progress; a roll-back forgets them."""

    def explosion(self, loss: float, progress: Progress) -> str:
        """What is wrong with a mean loss that is finite, or nothing."""
        return ""

    def bad_params(self, carry: Carry, progress: Progress) -> str:
        """What is wrong with finite parameters that are about to be evaluated and saved, or nothing."""
        return ""

    def evaluate(self, params: Any) -> dict[str, float] | None:
        """The metrics of these parameters; None where nothing is measured."""
        return None

    @abc.abstractmethod
    def score(self, metrics: dict[str, float]) -> float:
        """What evaluations are compared by, the lower the better."""

    def bad_evaluation(self, score: float, progress: Progress) -> str:
        """What is wrong with an evaluation, or nothing."""
        return "" if math.isfinite(score) else "an evaluation that is not finite"

    @abc.abstractmethod
    def eval_row(self, metrics: dict[str, float], progress: Progress, better: bool) -> dict[str, Any]:
        """The line of an evaluation, without its clock."""

    def evaluated(self, loop: Loop) -> None:  # noqa: B027  (the same)
        """Called before the checkpoint of an evaluation, for samples and the like."""
