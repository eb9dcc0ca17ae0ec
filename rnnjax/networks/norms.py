"""Normalisation of the features between layers."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.checks import short
from rnnjax.promotion import compute_dtype, promoting

__all__ = ["NormParams", "check_norm", "init_norm", "normalize"]

_EPSILON = 1e-5


class NormParams(NamedTuple):
    """Gain and shift of `normalize`."""

    scale: jax.Array  # [H]
    bias: jax.Array | None = None  # [H]; None for "rms"


def check_norm(where: str, norm: Any) -> None:
    """Raises ValueError unless ``norm`` is one that `normalize` knows."""
    if norm not in (None, "layer", "rms"):
        raise ValueError(f"{where}: norm must be 'layer', 'rms' or None, got {short(norm)}.")


def init_norm(norm: str | None, size: int, dtype: Any = jnp.float32) -> NormParams | None:
    """Gain one and shift zero for H = ``size`` features; None without a norm."""
    if norm is None:
        return None
    return NormParams(jnp.ones((size,), dtype), jnp.zeros((size,), dtype) if norm == "layer" else None)


@promoting
def normalize(norm: str | None, params: NormParams | None, x: jax.Array) -> jax.Array:
    r"""Layer normalisation (Ba et al., 2016), or that by the root mean square (Zhang and Sennrich, 2019).

        layer:  y = (x - mean(x)) / sqrt(var(x) + 1e-5) * scale + bias
        rms:    y = x / sqrt(mean(x^2) + 1e-5) * scale

    Mean and variance (divided by H) run over the last axis alone, so nothing passes from a step or an example to
    another. It computes in float32 or wider and returns the dtype of ``x``.

    Args:
        norm: ``"layer"``, ``"rms"``, or None, which returns ``x`` as it is.
        params: from `init_norm`.
        x: ``[..., H]``.

    >>> import jax.numpy as jnp
    >>> normalize("layer", init_norm("layer", 2), jnp.array([1.0, 3.0])).round(3).tolist()
    [-1.0, 1.0]
    """
    if norm is None or params is None:
        return x
    dtype = compute_dtype(x.dtype)
    wide = x.astype(dtype)
    if norm == "layer":
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    y = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + _EPSILON) * params.scale.astype(dtype)
    if params.bias is not None:
        y = y + params.bias.astype(dtype)
    return y.astype(x.dtype)
