"""Where a training stands, and how it ended."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

__all__ = ["Outcome", "Place", "Progress", "TrainingFailedError", "Trouble"]


class TrainingFailedError(RuntimeError):
    """The loss exploded again and again; the message says what to try."""


@dataclasses.dataclass
class Progress:
    """Where the training stands, on the host; the part of a checkpoint that is not arrays."""

    step: int = 0
    epoch: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf  # of the evaluations; where more is better, minus the metric
    best_step: int = 0
    plateaus: int = 0  # evaluations without a new best, in all
    since_best: int = 0  # the same, in a row
    lr_scale: float = 1.0
    rollbacks: int = 0  # in a row
    first_loss: float = math.inf  # of the first batch, before any update
    calm_loss: float = math.inf  # lowest mean training loss of an interval


class Place(NamedTuple):
    """What a learning rate may depend on."""

    progress: float  # share of the budget that is used up, in [0, 1]
    epoch: int  # passes through the data that are complete; 0 where the batches do not tell how long one is
    plateaus: int  # evaluations so far without a new best
    step: int  # updates so far


class Trouble(NamedTuple):
    """Why a training goes back."""

    what: str
    step: int  # where it began, as far as one can tell
    remedy: str
    cause: str = ""

    def sentence(self, at: int | None = None) -> str:
        """What is wrong, where, unless that is known to the reader, and why."""
        where = "" if self.step == at else f" at step {self.step}"
        return f"{self.what}{where}{f' ({self.cause})' if self.cause else ''}"


class Outcome(NamedTuple):
    """What `fit` returns."""

    params: Any  # of the best evaluation, of the end without evaluations
    reason: str  # "budget", "patience", "stopped" or "data" (the batches ended)
    step: int  # at the end
    best_step: int  # that `params` are from
    metrics: dict[str, float]  # of the best evaluation, empty without evaluations
    history: list[dict[str, Any]]  # the rows of all evaluations, oldest first
    seconds: float  # in all, earlier parts of a resumed run included
    state: Any  # the carried state at the end, None without one
