r"""One training loop for any loss: evaluations, early stopping, roll-backs, checkpoints, and resume to the same bits.

`fit` is what one calls. The language model's training is another task of the same `rnnjax.fit.loop.Loop`.
"""

from rnnjax.averaging import averaged
from rnnjax.fit.optimizers import OptimizerOptions
from rnnjax.fit.printer import Printer
from rnnjax.fit.progress import TrainingFailedError
from rnnjax.fit.training import fit
from rnnjax.saving import CheckpointError

__all__ = [
    "CheckpointError",
    "OptimizerOptions",
    "Printer",
    "TrainingFailedError",
    "averaged",
    "fit",
]
