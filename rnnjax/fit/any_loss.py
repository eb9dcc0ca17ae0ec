"""What `fit` trains: any loss with any optimizer, as a task of the loop."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rnnjax.cell import describe
from rnnjax.data.shuffled import ShuffledBatches
from rnnjax.fit.progress import Place, Progress, TrainingFailedError
from rnnjax.fit.task import Interval, Task
from rnnjax.programs import kept
from rnnjax.update import Carry, Info, gradient_step

__all__ = ["EVAL_NAMES", "FitProgress", "FitTask"]

EXPLOSION = 3.0  # times the scale of the loss, above the first loss
TRAIN_NAMES = frozenset(
    "kind step epoch progress loss grad_norm grad_norm_max lr seconds steps_per_second".split()
)  # what rows are made of besides the user's metrics
EVAL_NAMES = frozenset("kind step epoch best best_step reason seconds".split())


@dataclasses.dataclass
class FitProgress(Progress):
    """Where the training stands."""

    first_loss: float = math.inf  # of the first batch, before any update


class FitTask(Task):
    """Any loss; the arguments are those of `rnnjax.fit.fit`."""

    def __init__(
        self,
        *,
        loss_fn: Callable[..., Any],
        params: Any,
        optimizer: optax.GradientTransformation,
        batches: Callable[[int], Any],
        state: Any,
        evaluate: Callable[[Any], Any] | None,
        monitor: str,
        mode: str,
        key: jax.Array,
        learning_rate: Callable[[Place], float] | None,
        limit: float | None,
    ) -> None:
        super().__init__()
        _check_key_argument(loss_fn)
        self.loss_fn, self.params, self.optimizer, self.batches, self.state = loss_fn, params, optimizer, batches, state
        self.measure, self.monitor, self.mode, self.key = evaluate, monitor, mode, key
        self.learning_rate, self.limit = learning_rate, limit
        self.steps_per_epoch = getattr(batches, "steps_per_epoch", None)
        self.identity = {
            "key": np.asarray(jax.random.key_data(key)).tolist(),
            "monitor": f"{mode} {monitor}",
            "batches": repr(batches) if isinstance(batches, ShuffledBatches) else "",
        }

    def progress(self) -> Progress:
        return FitProgress()

    def start(self) -> Carry:
        params = jax.tree.map(_array, self.params)
        opt_state = self.optimizer.init(params)
        if self.learning_rate is not None:
            found = [value for _, value in optax.tree.get_all_with_path(opt_state, "learning_rate")]
            if not found or not all(isinstance(value, jax.Array) for value in found):
                raise ValueError(
                    "fit: learning_rate= needs an optimizer with that hyperparameter, got one "
                    f"{'with a schedule of its own' if found else 'without it'}; wrap it as "
                    "optax.inject_hyperparams(optax.adam)(learning_rate=0.0)."
                )
        # Copies: an optimizer may keep the parameters themselves, and no buffer can be given up twice.
        return Carry(params, jax.tree.map(_array, opt_state), jax.tree.map(_array, self.state))

    def rate(self, place: Place) -> float | None:
        return None if self.learning_rate is None else float(self.learning_rate(place))

    def update(self, carry: Carry, step: int, rate: float | None, scale: float) -> tuple[Carry, Info]:
        found: tuple[Carry, Info] = kept(
            _update, self.loss_fn, self.optimizer, self.state is not None, donate_argnums=(0,)
        )(
            carry,
            self.batches(step),
            None if rate is None else np.float32(rate),
            # Compiled without a factor as long as there is none: bit for bit what the optimizer alone does.
            None if rate is not None or scale == 1.0 else np.float32(scale),
            self.key,
            np.uint32(step),
        )
        return found

    def train_row(self, interval: Interval) -> dict[str, Any]:
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

    def note(self, progress: Progress, interval: Interval) -> None:
        if interval.step == len(interval.losses) and not math.isfinite(interval.losses[0]):
            raise TrainingFailedError(
                f"fit: the loss of the first batch is {interval.losses[0]} before any update, which no learning rate "
                "can help; look for what is not finite in the batches and the parameters."
            )
        if isinstance(progress, FitProgress) and not math.isfinite(progress.first_loss):
            progress.first_loss = float(interval.losses[0])

    def explosion(self, loss: float, progress: Progress) -> str:
        limit = self.limit
        if limit is None:
            first = progress.first_loss if isinstance(progress, FitProgress) else math.inf
            scale = max(1.0, abs(first), first - min(first, progress.calm_loss))
            limit = first + EXPLOSION * scale
        return f"a loss of {loss:.4g}, above the limit of {limit:.4g}" if loss > limit else ""

    def bad_params(self, carry: Carry, progress: Progress) -> str:
        """One update of a copy, for its loss: that of the last update came before it, and metrics may hide anything.

        A training that goes back to these parameters would otherwise find the same explosion each time.
        """
        rate = None if self.learning_rate is None else 0.0
        _, info = self.update(jax.tree.map(jnp.copy, carry), progress.step - 1, rate, progress.lr_scale)
        loss = float(info.loss)
        return self.explosion(loss, progress) if math.isfinite(loss) else "a loss that is not finite"

    def evaluate(self, params: Any) -> dict[str, float] | None:
        if self.measure is None:
            return None
        found = self.measure(
            jax.tree.map(jnp.copy, params)
        )  # whoever keeps them keeps them: the next update reuses ours
        metrics = found if isinstance(found, dict) else {"loss": found}
        if self.monitor not in metrics:
            raise ValueError(
                f"fit: evaluate must return the monitored metric {self.monitor!r}, got {', '.join(metrics) or 'none'}; "
                "name one of these with monitor=."
            )
        for name, value in metrics.items():
            _check_metric("evaluate", name, value, EVAL_NAMES)
        return {name: float(value) for name, value in metrics.items()}

    def score(self, metrics: dict[str, float]) -> float:
        return metrics[self.monitor] if self.mode == "min" else -metrics[self.monitor]

    def bad_evaluation(self, score: float, progress: Progress) -> str:
        return "" if math.isfinite(score) else f"an evaluation whose {self.monitor} is not finite"

    def eval_row(self, metrics: dict[str, float], progress: Progress, better: bool) -> dict[str, Any]:
        return {"kind": "eval", "step": progress.step, "epoch": progress.epoch, **metrics, "best": better}


def _update(
    loss_fn: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    stateful: bool,
    carry: Carry,
    batch: Any,
    rate: Any,
    scale: Any,
    key: jax.Array,
    step: Any,
) -> tuple[Carry, Info]:
    def call(params: Any, state: Any, batch: Any, *, key: jax.Array) -> Any:
        found = loss_fn(params, state, batch, key=key) if stateful else _with_state(loss_fn(params, batch, key=key))
        if isinstance(found, tuple) and len(found) == 3 and isinstance(found[2], dict):
            for name, value in found[2].items():
                _check_metric("loss_fn", name, value, TRAIN_NAMES)
        return found

    if rate is not None:
        carry = carry._replace(opt_state=optax.tree.set(carry.opt_state, learning_rate=rate))
    return gradient_step(call, optimizer, carry, batch, key=jax.random.fold_in(key, step), scale=scale, where="fit")


def _with_state(found: Any) -> tuple[Any, ...]:
    """What a loss without a state returned, as if it had one."""
    parts = found if isinstance(found, tuple) else (found,)
    if not 1 <= len(parts) <= 2 or not all(isinstance(metrics, dict) for metrics in parts[1:]):
        got = f"{len(parts)} things" if len(parts) != 2 else f"a {type(parts[1]).__name__} for the dict of metrics"
        raise ValueError(
            f"fit: loss_fn must return loss or (loss, metrics), got {got}; one that carries a state needs state=."
        )
    return parts[0], None, *parts[1:]


def _check_metric(who: str, name: str, value: Any, taken: frozenset[str]) -> None:
    if not isinstance(name, str) or name in taken:
        raise ValueError(f"fit: {who} must not call a metric {name!r}, which stands for something else; rename it.")
    if jnp.shape(value) != ():
        raise ValueError(f"fit: the metric {name!r} of {who} must be one number, got {describe(value)}; take the mean.")


def _check_key_argument(loss_fn: Callable[..., Any]) -> None:
    try:
        parameters = inspect.signature(loss_fn).parameters.values()
    except (TypeError, ValueError):  # some callables tell nothing of themselves
        return
    if not any(p.name == "key" or p.kind is p.VAR_KEYWORD for p in parameters):
        raise TypeError("fit: loss_fn must take a keyword argument key, random or not; write (params, batch, *, key).")


def _array(leaf: Any) -> jax.Array:
    """A copy on the device, with a dtype of its own: a weak one would change with the first update."""
    array = jnp.copy(leaf) if isinstance(leaf, jax.Array) else jnp.array(np.asarray(leaf))
    return jax.lax.convert_element_type(array, array.dtype) if array.weak_type else array
