"""The simple recurrent unit."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid

from rnnjax.cell import Coefficients, batch_axes, linear_step, matmul, split_gates
from rnnjax.cells.weights import keep_bias
from rnnjax.initializers import Chrono, Glorot, Initializer, per_gate
from rnnjax.kinds import cell_class
from rnnjax.traced import name_values

__all__ = ["SRU", "SRUParams", "SRUState"]

_ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "identity": lambda c: c}


class SRUParams(NamedTuple):
    """Parameters of `SRU`; gate order ``n, f, r``, of which the candidate ``n`` has no bias."""

    w_ih: jax.Array  # [I, 3H]
    b: jax.Array  # [2H]
    w_skip: jax.Array | None  # [I, H], or None where I = H and the highway carries the input itself


class SRUState(NamedTuple):
    """State of `SRU`."""

    c: jax.Array  # [*batch, H]


@cell_class
class SRU:
    r"""Simple recurrent unit (Lei et al., 2017), the first version, whose gates depend on the input alone.

        n = x @ w_n
        f = sigmoid(x @ w_f + b_f)
        r = sigmoid(x @ w_r + b_r)
        add = 1 - f
        c' = f * c + add * n
        y  = r * phi(c') + (1 - r) * skip

    with ``w_ih = [w_n, w_f, w_r]``. The highway carries ``skip = x`` where I = H, and ``skip = x @ w_skip`` where the
    sizes differ. A linear cell.

    Args:
        hidden_size: H.
        activation: phi, ``"tanh"``, ``"relu"`` or ``"identity"``.
        forget_bias: the value of ``b_f`` at the start, or a `Chrono`, which draws it from time scales.
        highway_bias: the value of ``b_r`` at the start; below zero the highway is more open.
        input_init: initialiser of each block ``[I, H]`` of ``w_ih``, and of ``w_skip``.

    Raises:
        ValueError: for a size below one or an unknown activation.

    >>> import jax, rnnjax
    >>> cell = rnnjax.cells.SRU(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state, y = cell.step(params, cell.initial_state((2,)), jax.numpy.ones((2, 3)))
    >>> y.shape, params.w_skip.shape, cell.init(jax.random.key(0), input_size=4).w_skip is None
    ((2, 4), (3, 4), True)
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    activation: Literal["tanh", "relu", "identity"] = "tanh"
    forget_bias: float | Chrono = 0.0
    highway_bias: float = 0.0
    input_init: Initializer = Glorot()

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> SRUParams:
        """New parameters; ``w_skip`` is None where the sizes agree."""
        key_ih, key_skip, key_b = jax.random.split(key, 3)
        size = self.hidden_size
        b_f = keep_bias(self.forget_bias, key_b, size, dtype)
        return SRUParams(
            w_ih=per_gate(self.input_init, key_ih, (input_size, size), 3, dtype),
            b=jnp.concatenate([b_f, jnp.full((size,), self.highway_bias, dtype)]),
            w_skip=None if input_size == size else self.input_init(key_skip, (input_size, size), dtype),
        )

    def initial_state(self, batch_shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> SRUState:
        """Zeros."""
        return SRUState(jnp.zeros((*batch_axes(batch_shape, dtype), self.hidden_size), dtype))

    def coefficients(self, params: SRUParams, x: jax.Array, dtype: Any) -> Coefficients:
        """``f`` and ``(1 - f) * n``."""
        size = self.hidden_size
        n, f = split_gates(matmul(x, params.w_ih[:, : 2 * size], dtype), 2)
        z = f + params.b[:size].astype(dtype)
        f, add = sigmoid(z), sigmoid(-z)
        name_values(f=f, add=add, n=n)
        return (f,), (add * n,)

    def output(self, params: SRUParams, state: SRUState, x: jax.Array) -> jax.Array:
        """The highway; its gate is computed here and not with the others, as only the output needs it."""
        size, dtype = self.hidden_size, state.c.dtype
        r = sigmoid(matmul(x, params.w_ih[:, 2 * size :], dtype) + params.b[size:].astype(dtype))
        name_values(r=r)
        skip = x.astype(dtype) if params.w_skip is None else matmul(x, params.w_skip, dtype)
        return r * _ACTIVATIONS[self.activation](state.c) + (1 - r) * skip

    step = linear_step
