"""A cell as a dynamical system: its state as one vector, what it is made of, and its path through a sequence."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cell import Cell, batch_shape, cast_like, compute_dtype, describe, widen
from rnnjax.engines.scan import select
from rnnjax.kinds import public
from rnnjax.network import check_state, flatten_state, leaves, start_state, unflatten_state

__all__ = [
    "Part",
    "check_sequence",
    "flat_step",
    "flatten_state",
    "state_parts",
    "state_size",
    "trajectory",
    "unflatten_state",
    "widen_start",
    "widen_state",
]


class Part(NamedTuple):
    """A field of the state of one layer, as a piece of the flat vector."""

    name: str  # "L2.c": layer and field
    layer: int  # 1 is nearest to the input
    start: int
    stop: int


@public
def state_size(cell: Cell) -> int:
    """D, how many numbers the state of one example has: H for a GRU, 2H for an LSTM.

    >>> import rnnjax
    >>> state_size(rnnjax.LSTM(4)), state_size(rnnjax.Stack((rnnjax.LSTM(4), rnnjax.GRU(3))))
    (8, 11)
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(cell.initial_state)))


def flat_step(cell: Cell, params: Any, s: jax.Array, x: jax.Array) -> jax.Array:
    """One step of one example, from vector ``s [D]`` to vector ``[D]``; differentiate or `jax.vmap` it."""
    return flatten_state(cell, cell.step(params, unflatten_state(cell, s), x)[0])


@public
def state_parts(cell: Cell) -> tuple[Part, ...]:
    """What the flat vector holds: every field of every layer's state.

    Layers are the cells of a network, from the bottom up; any other cell is one layer.

    >>> import rnnjax
    >>> [part.name for part in state_parts(rnnjax.Stack((rnnjax.LSTM(4), rnnjax.GRU(3))))]
    ['L1.h', 'L1.c', 'L2.h']
    """
    found: list[Part] = []
    for layer, (_, _, indices) in enumerate(leaves(cell, unflatten_state(cell, np.arange(state_size(cell)))), 1):
        for path, leaf in jax.tree_util.tree_leaves_with_path(indices):
            name = f"L{layer}.{jax.tree_util.keystr(path, simple=True, separator='.')}".rstrip(".")
            found.append(Part(name, layer, int(leaf.min()), int(leaf.max()) + 1))
    return tuple(found)


def widen_state(where: str, cell: Cell, state: Any) -> Any:
    """The state in float32 or wider, in which everything here is computed, checked against the cell.

    Raises:
        ValueError: if it is not a state of this cell.
        TypeError: if it holds anything but floating numbers, which have no derivative.
    """
    state = jax.tree.map(jnp.asarray, state)
    check_state(where, cell, state)
    for leaf in jax.tree.leaves(state):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"{where}: the state of {type(cell).__name__} must be of floating dtypes, got {describe(leaf)}."
            )
    return widen(state, compute_dtype(*(leaf.dtype for leaf in jax.tree.leaves(state))))


def check_sequence(where: str, cell: Cell, state: Any, xs: Any) -> jax.Array:
    """``xs [T, *batch, ...]`` as an array; raises unless it has a time axis of at least one step and the batch axes."""
    xs, batch = jnp.asarray(xs), check_state(where, cell, state)
    if xs.ndim < 2 + len(batch) or xs.shape[1 : 1 + len(batch)] != batch or not xs.shape[0]:
        axes = ", ".join(["T", *map(str, batch)])
        raise ValueError(
            f"{where}: xs must have shape [{axes}, I] with T of at least 1, as the state has, got {describe(xs)}."
        )
    return xs


def widen_start(where: str, cell: Cell, state: Any, xs: Any) -> tuple[Any, jax.Array]:
    """The state before a sequence in float32 or wider, and the sequence: `widen_state` and `check_sequence`."""
    state = widen_state(where, cell, state)
    return state, check_sequence(where, cell, state, xs)


@public
def trajectory(
    cell: Cell, params: Any, state: Any, xs: jax.Array, *, resets: jax.Array | None = None
) -> tuple[Any, jax.Array]:
    """All states of an unroll: those that a step starts from, and the last.

    Args:
        cell: any cell.
        params: its parameters.
        state: the state before the first step.
        xs: ``[T, *batch, I]``.
        resets: bool ``[T, *batch]``, see `rnnjax.unroll`; the state that a marked step starts from is the fresh one.

    Returns:
        States with leaves ``[T + 1, *batch, ...]``, in float32 or wider, and ``ys [T, *batch, H]``.

    Raises:
        ValueError: for shapes that do not fit.
        TypeError: for a state of integers.
    """
    state, xs = widen_start("trajectory", cell, state, xs)
    return _trajectory(cell, params, state, xs, resets)


@functools.partial(jax.jit, static_argnames="cell")
def _trajectory(cell, params, state, xs, resets):
    fresh = None if resets is None else cast_like(start_state(cell, params, batch_shape(cell, state), None), state)

    def step(state, inputs):
        x, reset = inputs
        if reset is not None:
            state = select(reset, fresh, state)
        new, y = cell.step(params, state, x)
        return new, (state, y)

    last, (states, ys) = jax.lax.scan(step, state, (xs, resets))
    return jax.tree.map(lambda all, one: jnp.concatenate([all, one[None]]), states, last), ys
