"""The LSTM whose output is a projection of its memory."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid

from rnnjax.cell import batch_axes, check_step, compute_dtype, matmul, split_gates
from rnnjax.cells.states import LSTMState
from rnnjax.cells.weights import LSTM_GATES, gate_biases
from rnnjax.initializers import Chrono, Glorot, Initializer, Orthogonal, per_gate
from rnnjax.kinds import cell_class
from rnnjax.traced import name_values

__all__ = ["ProjectedLSTM", "ProjectedLSTMParams"]


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
