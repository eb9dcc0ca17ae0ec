"""The gated recurrent unit."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid

from rnnjax.cell import Gates, affine_step
from rnnjax.cells.states import HiddenState, hidden_state
from rnnjax.cells.weights import GRU_GATES, gate_weights
from rnnjax.initializers import Chrono, Glorot, Initializer, Orthogonal
from rnnjax.kinds import cell_class
from rnnjax.traced import name_values

__all__ = ["GRU", "GRUParams"]


class GRUParams(NamedTuple):
    """Parameters of `GRU`; gate order ``r, z, n``."""

    w_ih: jax.Array  # [I, 3H]
    w_hh: jax.Array  # [H, 3H]
    b: jax.Array  # [3H]
    b_hn: jax.Array  # [H]


@cell_class
class GRU:
    r"""Gated recurrent unit (Cho et al., 2014), in the form with the reset after the matmul.

        r = sigmoid(zx_r + zh_r)
        z = sigmoid(zx_z + zh_z)
        n = tanh(zx_n + r * (zh_n + b_hn))
        h' = (1 - z) * n + z * h
        y  = h'

    with ``zx = x @ w_ih + b`` and ``zh = h @ w_hh``. It is the form of cuDNN, PyTorch and flax: ``z`` *keeps* the
    old state, and the candidate's recurrent bias ``b_hn`` stands inside the reset.

    Args:
        hidden_size: H.
        update_bias: the value of ``b_z`` at the start, or a `Chrono`, which draws it from time scales.
        input_init: initialiser of each gate's block of ``w_ih``, ``[I, H]``.
        recurrent_init: initialiser of each gate's block of ``w_hh``, ``[H, H]``.

    Raises:
        ValueError: for a size below one.

    >>> import jax, rnnjax
    >>> cell = rnnjax.GRU(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state, y = cell.step(params, cell.initial_state((2,)), jax.numpy.ones((2, 3)))
    >>> y.shape, params.b_hn.shape
    ((2, 4), (4,))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    update_bias: float | Chrono = 0.0
    input_init: Initializer = Glorot()
    recurrent_init: Initializer = Orthogonal()
    num_gates = 3

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> GRUParams:
        """New parameters; the biases are zero but for the update bias."""
        weights = gate_weights(self, key, input_size, dtype, self.update_bias, GRU_GATES)
        return GRUParams(*weights, b_hn=jnp.zeros((self.hidden_size,), dtype))

    initial_state = hidden_state

    def update(self, params: GRUParams, state: HiddenState, zx: Gates, zh: Gates) -> tuple[HiddenState, jax.Array]:
        """The pointwise part of a step; see the equations of the class."""
        r = sigmoid(zx[0] + zh[0])
        z = sigmoid(zx[1] + zh[1])
        n = jnp.tanh(zx[2] + r * (zh[2] + params.b_hn))
        h = (1 - z) * n + z * state.h
        name_values(r=r, z=z, n=n, h=h)
        return HiddenState(h), h

    step = affine_step
