"""Networks whose input and state meet in a product: multiplicative integration."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid

from rnnjax.cell import Gates, affine_step, split_gates
from rnnjax.cells.states import HiddenState, LSTMState, hidden_state, lstm_state
from rnnjax.cells.weights import LSTM_GATES, gate_matrices, gate_weights
from rnnjax.initializers import Chrono, Glorot, Initializer, Orthogonal
from rnnjax.kinds import cell_class
from rnnjax.traced import name_values

__all__ = ["MILSTM", "MIRNN", "MILSTMParams", "MIRNNParams"]


class MIRNNParams(NamedTuple):
    """Parameters of `MIRNN`."""

    w_ih: jax.Array  # [I, H]
    w_hh: jax.Array  # [H, H]
    bias: jax.Array  # [H]
    alpha: jax.Array  # [H]
    beta_x: jax.Array  # [H]
    beta_h: jax.Array  # [H]


@cell_class
class MIRNN:
    r"""Elman's network with multiplicative integration (Wu et al., 2016).

        zx = x @ w_ih;  zh = h @ w_hh
        h' = tanh(alpha * zx * zh + beta_x * zx + beta_h * zh + bias)
        y  = h'

    In the paper ``beta_h`` is the first beta and ``beta_x`` the second. With ``alpha = 0`` and betas of one it is the
    `Elman` network.

    Args:
        hidden_size: H.
        alpha: the value of ``alpha`` at the start.
        beta: the value of ``beta_x`` and ``beta_h`` at the start.
        input_init: initialiser of ``w_ih [I, H]``.
        recurrent_init: initialiser of ``w_hh [H, H]``.

    Raises:
        ValueError: for a size below one.

    >>> import jax, rnnjax
    >>> cell = rnnjax.cells.MIRNN(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state, y = cell.step(params, cell.initial_state(), jax.numpy.ones(3))
    >>> y.shape, params.alpha.shape
    ((4,), (4,))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    alpha: float = 1.0
    beta: float = 1.0
    input_init: Initializer = Glorot()
    recurrent_init: Initializer = Orthogonal()
    num_gates = 1

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> MIRNNParams:
        """New parameters; ``bias`` is zero."""
        key_ih, key_hh = jax.random.split(key)
        w_ih, w_hh = gate_matrices(self, key_ih, key_hh, input_size, dtype, num_gates=1)
        b = jnp.zeros((self.hidden_size,), dtype)
        return MIRNNParams(w_ih, w_hh, b, *_factors(b, self.alpha, self.beta))

    initial_state = hidden_state

    def update(self, params: MIRNNParams, state: HiddenState, zx: Gates, zh: Gates) -> tuple[HiddenState, jax.Array]:
        """The pointwise part of a step; see the equations of the class."""
        (z,) = _integrate(params, zx, zh)
        h = jnp.tanh(z)
        name_values(h=h)
        return HiddenState(h), h

    step = affine_step


class MILSTMParams(NamedTuple):
    """Parameters of `MILSTM`; gate order ``i, f, g, o``."""

    w_ih: jax.Array  # [I, 4H]
    w_hh: jax.Array  # [H, 4H]
    bias: jax.Array  # [4H]
    alpha: jax.Array  # [4H]
    beta_x: jax.Array  # [4H]
    beta_h: jax.Array  # [4H]


@cell_class
class MILSTM:
    r"""LSTM with multiplicative integration (Wu et al., 2016).

        zx = x @ w_ih;  zh = h @ w_hh
        i, f, g, o = alpha * zx * zh + beta_x * zx + beta_h * zh + bias
        c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h' = sigmoid(o) * tanh(c')
        y  = h'

    In the paper ``beta_h`` is the first beta and ``beta_x`` the second. With ``alpha = 0`` and betas of one it is the
    `LSTM`.

    Args:
        hidden_size: H.
        forget_bias: the value of ``bias_f`` at the start, or a `Chrono`, as for `LSTM`.
        alpha: the value of ``alpha`` at the start.
        beta: the value of ``beta_x`` and ``beta_h`` at the start.
        input_init: initialiser of each gate's block of ``w_ih``, ``[I, H]``.
        recurrent_init: initialiser of each gate's block of ``w_hh``, ``[H, H]``.

    Raises:
        ValueError: for a size below one.

    >>> import jax, rnnjax
    >>> cell = rnnjax.cells.MILSTM(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state, y = cell.step(params, cell.initial_state((2,)), jax.numpy.ones((2, 3)))
    >>> y.shape, params.alpha.shape
    ((2, 4), (16,))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    forget_bias: float | Chrono = 1.0
    alpha: float = 1.0
    beta: float = 1.0
    input_init: Initializer = Glorot()
    recurrent_init: Initializer = Orthogonal()
    num_gates = 4

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> MILSTMParams:
        """New parameters; ``bias`` is zero but for the forget bias."""
        w_ih, w_hh, b = gate_weights(self, key, input_size, dtype, self.forget_bias, LSTM_GATES)
        return MILSTMParams(w_ih, w_hh, b, *_factors(b, self.alpha, self.beta))

    initial_state = lstm_state

    def update(self, params: MILSTMParams, state: LSTMState, zx: Gates, zh: Gates) -> tuple[LSTMState, jax.Array]:
        """The pointwise part of a step; see the equations of the class."""
        i, f, g, o = _integrate(params, zx, zh)
        i, f, g, o = sigmoid(i), sigmoid(f), jnp.tanh(g), sigmoid(o)
        c = f * state.c + i * g
        h = o * jnp.tanh(c)
        name_values(i=i, f=f, g=g, o=o, c=c, h=h)
        return LSTMState(h, c), h

    step = affine_step


def _factors(b: jax.Array, alpha: float, beta: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``alpha``, ``beta_x`` and ``beta_h``, like ``b``."""
    return jnp.full_like(b, alpha), jnp.full_like(b, beta), jnp.full_like(b, beta)


def _integrate(params: MIRNNParams | MILSTMParams, zx: Gates, zh: Gates) -> Gates:
    """``alpha * zx * zh + beta_x * zx + beta_h * zh + bias``, gate by gate."""
    fields = (params.bias, params.alpha, params.beta_x, params.beta_h)
    blocks = zip(*(split_gates(field, len(zx)) for field in fields), strict=True)
    return tuple(
        alpha * x * h + beta_x * x + beta_h * h + bias
        for x, h, (bias, alpha, beta_x, beta_h) in zip(zx, zh, blocks, strict=True)
    )
