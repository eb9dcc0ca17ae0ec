"""What `fit` trains: any loss with any optimizer, on batches from anywhere, as a task of the loop."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from rnnjax.checks import describe
from rnnjax.fit.devices import on_one, over_rows, place
from rnnjax.fit.progress import Place, Progress
from rnnjax.fit.task import Task
from rnnjax.online import Cut
from rnnjax.online.across import AnyBorder, across, begin, check_border, chunk_steps
from rnnjax.programs import kept
from rnnjax.update import Carry, Info, check_arrays, gradient_step

__all__ = ["EVAL_NAMES", "Feed", "FitTask", "Split", "as_function", "check_loss", "split_update"]

_NOTHING = object()


class Feed:
    """An iterable as a function of the step, which it is not: it gives its batches in the order they come in.

    One that can be read again, as a list or a data loader, is, once an epoch; an iterator or generator ends, and the
    training with it. What a roll-back or a resumed run asks for again is gone: those go on with the next batch.

    Attributes:
        ended: whether the last batch has been given.
        steps_per_epoch: where the iterable has a length.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self._source = batches
        self._iterator: Iterator[Any] = iter(batches)
        self._again = self._iterator is not batches
        self._step, self._batch = -1, _NOTHING
        self._next = self._read()  # one ahead, so that the end is known before it comes
        if self._next is _NOTHING:
            raise ValueError(f"fit: batches must hold at least one, got an empty {type(batches).__name__}.")
        self.steps_per_epoch = len(batches) if self._again and isinstance(batches, Sized) else None

    @property
    def ended(self) -> bool:
        """Whether the last batch has been given."""
        return self._next is _NOTHING

    def __call__(self, step: int) -> Any:
        """The next batch, or the one before for the same step."""
        if step != self._step:
            self._step, self._batch = step, self._next
            self._next = self._read()
        return self._batch

    def _read(self) -> Any:
        found = next(self._iterator, _NOTHING)
        if found is _NOTHING and self._again:
            self._iterator = iter(self._source)
            found = next(self._iterator, _NOTHING)
        return found


def as_function(batches: Any) -> Callable[[int], Any]:
    """Batches as a function of the step.

    Raises:
        TypeError: if they are neither that nor an iterable.
        ValueError: if there are none.
    """
    if isinstance(batches, type):
        raise TypeError(f"fit: batches must be an instance, got the class {batches.__name__}.")
    if callable(batches):
        function: Callable[[int], Any] = batches
        return function
    whole = isinstance(batches, dict | str | bytes | np.ndarray | jax.Array) or (
        isinstance(batches, tuple) and all(isinstance(part, np.ndarray | jax.Array) for part in batches)
    )
    if whole or not isinstance(batches, Iterable):
        raise TypeError(
            "fit: batches must be a function of the step or an iterable of batches, got "
            f"{jax.tree.map(describe, batches)!s:.200}; write ShuffledBatches(arrays, batch_size, key=key), or lambda "
            "step: batch for one batch alone."
        )
    return Feed(batches)


EXPLOSION = 3.0  # times the scale of the loss, above the first loss
TRAIN_NAMES = frozenset(
    "kind step epoch progress loss grad_norm grad_norm_max lr seconds steps_per_second".split()
)  # what rows are made of besides the user's metrics
EVAL_NAMES = frozenset("kind step epoch best best_step reason seconds".split())


class Split(NamedTuple):
    """How an update is split over devices."""

    mesh: Mesh
    carry: Carry  # of PartitionSpecs
    batch: Any


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FitTask(Task):
    """Any loss; the fields are arguments of `rnnjax.fit.fit`."""

    loss_fn: Callable[..., Any]
    params: Any
    optimizer: optax.GradientTransformation
    batches: Callable[[int], Any]
    state: Any
    measure: Callable[[Any], Any] | None
    monitor: str
    mode: str
    key: jax.Array
    learning_rate: Callable[[Place], float] | None
    limit: float | None
    border: AnyBorder
    mesh: Mesh | None
    batch_spec: Any

    @property
    def carry_specs(self) -> Carry:
        """How the carry lies on the mesh: parameters everywhere, the state by rows, which are its first axis."""
        return Carry(PartitionSpec(), PartitionSpec(), PartitionSpec(*(self.mesh.axis_names if self.mesh else ())))

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
        state = self.state
        if not isinstance(self.border, Cut):
            first = jax.tree.map(jnp.asarray, self.batches(0))
            check_border("fit", self.border, chunk_steps(first))
            state = begin(self.border, params, jax.tree.map(jnp.asarray, state), first)
        # Copies: an optimizer may keep the parameters themselves, and no buffer can be given up twice.
        carry = Carry(params, jax.tree.map(_array, opt_state), jax.tree.map(_array, state))
        return place(self.mesh, carry, self.carry_specs)

    def rate(self, place: Place) -> float | None:
        return None if self.learning_rate is None else float(self.learning_rate(place))

    def more(self) -> bool:
        return not (isinstance(self.batches, Feed) and self.batches.ended)

    def update(self, carry: Carry, step: int, rate: float | None, scale: float) -> tuple[Carry, Info]:
        batch = self.batches(step)
        check_arrays("fit", batch=batch)
        split = None if self.mesh is None else Split(self.mesh, self.carry_specs, self.batch_spec)
        options = ("fit", self.state is not None, self.border, split)
        compiled = kept(split_update, self.loss_fn, self.optimizer, options=options, donate_argnums=(0,))
        found: tuple[Carry, Info] = compiled(
            carry,
            place(self.mesh, batch, self.batch_spec),
            None if rate is None else np.float32(rate),
            # Compiled without a factor as long as there is none: bit for bit what the optimizer alone does.
            None if rate is not None or scale == 1.0 else np.float32(scale),
            self.key,
            np.uint32(step),
        )
        return found

    def explosion(self, loss: float, progress: Progress) -> str:
        limit = self.limit
        if limit is None:
            first = progress.first_loss
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
        if self.crew.count > 1:  # process 0 measures, on a device of its own
            params = on_one(self.mesh, params)
        measure = self.measure
        return self.crew.by_lead(lambda: self._checked(measure(jax.tree.map(jnp.copy, params))))  # ours is reused

    def _checked(self, found: Any) -> dict[str, float]:
        """What `evaluate` returned, as metrics."""
        if found is None:
            raise TypeError("fit: evaluate must return a dict of numbers, or one number, got None; end it with return.")
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

    def bad_batch(self, step: int) -> str:
        if isinstance(self.batches, Feed):  # it is gone
            return ""
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.batches(step)):
            array = np.asarray(leaf)
            if not jnp.issubdtype(array.dtype, jnp.inexact) or np.isfinite(array).all():
                continue
            first = np.argwhere(~np.isfinite(array))[0].tolist()
            place = f"{jax.tree_util.keystr(path)}{first or ''}"
            return f"its batch, batches({step}), holds {array[tuple(first)]}{f' at {place}' if place else ''}"
        return ""

    def eval_row(self, metrics: dict[str, float], progress: Progress, better: bool) -> dict[str, Any]:
        return {"kind": "eval", "step": progress.step, "epoch": progress.epoch, **metrics, "best": better}


