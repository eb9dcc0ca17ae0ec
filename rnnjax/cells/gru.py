"""The gated recurrent unit: with the reset after the matmul, with the reset before it, and with one gate for both."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid

from rnnjax.cell import Gates, affine_step, check_step, compute_dtype, matmul, split_gates
from rnnjax.cells.states import HiddenState, hidden_state
from rnnjax.cells.weights import GRU_GATES, Gating, gate_weights
from rnnjax.initializers import Chrono, Glorot, Initializer, Orthogonal
from rnnjax.kinds import cell_class
from rnnjax.traced import name_values

__all__ = [
    "GRU",
    "MGU",
    "GRUParams",
    "GRUResetBefore",
    "GRUResetBeforeParams",
    "MGUParams",
]


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
