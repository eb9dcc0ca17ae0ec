"""The linear recurrent unit between what is not linear: without that it is a filter of its input."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import rnnjax
from rnnjax.initializers import Glorot

__all__ = ["LRUBlock", "LRUBlockParams"]


class LRUBlockParams(NamedTuple):
    """Parameters of `LRUBlock`."""

    w_in: jax.Array  # [I, H]
    b_in: jax.Array  # [H]
    lru: Any
    w_gate: jax.Array  # [H, H]
    b_gate: jax.Array  # [H]


@dataclasses.dataclass(frozen=True)
class LRUBlock:
    r"""A layer of the kind that Orvieto et al. (2023) build from the LRU: recurrence, gated unit, skip connection.

        u = gelu(x @ w_in + b_in)
        s', v = lru.step(s, u)
        y = u + gelu(v) * sigmoid(gelu(v) @ w_gate + b_gate)

    The state is still linear in the state with coefficients from x alone, so that it is a linear cell like any other.
    The paper puts its encoder before the first layer only, and a normaliser into every layer; here each layer has its
    own ``w_in`` and no normaliser.

    >>> import rnnjax
    >>> rnnjax.check_cell(LRUBlock(4), input_size=3)
    """

    hidden_size: int
    r_min: float = 0.0
    r_max: float = 1.0
    max_phase: float = 2 * math.pi

    @property
    def _lru(self) -> rnnjax.LRU:
        return rnnjax.LRU(
            self.hidden_size, state_size=None, r_min=self.r_min, r_max=self.r_max, max_phase=self.max_phase
        )

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> LRUBlockParams:
        key_in, key_lru, key_gate = jax.random.split(key, 3)
        size = self.hidden_size
        return LRUBlockParams(
            w_in=Glorot()(key_in, (input_size, size), dtype),
            b_in=jnp.zeros(size, dtype),
            lru=self._lru.init(key_lru, size, dtype),
            w_gate=Glorot()(key_gate, (size, size), dtype),
            b_gate=jnp.zeros(size, dtype),
        )

    def initial_state(self, batch_shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> Any:
        return self._lru.initial_state(batch_shape, dtype)

    def coefficients(self, params: LRUBlockParams, x: jax.Array, dtype: Any) -> Any:
        return self._lru.coefficients(params.lru, _encode(params, x, dtype), dtype)

    def output(self, params: LRUBlockParams, state: Any, x: jax.Array) -> jax.Array:
        u = _encode(params, x, state.re.dtype)
        v = jax.nn.gelu(self._lru.output(params.lru, state, u))
        return u + v * jax.nn.sigmoid(v @ params.w_gate.astype(v.dtype) + params.b_gate.astype(v.dtype))

    step = rnnjax.linear_step


def _encode(params: LRUBlockParams, x: jax.Array, dtype: Any) -> jax.Array:
    return jax.nn.gelu(x.astype(dtype) @ params.w_in.astype(dtype) + params.b_in.astype(dtype))