def split_update(
    loss_fn: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    where: str,
    stateful: bool,
    border: AnyBorder,
    split: Split | None,
    carry: Carry,
    batch: Any,
    rate: Any,
    scale: Any,
    key: jax.Array,
    step: Any,
) -> tuple[Carry, Info]:
    """One update on the devices of the split, its key made of the step; a rate is set, a scale multiplied with."""

    def call(params: Any, state: Any, batch: Any, *, key: jax.Array) -> Any:
        found = loss_fn(params, state, batch, key=key) if stateful else _with_state(loss_fn(params, batch, key=key))
        if isinstance(found, tuple) and len(found) == 3 and isinstance(found[2], dict):
            for name, value in found[2].items():
                _check_metric("loss_fn", name, value, TRAIN_NAMES)
        return found

    if rate is not None:
        carry = carry._replace(opt_state=optax.tree.set(carry.opt_state, learning_rate=rate))
    whole = call if isinstance(border, Cut) else across(where, call, border)
    axis_name = None if split is None else split.mesh.axis_names[0]

    def on_part(carry: Carry, batch: Any, key: jax.Array, scale: Any) -> tuple[Carry, Info]:
        return gradient_step(whole, optimizer, carry, batch, key=key, axis_name=axis_name, scale=scale, where=where)

    key, everywhere = jax.random.fold_in(key, step), PartitionSpec()
    if split is None:
        return on_part(carry, batch, key, scale)
    specs = (split.carry, split.batch, everywhere, everywhere)
    found: tuple[Carry, Info] = over_rows(split.mesh, on_part, specs, (split.carry, everywhere))(
        carry, batch, key, scale
    )
    return found


def _with_state(found: Any) -> tuple[Any, ...]:
    """What a loss without a state returned, as if it had one."""
    parts = found if isinstance(found, tuple) else (found,)
    if not 1 <= len(parts) <= 2 or not all(isinstance(metrics, dict) for metrics in parts[1:]):
        got = f"{len(parts)} things" if len(parts) != 2 else f"a {type(parts[1]).__name__} for the dict of metrics"
        raise ValueError(
            f"fit: loss_fn must return loss or (loss, metrics), got {got}; one that carries a state needs state=."
        )
    return parts[0], None, *parts[1:]


def check_loss(loss_fn: Any) -> None:
    """Raises unless it is a function that takes a ``key``."""
    if not callable(loss_fn):
        raise TypeError(f"fit: loss_fn must be a function of (params, batch, *, key), got {describe(loss_fn)}.")
    try:
        parameters = inspect.signature(loss_fn).parameters.values()
    except (TypeError, ValueError):  # some callables tell nothing of themselves
        return
    if not any(p.name == "key" or p.kind is p.VAR_KEYWORD for p in parameters):
        raise TypeError("fit: loss_fn must take a keyword argument key, random or not; write (params, batch, *, key).")


def _check_metric(who: str, name: str, value: Any, taken: frozenset[str]) -> None:
    if not isinstance(name, str) or name in taken:
        raise ValueError(f"fit: {who} must not call a metric {name!r}, which stands for something else; rename it.")
    if not isinstance(value, jax.Array | np.ndarray | np.generic | float | int) or np.shape(value) != ():
        raise ValueError(f"fit: the metric {name!r} of {who} must be one number, got {describe(value)}; take the mean.")


def _array(leaf: Any) -> jax.Array:
    """A copy on the device, with a dtype of its own: a weak one would change with the first update."""
    array = jnp.copy(leaf) if isinstance(leaf, jax.Array) else jnp.array(np.asarray(leaf))
    return jax.lax.convert_element_type(array, array.dtype) if array.weak_type else array
