"""The scalar LSTM of the xLSTM family: exponential gates, a normaliser and a stabiliser."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid

from rnnjax.cell import Gates, affine_step, batch_axes
from rnnjax.cells.weights import LSTM_GATES, gate_weights
from rnnjax.initializers import Chrono, Glorot, Initializer, Orthogonal
from rnnjax.kinds import cell_class
from rnnjax.traced import name_values

__all__ = ["SLSTM", "SLSTMParams", "SLSTMState"]

# The stabiliser of a state that has seen nothing: minus infinity, for any input gate above it.
_NOTHING = -1e4


class SLSTMParams(NamedTuple):
    """Parameters of `SLSTM`; gate order ``i, f, g, o``."""

    w_ih: jax.Array  # [I, 4H]
    w_hh: jax.Array  # [H, 4H]
    b: jax.Array  # [4H]


class SLSTMState(NamedTuple):
    """State of `SLSTM`; without the stabiliser, cell and normaliser would be ``exp(m) * c`` and ``exp(m) * n``."""

    h: jax.Array  # [*batch, H]
    c: jax.Array  # [*batch, H]
    n: jax.Array  # [*batch, H]
    m: jax.Array  # [*batch, H]


@cell_class
class SLSTM:
    r"""sLSTM, an LSTM with exponential gates (Beck et al., 2024), as one head with a full ``w_hh``.

        i, f, g, o = x @ w_ih + b + h @ w_hh
        log_f = log(sigmoid(f)), or f for forget_gate="exp"
        m' = max(log_f + m, i)
        c' = exp(log_f + m - m') * c + exp(i - m') * tanh(g)
        n' = exp(log_f + m - m') * n + exp(i - m')
        h' = sigmoid(o) * c' / n'
        y  = h'

    So ``c' / n'`` is a mean of all ``tanh(g)`` so far, weighted by the gates: a strong input overrides what was kept.
    The stabiliser ``m`` keeps every exponential at most one and changes no output, for it cancels in ``c' / n'``. The
    paper calls ``g`` z. It starts from ``c = n = 0``, where ``m`` has no effect at all if it were minus infinity;
    ``m = -10000`` does exactly the same for every ``i > -10000 + log_f``, and stays finite in every dtype. From the
    first step on ``n >= 1``, so nothing divides by zero.

    Only ``h`` is free to be learned (`LearnedState`) or made of a context (`ContextState`): ``n`` is a sum of positive
    weights, and beside a stabiliser of -10000 neither ``c`` nor ``n`` counts.

    Keep the state in float32 or wider; parameters may be bfloat16. ``n`` counts, and in bfloat16 it stops at 256.

    Args:
        hidden_size: H.
        forget_bias: the value of ``b_f`` at the start; None is 1 for the sigmoid and ``log(sigmoid(1)) = -0.31`` for
            ``"exp"``, which then forgets as much (from zero on it would keep all, or let the past grow). A `Chrono`
            draws ``b_f`` as for `LSTM`, of which ``"exp"`` takes ``log(sigmoid(b_f))``, and sets ``b_i``.
        forget_gate: ``"sigmoid"`` or ``"exp"``, the two of the paper.
        input_init: initialiser of each gate's block of ``w_ih``, ``[I, H]``.
        recurrent_init: initialiser of each gate's block of ``w_hh``, ``[H, H]``.

    Raises:
        ValueError: for a size below one or an unknown forget gate.

    >>> import jax, rnnjax
    >>> cell = rnnjax.SLSTM(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state, y = cell.step(params, cell.initial_state((2,)), 100 * jax.numpy.ones((2, 3)))
    >>> y.shape, bool(jax.numpy.all(state.n == 1))
    ((2, 4), True)
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    forget_bias: float | Chrono | None = None
    forget_gate: Literal["sigmoid", "exp"] = "sigmoid"
    input_init: Initializer = Glorot()
    recurrent_init: Initializer = Orthogonal()
    num_gates = 4
    free_state = ("h",)

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> SLSTMParams:
        """New parameters; ``b`` is zero but for the forget bias."""
        bias = 1.0 if self.forget_bias is None else self.forget_bias
        w_ih, w_hh, b = gate_weights(self, key, input_size, dtype, bias, LSTM_GATES)
        if self.forget_gate == "exp" and (self.forget_bias is None or isinstance(self.forget_bias, Chrono)):
            # These are meant for a sigmoid: as the logarithm of the gate itself they would let the past grow.
            forget = slice(self.hidden_size, 2 * self.hidden_size)
            b = b.at[forget].set(log_sigmoid(b[forget]))
        return SLSTMParams(w_ih, w_hh, b)

    def initial_state(self, batch_shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> SLSTMState:
        """Zeros, in arrays of their own (a buffer cannot be donated twice), and a stabiliser of -10000."""
        shape = (*batch_axes(batch_shape, dtype), self.hidden_size)
        h, c, n = (jnp.zeros(shape, dtype) for _ in range(3))
        return SLSTMState(h, c, n, m=jnp.full(shape, _NOTHING, dtype))

    def update(self, params: SLSTMParams, state: SLSTMState, zx: Gates, zh: Gates) -> tuple[SLSTMState, jax.Array]:
        """The pointwise part of a step; see the equations of the class."""
        z_i, z_f, g, o = (a + b for a, b in zip(zx, zh, strict=True))
        old = state.m + (log_sigmoid(z_f) if self.forget_gate == "sigmoid" else z_f)
        m = jnp.maximum(old, z_i)
        i, f, g, o = jnp.exp(z_i - m), jnp.exp(old - m), jnp.tanh(g), sigmoid(o)
        c = f * state.c + i * g
        n = f * state.n + i
        h = o * c / n
        name_values(z_i=z_i, z_f=z_f, i=i, f=f, g=g, o=o, c=c, n=n, m=m, h=h)
        return SLSTMState(h, c, n, m), h

    step = affine_step
