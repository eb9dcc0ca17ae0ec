"""A sequence to one vector: the last valid step, or a mean, maximum or weighted sum over the valid ones."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cell import compute_dtype, describe, matmul
from rnnjax.initializers import Glorot
from rnnjax.kinds import public
from rnnjax.promotion import as_wide, promoting
from rnnjax.topologies.masks import valid_steps

__all__ = ["POOLINGS", "Pooling", "PoolingParams", "init_pooling", "masked_softmax", "pool"]

Pooling = Literal["last", "mean", "max", "attention"]
POOLINGS: tuple[Pooling, ...] = ("last", "mean", "max", "attention")


class PoolingParams(NamedTuple):
    """Parameters of pooling by attention over F features."""

    w: jax.Array  # [F, F]
    b: jax.Array  # [F]
    v: jax.Array  # [F]


def init_pooling(key: jax.Array, size: int, dtype: Any = jnp.float32) -> PoolingParams:
    """New parameters of pooling by attention over F = ``size`` features; ``v`` starts at zero, and so as the mean."""
    return PoolingParams(Glorot()(key, (size, size), dtype), jnp.zeros((size,), dtype), jnp.zeros((size,), dtype))


@public
def pool(
    ys: jax.Array, pooling: Pooling, *, lengths: jax.Array | None = None, valid: jax.Array | None = None,
    params: PoolingParams | None = None,
) -> jax.Array:  # fmt: skip
    r"""The outputs of all valid steps as one vector; zeros for a row without any.

        last:       ys[the last valid t]
        mean:       sum_t ys[t] / (how many they are)
        max:        max_t ys[t]
        attention:  a = softmax_t(tanh(ys[t] @ w + b) @ v),   sum_t a_t * ys[t]        (Yang et al., 2016)

    Args:
        ys: ``[T, *batch, F]``. What stands in the padding, also NaN, reaches neither the result nor a gradient.
        pooling: one of these names.
        lengths: int ``[*batch]``: steps at and past them are padding.
        valid: bool ``[T, *batch]``, in any pattern: so are steps that are not set. With neither every step is valid.
        params: for ``"attention"``, from `init_pooling`.

    Returns:
        ``[*batch, F]``.

    Raises:
        ValueError: for an unknown name, attention without parameters, or shapes that do not fit.
        TypeError: if the lengths are not integers.

    >>> ys = jnp.array([[1.0, 2.0], [5.0, 9.0]])[..., None]  # [T, B, F]
    >>> pool(ys, "mean", lengths=jnp.array([2, 1])).tolist()
    [[3.0], [2.0]]
    """
    ys = jnp.asarray(ys)
    if ys.ndim < 2:
        raise ValueError(f"pool: ys must have shape [T, *batch, F], got {describe(ys)}.")
    batch = list(ys.shape[1:-1])
    if lengths is None and valid is None:
        lengths = jnp.full(batch, ys.shape[0])
    counts = valid_steps("pool", "ys", ys.shape, lengths, valid, named="valid")
    if counts is None or counts.ndim != ys.ndim - 1:
        name, given = ("lengths", lengths) if valid is None else ("valid", valid)
        raise ValueError(f"pool: {name} must have the batch axes of ys, {batch}, got {describe(given)}.")
    if not ys.shape[0]:
        return jnp.zeros(ys.shape[1:], ys.dtype)
    zero = jnp.zeros((), ys.dtype)
    ys = jnp.where(as_wide(counts, ys.ndim), ys, zero)
    if pooling == "last":
        time = as_wide(jnp.arange(ys.shape[0]), counts.ndim)
        index = as_wide(jnp.max(jnp.where(counts, time, 0), axis=0), ys.ndim - 1)[None]
        return jnp.take_along_axis(ys, index, axis=0)[0]  # row 0 of an empty one is zeros
    wide = ys.astype(compute_dtype(ys.dtype))
    number = as_wide(counts.sum(0), ys.ndim - 1)
    if pooling == "mean":
        return (wide.sum(0) / jnp.maximum(number, 1).astype(wide.dtype)).astype(ys.dtype)
    if pooling == "max":
        top = jnp.where(as_wide(counts, ys.ndim), ys, jnp.full((), -jnp.inf, ys.dtype)).max(0)
        return jnp.where(number > 0, top, zero)
    if params is None:
        raise ValueError("pool: pooling='attention' needs params, from init_pooling(key, F).")
    keys = jnp.tanh(promoting(jnp.add)(matmul(ys, params.w, wide.dtype), params.b.astype(wide.dtype)))
    weights = masked_softmax(matmul(keys, params.v, wide.dtype), counts, axis=0)  # [T, *batch]
    return (weights[..., None] * wide).sum(0).astype(ys.dtype)


def masked_softmax(scores: jax.Array, valid: jax.Array | None, axis: int) -> jax.Array:
    """Softmax over what is valid; zeros elsewhere, and everywhere where nothing is."""
    if valid is None or not scores.shape[axis]:
        return jax.nn.softmax(scores, axis) if scores.shape[axis] else scores
    scores = jnp.where(valid, scores, jnp.finfo(scores.dtype).min)
    top = jax.lax.stop_gradient(scores.max(axis, keepdims=True))
    powers = jnp.where(valid, jnp.exp(scores - top), jnp.zeros((), scores.dtype))
    total = powers.sum(axis, keepdims=True)
    return powers / jnp.where(total == 0, jnp.ones((), total.dtype), total)
