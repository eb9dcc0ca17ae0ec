"""What the converters of flax.linen and flax.nnx share: the options of a cell that rnnjax has, and those it has not."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from rnnjax.cells import ConvLSTM
from rnnjax.interop._common import refuse

__all__ = ["check_options", "elman_activation", "fold_residual", "image_sizes", "shift_forget"]

_TANH = (jnp.tanh, jax.nn.tanh, jax.lax.tanh)
_SIGMOID = (jax.nn.sigmoid, jax.lax.logistic)
_ZEROS = (None, jax.nn.initializers.zeros)


def check_options(where: str, module: Any, dtype: Any) -> None:
    """Refuses a cell of flax whose options make it another function than the cell of rnnjax.

    Args:
        where: the function that converts.
        module: a cell of linen or nnx.
        dtype: of its parameters.

    Raises:
        ValueError: for other activations, a carry that does not start at zero, or computations in another dtype.
    """
    name = type(module).__name__
    if getattr(module, "gate_fn", _SIGMOID[0]) not in _SIGMOID:
        refuse(where, f"{name} with gate_fn={_name(module.gate_fn)}", "gates of rnnjax are sigmoids")
    activation = getattr(module, "activation_fn", _TANH[0])
    if activation not in _TANH and not (name == "SimpleCell" and activation is jax.nn.relu):
        allowed = "tanh or relu" if name == "SimpleCell" else "tanh"
        refuse(where, f"{name} with activation_fn={_name(activation)}", f"the activation of its cell is {allowed}")
    if module.carry_init not in _ZEROS:
        refuse(
            where,
            f"{name} with carry_init={_name(module.carry_init)}",
            "states of rnnjax start at zero; make the module without it, and pass that carry as the state",
        )
    if module.dtype is not None and jnp.dtype(module.dtype) != jnp.dtype(dtype):
        refuse(
            where,
            f"{name} with dtype={jnp.dtype(module.dtype).name} and parameters of {jnp.dtype(dtype).name}",
            "cells of rnnjax compute in the dtype of their parameters; convert one with dtype=None",
        )


def _name(function: Any) -> str:
    return getattr(function, "__name__", None) or repr(function)


def elman_activation(module: Any) -> Literal["tanh", "relu"]:
    """The activation of a SimpleCell that passed `check_options`; tanh for the name of the class alone."""
    return "relu" if getattr(module, "activation_fn", None) is jax.nn.relu else "tanh"


def fold_residual(module: Any, w_hh: Any) -> Any:
    """With ``residual=True`` a SimpleCell adds h before its activation: an identity on top of ``w_hh``."""
    return w_hh + jnp.eye(w_hh.shape[0], dtype=w_hh.dtype) if getattr(module, "residual", False) else w_hh


def shift_forget(b: Any, by: float) -> Any:
    """Adds to the bias of f, of gates ``i, f, g, o``: what others add in every step, is part of ``b`` here."""
    size = b.shape[0] // 4
    return jnp.asarray(b).at[size : 2 * size].add(by)


def image_sizes(where: str, spatial_shape: Any, kernel: tuple[int, ...], hidden_size: int) -> ConvLSTM:
    """The convolutional LSTM for images of a size that the parameters do not tell.

    Raises:
        ValueError: if the size is missing, or the kernel is even, which has no middle.
    """
    if spatial_shape is None:
        raise ValueError(
            f"{where}: spatial_shape must be given for a convolutional LSTM, whose parameters do not tell the size of "
            f"its images, got None; pass a tuple of {len(kernel)} sizes."
        )
    if any(size % 2 == 0 for size in kernel):
        refuse(where, f"a convolutional LSTM with the kernel {kernel}", "kernels of rnnjax.ConvLSTM have odd sizes")
    return ConvLSTM(hidden_size, spatial_shape=tuple(spatial_shape), kernel_shape=kernel)
