"""The states that most cells have, and their zeros; a class takes these over by ``initial_state = hidden_state``."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cell import batch_axes

__all__ = ["HiddenState", "LSTMState", "hidden_state", "lstm_state"]


class HiddenState(NamedTuple):
    """State of a cell that keeps its output alone."""

    h: jax.Array  # [*batch, H]


class LSTMState(NamedTuple):
    """State of `LSTM` and its variants."""

    h: jax.Array  # [*batch, H]
    c: jax.Array  # [*batch, H]


def hidden_state(cell: Any, batch_shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> HiddenState:
    """Zeros."""
    return HiddenState(jnp.zeros((*batch_axes(batch_shape, dtype), cell.hidden_size), dtype))


def lstm_state(cell: Any, batch_shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> LSTMState:
    """Zeros, in two arrays: a buffer cannot be donated twice."""
    shape = (*batch_axes(batch_shape, dtype), cell.hidden_size)
    return LSTMState(h=jnp.zeros(shape, dtype), c=jnp.zeros(shape, dtype))
