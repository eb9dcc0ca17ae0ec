"""Linear cells: the minimal GRU and LSTM, the simple recurrent unit, and the linear recurrent unit."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid

from rnnjax.cell import Coefficients, batch_axes, linear_step, matmul, split_gates
from rnnjax.cells.states import HiddenState, hidden_state
from rnnjax.cells.weights import Gating, gate_biases, keep_bias
from rnnjax.initializers import Chrono, Glorot, Initializer, per_gate
from rnnjax.kinds import cell_class
from rnnjax.promotion import compute_dtype
from rnnjax.traced import name_values

__all__ = [
    "LRU",
    "SRU",
    "LRUParams",
    "LRUState",
    "MinGRU",
    "MinGRUParams",
    "MinLSTM",
    "MinLSTMParams",
    "SRUParams",
    "SRUState",
]


Candidate = Literal["linear", "g"]


class MinGRUParams(NamedTuple):
    """Parameters of `MinGRU`; gate order ``z, n``."""

    w_ih: jax.Array  # [I, 2H]
    b: jax.Array  # [2H]


class MinLSTMParams(NamedTuple):
    """Parameters of `MinLSTM`; gate order ``i, f, g``."""

    w_ih: jax.Array  # [I, 3H]
    b: jax.Array  # [3H]


@cell_class
class MinGRU:
    r"""Minimal gated recurrent unit (Feng et al., 2024), a linear cell.

        z, n = x @ w_ih + b
        keep, add = 1 - sigmoid(z), sigmoid(z)
        h' = keep * h + add * phi(n)
        y  = h'

    As in the paper ``z`` selects the *candidate*, where that of `GRU` keeps the old state. This is the plain form,
    not that in log space: the state may have any sign and may start at zero.

    Args:
        hidden_size: H.
        candidate: phi. ``"linear"`` is ``phi(n) = n``; ``"g"`` is the positive ``phi(n) = n + 0.5 if n >= 0 else
            sigmoid(n)`` of the paper's log-space form.
        update_bias: the value of ``b_z`` at the start, or a `Chrono`, which draws ``-b_z`` from time scales.
        input_init: initialiser of each gate's block of ``w_ih``, ``[I, H]``.

    Raises:
        ValueError: for a size below one or an unknown candidate.

    >>> import jax, rnnjax
    >>> cell = rnnjax.MinGRU(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state, y = cell.step(params, cell.initial_state((2,)), jax.numpy.ones((2, 3)))
    >>> y.shape, "associative" in rnnjax.implementations(cell)
    ((2, 4), True)
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    candidate: Candidate = "linear"
    update_bias: float | Chrono = 0.0
    input_init: Initializer = Glorot()

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> MinGRUParams:
        """New parameters; the biases are zero but for the update bias."""
        key_ih, key_b = jax.random.split(key)
        size = self.hidden_size
        b_z = keep_bias(self.update_bias, key_b, size, dtype)
        b_z = -b_z if isinstance(self.update_bias, Chrono) else b_z
        return MinGRUParams(
            w_ih=per_gate(self.input_init, key_ih, (input_size, size), 2, dtype),
            b=jnp.concatenate([b_z, jnp.zeros((size,), dtype)]),
        )

    initial_state = hidden_state

    def coefficients(self, params: MinGRUParams, x: jax.Array, dtype: Any) -> Coefficients:
        """``1 - sigmoid(z)`` and ``sigmoid(z) * phi(n)``."""
        z, n = split_gates(matmul(x, params.w_ih, dtype) + params.b.astype(dtype), 2)
        keep, add, n = sigmoid(-z), sigmoid(z), _candidate(n, self.candidate)
        name_values(keep=keep, add=add, n=n)
        return (keep,), (add * n,)

    def output(self, params: MinGRUParams, state: HiddenState, x: jax.Array) -> jax.Array:
        """The state itself."""
        return state.h

    step = linear_step


@cell_class
class MinLSTM:
    r"""Minimal long short-term memory (Feng et al., 2024) with normalised gates, a linear cell.

        i, f, g = x @ w_ih + b
        keep = sigmoid(f) / (sigmoid(f) + sigmoid(i))
        add = 1 - keep
        h' = keep * h + add * phi(g)
        y  = h'

    The gates share what they let pass, so the state is an average of the candidates of the past. ``keep`` is
    computed as ``sigmoid(log_sigmoid(f) - log_sigmoid(i))``, the same number without a division: with both gates
    closed there is no 0 / 0. This is the plain form, not that in log space: the state may have any sign and may
    start at zero.

    Args:
        hidden_size: H.
        candidate: phi. ``"linear"`` is ``phi(g) = g``; ``"g"`` is the positive ``phi(g) = g + 0.5 if g >= 0 else
            sigmoid(g)`` of the paper's log-space form.
        forget_bias: the value of ``b_f`` at the start, or a `Chrono`, which draws ``b_f`` from time scales and sets
            ``b_i = -b_f``, so that ``keep = sigmoid(b_f)``.
        input_init: initialiser of each gate's block of ``w_ih``, ``[I, H]``.

    Raises:
        ValueError: for a size below one or an unknown candidate.

    >>> import jax, rnnjax
    >>> cell = rnnjax.MinLSTM(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state, y = cell.step(params, cell.initial_state((2,)), jax.numpy.ones((2, 3)))
    >>> y.shape, params.w_ih.shape
    ((2, 4), (3, 12))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    candidate: Candidate = "linear"
    forget_bias: float | Chrono = 1.0
    input_init: Initializer = Glorot()

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> MinLSTMParams:
        """New parameters; ``b`` is zero but for the forget bias."""
        key_ih, key_b = jax.random.split(key)
        size = self.hidden_size
        return MinLSTMParams(
            w_ih=per_gate(self.input_init, key_ih, (input_size, size), 3, dtype),
            b=gate_biases(self.forget_bias, key_b, size, dtype, Gating("ifg", keep="f", write="i")),
        )

    initial_state = hidden_state

    def coefficients(self, params: MinLSTMParams, x: jax.Array, dtype: Any) -> Coefficients:
        """``keep`` and ``(1 - keep) * phi(g)``."""
        i, f, g = split_gates(matmul(x, params.w_ih, dtype) + params.b.astype(dtype), 3)
        odds = log_sigmoid(f) - log_sigmoid(i)
        keep, add, g = sigmoid(odds), sigmoid(-odds), _candidate(g, self.candidate)
        name_values(keep=keep, add=add, g=g)
        return (keep,), (add * g,)

    def output(self, params: MinLSTMParams, state: HiddenState, x: jax.Array) -> jax.Array:
        """The state itself."""
        return state.h

    step = linear_step


def _candidate(n: jax.Array, kind: Candidate) -> jax.Array:
    return n if kind == "linear" else jnp.where(n >= 0, n + 0.5, sigmoid(n))


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
