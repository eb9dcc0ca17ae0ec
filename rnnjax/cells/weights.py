"""Initial weights of gated cells: what several families draw in the same way."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from rnnjax.initializers import Chrono, Initializer, per_gate

__all__ = [
    "GRU_GATES",
    "LSTM_GATES",
    "Gated",
    "Gating",
    "gate_biases",
    "gate_matrices",
    "gate_weights",
    "keep_bias",
]


class Gated(Protocol):
    """The fields of a cell that say how its weights are drawn."""

    @property
    def hidden_size(self) -> int: ...

    @property
    def input_init(self) -> Initializer: ...

    @property
    def recurrent_init(self) -> Initializer: ...


class Gating(NamedTuple):
    """The gates of a cell, a letter each, and what some of them do."""

    order: str
    keep: str  # which keeps the state
    write: str = ""  # which writes to it, where that is another


LSTM_GATES = Gating("ifgo", keep="f", write="i")
GRU_GATES = Gating("rzn", keep="z")


def gate_matrices(
    cell: Gated, key_ih: jax.Array, key_hh: jax.Array, input_size: int, dtype: Any, num_gates: int
) -> tuple[jax.Array, jax.Array]:
    """``w_ih [I, G H]`` and ``w_hh [H, G H]``, each block drawn by itself."""
    size = cell.hidden_size
    w_ih = per_gate(cell.input_init, key_ih, (input_size, size), num_gates, dtype)
    return w_ih, per_gate(cell.recurrent_init, key_hh, (size, size), num_gates, dtype)


def keep_bias(bias: float | Chrono, key: jax.Array, size: int, dtype: Any) -> jax.Array:
    """The bias ``[H]`` of a gate that keeps the state: one value for all units, or drawn from time scales."""
    return bias(key, (size,), dtype) if isinstance(bias, Chrono) else jnp.full((size,), bias, dtype)


def gate_biases(bias: float | Chrono, key: jax.Array, size: int, dtype: Any, gates: Gating) -> jax.Array:
    """The biases ``[G size]`` of the gates at the start: zero but for the one that keeps the state, see `keep_bias`.

    Where a `Chrono` draws that, the gate that writes to the state, if there is one, gets its negative.
    """
    kept = keep_bias(bias, key, size, dtype)
    blocks = dict.fromkeys(gates.order, jnp.zeros_like(kept)) | {gates.keep: kept}
    if gates.write and isinstance(bias, Chrono):
        blocks[gates.write] = -kept
    return jnp.concatenate(list(blocks.values()))


def gate_weights(
    cell: Gated, key: jax.Array, input_size: int, dtype: Any, bias: float | Chrono, gates: Gating
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``w_ih``, ``w_hh`` and ``b`` of `gate_matrices` and `gate_biases`."""
    key_ih, key_hh, key_b = jax.random.split(key, 3)
    w_ih, w_hh = gate_matrices(cell, key_ih, key_hh, input_size, dtype, len(gates.order))
    return w_ih, w_hh, gate_biases(bias, key_b, cell.hidden_size, dtype, gates)
