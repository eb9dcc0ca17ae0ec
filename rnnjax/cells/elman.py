"""The Elman network, also called plain or vanilla RNN."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cell import Gates, affine_step
from rnnjax.cells.states import HiddenState, hidden_state
from rnnjax.initializers import Glorot, Initializer, Orthogonal
from rnnjax.kinds import cell_class
from rnnjax.traced import name_values

__all__ = ["Elman", "ElmanParams"]


class ElmanParams(NamedTuple):
    """Parameters of `Elman`."""

    w_ih: jax.Array  # [I, H]
    w_hh: jax.Array  # [H, H]
    b: jax.Array  # [H]


@cell_class
class Elman:
    r"""Elman's recurrent network (Elman, 1990), with tanh or ReLU.

        h' = phi(x @ w_ih + b + h @ w_hh)
        y  = h'

    With ``activation="relu"`` and ``recurrent_init=Identity()`` it is the IRNN of Le et al. (2015).

    Args:
        hidden_size: H.
        activation: phi, ``"tanh"`` or ``"relu"``.
        input_init: initialiser of ``w_ih [I, H]``.
        recurrent_init: initialiser of ``w_hh [H, H]``.

    Raises:
        ValueError: for a size below one or an unknown activation.

    >>> import jax, rnnjax
    >>> cell = rnnjax.Elman(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state, y = cell.step(params, cell.initial_state(), jax.numpy.ones(3))
    >>> y.shape
    (4,)
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    activation: Literal["tanh", "relu"] = "tanh"
    input_init: Initializer = Glorot()
    recurrent_init: Initializer = Orthogonal()
    num_gates = 1

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> ElmanParams:
        """New parameters: ``b`` is zero, the weights come from the two initialisers."""
        key_ih, key_hh = jax.random.split(key)
        size = self.hidden_size
        return ElmanParams(
            w_ih=self.input_init(key_ih, (input_size, size), dtype),
            w_hh=self.recurrent_init(key_hh, (size, size), dtype),
            b=jnp.zeros((size,), dtype),
        )

    initial_state = hidden_state

    def update(self, params: ElmanParams, state: HiddenState, zx: Gates, zh: Gates) -> tuple[HiddenState, jax.Array]:
        """The pointwise part of a step; see the equations of the class."""
        phi = jnp.tanh if self.activation == "tanh" else jax.nn.relu
        z = zx[0] + zh[0]
        h = phi(z)
        name_values(z_h=z, h=h)
        return HiddenState(h), h

    step = affine_step
