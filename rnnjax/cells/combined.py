"""Cells in which what comes from the input and from the state is not just added: normalised first, or multiplied."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid

from rnnjax.cell import Gates, affine_step, split_gates
from rnnjax.cells.states import HiddenState, LSTMState, hidden_state, lstm_state
from rnnjax.cells.weights import GRU_GATES, LSTM_GATES, gate_matrices, gate_weights
from rnnjax.checks import check_real
from rnnjax.initializers import Chrono, Glorot, Initializer, Orthogonal
from rnnjax.kinds import cell_class
from rnnjax.traced import name_values

__all__ = [
    "MILSTM",
    "MIRNN",
    "LayerNormGRU",
    "LayerNormGRUParams",
    "LayerNormLSTM",
    "LayerNormLSTMParams",
    "MILSTMParams",
    "MIRNNParams",
]


class LayerNormLSTMParams(NamedTuple):
    """Parameters of `LayerNormLSTM`; gate order ``i, f, g, o``."""

    w_ih: jax.Array  # [I, 4H]
    w_hh: jax.Array  # [H, 4H]
    bias: jax.Array  # [4H]
    gain_x: jax.Array  # [4H]
    gain_h: jax.Array  # [4H]
    gain_c: jax.Array  # [H]
    b_c: jax.Array  # [H]


@cell_class
class LayerNormLSTM:
    r"""LSTM with layer normalisation (Ba, Kiros and Hinton, 2016).

        i, f, g, o = gain_x * norm(x @ w_ih) + gain_h * norm(h @ w_hh) + bias
        c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h' = sigmoid(o) * tanh(gain_c * norm(c') + b_c)
        y  = h'

    with ``norm(z) = (z - mean(z)) / sqrt(var(z) + epsilon)``. As in the paper, mean and variance are those of all 4H
    units of the four gates together, for the input's and for the state's contribution by itself, and ``c`` is
    carried on as it is. The paper adds three biases to the gates; ``bias`` is their sum.

    Args:
        hidden_size: H.
        forget_bias: the value of ``bias_f`` at the start, or a `Chrono`, as for `LSTM`.
        epsilon: keeps the norm finite where all units agree, such as in a state of zeros.
        input_init: initialiser of each gate's block of ``w_ih``, ``[I, H]``; the norm takes its scale away.
        recurrent_init: initialiser of each gate's block of ``w_hh``, ``[H, H]``; the same holds here.

    Raises:
        ValueError: for a size below one, or an ``epsilon`` that is not positive.

    >>> import jax, rnnjax
    >>> cell = rnnjax.cells.LayerNormLSTM(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state, y = cell.step(params, cell.initial_state((2,)), jax.numpy.ones((2, 3)))
    >>> y.shape, params.gain_x.shape, params.gain_c.shape
    ((2, 4), (16,), (4,))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    forget_bias: float | Chrono = 1.0
    epsilon: float = 1e-5
    input_init: Initializer = Glorot()
    recurrent_init: Initializer = Orthogonal()
    num_gates = 4

    def __post_init__(self) -> None:
        check_real("LayerNormLSTM", "epsilon", self.epsilon, above=0)

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> LayerNormLSTMParams:
        """New parameters: gains of one, and biases of zero but for the forget bias."""
        w_ih, w_hh, b = gate_weights(self, key, input_size, dtype, self.forget_bias, LSTM_GATES)
        gains = (jnp.ones_like(b), jnp.ones_like(b), jnp.ones((self.hidden_size,), dtype))
        return LayerNormLSTMParams(w_ih, w_hh, b, *gains, b_c=jnp.zeros((self.hidden_size,), dtype))

    initial_state = lstm_state

    def update(
        self, params: LayerNormLSTMParams, state: LSTMState, zx: Gates, zh: Gates
    ) -> tuple[LSTMState, jax.Array]:
        """The pointwise part of a step and its three norms; see the equations of the class."""
        bias, gain_x, gain_h = (split_gates(p, 4) for p in (params.bias, params.gain_x, params.gain_h))
        nx, nh = _norm(zx, self.epsilon), _norm(zh, self.epsilon)
        i, f, g, o = (a * x + d * h + b for a, x, d, h, b in zip(gain_x, nx, gain_h, nh, bias, strict=True))
        i, f, g, o = sigmoid(i), sigmoid(f), jnp.tanh(g), sigmoid(o)
        c = f * state.c + i * g
        (nc,) = _norm((c,), self.epsilon)
        h = o * jnp.tanh(params.gain_c * nc + params.b_c)
        name_values(i=i, f=f, g=g, o=o, c=c, h=h)
        return LSTMState(h, c), h

    step = affine_step


class LayerNormGRUParams(NamedTuple):
    """Parameters of `LayerNormGRU`; gate order ``r, z, n``."""

    w_ih: jax.Array  # [I, 3H]
    w_hh: jax.Array  # [H, 3H]
    bias: jax.Array  # [3H]
    b_hn: jax.Array  # [H]
    gain_x: jax.Array  # [3H]
    gain_h: jax.Array  # [3H]


@cell_class
class LayerNormGRU:
    r"""GRU with layer normalisation (Ba, Kiros and Hinton, 2016).

        nx_r, nx_z = norm(x @ w_ih_rz);  nx_n = norm(x @ w_ih_n)
        nh_r, nh_z = norm(h @ w_hh_rz);  nh_n = norm(h @ w_hh_n)
        r = sigmoid(gain_x_r * nx_r + gain_h_r * nh_r + bias_r)
        z = sigmoid(gain_x_z * nx_z + gain_h_z * nh_z + bias_z)
        n = tanh(gain_x_n * nx_n + bias_n + r * (gain_h_n * nh_n + b_hn))
        h' = (1 - z) * n + z * h
        y  = h'

    with ``norm(z) = (z - mean(z)) / sqrt(var(z) + epsilon)``. As in the paper, the two gates are normalised
    together, over 2H units, and the candidate by itself. As in our `GRU`, ``z`` *keeps* the old state, where the
    paper's lets in the new one.

    Args:
        hidden_size: H.
        update_bias: the value of ``bias_z`` at the start, or a `Chrono`, as for `GRU`.
        epsilon: keeps the norm finite where all units agree, such as in a state of zeros.
        input_init: initialiser of each gate's block of ``w_ih``, ``[I, H]``; the norm takes its scale away.
        recurrent_init: initialiser of each gate's block of ``w_hh``, ``[H, H]``; the same holds here.

    Raises:
        ValueError: for a size below one, or an ``epsilon`` that is not positive.

    >>> import jax, rnnjax
    >>> cell = rnnjax.cells.LayerNormGRU(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state, y = cell.step(params, cell.initial_state((2,)), jax.numpy.ones((2, 3)))
    >>> y.shape, params.gain_x.shape
    ((2, 4), (12,))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    update_bias: float | Chrono = 0.0
    epsilon: float = 1e-5
    input_init: Initializer = Glorot()
    recurrent_init: Initializer = Orthogonal()
    num_gates = 3

    def __post_init__(self) -> None:
        check_real("LayerNormGRU", "epsilon", self.epsilon, above=0)

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> LayerNormGRUParams:
        """New parameters: gains of one, and biases of zero but for the update bias."""
        w_ih, w_hh, b = gate_weights(self, key, input_size, dtype, self.update_bias, GRU_GATES)
        b_hn = jnp.zeros((self.hidden_size,), dtype)
        return LayerNormGRUParams(w_ih, w_hh, b, b_hn, gain_x=jnp.ones_like(b), gain_h=jnp.ones_like(b))

    initial_state = hidden_state

    def update(
        self, params: LayerNormGRUParams, state: HiddenState, zx: Gates, zh: Gates
    ) -> tuple[HiddenState, jax.Array]:
        """The pointwise part of a step and its four norms; see the equations of the class."""
        bias, gain_x, gain_h = (split_gates(p, 3) for p in (params.bias, params.gain_x, params.gain_h))
        nx, nh = (_norm(z[:2], self.epsilon) + _norm(z[2:], self.epsilon) for z in (zx, zh))
        r, z = (sigmoid(gain_x[k] * nx[k] + gain_h[k] * nh[k] + bias[k]) for k in range(2))
        n = jnp.tanh(gain_x[2] * nx[2] + bias[2] + r * (gain_h[2] * nh[2] + params.b_hn))
        h = (1 - z) * n + z * state.h
        name_values(r=r, z=z, n=n, h=h)
        return HiddenState(h), h

    step = affine_step


def _norm(gates: Gates, epsilon: float) -> Gates:
    """Mean zero and variance one over the units of all these gates together."""

    def mean(arrays: Gates) -> jax.Array:
        return functools.reduce(jnp.add, (jnp.mean(a, axis=-1, keepdims=True) for a in arrays)) / len(arrays)

    centre = mean(gates)
    centred = tuple(a - centre for a in gates)
    scale = jax.lax.rsqrt(mean(tuple(a * a for a in centred)) + epsilon)
    return tuple(a * scale for a in centred)


class MIRNNParams(NamedTuple):
    """Parameters of `MIRNN`."""

    w_ih: jax.Array  # [I, H]
    w_hh: jax.Array  # [H, H]
    bias: jax.Array  # [H]
    alpha: jax.Array  # [H]
    beta_x: jax.Array  # [H]
    beta_h: jax.Array  # [H]


@cell_class
class MIRNN:
    r"""Elman's network with multiplicative integration (Wu et al., 2016).

        zx = x @ w_ih;  zh = h @ w_hh
        h' = tanh(alpha * zx * zh + beta_x * zx + beta_h * zh + bias)
        y  = h'

    In the paper ``beta_h`` is the first beta and ``beta_x`` the second. With ``alpha = 0`` and betas of one it is the
    `Elman` network.

    Args:
        hidden_size: H.
        alpha: the value of ``alpha`` at the start.
        beta: the value of ``beta_x`` and ``beta_h`` at the start.
        input_init: initialiser of ``w_ih [I, H]``.
        recurrent_init: initialiser of ``w_hh [H, H]``.

    Raises:
        ValueError: for a size below one.

    >>> import jax, rnnjax
    >>> cell = rnnjax.cells.MIRNN(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state, y = cell.step(params, cell.initial_state(), jax.numpy.ones(3))
    >>> y.shape, params.alpha.shape
    ((4,), (4,))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    alpha: float = 1.0
    beta: float = 1.0
    input_init: Initializer = Glorot()
    recurrent_init: Initializer = Orthogonal()
    num_gates = 1

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> MIRNNParams:
        """New parameters; ``bias`` is zero."""
        key_ih, key_hh = jax.random.split(key)
        w_ih, w_hh = gate_matrices(self, key_ih, key_hh, input_size, dtype, num_gates=1)
        b = jnp.zeros((self.hidden_size,), dtype)
        return MIRNNParams(w_ih, w_hh, b, *_factors(b, self.alpha, self.beta))

    initial_state = hidden_state

    def update(self, params: MIRNNParams, state: HiddenState, zx: Gates, zh: Gates) -> tuple[HiddenState, jax.Array]:
        """The pointwise part of a step; see the equations of the class."""
        (z,) = _integrate(params, zx, zh)
        h = jnp.tanh(z)
        name_values(h=h)
        return HiddenState(h), h

    step = affine_step


class MILSTMParams(NamedTuple):
    """Parameters of `MILSTM`; gate order ``i, f, g, o``."""

    w_ih: jax.Array  # [I, 4H]
    w_hh: jax.Array  # [H, 4H]
    bias: jax.Array  # [4H]
    alpha: jax.Array  # [4H]
    beta_x: jax.Array  # [4H]
    beta_h: jax.Array  # [4H]


@cell_class
class MILSTM:
    r"""LSTM with multiplicative integration (Wu et al., 2016).

        zx = x @ w_ih;  zh = h @ w_hh
        i, f, g, o = alpha * zx * zh + beta_x * zx + beta_h * zh + bias
        c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h' = sigmoid(o) * tanh(c')
        y  = h'

    In the paper ``beta_h`` is the first beta and ``beta_x`` the second. With ``alpha = 0`` and betas of one it is the
    `LSTM`.

    Args:
        hidden_size: H.
        forget_bias: the value of ``bias_f`` at the start, or a `Chrono`, as for `LSTM`.
        alpha: the value of ``alpha`` at the start.
        beta: the value of ``beta_x`` and ``beta_h`` at the start.
        input_init: initialiser of each gate's block of ``w_ih``, ``[I, H]``.
        recurrent_init: initialiser of each gate's block of ``w_hh``, ``[H, H]``.

    Raises:
        ValueError: for a size below one.

    >>> import jax, rnnjax
    >>> cell = rnnjax.cells.MILSTM(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state, y = cell.step(params, cell.initial_state((2,)), jax.numpy.ones((2, 3)))
    >>> y.shape, params.alpha.shape
    ((2, 4), (16,))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    forget_bias: float | Chrono = 1.0
    alpha: float = 1.0
    beta: float = 1.0
    input_init: Initializer = Glorot()
    recurrent_init: Initializer = Orthogonal()
    num_gates = 4

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> MILSTMParams:
        """New parameters; ``bias`` is zero but for the forget bias."""
        w_ih, w_hh, b = gate_weights(self, key, input_size, dtype, self.forget_bias, LSTM_GATES)
        return MILSTMParams(w_ih, w_hh, b, *_factors(b, self.alpha, self.beta))

    initial_state = lstm_state

    def update(self, params: MILSTMParams, state: LSTMState, zx: Gates, zh: Gates) -> tuple[LSTMState, jax.Array]:
        """The pointwise part of a step; see the equations of the class."""
        i, f, g, o = _integrate(params, zx, zh)
        i, f, g, o = sigmoid(i), sigmoid(f), jnp.tanh(g), sigmoid(o)
        c = f * state.c + i * g
        h = o * jnp.tanh(c)
        name_values(i=i, f=f, g=g, o=o, c=c, h=h)
        return LSTMState(h, c), h

    step = affine_step


def _factors(b: jax.Array, alpha: float, beta: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``alpha``, ``beta_x`` and ``beta_h``, like ``b``."""
    return jnp.full_like(b, alpha), jnp.full_like(b, beta), jnp.full_like(b, beta)


def _integrate(params: MIRNNParams | MILSTMParams, zx: Gates, zh: Gates) -> Gates:
    """``alpha * zx * zh + beta_x * zx + beta_h * zh + bias``, gate by gate."""
    fields = (params.bias, params.alpha, params.beta_x, params.beta_h)
    blocks = zip(*(split_gates(field, len(zx)) for field in fields), strict=True)
    return tuple(
        alpha * x * h + beta_x * x + beta_h * h + bias
        for x, h, (bias, alpha, beta_x, beta_h) in zip(zx, zh, blocks, strict=True)
    )
