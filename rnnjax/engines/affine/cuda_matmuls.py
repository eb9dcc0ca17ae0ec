"""What the engine ``"cuda"`` leaves to XLA: the matmuls over all steps, of one network or of several at once.

Of several networks, parameters have one more axis, the first, and ``xs``, what is projected and its cotangents the same
axis as the first of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.engines.affine.gradient import weight_cotangent

__all__ = ["bias_gradient", "input_gradient", "project", "weight_gradient"]


def project(xs: jax.Array, w: jax.Array) -> jax.Array:
    """``xs @ w`` in float32: ``[T, *batch, I]`` with ``[I, G H]`` to ``[T, *batch, G H]``."""
    return _einsum("t...i,ig->t...g", "tn...i,nig->tn...g", xs, w)


def input_gradient(d_zx: jax.Array, w: jax.Array, dtype: Any) -> jax.Array:
    """``d_zx @ w.T``: that of ``xs``, which are of this dtype.

    It is rounded to that where the matmul writes it: XLA makes the conversion of a float32 result another pass over it,
    4 bytes read and 4 more written a number (a compiled training step of a GRU in bfloat16 for an H200).
    """
    rounded = dtype if dtype == w.dtype else jnp.float32
    return _einsum("t...g,ig->t...i", "tn...g,nig->tn...i", d_zx, w, rounded)


def weight_gradient(a: jax.Array, d_z: jax.Array, w: jax.Array) -> jax.Array:
    """``sum_t a[t].T @ d_z[t]``: that of ``w``."""
    if w.ndim == 2:
        return weight_cotangent(a, (d_z,), w, jnp.float32)
    a, d_z = (x.reshape(*x.shape[:2], -1, x.shape[-1]).astype(w.dtype) for x in (a, d_z))
    return jnp.einsum("tnbi,tnbg->nig", a, d_z, preferred_element_type=jnp.float32)


def bias_gradient(d_zx: jax.Array, b: jax.Array) -> jax.Array:
    """The sum of ``d_zx`` over all that ``b`` has no axis of."""
    kept: Sequence[int] = (1,) if b.ndim == 2 else ()
    axes = tuple(axis for axis in range(d_zx.ndim - 1) if axis not in kept)
    return jnp.sum(d_zx.astype(jnp.float32), axis=axes)


def _einsum(one: str, many: str, x: jax.Array, w: jax.Array, dtype: Any = jnp.float32) -> Any:
    subscripts = one if w.ndim == 2 else many
    return jnp.einsum(subscripts, x.astype(w.dtype), w, preferred_element_type=dtype)
