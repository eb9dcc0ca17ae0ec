"""Initial weights of gated cells: what several families draw in the same way."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from rnnjax.initializers import Chrono, Initializer, per_gate

__all__ = ["Gated", "gate_biases", "gate_weights", "gru_weights", "keep_bias", "lstm_weights"]


class Gated(Protocol):
    """The fields of a cell that say how its weights are drawn."""

    @property
    def hidden_size(self) -> int: ...

    @property
    def input_init(self) -> Initializer: ...

    @property
    def recurrent_init(self) -> Initializer: ...


class _LSTMLike(Gated, Protocol):
    @property
    def forget_bias(self) -> float | Chrono: ...


class _GRULike(Gated, Protocol):
    @property
    def update_bias(self) -> float | Chrono: ...


def gate_weights(
    cell: Gated, key_ih: jax.Array, key_hh: jax.Array, input_size: int, dtype: Any, *, num_gates: int
) -> tuple[jax.Array, jax.Array]:
    """``w_ih [I, G H]`` and ``w_hh [H, G H]``, each block drawn by itself."""
    size = cell.hidden_size
    w_ih = per_gate(cell.input_init, key_ih, (input_size, size), num_gates, dtype)
    return w_ih, per_gate(cell.recurrent_init, key_hh, (size, size), num_gates, dtype)


def keep_bias(bias: float | Chrono, key: jax.Array, size: int, dtype: Any) -> jax.Array:
    """The bias ``[H]`` of a gate that keeps the state: one value for all units, or drawn from time scales."""
    return bias(key, (size,), dtype) if isinstance(bias, Chrono) else jnp.full((size,), bias, dtype)


def gate_biases(forget_bias: float | Chrono, key: jax.Array, size: int, dtype: Any) -> jax.Array:
    """The bias ``[4 size]`` of gates ``i, f, g, o`` at the start: zero but for the forget bias, see `LSTM`."""
    zeros = jnp.zeros((size,), dtype)
    if isinstance(forget_bias, Chrono):
        b_f = forget_bias(key, (size,), dtype)
        return jnp.concatenate([-b_f, b_f, zeros, zeros])
    return jnp.concatenate([zeros, jnp.full((size,), forget_bias, dtype), zeros, zeros])


def lstm_weights(
    cell: _LSTMLike, key: jax.Array, input_size: int, dtype: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``w_ih``, ``w_hh`` and ``b`` for the gates ``i, f, g, o``, as `LSTM` draws them."""
    key_ih, key_hh, key_b = jax.random.split(key, 3)
    w_ih, w_hh = gate_weights(cell, key_ih, key_hh, input_size, dtype, num_gates=4)
    return w_ih, w_hh, gate_biases(cell.forget_bias, key_b, cell.hidden_size, dtype)


def gru_weights(cell: _GRULike, key: jax.Array, input_size: int, dtype: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``w_ih``, ``w_hh`` and ``b`` for the gates ``r, z, n``, as `GRU` draws them."""
    key_ih, key_hh, key_b = jax.random.split(key, 3)
    w_ih, w_hh = gate_weights(cell, key_ih, key_hh, input_size, dtype, num_gates=3)
    b_z = keep_bias(cell.update_bias, key_b, cell.hidden_size, dtype)
    return w_ih, w_hh, jnp.concatenate([jnp.zeros_like(b_z), b_z, jnp.zeros_like(b_z)])
