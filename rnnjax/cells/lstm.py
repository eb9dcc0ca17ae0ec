"""Long short-term memory."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid

from rnnjax.cell import Gates, affine_step
from rnnjax.cells.states import LSTMState, lstm_state
from rnnjax.cells.weights import LSTM_GATES, gate_weights
from rnnjax.initializers import Chrono, Glorot, Initializer, Orthogonal
from rnnjax.kinds import cell_class
from rnnjax.traced import name_values

__all__ = ["LSTM", "LSTMParams"]


class LSTMParams(NamedTuple):
    """Parameters of `LSTM`; gate order ``i, f, g, o``."""

    w_ih: jax.Array  # [I, 4H]
    w_hh: jax.Array  # [H, 4H]
    b: jax.Array  # [4H]


@cell_class
class LSTM:
    r"""Long short-term memory (Hochreiter and Schmidhuber, 1997) with a forget gate (Gers et al., 2000).

        i, f, g, o = x @ w_ih + b + h @ w_hh
        c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h' = sigmoid(o) * tanh(c')
        y  = h'

    The forget bias is part of ``b`` from `init` on; `step` adds nothing, so foreign weights load exactly.

    Args:
        hidden_size: H.
        forget_bias: the value of ``b_f`` at the start (Jozefowicz et al., 2015, advise 1), or a `Chrono`, which
            draws ``b_f`` from time scales and sets ``b_i = -b_f``.
        input_init: initialiser of each gate's block of ``w_ih``, ``[I, H]``.
        recurrent_init: initialiser of each gate's block of ``w_hh``, ``[H, H]``.

    Raises:
        ValueError: for a size below one.

    >>> import jax, rnnjax
    >>> cell = rnnjax.LSTM(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state, y = cell.step(params, cell.initial_state((2,)), jax.numpy.ones((2, 3)))
    >>> y.shape, params.w_hh.shape
    ((2, 4), (4, 16))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    forget_bias: float | Chrono = 1.0
    input_init: Initializer = Glorot()
    recurrent_init: Initializer = Orthogonal()
    num_gates = 4

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> LSTMParams:
        """New parameters; ``b`` is zero but for the forget bias."""
        return LSTMParams(*gate_weights(self, key, input_size, dtype, self.forget_bias, LSTM_GATES))

    initial_state = lstm_state

    def update(self, params: LSTMParams, state: LSTMState, zx: Gates, zh: Gates) -> tuple[LSTMState, jax.Array]:
        """The pointwise part of a step; see the equations of the class."""
        i, f, g, o = (a + b for a, b in zip(zx, zh, strict=True))
        i, f, g, o = sigmoid(i), sigmoid(f), jnp.tanh(g), sigmoid(o)
        c = f * state.c + i * g
        h = o * jnp.tanh(c)
        name_values(i=i, f=f, g=g, o=o, c=c, h=h)
        return LSTMState(h, c), h

    step = affine_step
