"""The convolutional LSTM, for sequences of signals, images and volumes."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid

from rnnjax.cell import batch_axes, check_step, compute_dtype, matmul, split_gates
from rnnjax.cells.states import LSTMState
from rnnjax.cells.weights import LSTM_GATES, gate_biases
from rnnjax.checks import check_size, short
from rnnjax.initializers import Chrono, Glorot, Initializer, Orthogonal, per_gate
from rnnjax.kinds import cell_class
from rnnjax.traced import name_values

__all__ = ["ConvLSTM", "ConvLSTMParams"]

_AXES = {1: "W", 2: "HW", 3: "DHW"}


class ConvLSTMParams(NamedTuple):
    """Parameters of `ConvLSTM`; gate order ``i, f, g, o``; K stands for the axes of the kernel."""

    w_ih: jax.Array  # [*K, I, 4H]
    w_hh: jax.Array  # [*K, H, 4H]
    b: jax.Array  # [4H]


@cell_class
class ConvLSTM:
    r"""Convolutional LSTM (Shi et al., 2015) in one, two or three dimensions.

        i, f, g, o = conv(x, w_ih) + b + conv(h, w_hh)
        c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h' = sigmoid(o) * tanh(c')
        y  = h'

    Inputs ``x`` are ``[*batch, *spatial, I]``, channels last; h, c and y are ``[*batch, *spatial, H]``, and a sequence
    is ``[T, *batch, *spatial, I]``. ``conv`` is what networks call so (a kernel that is not flipped), padded with zeros
    to the same size. There are no peepholes, which the paper has; flax and Haiku leave them out too, but add 1 to f in
    every step, where here the forget bias is part of ``b`` from `init` on.

    Args:
        hidden_size: H, the channels of the output.
        spatial_shape: the sizes of the one, two or three axes, for example ``(height, width)``.
        kernel_shape: the size of the kernel on each of them, odd; an int stands for all.
        forget_bias: the value of ``b_f`` at the start, or a `Chrono`; see `LSTM`.
        input_init: initialiser of each gate's block of ``w_ih``, flat: ``[prod(K) I, H]``.
        recurrent_init: initialiser of each gate's block of ``w_hh``, flat: ``[prod(K) H, H]``.

    Raises:
        ValueError: for a size below one, an even kernel, or a number of axes that does not fit.
        TypeError: if a shape holds something else than ints.

    >>> import jax, jax.numpy as jnp, rnnjax
    >>> cell = rnnjax.ConvLSTM(hidden_size=4, spatial_shape=(8, 6))
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state, ys = rnnjax.unroll(cell, params, cell.initial_state((2,)), jnp.ones((5, 2, 8, 6, 3)))
    >>> ys.shape, params.w_ih.shape
    ((5, 2, 8, 6, 4), (3, 3, 3, 16))
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    spatial_shape: tuple[int, ...]
    kernel_shape: int | tuple[int, ...] = 3
    forget_bias: float | Chrono = 1.0
    input_init: Initializer = Glorot()
    recurrent_init: Initializer = Orthogonal()

    def __post_init__(self) -> None:
        spatial, kernel = self.spatial_shape, self.kernel_shape
        if not isinstance(spatial, tuple | list):
            raise TypeError(
                f"ConvLSTM: spatial_shape must be a tuple of ints, got {short(spatial)}; write (8,) for one axis."
            )
        if len(spatial) not in _AXES:
            raise ValueError(f"ConvLSTM: spatial_shape must have 1, 2 or 3 axes, got {short(spatial)}.")
        kernel = tuple(kernel) if isinstance(kernel, tuple | list) else (kernel,) * len(spatial)
        if len(kernel) != len(spatial):
            raise ValueError(
                f"ConvLSTM: kernel_shape must have one size for each of the {len(spatial)} axes of spatial_shape, "
                f"got {short(kernel)}."
            )
        spatial = tuple(check_size("ConvLSTM", "every size of spatial_shape", size) for size in spatial)
        kernel = tuple(check_size("ConvLSTM", "every size of kernel_shape", size) for size in kernel)
        if any(size % 2 == 0 for size in kernel):
            raise ValueError(
                f"ConvLSTM: every size of kernel_shape must be odd, so that a kernel has a middle, got {short(kernel)}."
            )
        # In one form each, so that equal cells compare equal and share one trace.
        object.__setattr__(self, "spatial_shape", spatial)
        object.__setattr__(self, "kernel_shape", kernel)

    def input_shape(self, input_size: int) -> tuple[int, ...]:
        """The shape of one input, ``[*spatial, I]``."""
        return (*self.spatial_shape, input_size)

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> ConvLSTMParams:
        """New parameters for inputs of ``input_size`` channels; ``b`` is zero but for the forget bias."""
        key_ih, key_hh, key_b = jax.random.split(key, 3)
        kernel: Any = self.kernel_shape

        def weights(init: Initializer, key: jax.Array, channels: int) -> jax.Array:
            flat = per_gate(init, key, (math.prod(kernel) * channels, self.hidden_size), 4, dtype)
            return flat.reshape(*kernel, channels, -1)

        return ConvLSTMParams(
            w_ih=weights(self.input_init, key_ih, input_size),
            w_hh=weights(self.recurrent_init, key_hh, self.hidden_size),
            b=gate_biases(self.forget_bias, key_b, self.hidden_size, dtype, LSTM_GATES),
        )

    def initial_state(self, batch_shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> LSTMState:
        """Zeros, in two arrays ``[*batch, *spatial, H]``."""
        shape = (*batch_axes(batch_shape, dtype), *self.spatial_shape, self.hidden_size)
        return LSTMState(h=jnp.zeros(shape, dtype), c=jnp.zeros(shape, dtype))

    def step(self, params: ConvLSTMParams, state: LSTMState, x: jax.Array) -> tuple[LSTMState, jax.Array]:
        """One step, ``x [*batch, *spatial, I]``; see the equations of the class."""
        x = check_step(self, params, state, x)
        dtype = compute_dtype(state.h.dtype)
        axes = len(self.spatial_shape)
        z = _conv(x, params.w_ih, axes, dtype) + params.b.astype(dtype) + _conv(state.h, params.w_hh, axes, dtype)
        i, f, g, o = split_gates(z, 4)
        i, f, g, o = sigmoid(i), sigmoid(f), jnp.tanh(g), sigmoid(o)
        c = f * state.c.astype(dtype) + i * g
        h = o * jnp.tanh(c)
        name_values(i=i, f=f, g=g, o=o, c=c, h=h)
        h = h.astype(state.h.dtype)
        return LSTMState(h, c.astype(state.c.dtype)), h


def _conv(x: jax.Array, w: jax.Array, axes: int, dtype: Any) -> jax.Array:
    """Channels-last convolution with any number of batch axes, in the dtype of the weights, returned in ``dtype``."""
    batch = x.shape[: -1 - axes]
    if jax.default_backend() == "cpu":
        # XLA's gradient of a convolution by its kernel takes ten times as long on a CPU as that of this matmul.
        return matmul(_patches(x, w.shape[:axes]), w.reshape(-1, w.shape[-1]), dtype)
    flat = x.astype(w.dtype).reshape(math.prod(batch), *x.shape[len(batch) :])  # XLA wants exactly one batch axis
    letters = _AXES[axes]
    layout = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    z = jax.lax.conv_general_dilated(
        flat, w, (1,) * axes, "SAME", dimension_numbers=layout, preferred_element_type=dtype
    )
    return z.reshape(*batch, *z.shape[1:])


def _patches(x: jax.Array, kernel: tuple[int, ...]) -> jax.Array:
    """What the kernel covers at every place, ``[*batch, *spatial, prod(K) I]``, with zeros outside."""
    batch = x.ndim - 1 - len(kernel)
    spatial = x.shape[batch:-1]
    x = jnp.pad(x, [(0, 0)] * batch + [(size // 2, size // 2) for size in kernel] + [(0, 0)])
    shifts = itertools.product(*map(range, kernel))
    windows = [tuple(slice(k, k + size) for k, size in zip(shift, spatial, strict=True)) for shift in shifts]
    return jnp.concatenate([x[(..., *window, slice(None))] for window in windows], axis=-1)
