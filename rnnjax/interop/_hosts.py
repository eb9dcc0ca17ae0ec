"""What the modules for all hosts share: checks, shapes of parameters, and a whole layer in the axes of the host."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cell import Cell, param_shapes
from rnnjax.checks import check_ints, describe, short
from rnnjax.network import Network, input_shape, start_state
from rnnjax.promotion import as_wide
from rnnjax.unroll import unroll

__all__ = ["check_host_cell", "feature_axes", "floating", "make_params", "run_layer", "run_rnn", "start"]


def check_host_cell(where: str, cell: Any, *, layer: str = "") -> None:
    """Raises unless ``cell`` is a cell; ``layer`` is what to take where the host makes states without parameters.

    Raises:
        TypeError: if it is none, for example a class or a `Bidirectional`.
        ValueError: if it learns its initial state, where there is such a layer.
    """
    if isinstance(cell, type) or not isinstance(cell, Cell):
        raise TypeError(f"{where}: cell must be a cell, got {short(cell)}; make one, for example rnnjax.LSTM(64).")
    if layer and _learns_start(cell):
        raise ValueError(
            f"{where}: the initial state of cell must not be learned, since the host makes it without parameters, got "
            f"{cell!r}; take {layer}, which starts from the learned one."
        )


def _learns_start(cell: Any) -> bool:
    inner = cell.parts(None) if isinstance(cell, Network) else ()
    return hasattr(cell, "start_state") or any(_learns_start(part) for _, part, _ in inner)


def feature_axes(cell: Cell) -> int:
    """How many axes of an input are features: one, but for images and the like."""
    return len(input_shape(cell, 1))


def make_params(where: str, cell: Cell, input_size: int | None, params: Any, key: Any, dtype: Any) -> Any:
    """The given parameters, or new ones from ``input_size`` and ``key``: exactly one of the two ways.

    Raises:
        ValueError: if both ways are given, or none, or params of another cell.
    """
    if (params is None) == (input_size is None):
        raise ValueError(
            f"{where}: either input_size, for new parameters, or params must be given, got "
            f"{'none of them' if params is None else 'both'}; leave one out."
        )
    if input_size is not None:
        if key is None:
            raise ValueError(f"{where}: new parameters need randomness, got none; pass a key, or rngs to nnx.")
        return cell.init(key, input_size, dtype)
    wanted: Any = jax.tree.structure(param_shapes(cell, 1, jnp.float32))
    if jax.tree.structure(params) != wanted:
        raise ValueError(
            f"{where}: params must be what {type(cell).__name__}.init makes, got {type(params).__name__}; "
            "take the params of this cell."
        )
    return jax.tree.map(jnp.asarray, params)


def floating(name: str, x: Any, axes: int = 1) -> jax.Array:
    """An input as a floating array; integers become float32, as hosts have them, and no parameter takes their dtype.

    Raises:
        TypeError: if it is no array of numbers.
        ValueError: if it has less than ``axes`` axes.
    """
    try:
        array = jnp.asarray(x)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be an array of numbers, got {describe(x)}.") from None
    if array.ndim < axes:
        raise ValueError(f"{name} must have at least {axes} ax{'is' if axes == 1 else 'es'}, got {describe(array)}.")
    return array if jnp.issubdtype(array.dtype, jnp.inexact) else array.astype(jnp.float32)


def start(cell: Cell, params: Any, batch: tuple[int, ...]) -> Any:
    """The state before the first step, in the dtype of the parameters, as recurrent layers of flax have it."""
    return start_state(cell, params, batch, jnp.result_type(*jax.tree.leaves(params)))


def run_layer(
    cell: Cell,
    params: Any,
    carry: Any,
    xs: jax.Array,
    *,
    time_major: bool,
    lengths: jax.Array | None = None,
    resets: jax.Array | None = None,
    reverse: bool = False,
    keep_order: bool = True,
    **options: Any,
) -> tuple[Any, jax.Array]:
    """`rnnjax.unroll` for hosts whose arrays may be ``[*batch, T, ...]``.

    Args:
        cell: the cell.
        params: its parameters.
        carry: its state, or None for `start`.
        xs: ``[T, *batch, I]`` or, unless ``time_major``, ``[*batch, T, I]``.
        time_major: whether time is the first axis of xs, resets and the outputs.
        lengths: int ``[*batch]``, see `rnnjax.unroll`.
        resets: bool ``[T, *batch]`` or ``[*batch, T]``, see `rnnjax.unroll`.
        reverse: time runs backwards.
        keep_order: whether then ``ys[t]`` belongs to ``xs[t]``, or the last step is the first one that was computed.
        **options: ``implementation`` and ``remat`` of `rnnjax.unroll`.

    Returns:
        The final state, and the outputs with time where ``xs`` has it.
    """
    xs = floating("inputs", xs, 1 + feature_axes(cell))
    axis = 0 if time_major else xs.ndim - feature_axes(cell) - 1
    xs = jnp.moveaxis(xs, axis, 0)
    if carry is None:
        carry = start(cell, params, xs.shape[1 : xs.ndim - feature_axes(cell)])
    if resets is not None:
        resets = jnp.moveaxis(jnp.asarray(resets), axis, 0)
    carry, ys = unroll(cell, params, carry, xs, lengths=lengths, resets=resets, reverse=reverse, **options)
    if reverse and not keep_order:
        ys = _turn(ys, lengths)
    return carry, jnp.moveaxis(ys, 0, axis)


def run_rnn(
    module: Any, params: Any, inputs: jax.Array, carry: Any, lengths: Any, resets: Any, now: dict[str, bool | None]
) -> Any:
    """A layer that is called as ``RNN`` of flax is: what is None at this call is as the module says."""
    chosen: dict[str, Any] = {key: getattr(module, key) if value is None else value for key, value in now.items()}
    return_carry, options = chosen.pop("return_carry"), {"implementation": module.implementation, "remat": module.remat}
    carry, ys = run_layer(module.cell, params, carry, inputs, lengths=lengths, resets=resets, **chosen, **options)
    return (carry, ys) if return_carry else ys


def _turn(ys: jax.Array, lengths: jax.Array | None) -> jax.Array:
    """Reverses the valid part of every row; padding stays at the end."""
    if lengths is None:
        return jnp.flip(ys, 0)
    lengths = check_ints("layer", "lengths", lengths)
    time = as_wide(jnp.arange(ys.shape[0]), 1 + lengths.ndim)
    order = jnp.where(time < lengths, lengths - 1 - time, time)  # [T, *batch]
    return jnp.take_along_axis(ys, as_wide(order, ys.ndim), axis=0)
