"""Long short-term memory: as it is, with peepholes, with one gate for forgetting and writing, and with a projection."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid

from rnnjax.cell import Gates, affine_step, batch_axes, check_step, compute_dtype, matmul, split_gates
from rnnjax.cells.states import LSTMState, lstm_state
from rnnjax.cells.weights import LSTM_GATES, Gating, gate_biases, gate_weights
from rnnjax.initializers import Chrono, Glorot, Initializer, Orthogonal, per_gate
from rnnjax.kinds import cell_class
from rnnjax.traced import name_values

__all__ = [
    "LSTM",
    "CoupledLSTM",
    "CoupledLSTMParams",
    "LSTMParams",
    "PeepholeLSTM",
    "PeepholeLSTMParams",
    "ProjectedLSTM",
    "ProjectedLSTMParams",
]


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


class PeepholeLSTMParams(NamedTuple):
    """Parameters of `PeepholeLSTM`; gate order ``i, f, g, o``."""

    w_ih: jax.Array  # [I, 4H]
    w_hh: jax.Array  # [H, 4H]
    b: jax.Array  # [4H]
    p_i: jax.Array  # [H]
    p_f: jax.Array  # [H]
    p_o: jax.Array  # [H]


@cell_class
class PeepholeLSTM:
    r"""LSTM whose gates see the cell state (Gers and Schmidhuber, 2000).

        i, f, g, o = x @ w_ih + b + h @ w_hh
        c' = sigmoid(f + p_f * c) * c + sigmoid(i + p_i * c) * tanh(g)
        h' = sigmoid(o + p_o * c') * tanh(c')
        y  = h'

    The input and the forget gate see the old cell state, the output gate the new one. With peepholes of zero,
    as `init` makes them, it is the `LSTM`.

    Args:
        hidden_size: H.
        forget_bias: the value of ``b_f`` at the start, or a `Chrono`, as for `LSTM`.
        input_init: initialiser of each gate's block of ``w_ih``, ``[I, H]``.
        recurrent_init: initialiser of each gate's block of ``w_hh``, ``[H, H]``.

    Raises:
        ValueError: for a size below one.

    >>> import jax, rnnjax
    >>> cell = rnnjax.cells.PeepholeLSTM(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state, y = cell.step(params, cell.initial_state((2,)), jax.numpy.ones((2, 3)))
    >>> y.shape, params.p_i.shape
    ((2, 4), (4,))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    forget_bias: float | Chrono = 1.0
    input_init: Initializer = Glorot()
    recurrent_init: Initializer = Orthogonal()
    num_gates = 4

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> PeepholeLSTMParams:
        """New parameters: those of an `LSTM`, and peepholes of zero."""
        weights = gate_weights(self, key, input_size, dtype, self.forget_bias, LSTM_GATES)
        return PeepholeLSTMParams(*weights, *(jnp.zeros((self.hidden_size,), dtype) for _ in range(3)))

    initial_state = lstm_state

    def update(self, params: PeepholeLSTMParams, state: LSTMState, zx: Gates, zh: Gates) -> tuple[LSTMState, jax.Array]:
        """The pointwise part of a step; see the equations of the class."""
        i, f, g, o = (a + b for a, b in zip(zx, zh, strict=True))
        i, f, g = sigmoid(i + params.p_i * state.c), sigmoid(f + params.p_f * state.c), jnp.tanh(g)
        c = f * state.c + i * g
        o = sigmoid(o + params.p_o * c)
        h = o * jnp.tanh(c)
        name_values(i=i, f=f, g=g, o=o, c=c, h=h)
        return LSTMState(h, c), h

    step = affine_step


class CoupledLSTMParams(NamedTuple):
    """Parameters of `CoupledLSTM`; gate order ``f, g, o``."""

    w_ih: jax.Array  # [I, 3H]
    w_hh: jax.Array  # [H, 3H]
    b: jax.Array  # [3H]


@cell_class
class CoupledLSTM:
    r"""LSTM that writes as much as it forgets, the CIFG of Greff et al. (2017), without peepholes.

        f, g, o = x @ w_ih + b + h @ w_hh
        c' = sigmoid(f) * c + (1 - sigmoid(f)) * tanh(g)
        h' = sigmoid(o) * tanh(c')
        y  = h'

    The gates are those of the `LSTM` without ``i``, so there is a quarter less of everything, and ``c``, which starts
    from zeros, stays between -1 and 1.

    Args:
        hidden_size: H.
        forget_bias: the value of ``b_f`` at the start, or a `Chrono`, which draws it from time scales.
        input_init: initialiser of each gate's block of ``w_ih``, ``[I, H]``.
        recurrent_init: initialiser of each gate's block of ``w_hh``, ``[H, H]``.

    Raises:
        ValueError: for a size below one.

    >>> import jax, rnnjax
    >>> cell = rnnjax.cells.CoupledLSTM(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state, y = cell.step(params, cell.initial_state((2,)), jax.numpy.ones((2, 3)))
    >>> y.shape, params.w_hh.shape
    ((2, 4), (4, 12))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    forget_bias: float | Chrono = 1.0
    input_init: Initializer = Glorot()
    recurrent_init: Initializer = Orthogonal()
    num_gates = 3

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> CoupledLSTMParams:
        """New parameters; ``b`` is zero but for the forget bias."""
        return CoupledLSTMParams(*gate_weights(self, key, input_size, dtype, self.forget_bias, Gating("fgo", keep="f")))

    initial_state = lstm_state

    def update(self, params: CoupledLSTMParams, state: LSTMState, zx: Gates, zh: Gates) -> tuple[LSTMState, jax.Array]:
        """The pointwise part of a step; see the equations of the class."""
        f, g, o = (a + b for a, b in zip(zx, zh, strict=True))
        f, g, o = sigmoid(f), jnp.tanh(g), sigmoid(o)
        c = f * state.c + (1 - f) * g
        h = o * jnp.tanh(c)
        name_values(f=f, g=g, o=o, c=c, h=h)
        return LSTMState(h, c), h

    step = affine_step


class ProjectedLSTMParams(NamedTuple):
    """Parameters of `ProjectedLSTM`; gate order ``i, f, g, o``."""

    w_ih: jax.Array  # [I, 4C]
    w_hh: jax.Array  # [H, 4C]
    b: jax.Array  # [4C]
    w_proj: jax.Array  # [C, H]


@cell_class
class ProjectedLSTM:
    r"""Long short-term memory with a recurrent projection (Sak et al., 2014).

        i, f, g, o = x @ w_ih + b + h @ w_hh
        c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h' = (sigmoid(o) * tanh(c')) @ w_proj
        y  = h'

    The memory c has C entries, h and y have H, most often fewer: a large memory with small recurrent matrices. This
    is ``torch.nn.LSTM`` with ``proj_size = H`` and ``hidden_size = C``, and has neither the peepholes of the paper nor
    its second projection, which the recurrence does not see.

    Args:
        hidden_size: H, the size of the output and of the recurrent h.
        cell_size: C, the size of the memory; None takes 4 H.
        forget_bias: the value of ``b_f`` at the start, or a `Chrono`; see `LSTM`.
        input_init: initialiser of each gate's block of ``w_ih``, ``[I, C]``.
        recurrent_init: initialiser of each gate's block of ``w_hh``, ``[H, C]``.
        projection_init: initialiser of ``w_proj [C, H]``.

    Raises:
        ValueError: for a size below one.

    >>> import jax, rnnjax
    >>> cell = rnnjax.ProjectedLSTM(hidden_size=4, cell_size=10)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state, y = cell.step(params, cell.initial_state((2,)), jax.numpy.ones((2, 3)))
    >>> y.shape, state.h.shape, state.c.shape
    ((2, 4), (2, 4), (2, 10))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    cell_size: int | None = None
    forget_bias: float | Chrono = 1.0
    input_init: Initializer = Glorot()
    recurrent_init: Initializer = Orthogonal()
    projection_init: Initializer = Glorot()

    @property
    def _memory(self) -> int:
        return 4 * self.hidden_size if self.cell_size is None else self.cell_size

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> ProjectedLSTMParams:
        """New parameters; ``b`` is zero but for the forget bias."""
        key_ih, key_hh, key_b, key_proj = jax.random.split(key, 4)
        size, memory = self.hidden_size, self._memory
        return ProjectedLSTMParams(
            w_ih=per_gate(self.input_init, key_ih, (input_size, memory), 4, dtype),
            w_hh=per_gate(self.recurrent_init, key_hh, (size, memory), 4, dtype),
            b=gate_biases(self.forget_bias, key_b, memory, dtype, LSTM_GATES),
            w_proj=self.projection_init(key_proj, (memory, size), dtype),
        )

    def initial_state(self, batch_shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> LSTMState:
        """Zeros: ``h [*batch, H]`` and ``c [*batch, C]``."""
        batch = batch_axes(batch_shape, dtype)
        return LSTMState(h=jnp.zeros((*batch, self.hidden_size), dtype), c=jnp.zeros((*batch, self._memory), dtype))

    def step(self, params: ProjectedLSTMParams, state: LSTMState, x: jax.Array) -> tuple[LSTMState, jax.Array]:
        """One step; see the equations of the class."""
        x = check_step(self, params, state, x)
        dtype = compute_dtype(state.h.dtype)
        z = matmul(x, params.w_ih, dtype) + params.b.astype(dtype) + matmul(state.h, params.w_hh, dtype)
        i, f, g, o = split_gates(z, 4)
        i, f, g, o = sigmoid(i), sigmoid(f), jnp.tanh(g), sigmoid(o)
        c = f * state.c.astype(dtype) + i * g
        h = matmul(o * jnp.tanh(c), params.w_proj, dtype)
        name_values(i=i, f=f, g=g, o=o, c=c, h=h)
        h = h.astype(state.h.dtype)
        return LSTMState(h, c.astype(state.c.dtype)), h
