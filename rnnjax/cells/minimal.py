"""The minimal GRU and LSTM, whose gates depend on the input alone."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid

from rnnjax.cell import Coefficients, linear_step, matmul, split_gates
from rnnjax.cells.states import HiddenState, hidden_state
from rnnjax.cells.weights import Gating, gate_biases, keep_bias
from rnnjax.initializers import Chrono, Glorot, Initializer, per_gate
from rnnjax.kinds import cell_class
from rnnjax.traced import name_values

__all__ = ["MinGRU", "MinGRUParams", "MinLSTM", "MinLSTMParams"]

Candidate = Literal["linear", "g"]


class MinGRUParams(NamedTuple):
    """Parameters of `MinGRU`; gate order ``z, n``."""

    w_ih: jax.Array  # [I, 2H]
    b: jax.Array  # [2H]


class MinLSTMParams(NamedTuple):
    """Parameters of `MinLSTM`; gate order ``i, f, g``."""

    w_ih: jax.Array  # [I, 3H]
    b: jax.Array  # [3H]


@cell_class
class MinGRU:
    r"""Minimal gated recurrent unit (Feng et al., 2024), a linear cell.

        z, n = x @ w_ih + b
        keep, add = 1 - sigmoid(z), sigmoid(z)
        h' = keep * h + add * phi(n)
        y  = h'

    As in the paper ``z`` selects the *candidate*, where that of `GRU` keeps the old state. This is the plain form,
    not that in log space: the state may have any sign and may start at zero.

    Args:
        hidden_size: H.
        candidate: phi. ``"linear"`` is ``phi(n) = n``; ``"g"`` is the positive ``phi(n) = n + 0.5 if n >= 0 else
            sigmoid(n)`` of the paper's log-space form.
        update_bias: the value of ``b_z`` at the start, or a `Chrono`, which draws ``-b_z`` from time scales.
        input_init: initialiser of each gate's block of ``w_ih``, ``[I, H]``.

    Raises:
        ValueError: for a size below one or an unknown candidate.

    >>> import jax, rnnjax
    >>> cell = rnnjax.MinGRU(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state, y = cell.step(params, cell.initial_state((2,)), jax.numpy.ones((2, 3)))
    >>> y.shape, "associative" in rnnjax.implementations(cell)
    ((2, 4), True)
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    candidate: Candidate = "linear"
    update_bias: float | Chrono = 0.0
    input_init: Initializer = Glorot()

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> MinGRUParams:
        """New parameters; the biases are zero but for the update bias."""
        key_ih, key_b = jax.random.split(key)
        size = self.hidden_size
        b_z = keep_bias(self.update_bias, key_b, size, dtype)
        b_z = -b_z if isinstance(self.update_bias, Chrono) else b_z
        return MinGRUParams(
            w_ih=per_gate(self.input_init, key_ih, (input_size, size), 2, dtype),
            b=jnp.concatenate([b_z, jnp.zeros((size,), dtype)]),
        )

    initial_state = hidden_state

    def coefficients(self, params: MinGRUParams, x: jax.Array, dtype: Any) -> Coefficients:
        """``1 - sigmoid(z)`` and ``sigmoid(z) * phi(n)``."""
        z, n = split_gates(matmul(x, params.w_ih, dtype) + params.b.astype(dtype), 2)
        keep, add, n = sigmoid(-z), sigmoid(z), _candidate(n, self.candidate)
        name_values(keep=keep, add=add, n=n)
        return (keep,), (add * n,)

    def output(self, params: MinGRUParams, state: HiddenState, x: jax.Array) -> jax.Array:
        """The state itself."""
        return state.h

    step = linear_step


@cell_class
class MinLSTM:
    r"""Minimal long short-term memory (Feng et al., 2024) with normalised gates, a linear cell.

        i, f, g = x @ w_ih + b
        keep = sigmoid(f) / (sigmoid(f) + sigmoid(i))
        add = 1 - keep
        h' = keep * h + add * phi(g)
        y  = h'

    The gates share what they let pass, so the state is an average of the candidates of the past. ``keep`` is
    computed as ``sigmoid(log_sigmoid(f) - log_sigmoid(i))``, the same number without a division: with both gates
    closed there is no 0 / 0. This is the plain form, not that in log space: the state may have any sign and may
    start at zero.

    Args:
        hidden_size: H.
        candidate: phi. ``"linear"`` is ``phi(g) = g``; ``"g"`` is the positive ``phi(g) = g + 0.5 if g >= 0 else
            sigmoid(g)`` of the paper's log-space form.
        forget_bias: the value of ``b_f`` at the start, or a `Chrono`, which draws ``b_f`` from time scales and sets
            ``b_i = -b_f``, so that ``keep = sigmoid(b_f)``.
        input_init: initialiser of each gate's block of ``w_ih``, ``[I, H]``.

    Raises:
        ValueError: for a size below one or an unknown candidate.

    >>> import jax, rnnjax
    >>> cell = rnnjax.MinLSTM(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state, y = cell.step(params, cell.initial_state((2,)), jax.numpy.ones((2, 3)))
    >>> y.shape, params.w_ih.shape
    ((2, 4), (3, 12))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    candidate: Candidate = "linear"
    forget_bias: float | Chrono = 1.0
    input_init: Initializer = Glorot()

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> MinLSTMParams:
        """New parameters; ``b`` is zero but for the forget bias."""
        key_ih, key_b = jax.random.split(key)
        size = self.hidden_size
        return MinLSTMParams(
            w_ih=per_gate(self.input_init, key_ih, (input_size, size), 3, dtype),
            b=gate_biases(self.forget_bias, key_b, size, dtype, Gating("ifg", keep="f", write="i")),
        )

    initial_state = hidden_state

    def coefficients(self, params: MinLSTMParams, x: jax.Array, dtype: Any) -> Coefficients:
        """``keep`` and ``(1 - keep) * phi(g)``."""
        i, f, g = split_gates(matmul(x, params.w_ih, dtype) + params.b.astype(dtype), 3)
        odds = log_sigmoid(f) - log_sigmoid(i)
        keep, add, g = sigmoid(odds), sigmoid(-odds), _candidate(g, self.candidate)
        name_values(keep=keep, add=add, g=g)
        return (keep,), (add * g,)

    def output(self, params: MinLSTMParams, state: HiddenState, x: jax.Array) -> jax.Array:
        """The state itself."""
        return state.h

    step = linear_step


def _candidate(n: jax.Array, kind: Candidate) -> jax.Array:
    return n if kind == "linear" else jnp.where(n >= 0, n + 0.5, sigmoid(n))
