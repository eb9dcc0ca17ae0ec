"""optax optimizers and learning rates from a handful of options."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import optax

from rnnjax.averaging import averaged
from rnnjax.checks import check_choice, check_real, check_size
from rnnjax.fit.progress import Place
from rnnjax.options import option

__all__ = ["OPTIMIZERS", "SCHEDULES", "OptimizerOptions"]

# The direction of a step; clipping comes before, decay and the learning rate after. Keys are the names of options.
OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "adamw": lambda: optax.scale_by_adam(b1=0.9, b2=0.99),
    "adam": lambda: optax.scale_by_adam(b1=0.9, b2=0.999),  # as its paper sets it (Kingma and Ba, 2015)
    "rmsprop": lambda: optax.scale_by_rms(decay=0.95, eps=1e-8),
    "sgd": lambda: optax.trace(decay=0.9, nesterov=True),
    "adagrad": lambda: optax.scale_by_rss(initial_accumulator_value=0.1),
}

SCHEDULES = ("cosine", "constant", "step", "plateau")


_BOUNDS: dict[str, dict[str, Any]] = {
    "lr": {"above": 0.0},
    "warmup": {"least": 0.0, "most": 1.0},
    "decay": {"above": 0.0, "most": 1.0},
    "clip": {"least": 0.0},
    "weight_decay": {"least": 0.0},
    "average": {"least": 0.0, "most": 1.0},
}


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
    """How parameters are updated.

    Attributes:
        optimizer: a key of `OPTIMIZERS`; ``adam`` is ``adamw`` with the longer memory of its paper, and for every
            one of them the decay is that of ``weight_decay``.
        lr: the peak learning rate.
        schedule: what follows the warm-up: ``cosine`` to 1 % of the peak at the end of the budget; ``constant``;
            ``step``: times ``decay`` every epoch from epoch ``decay_from`` on; ``plateau``: times ``decay`` at
            every evaluation that brought no new best.
        warmup: share of the budget over which the rate rises linearly from 0.
        decay: factor of ``step`` and ``plateau``.
        decay_from: first epoch, counted from 0, at which ``step`` lowers the rate.
        clip: bound on the gradient; 0 for none.
        clip_by: ``norm``, the global norm, or ``value``, every element by itself.
        weight_decay: decoupled decay of the matrices (not of the biases), times the learning rate.
        average: the ``decay`` of `rnnjax.fit.averaged`, whose mean of the parameters is evaluated and kept; 0 for none.
        average_after: evaluations without a new best, in all, after which averaging begins; 0 begins with the first
            update. With ``average=1`` and ``sgd`` it is averaged SGD with a trigger that is not monotonic (Merity et
            al., 2018).

    Raises:
        ValueError: for an unknown name or a number out of range.
    """

    optimizer: str = option("adamw", "What turns gradients into steps.", "|".join(OPTIMIZERS))
    lr: float = option(3e-3, "Peak learning rate.", "RATE")
    schedule: str = option("cosine", "How the learning rate falls after the warm-up.", "|".join(SCHEDULES))
    warmup: float = option(0.02, "Share of the budget over which the rate rises.", "SHARE")
    decay: float = option(0.97, "Factor of step (each epoch) and plateau (each bad evaluation).", "FACTOR")
    decay_from: int = option(10, "First epoch at which step lowers the rate.", "EPOCH")
    clip: float = option(1.0, "Bound on the gradient; 0: none.", "BOUND")
    clip_by: str = option("norm", "The global norm, or the value of each element.", "norm|value")
    weight_decay: float = option(0.0, "Decoupled decay of the matrices.", "RATE")
    average: float = option(
        0.0, "Evaluate and keep a mean of the parameters: 1: of all, 0.999: exponential; 0: none.", "DECAY"
    )
    average_after: int = option(0, "Evaluations without a new best after which it begins.", "EVALUATIONS")

    def __post_init__(self) -> None:
        where = "OptimizerOptions"
        check_choice(where, "optimizer", self.optimizer, tuple(OPTIMIZERS))
        check_choice(where, "schedule", self.schedule, SCHEDULES)
        check_choice(where, "clip_by", self.clip_by, ("norm", "value"))
        for name in ("decay_from", "average_after"):
            object.__setattr__(self, name, check_size(where, name, getattr(self, name), least=0))
        for name, bounds in _BOUNDS.items():
            object.__setattr__(self, name, check_real(where, name, getattr(self, name), **bounds))

    @property
    def norm_bound(self) -> float | None:
        """The bound on the global norm of the gradient, None where there is none."""
        return self.clip if self.clip and self.clip_by == "norm" else None

    def make_optimizer(self) -> optax.GradientTransformationExtraArgs:
        """The optax chain; its learning rate is the hyperparameter ``learning_rate``, set by the caller.

        clip -> direction -> + weight_decay * matrices -> * -learning_rate, and around it the mean of the parameters
        """

        def chain(learning_rate: float) -> optax.GradientTransformation:
            parts = []
            if self.clip:
                by_norm = self.clip_by == "norm"
                parts.append(optax.clip_by_global_norm(self.clip) if by_norm else optax.clip(self.clip))
            parts.append(OPTIMIZERS[self.optimizer]())
            if self.weight_decay:
                matrices = functools.partial(jax.tree.map, lambda leaf: leaf.ndim > 1)
                parts.append(optax.add_decayed_weights(self.weight_decay, mask=matrices))
            parts.append(optax.scale_by_learning_rate(learning_rate))
            return optax.chain(*parts)

        whole = optax.inject_hyperparams(chain)(learning_rate=self.lr)
        return averaged(whole, self.average, begun=not self.average_after) if self.average else whole

    def learning_rate(self, place: Place) -> float:
        """The learning rate at a place of the training, as `rnnjax.fit.fit` takes it beside `make_optimizer`.

        >>> options = OptimizerOptions(lr=1.0)
        >>> [round(options.learning_rate(Place(p, epoch=0, plateaus=0, step=7)), 3) for p in (0.0, 0.01, 0.02, 1.0)]
        [0.0, 0.5, 1.0, 0.01]
        """
        progress = min(max(place.progress, 0.0), 1.0)
        if progress < self.warmup:
            return self.lr * progress / self.warmup
        if self.schedule == "cosine":
            share = (progress - self.warmup) / max(1.0 - self.warmup, 1e-9)
            return self.lr * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * share)))
        if self.schedule == "step":
            return self.lr * self.decay ** max(0, place.epoch - self.decay_from + 1)
        if self.schedule == "plateau":
            return self.lr * self.decay**place.plateaus
        return self.lr
