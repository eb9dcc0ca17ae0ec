"""The minimal gated unit."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid

from rnnjax.cell import Gates, affine_step
from rnnjax.cells.states import HiddenState, hidden_state
from rnnjax.cells.weights import Gating, gate_weights
from rnnjax.initializers import Chrono, Glorot, Initializer, Orthogonal
from rnnjax.kinds import cell_class
from rnnjax.traced import name_values

__all__ = ["MGU", "MGUParams"]


class MGUParams(NamedTuple):
    """Parameters of `MGU`; gate order ``f, n``."""

    w_ih: jax.Array  # [I, 2H]
    w_hh: jax.Array  # [H, 2H]
    b: jax.Array  # [2H]
    b_hn: jax.Array | None  # [H]; None without a reset, where it would do what b does


@cell_class
class MGU:
    r"""Minimal gated unit (Zhou et al., 2016): a GRU in which one gate is both reset and update.

        f = sigmoid(zx_f + zh_f)
        n = tanh(zx_n + f * (zh_n + b_hn))    with reset_gate
        n = tanh(zx_n + zh_n)                 without
        h' = (1 - f) * n + f * h
        y  = h'

    with ``zx = x @ w_ih + b`` and ``zh = h @ w_hh``. It is the form of ``flax.linen.MGUCell``: ``f`` *keeps* the old
    state, and the reset comes after the matmul. In the paper ``f`` lets in the new state and the reset comes before.

    Args:
        hidden_size: H.
        reset_gate: whether ``f`` also scales what the candidate sees of the state.
        forget_bias: the value of ``b_f`` at the start, or a `Chrono`, which draws it from time scales.
        input_init: initialiser of each gate's block of ``w_ih``, ``[I, H]``.
        recurrent_init: initialiser of each gate's block of ``w_hh``, ``[H, H]``.

    Raises:
        ValueError: for a size below one.

    >>> import jax, rnnjax
    >>> cell = rnnjax.cells.MGU(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state, y = cell.step(params, cell.initial_state((2,)), jax.numpy.ones((2, 3)))
    >>> y.shape, params.w_hh.shape
    ((2, 4), (4, 8))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    reset_gate: bool = True
    forget_bias: float | Chrono = 1.0
    input_init: Initializer = Glorot()
    recurrent_init: Initializer = Orthogonal()
    num_gates = 2

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> MGUParams:
        """New parameters; the biases are zero but for the forget bias."""
        weights = gate_weights(self, key, input_size, dtype, self.forget_bias, Gating("fn", keep="f"))
        return MGUParams(*weights, b_hn=jnp.zeros((self.hidden_size,), dtype) if self.reset_gate else None)

    initial_state = hidden_state

    def update(self, params: MGUParams, state: HiddenState, zx: Gates, zh: Gates) -> tuple[HiddenState, jax.Array]:
        """The pointwise part of a step; see the equations of the class."""
        f = sigmoid(zx[0] + zh[0])
        if not self.reset_gate:
            n = jnp.tanh(zx[1] + zh[1])
        elif params.b_hn is not None:
            n = jnp.tanh(zx[1] + f * (zh[1] + params.b_hn))
        else:
            raise ValueError(
                "MGU: params.b_hn must be an array for reset_gate = True, got None; take the params of this cell."
            )
        h = (1 - f) * n + f * state.h
        name_values(f=f, n=n, h=h)
        return HiddenState(h), h

    step = affine_step
