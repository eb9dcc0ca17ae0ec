"""Gated cells whose units see of the state only themselves."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid

from rnnjax.cell import Gates, affine_step
from rnnjax.cells.states import HiddenState, LSTMState, hidden_state, lstm_state
from rnnjax.cells.weights import GRU_GATES, LSTM_GATES, Gating, gate_biases
from rnnjax.initializers import Chrono, Glorot, Initializer, Uniform, per_gate
from rnnjax.kinds import cell_class
from rnnjax.traced import name_values

__all__ = ["DiagonalGRU", "DiagonalLSTM", "DiagonalParams"]


class DiagonalParams(NamedTuple):
    """Parameters of `DiagonalGRU` and `DiagonalLSTM`; gate order ``r, z, n`` and ``i, f, g, o``."""

    w_ih: jax.Array  # [I, G H]
    b: jax.Array  # [G H]
    u: jax.Array  # [G H]


@cell_class
class DiagonalGRU:
    r"""A GRU with a vector in the place of each recurrent matrix (Danieli et al., 2025, call such a cell ParaGRU).

        r, z, n = x @ w_ih + b
        r = sigmoid(r + u_r * h)
        z = sigmoid(z + u_z * h)
        n = tanh(n + r * (u_n * h))
        h' = (1 - z) * n + z * h
        y  = h'

    A unit sees of the state only itself, as in `IndRNN`, so that ``dh'/dh`` is diagonal: the implementation
    ``"newton"`` is exact in its derivatives and takes few iterations, and `rnnjax.online.SnAp1` leaves nothing out.
    Units mix in the next layer, so it takes at least two.

    Args:
        hidden_size: H.
        update_bias: the value of ``b_z`` at the start, or a `Chrono`, which draws it from time scales.
        input_init: initialiser of each gate's block of ``w_ih``, ``[I, H]``.
        recurrent_init: initialiser of each gate's ``u``, ``[H]``.

    Raises:
        ValueError: for a size below one.

    >>> import jax, rnnjax
    >>> cell = rnnjax.cells.DiagonalGRU(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state, y = cell.step(params, cell.initial_state((2,)), jax.numpy.ones((2, 3)))
    >>> y.shape, params.u.shape
    ((2, 4), (12,))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    update_bias: float | Chrono = 0.0
    input_init: Initializer = Glorot()
    recurrent_init: Initializer = Uniform(1.0)
    num_gates = 3

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> DiagonalParams:
        """New parameters; the biases are zero but for the update bias."""
        return _init(self, key, input_size, dtype, self.update_bias, GRU_GATES)

    initial_state = hidden_state

    def update(self, params: DiagonalParams, state: HiddenState, zx: Gates, zh: Gates) -> tuple[HiddenState, jax.Array]:
        """The pointwise part of a step; ``zh`` is empty, since there is no ``w_hh``."""
        del zh
        u_r, u_z, u_n = jnp.split(params.u, 3)
        r = sigmoid(zx[0] + u_r * state.h)
        z = sigmoid(zx[1] + u_z * state.h)
        n = jnp.tanh(zx[2] + r * (u_n * state.h))
        h = (1 - z) * n + z * state.h
        name_values(r=r, z=z, n=n, h=h)
        return HiddenState(h), h

    step = affine_step


@cell_class
class DiagonalLSTM:
    r"""An LSTM with a vector in the place of each recurrent matrix.

        i, f, g, o = x @ w_ih + b + u * h
        c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h' = sigmoid(o) * tanh(c')
        y  = h'

    A unit sees of the state only its own ``h`` and ``c``: its Jacobian is a block of two by two. See `DiagonalGRU`.

    Args:
        hidden_size: H.
        forget_bias: the value of ``b_f`` at the start, or a `Chrono`; see `rnnjax.LSTM`.
        input_init: initialiser of each gate's block of ``w_ih``, ``[I, H]``.
        recurrent_init: initialiser of each gate's ``u``, ``[H]``.

    Raises:
        ValueError: for a size below one.

    >>> import jax, rnnjax
    >>> cell = rnnjax.cells.DiagonalLSTM(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state, y = cell.step(params, cell.initial_state((2,)), jax.numpy.ones((2, 3)))
    >>> y.shape, params.u.shape
    ((2, 4), (16,))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    forget_bias: float | Chrono = 1.0
    input_init: Initializer = Glorot()
    recurrent_init: Initializer = Uniform(1.0)
    num_gates = 4

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> DiagonalParams:
        """New parameters; ``b`` is zero but for the forget bias."""
        return _init(self, key, input_size, dtype, self.forget_bias, LSTM_GATES)

    initial_state = lstm_state

    def update(self, params: DiagonalParams, state: LSTMState, zx: Gates, zh: Gates) -> tuple[LSTMState, jax.Array]:
        """The pointwise part of a step; ``zh`` is empty, since there is no ``w_hh``."""
        del zh
        i, f, g, o = (z + u * state.h for z, u in zip(zx, jnp.split(params.u, 4), strict=True))
        i, f, g, o = sigmoid(i), sigmoid(f), jnp.tanh(g), sigmoid(o)
        c = f * state.c + i * g
        h = o * jnp.tanh(c)
        name_values(i=i, f=f, g=g, o=o, c=c, h=h)
        return LSTMState(h, c), h

    step = affine_step


def _init(
    cell: DiagonalGRU | DiagonalLSTM, key: jax.Array, input_size: int, dtype: Any, bias: float | Chrono, gates: Gating
) -> DiagonalParams:
    """Each block drawn by itself."""
    key_ih, key_u, key_b = jax.random.split(key, 3)
    size, count = cell.hidden_size, len(gates.order)
    return DiagonalParams(
        w_ih=per_gate(cell.input_init, key_ih, (input_size, size), count, dtype),
        b=gate_biases(bias, key_b, size, dtype, gates),
        u=jnp.concatenate([cell.recurrent_init(k, (size,), dtype) for k in jax.random.split(key_u, count)]),
    )
