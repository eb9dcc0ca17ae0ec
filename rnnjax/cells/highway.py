"""The recurrent highway network: several layers of highway inside one time step."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid

from rnnjax.cell import check_step, compute_dtype, describe, matmul, split_gates
from rnnjax.cells.states import HiddenState, hidden_state
from rnnjax.initializers import Glorot, Initializer, Orthogonal, per_gate
from rnnjax.kinds import cell_class
from rnnjax.traced import name_values

__all__ = ["RecurrentHighway", "RecurrentHighwayParams"]


class RecurrentHighwayParams(NamedTuple):
    """Parameters of `RecurrentHighway`; gate order ``n, t``, one entry a layer of depth D."""

    w_ih: jax.Array  # [I, 2H]
    w_hh: jax.Array  # [D, H, 2H]
    b: jax.Array  # [D, 2H]


@cell_class
class RecurrentHighway:
    r"""Recurrent highway network (Zilly et al., 2017), with the carry gate coupled to the transform gate.

        s_0 = h
        zn, zt = s_l @ w_hh[l] + b[l], and x @ w_ih besides where l = 0
        s_{l+1} = tanh(zn) * sigmoid(zt) + s_l * (1 - sigmoid(zt))        for l = 0 ... D - 1
        h' = s_D
        y  = h'

    The carry gate ``1 - t`` is that of the paper's experiments. Every layer has weights of its own, and the input
    enters the first alone.

    Args:
        hidden_size: H.
        depth: D, the layers within a step; their matmuls wait for each other, so a step takes D times as long.
        transform_bias: the value of the transform gates' biases at the start; negative, so that each layer at first
            carries most of its input on.
        input_init: initialiser of each gate's block of ``w_ih``, ``[I, H]``.
        recurrent_init: initialiser of each gate's block of each layer's ``w_hh``, ``[H, H]``.

    Raises:
        ValueError: for a size or depth below one.

    >>> import jax, rnnjax
    >>> cell = rnnjax.cells.RecurrentHighway(hidden_size=4, depth=3)
    >>> params = cell.init(jax.random.key(0), input_size=2)
    >>> state, y = cell.step(params, cell.initial_state(), jax.numpy.ones(2))
    >>> y.shape, params.w_hh.shape
    ((4,), (3, 4, 8))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    depth: int = 5
    transform_bias: float = -2.0
    input_init: Initializer = Glorot()
    recurrent_init: Initializer = Orthogonal()

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> RecurrentHighwayParams:
        """New parameters; the biases are zero but for the transform bias."""
        key_ih, key_hh = jax.random.split(key)
        size = self.hidden_size
        bias = jnp.repeat(jnp.asarray([0.0, self.transform_bias], dtype), size)
        # Traced once whatever the depth, which a file may announce.
        draw = jax.vmap(lambda k: per_gate(self.recurrent_init, k, (size, size), 2, dtype))
        layers = draw(jax.random.split(key_hh, self.depth))
        return RecurrentHighwayParams(
            w_ih=per_gate(self.input_init, key_ih, (input_size, size), 2, dtype),
            w_hh=jnp.stack(layers),
            b=jnp.tile(bias, (self.depth, 1)),
        )

    initial_state = hidden_state

    def step(self, params: RecurrentHighwayParams, state: HiddenState, x: jax.Array) -> tuple[HiddenState, jax.Array]:
        """One step; see the equations of the class.

        Raises:
            ValueError: if the params have another depth.
        """
        x = check_step(self, params, state, x)
        if params.w_hh.shape[0] != self.depth:  # an index past the end would take the last layer once more
            raise ValueError(
                f"RecurrentHighway.step: params.w_hh must have shape [{self.depth}, H, 2H] for depth = {self.depth}, "
                f"got {describe(params.w_hh)}; take the params of this cell."
            )
        dtype = compute_dtype(state.h.dtype)
        s = state.h.astype(dtype)
        for layer in range(self.depth):
            z = matmul(s, params.w_hh[layer], dtype) + params.b[layer].astype(dtype)
            if layer == 0:
                z += matmul(x, params.w_ih, dtype)
            n, t = split_gates(z, 2)
            n, t = jnp.tanh(n), sigmoid(t)
            s = n * t + s * (1 - t)
            name_values(**{f"n{layer}": n, f"t{layer}": t})
            if layer < self.depth - 1:
                name_values(**{f"s{layer + 1}": s})
        name_values(h=s)
        h = s.astype(state.h.dtype)
        return HiddenState(h), h
