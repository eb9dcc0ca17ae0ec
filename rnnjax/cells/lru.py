"""The linear recurrent unit."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cell import Coefficients, batch_axes, linear_step, matmul, split_gates
from rnnjax.kinds import cell_class
from rnnjax.promotion import compute_dtype

__all__ = ["LRU", "LRUParams", "LRUState"]


class LRUParams(NamedTuple):
    """Parameters of `LRU`; complex matrices are kept as two real blocks, the real one first."""

    nu_log: jax.Array  # [N]
    theta_log: jax.Array  # [N]
    gamma_log: jax.Array  # [N]
    w_ih: jax.Array  # [I, 2N], B
    w_hy: jax.Array  # [2N, H], C
    w_skip: jax.Array  # [I, H], D


class LRUState(NamedTuple):
    """State of `LRU`: the real and the imaginary part of s."""

    re: jax.Array  # [*batch, N]
    im: jax.Array  # [*batch, N]


@cell_class
class LRU:
    r"""Linear recurrent unit (Orvieto et al., 2023): a complex diagonal recurrence, a linear cell.

        lambda = exp(-exp(nu_log) + i * exp(theta_log))
        s' = lambda * s + exp(gamma_log) * (x @ B)
        y  = Re(s' @ C) + x @ D

    with ``B = w_ih[:, :N] + i * w_ih[:, N:]``, ``C = w_hy[:N] + i * w_hy[N:]`` and ``D = w_skip``. Whatever the
    parameters are, ``|lambda| < 1``. The state is two real arrays, so that it casts, saves and masks as any other.
    ``y`` is linear in ``x``: what is not linear stands between the layers.

    At the start lambda is uniform on the ring ``r_min <= |lambda| < r_max`` with phases below ``max_phase``,
    ``exp(gamma_log) = sqrt(1 - |lambda|^2)``, which keeps the variance of ``s`` near that of its input, ``B`` and
    ``C`` are complex normal with variances ``1 / I`` and ``2 / N``, and ``D`` is normal with variance ``1 / I`` (in
    the paper D is diagonal, with variance 1).

    Args:
        hidden_size: H, the size of the output.
        state_size: N, the number of complex entries of the state; None is H.
        r_min: the inner radius of the ring, in [0, r_max].
        r_max: the outer radius, at most 1; near 1 the memory is long.
        max_phase: in (0, 2 pi]; the paper takes small ones for very long sequences.

    Raises:
        ValueError: for a size below one, or a ring or phase outside the ranges above.

    >>> import jax, rnnjax
    >>> cell = rnnjax.LRU(hidden_size=4, state_size=6)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state, y = cell.step(params, cell.initial_state((2,)), jax.numpy.ones((2, 3)))
    >>> y.shape, state.re.shape
    ((2, 4), (2, 6))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    state_size: int | None = None
    r_min: float = 0.0
    r_max: float = 1.0
    max_phase: float = 2 * math.pi

    def __post_init__(self) -> None:
        if not 0 <= self.r_min <= self.r_max <= 1:
            raise ValueError(f"LRU: 0 <= r_min <= r_max <= 1 must hold, got {self.r_min} and {self.r_max}.")
        if not 0 < self.max_phase <= 2 * math.pi:
            raise ValueError(f"LRU: max_phase must be above 0 and at most 2 pi, got {self.max_phase}.")

    @property
    def _num_states(self) -> int:
        return self.hidden_size if self.state_size is None else self.state_size

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> LRUParams:
        """New parameters, with eigenvalues on the ring."""
        key_radius, key_phase, key_b, key_c, key_d = jax.random.split(key, 5)
        num, size, wide = self._num_states, self.hidden_size, compute_dtype(dtype)

        def normal(key: jax.Array, shape: tuple[int, int], variance: float) -> jax.Array:
            return (math.sqrt(variance) * jax.random.normal(key, shape, wide)).astype(dtype)

        # Uniform over the area of the ring; neither radius 0 nor 1 has a finite nu_log, and phase 0 no theta_log.
        squared = jax.random.uniform(key_radius, (num,), wide, self.r_min**2, self.r_max**2)
        squared = jnp.clip(squared, 1e-12, 1 - 2.0**-20)
        phase = self.max_phase * (1 - jax.random.uniform(key_phase, (num,), wide))
        nu_log = jnp.log(-0.5 * jnp.log(squared)).astype(dtype)
        rate = jnp.exp(nu_log.astype(wide))  # from what dtype left of it, so that gamma fits lambda
        return LRUParams(
            nu_log=nu_log,
            theta_log=jnp.log(phase).astype(dtype),
            gamma_log=(0.5 * jnp.log(-jnp.expm1(-2 * rate))).astype(dtype),
            w_ih=normal(key_b, (input_size, 2 * num), 0.5 / input_size),
            w_hy=normal(key_c, (2 * num, size), 1 / num),
            w_skip=normal(key_d, (input_size, size), 1 / input_size),
        )

    def initial_state(self, batch_shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> LRUState:
        """Zeros, in two arrays: a buffer cannot be donated twice."""
        shape = (*batch_axes(batch_shape, dtype), self._num_states)
        return LRUState(re=jnp.zeros(shape, dtype), im=jnp.zeros(shape, dtype))

    def coefficients(self, params: LRUParams, x: jax.Array, dtype: Any) -> Coefficients:
        """``lambda``, the same for every x, and ``exp(gamma_log) * (x @ B)``."""
        radius = jnp.exp(-jnp.exp(params.nu_log.astype(dtype)))
        phase = jnp.exp(params.theta_log.astype(dtype))
        gamma = jnp.exp(params.gamma_log.astype(dtype))
        re, im = split_gates(matmul(x, params.w_ih, dtype), 2)
        eigenvalues = jax.lax.complex(radius * jnp.cos(phase), radius * jnp.sin(phase))
        return (eigenvalues,), (jax.lax.complex(gamma * re, gamma * im),)

    def output(self, params: LRUParams, state: LRUState, x: jax.Array) -> jax.Array:
        """``Re(s @ C) + x @ D``."""
        dtype = state.re.dtype
        parts = jnp.concatenate([state.re, -state.im], axis=-1)  # [.., 2N]
        return matmul(parts, params.w_hy, dtype) + matmul(x, params.w_skip, dtype)

    step = linear_step
