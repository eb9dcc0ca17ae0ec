"""Layers made of cells: the stack, with dropout between its layers."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cell import Cell
from rnnjax.implementations import Controls, register_unroll
from rnnjax.unroll import run, unroll

__all__ = ["Stack", "StackParams", "StackState", "dropout", "unroll_stack"]


class StackParams(NamedTuple):
    """Parameters of `Stack`, one entry a layer."""

    layers: tuple[Any, ...]


class StackState(NamedTuple):
    """State of `Stack`, one entry a layer."""

    layers: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Stack:
    r"""Cells on top of each other: itself a cell, so that it unrolls, stacks and trains like one.

        y_0 = x,   state_l', y_l = cells[l].step(params.layers[l], state.layers[l], y_{l-1}),   y = y_L

    Args:
        cells: the layers, the first nearest to the input; any cells, of any sizes.

    Raises:
        ValueError: if there is no cell.
        TypeError: if ``cells`` is not a tuple or list of cells.

    >>> import jax, rnnjax
    >>> stack = rnnjax.Stack((rnnjax.LSTM(8), rnnjax.GRU(4)))
    >>> params = stack.init(jax.random.key(0), input_size=3)
    >>> state, ys = rnnjax.unroll(stack, params, stack.initial_state((2,)), jax.numpy.ones((5, 2, 3)))
    >>> ys.shape
    (5, 2, 4)
    """

    cells: tuple[Cell, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.cells, tuple | list):
            raise TypeError(f"Stack: cells must be a tuple of cells, got {self.cells!r}.")
        object.__setattr__(self, "cells", tuple(self.cells))
        if not self.cells:
            raise ValueError("Stack: cells must hold at least one cell, got none.")
        for cell in self.cells:
            if isinstance(cell, type) or not isinstance(cell, Cell):
                raise TypeError(f"Stack: every layer must be a cell, got {cell!r}.")

    @property
    def hidden_size(self) -> int:
        """The size of the top layer."""
        return self.cells[-1].hidden_size

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> StackParams:
        """New parameters of every layer, each from a key of its own."""
        sizes = [input_size, *(cell.hidden_size for cell in self.cells[:-1])]
        keys = jax.random.split(key, len(self.cells))
        return StackParams(
            tuple(cell.init(k, size, dtype) for cell, k, size in zip(self.cells, keys, sizes, strict=True))
        )

    def initial_state(self, batch_shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> StackState:
        """The initial state of every layer."""
        return StackState(tuple(cell.initial_state(batch_shape, dtype) for cell in self.cells))

    def step(self, params: StackParams, state: StackState, x: jax.Array) -> tuple[StackState, jax.Array]:
        """One step of all layers, from the first to the last."""
        states = []
        for cell, p, s in zip(self.cells, params.layers, state.layers, strict=True):
            s, x = cell.step(p, s, x)
            states.append(s)
        return StackState(tuple(states)), x


def dropout(key: jax.Array, x: jax.Array, rate: float) -> jax.Array:
    r"""Inverted dropout (Srivastava et al., 2014): ``x * m / (1 - rate)`` with ``m ~ Bernoulli(1 - rate)`` a element.

    Args:
        key: used once; the mask is new for every element, so over ``[T, B, H]`` it is new at every step.
        x: any shape.
        rate: the share that is dropped, in [0, 1).

    Raises:
        ValueError: for a rate outside [0, 1).
    """
    _check_rate("dropout", "rate", rate)
    if rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), jnp.zeros((), x.dtype))


def _check_rate(where: str, name: str, rate: float) -> None:
    if not 0 <= rate < 1:
        raise ValueError(f"{where}: {name} must be at least 0 and below 1, got {rate}.")


def unroll_stack(
    stack: Stack,
    params: StackParams,
    state: StackState,
    xs: jax.Array,
    *,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
    **options: Any,
) -> tuple[StackState, jax.Array]:
    """Unrolls a stack layer by layer, with dropout between the layers.

    Args:
        stack: the stack.
        params: its parameters.
        state: its state.
        xs: ``[T, *batch, I]``.
        dropout_rate: share of each layer's outputs that the next layer does not see (Zaremba et al., 2014); the
            recurrent connections and the top layer's output are left alone. The mask is new for every step,
            example and unit.
        key: one key a call; without a key nothing is dropped.
        **options: ``lengths``, ``resets``, ``reverse``, ``implementation`` and ``remat`` of `unroll`, where
            ``implementation`` is each layer's.

    Returns:
        The final state and ``ys [T, *batch, H]``; without a key the same as ``unroll(stack, ...)``.

    Raises:
        ValueError: for a rate outside [0, 1), or as `unroll` does.
    """
    _check_rate("unroll_stack", "dropout_rate", dropout_rate)
    keys = None if key is None else jax.random.split(key, len(stack.cells))
    states, ys = [], xs
    for depth, (cell, p, s) in enumerate(zip(stack.cells, params.layers, state.layers, strict=True)):
        if depth and keys is not None:
            ys = dropout(keys[depth], ys, dropout_rate)
        s, ys = unroll(cell, p, s, ys, **options)
        states.append(s)
    return StackState(tuple(states)), ys


def _unroll_layered(
    cell: Stack, params: StackParams, state: StackState, xs: jax.Array, controls: Controls, *, reverse: bool, remat: Any
) -> tuple[StackState, jax.Array]:
    """Layer by layer, so that each layer runs its own best implementation over the whole sequence."""
    fresh = [None] * len(cell.cells) if controls.fresh is None else controls.fresh.layers
    states, ys = [], xs
    for part, p, s, f in zip(cell.cells, params.layers, state.layers, fresh, strict=True):
        s, ys = run(part, p, s, ys, controls._replace(fresh=f), None, reverse=reverse, remat=remat)
        states.append(s)
    return StackState(tuple(states)), ys


register_unroll("layered", _unroll_layered, supports=lambda cell: isinstance(cell, Stack), priority=10)
