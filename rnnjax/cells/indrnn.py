"""The independently recurrent network."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cell import Gates, affine_step
from rnnjax.cells.states import HiddenState, hidden_state
from rnnjax.checks import short
from rnnjax.initializers import Glorot, Initializer
from rnnjax.kinds import cell_class
from rnnjax.traced import name_values

__all__ = ["IndRNN", "IndRNNParams"]


class IndRNNParams(NamedTuple):
    """Parameters of `IndRNN`."""

    w_ih: jax.Array  # [I, H]
    b: jax.Array  # [H]
    u: jax.Array  # [H]


@cell_class
class IndRNN:
    r"""Independently recurrent network (Li et al., 2018): a unit sees of the state only itself.

        h' = phi(x @ w_ih + b + u * h)
        y  = h'

    Units mix in the next layer, so it takes at least two. Over T steps a gradient scales with ``u**T``; the
    paper keeps it below ``gamma`` by ``u = clip(u, -limit, limit)``, ``limit = gamma**(1 / T)``, after each update of
    the parameters: ``params._replace(u=jnp.clip(params.u, -limit, limit))``, with ``gamma = 2`` for example.

    Args:
        hidden_size: H.
        activation: phi, ``"relu"`` or ``"tanh"``.
        recurrent_range: ``u`` is uniform between these two at the start. The paper's last layer, which has to
            remember, starts close to one.
        input_init: initialiser of ``w_ih [I, H]``.

    Raises:
        ValueError: for a size below one, an unknown activation or a range that is none.

    >>> import jax, rnnjax
    >>> cell = rnnjax.cells.IndRNN(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state, y = cell.step(params, cell.initial_state(), jax.numpy.ones(3))
    >>> y.shape, params.u.shape
    ((4,), (4,))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    activation: Literal["relu", "tanh"] = "relu"
    recurrent_range: tuple[float, float] = (0.0, 1.0)
    input_init: Initializer = Glorot()
    num_gates = 1

    def __post_init__(self) -> None:
        limits = self.recurrent_range
        if not isinstance(limits, tuple) or len(limits) != 2 or not limits[0] <= limits[1]:
            raise ValueError(f"IndRNN: recurrent_range must be a tuple (low, high), got {short(limits)}.")

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> IndRNNParams:
        """New parameters; ``b`` is zero."""
        key_ih, key_u = jax.random.split(key)
        low, high = self.recurrent_range
        return IndRNNParams(
            w_ih=self.input_init(key_ih, (input_size, self.hidden_size), dtype),
            b=jnp.zeros((self.hidden_size,), dtype),
            u=jax.random.uniform(key_u, (self.hidden_size,), jnp.float32, low, high).astype(dtype),
        )

    initial_state = hidden_state

    def update(self, params: IndRNNParams, state: HiddenState, zx: Gates, zh: Gates) -> tuple[HiddenState, jax.Array]:
        """The pointwise part of a step; ``zh`` is empty, since there is no ``w_hh``."""
        del zh
        phi = jnp.tanh if self.activation == "tanh" else jax.nn.relu
        z = zx[0] + params.u * state.h
        h = phi(z)
        name_values(z_h=z, h=h)
        return HiddenState(h), h

    step = affine_step
