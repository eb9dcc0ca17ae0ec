"""Where a training stands, and how it ended."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

__all__ = ["Outcome", "Progress", "TrainingFailedError"]


class TrainingFailedError(RuntimeError):
    """The loss exploded again and again; the message says what to try."""


@dataclasses.dataclass
class Progress:
    """Where the training stands, on the host; the part of a checkpoint that is not arrays."""

    step: int = 0
    epoch: int = 0
    cursor: int = 0  # column of the streams at which the next chunk begins
    seconds: float = 0.0
    best_loss: float = math.inf  # of the evaluations
    best_step: int = 0
    plateaus: int = 0  # evaluations without a new best, in all
    since_best: int = 0  # the same, in a row
    lr_scale: float = 1.0
    rollbacks: int = 0  # in a row
    calm_loss: float = math.inf  # lowest mean training loss of an interval
    metrics_bytes: int = 0
    samples_bytes: int = 0


class Outcome(NamedTuple):
    """How a training ended."""

    reason: str  # "budget", "patience" or "stopped"
    progress: Progress
    best_step: int  # of the best checkpoint
    valid_loss: float  # of the best checkpoint, on the whole validation text, in nats
    test_loss: float  # the same on the test text; nan where there is none
