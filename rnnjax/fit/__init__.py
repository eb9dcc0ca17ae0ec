r"""One training loop for any loss: evaluations, early stopping, roll-backs, checkpoints, and resume to the same bits.

`fit` is what one calls. The language model's training is another task of the same `rnnjax.fit.loop.Loop`.
"""

from rnnjax.fit.loop import MAX_ROLLBACKS
from rnnjax.fit.optimizers import OPTIMIZERS, SCHEDULES, OptimizerOptions, learning_rate, make_optimizer, schedule
from rnnjax.fit.printer import Printer
from rnnjax.fit.progress import Outcome, Place, TrainingFailedError
from rnnjax.fit.training import fit
from rnnjax.saving import CheckpointError

__all__ = [
    "MAX_ROLLBACKS",
    "OPTIMIZERS",
    "SCHEDULES",
    "CheckpointError",
    "OptimizerOptions",
    "Outcome",
    "Place",
    "Printer",
    "TrainingFailedError",
    "fit",
    "learning_rate",
    "make_optimizer",
    "schedule",
]
