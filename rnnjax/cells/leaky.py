"""The leaky network: a continuous-time rate network in steps of dt."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cell import Gates, affine_step, compute_dtype
from rnnjax.cells.states import HiddenState, hidden_state
from rnnjax.checks import check_real, describe
from rnnjax.initializers import Glorot, Initializer, Orthogonal
from rnnjax.kinds import cell_class, public
from rnnjax.traced import name_values

__all__ = ["LeakyParams", "LeakyRNN", "leaky_noise"]


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
