"""The MinimalRNN."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid

from rnnjax.cell import check_step, compute_dtype, matmul
from rnnjax.cells.states import HiddenState, hidden_state
from rnnjax.cells.weights import keep_bias
from rnnjax.initializers import Chrono, Glorot, Initializer, Orthogonal
from rnnjax.kinds import cell_class
from rnnjax.traced import name_values

__all__ = ["MinimalRNN", "MinimalRNNParams"]


class MinimalRNNParams(NamedTuple):
    """Parameters of `MinimalRNN`."""

    w_ih: jax.Array  # [I, H]
    w_zh: jax.Array  # [H, H]
    w_hh: jax.Array  # [H, H]
    b_z: jax.Array  # [H]
    b_u: jax.Array  # [H]


@cell_class
class MinimalRNN:
    r"""MinimalRNN (Chen, 2017): every unit moves towards a code of the input, by a gate.

        z  = tanh(x @ w_ih + b_z)
        u  = sigmoid(h @ w_hh + z @ w_zh + b_u)
        h' = u * h + (1 - u) * z
        y  = h'

    ``u`` *keeps* the old state. The gate sees the input through a nonlinearity and a second matmul, so this is no
    affine cell; ``w_hh`` and ``w_zh`` are the paper's U_h and U_z.

    Args:
        hidden_size: H.
        update_bias: the value of ``b_u`` at the start, or a `Chrono`, which draws it from time scales.
        input_init: initialiser of ``w_ih [I, H]`` and ``w_zh [H, H]``.
        recurrent_init: initialiser of ``w_hh [H, H]``.

    Raises:
        ValueError: for a size below one.

    >>> import jax, rnnjax
    >>> cell = rnnjax.cells.MinimalRNN(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state, y = cell.step(params, cell.initial_state((2,)), jax.numpy.ones((2, 3)))
    >>> y.shape, params.w_zh.shape
    ((2, 4), (4, 4))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    update_bias: float | Chrono = 0.0
    input_init: Initializer = Glorot()
    recurrent_init: Initializer = Orthogonal()

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> MinimalRNNParams:
        """New parameters; the biases are zero but for the update bias."""
        key_ih, key_zh, key_hh, key_b = jax.random.split(key, 4)
        size = self.hidden_size
        return MinimalRNNParams(
            w_ih=self.input_init(key_ih, (input_size, size), dtype),
            w_zh=self.input_init(key_zh, (size, size), dtype),
            w_hh=self.recurrent_init(key_hh, (size, size), dtype),
            b_z=jnp.zeros((size,), dtype),
            b_u=keep_bias(self.update_bias, key_b, size, dtype),
        )

    initial_state = hidden_state

    def step(self, params: MinimalRNNParams, state: HiddenState, x: jax.Array) -> tuple[HiddenState, jax.Array]:
        """One step; see the equations of the class."""
        x = check_step(self, params, state, x)
        dtype = compute_dtype(state.h.dtype)
        h = state.h.astype(dtype)
        z = jnp.tanh(matmul(x, params.w_ih, dtype) + params.b_z)
        u = sigmoid(matmul(h, params.w_hh, dtype) + matmul(z, params.w_zh, dtype) + params.b_u)
        h = u * h + (1 - u) * z
        name_values(z=z, u=u, h=h)
        h = h.astype(state.h.dtype)
        return HiddenState(h), h
