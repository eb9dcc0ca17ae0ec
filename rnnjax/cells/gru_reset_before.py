"""The gated recurrent unit as it was published first: reset before the matmul."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid

from rnnjax.cell import check_step, compute_dtype, matmul, split_gates
from rnnjax.cells.states import HiddenState, hidden_state
from rnnjax.cells.weights import GRU_GATES, gate_weights
from rnnjax.initializers import Chrono, Glorot, Initializer, Orthogonal
from rnnjax.kinds import cell_class
from rnnjax.traced import name_values

__all__ = ["GRUResetBefore", "GRUResetBeforeParams"]


class GRUResetBeforeParams(NamedTuple):
    """Parameters of `GRUResetBefore`; gate order ``r, z, n``."""

    w_ih: jax.Array  # [I, 3H]
    w_hh: jax.Array  # [H, 3H]
    b: jax.Array  # [3H]


@cell_class
class GRUResetBefore:
    r"""Gated recurrent unit (Cho et al., 2014) in its original form, with the reset before the matmul.

        r, z = sigmoid(x @ w_ih[:, rz] + b[rz] + h @ w_hh[:, rz])
        n  = tanh(x @ w_ih[:, n] + b[n] + (r * h) @ w_hh[:, n])
        h' = (1 - z) * n + z * h
        y  = h'

    ``z`` *keeps* the old state, as in `GRU` and in the paper's own equation; Chung et al. (2014) and Haiku swap it,
    ``h' = (1 - z) * h + z * n``, which is this cell with the z blocks of all three parameters negated. The paper
    leaves out the biases. In `GRU` the reset comes after the matmul, which is another function: no parameters turn
    one into the other. Here the recurrent matmul of n waits for r, so the cell is not affine and runs as a plain scan.

    Args:
        hidden_size: H.
        update_bias: the value of ``b_z`` at the start, or a `Chrono`, which draws it from time scales.
        input_init: initialiser of each gate's block of ``w_ih``, ``[I, H]``.
        recurrent_init: initialiser of each gate's block of ``w_hh``, ``[H, H]``.

    Raises:
        ValueError: for a size below one.

    >>> import jax, rnnjax
    >>> cell = rnnjax.cells.GRUResetBefore(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state, y = cell.step(params, cell.initial_state((2,)), jax.numpy.ones((2, 3)))
    >>> y.shape, rnnjax.implementations(cell)
    ((2, 4), ('scan',))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    update_bias: float | Chrono = 0.0
    input_init: Initializer = Glorot()
    recurrent_init: Initializer = Orthogonal()

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> GRUResetBeforeParams:
        """New parameters; ``b`` is zero but for the update bias."""
        return GRUResetBeforeParams(*gate_weights(self, key, input_size, dtype, self.update_bias, GRU_GATES))

    initial_state = hidden_state

    def step(self, params: GRUResetBeforeParams, state: HiddenState, x: jax.Array) -> tuple[HiddenState, jax.Array]:
        """One step; see the equations of the class."""
        x = check_step(self, params, state, x)
        dtype = compute_dtype(state.h.dtype)
        h = state.h.astype(dtype)
        gates, candidate = jnp.split(params.w_hh, [2 * self.hidden_size], axis=1)  # [H, 2H], [H, H]
        zx = split_gates(matmul(x, params.w_ih, dtype) + params.b.astype(dtype), 3)
        zh = split_gates(matmul(h, gates, dtype), 2)
        r, z = (sigmoid(a + b) for a, b in zip(zx, zh, strict=False))
        n = jnp.tanh(zx[2] + matmul(r * h, candidate, dtype))
        h = (1 - z) * n + z * h
        name_values(r=r, z=z, n=n, h=h)
        h = h.astype(state.h.dtype)
        return HiddenState(h), h
