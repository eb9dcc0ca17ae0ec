"""The plain network of Elman, and its kin: independent units, a code of the input, and rates in continuous time."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid

from rnnjax.cell import Gates, affine_step, check_step, compute_dtype, matmul
from rnnjax.cells.states import HiddenState, hidden_state
from rnnjax.cells.weights import keep_bias
from rnnjax.checks import check_real, describe, short
from rnnjax.initializers import Chrono, Glorot, Initializer, Orthogonal
from rnnjax.kinds import cell_class, public
from rnnjax.traced import name_values

__all__ = [
    "Elman",
    "ElmanParams",
    "IndRNN",
    "IndRNNParams",
    "LeakyParams",
    "LeakyRNN",
    "MinimalRNN",
    "MinimalRNNParams",
    "leaky_noise",
]


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


class MinimalRNNParams(NamedTuple):
    """Parameters of `MinimalRNN`."""

    w_ih: jax.Array  # [I, H]
    w_zh: jax.Array  # [H, H]
    w_hh: jax.Array  # [H, H]
    b_z: jax.Array  # [H]
    b_u: jax.Array  # [H]


@cell_class
class MinimalRNN:
    r"""MinimalRNN (Chen, 2017): every unit moves towards a code of the input, by a gate.

        z  = tanh(x @ w_ih + b_z)
        u  = sigmoid(h @ w_hh + z @ w_zh + b_u)
        h' = u * h + (1 - u) * z
        y  = h'

    ``u`` *keeps* the old state. The gate sees the input through a nonlinearity and a second matmul, so this is no
    affine cell; ``w_hh`` and ``w_zh`` are the paper's U_h and U_z.

    Args:
        hidden_size: H.
        update_bias: the value of ``b_u`` at the start, or a `Chrono`, which draws it from time scales.
        input_init: initialiser of ``w_ih [I, H]`` and ``w_zh [H, H]``.
        recurrent_init: initialiser of ``w_hh [H, H]``.

    Raises:
        ValueError: for a size below one.

    >>> import jax, rnnjax
    >>> cell = rnnjax.cells.MinimalRNN(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state, y = cell.step(params, cell.initial_state((2,)), jax.numpy.ones((2, 3)))
    >>> y.shape, params.w_zh.shape
    ((2, 4), (4, 4))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    update_bias: float | Chrono = 0.0
    input_init: Initializer = Glorot()
    recurrent_init: Initializer = Orthogonal()

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> MinimalRNNParams:
        """New parameters; the biases are zero but for the update bias."""
        key_ih, key_zh, key_hh, key_b = jax.random.split(key, 4)
        size = self.hidden_size
        return MinimalRNNParams(
            w_ih=self.input_init(key_ih, (input_size, size), dtype),
            w_zh=self.input_init(key_zh, (size, size), dtype),
            w_hh=self.recurrent_init(key_hh, (size, size), dtype),
            b_z=jnp.zeros((size,), dtype),
            b_u=keep_bias(self.update_bias, key_b, size, dtype),
        )

    initial_state = hidden_state

    def step(self, params: MinimalRNNParams, state: HiddenState, x: jax.Array) -> tuple[HiddenState, jax.Array]:
        """One step; see the equations of the class."""
        x = check_step(self, params, state, x)
        dtype = compute_dtype(state.h.dtype)
        h = state.h.astype(dtype)
        z = jnp.tanh(matmul(x, params.w_ih, dtype) + params.b_z)
        u = sigmoid(matmul(h, params.w_hh, dtype) + matmul(z, params.w_zh, dtype) + params.b_u)
        h = u * h + (1 - u) * z
        name_values(z=z, u=u, h=h)
        h = h.astype(state.h.dtype)
        return HiddenState(h), h


class LeakyParams(NamedTuple):
    """Parameters of `LeakyRNN`."""

    w_ih: jax.Array  # [I, H]
    w_hh: jax.Array  # [H, H]
    b: jax.Array  # [H]
    logit_alpha: jax.Array | None  # [H]; None where tau is fixed


@cell_class
class LeakyRNN:
    r"""Leaky network: ``tau dh/dt = -h + phi(..)`` in Euler steps of ``dt`` (Jaeger et al., 2007; Yang et al., 2019).

        alpha = dt / tau                  fixed
        alpha = sigmoid(logit_alpha)      with learn_tau, one of each unit
        n  = phi(x @ w_ih + b + h @ w_hh)
        h' = (1 - alpha) * h + alpha * n
        y  = h'

    The leak and the nonlinearity see the same ``h``, a rate, and what drives it stands within phi, as in Yang et al.
    (2019); in the form of Song et al. (2016), another model, currents leak and phi makes rates of them. With
    ``alpha = 1`` it is the `Elman` network. A learned ``alpha`` stays between 0 and 1, and so ``tau = dt / alpha``
    above ``dt``, where the Euler step is stable. Noise within phi comes from outside, with a key: `leaky_noise`.

    Args:
        hidden_size: H.
        tau: the time constant, or where all units start with ``learn_tau``; in units of ``dt``.
        dt: the length of a step.
        learn_tau: whether every unit has a time constant of its own that is learned.
        activation: phi, ``"tanh"`` or ``"relu"``.
        input_init: initialiser of ``w_ih [I, H]``.
        recurrent_init: initialiser of ``w_hh [H, H]``.

    Raises:
        ValueError: for a size below one, an unknown activation, or if ``0 < dt <= tau`` does not hold, without
            equality for ``learn_tau``.

    >>> import jax, rnnjax
    >>> cell = rnnjax.cells.LeakyRNN(hidden_size=4, tau=100.0, dt=20.0)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state, y = cell.step(params, cell.initial_state(), jax.numpy.ones(3))
    >>> y.shape, cell.alpha(params)
    ((4,), 0.2)
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    tau: float = 5.0
    dt: float = 1.0
    learn_tau: bool = False
    activation: Literal["tanh", "relu"] = "tanh"
    input_init: Initializer = Glorot()
    recurrent_init: Initializer = Orthogonal()
    num_gates = 1

    def __post_init__(self) -> None:
        if not 0 < self.dt <= self.tau < math.inf or (self.learn_tau and self.dt == self.tau):
            sign = "<" if self.learn_tau else "<="
            raise ValueError(f"LeakyRNN: 0 < dt {sign} tau must hold, got dt = {self.dt} and tau = {self.tau}.")

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> LeakyParams:
        """New parameters; ``b`` is zero, and ``logit_alpha`` is what makes ``tau`` the time constant."""
        key_ih, key_hh = jax.random.split(key)
        size = self.hidden_size
        return LeakyParams(
            w_ih=self.input_init(key_ih, (input_size, size), dtype),
            w_hh=self.recurrent_init(key_hh, (size, size), dtype),
            b=jnp.zeros((size,), dtype),
            # logit(dt / tau), without the cancellation in 1 - dt / tau
            logit_alpha=jnp.full((size,), -math.log(self.tau / self.dt - 1), dtype) if self.learn_tau else None,
        )

    initial_state = hidden_state

    def alpha(self, params: LeakyParams) -> jax.Array | float:
        """The share of the state that a step replaces, ``dt / tau``: ``[H]`` if learned, else one number."""
        if not self.learn_tau:
            return self.dt / self.tau
        if params.logit_alpha is None:
            raise ValueError(
                "LeakyRNN: params.logit_alpha must be an array for learn_tau = True, got None; "
                "take the params of this cell."
            )
        return jax.nn.sigmoid(params.logit_alpha.astype(compute_dtype(params.logit_alpha.dtype)))

    def update(self, params: LeakyParams, state: HiddenState, zx: Gates, zh: Gates) -> tuple[HiddenState, jax.Array]:
        """The pointwise part of a step; see the equations of the class."""
        phi = jnp.tanh if self.activation == "tanh" else jax.nn.relu
        alpha = self.alpha(params)
        z = zx[0] + zh[0]
        n = phi(z)
        h = (1 - alpha) * state.h + alpha * n
        name_values(z_n=z, n=n, h=h)
        return HiddenState(h), h

    step = affine_step


@public
def leaky_noise(
    key: jax.Array, cell: LeakyRNN, params: LeakyParams, xs: jax.Array, sigma: float | jax.Array
) -> tuple[LeakyParams, jax.Array]:
    r"""Parameters and inputs with which `LeakyRNN` steps through white noise within phi (Yang et al., 2019).

        h' = (1 - alpha) * h + alpha * phi(x @ w_ih + b + h @ w_hh + sqrt(2 / alpha) * sigma * noise)

    The noise, standard normal, comes in as H more inputs, through H more rows of ``w_ih`` that are diagonal. It is
    drawn here, per call, for every step, example and unit by itself, so a cell stays a pure function of its inputs
    and every implementation and transformation takes it. Gradients reach ``params`` and not the added rows: call it
    within the loss, with a new key for every update. (Song et al., 2016, add noise to currents, outside phi.)

    Args:
        key: for all noise of this call.
        cell: the cell.
        params: its parameters, for inputs of size I.
        xs: ``[T, *batch, I]``, or ``[*batch, I]`` for one step.
        sigma: strength of the noise: where phi is linear and nothing else comes in, the standard deviation of a
            rate, whatever tau, if dt is small beside it (``sigma * sqrt(2 / (2 - alpha))`` in general).

    Returns:
        Parameters for inputs of size I + H, and ``xs [..., I + H]``.

    Raises:
        TypeError: for inputs or a strength of another kind.
        ValueError: for a negative strength.

    >>> import jax, rnnjax
    >>> cell = rnnjax.cells.LeakyRNN(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> noisy, xs = leaky_noise(jax.random.key(1), cell, params, jax.numpy.ones((7, 3)), sigma=0.1)
    >>> state, ys = rnnjax.unroll(cell, noisy, cell.initial_state(), xs)
    >>> xs.shape, noisy.w_ih.shape, ys.shape
    ((7, 7), (7, 4), (7, 4))
    """
    if not jnp.issubdtype(xs.dtype, jnp.floating):
        raise TypeError(f"leaky_noise: xs must be an array of a floating dtype, got {describe(xs)}.")
    if not (hasattr(sigma, "shape") and sigma.shape in ((), (cell.hidden_size,))):
        sigma = check_real("leaky_noise", "sigma", sigma, least=0.0)
    noise = jax.random.normal(key, (*xs.shape[:-1], cell.hidden_size), xs.dtype)
    scale = jnp.broadcast_to(sigma * jnp.sqrt(2 / cell.alpha(params)), (cell.hidden_size,))
    rows = jnp.diag(scale).astype(params.w_ih.dtype)
    return params._replace(w_ih=jnp.concatenate([params.w_ih, rows])), jnp.concatenate([xs, noise], axis=-1)
