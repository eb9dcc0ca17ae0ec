"""What counts: the steps of a padded batch that a loss, a metric or a pooling reads."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cell import compute_dtype, describe
from rnnjax.checks import check_ints, is_traced
from rnnjax.kinds import public
from rnnjax.promotion import as_wide, promoting

__all__ = ["judged_steps", "length_mask", "masked_mean", "masked_softmax", "valid_steps", "weighted_mean"]


@public
def length_mask(lengths: jax.Array, num_steps: int) -> jax.Array:
    """Which steps of a padded batch are valid: ``mask[t, ...] = t < lengths[...]``.

    Args:
        lengths: int ``[*batch]``, of any width, from 0 to T.
        num_steps: T.

    Returns:
        bool ``[T, *batch]``.

    Raises:
        ValueError: for a length below 0 or above T; traced ones count as these.
        TypeError: if the lengths are not integers.

    >>> length_mask(jnp.array([2, 0, 3]), 3).astype(int).tolist()
    [[1, 0, 1], [1, 0, 1], [0, 0, 1]]
    """
    return _length_mask("length_mask", lengths, num_steps)


@promoting
def _length_mask(where: str, lengths: Any, num_steps: int) -> jax.Array:
    lengths = check_ints(where, "lengths", lengths, low=0, high=num_steps)
    return as_wide(jnp.arange(num_steps, dtype=jnp.int32), 1 + lengths.ndim) < lengths


def judged_steps(lengths: Any, shape: tuple[int, ...], valid: Any = None) -> Any:
    """Which entries of symbols ``[T, *batch]`` have to be in range: those that count, and none if that is traced."""
    if is_traced((lengths, valid)):
        return False
    if valid is not None and np.shape(valid) != shape:
        return False  # another check says so
    if lengths is None:
        return True if valid is None else np.asarray(valid, bool)
    sizes = np.asarray(lengths)
    if not shape or sizes.shape != shape[1 : 1 + sizes.ndim]:
        return False
    inside = as_wide(np.arange(shape[0]), 1 + sizes.ndim) < sizes
    return inside if valid is None else inside & np.asarray(valid, bool)


@public
def masked_mean(values: jax.Array, *, lengths: jax.Array | None = None, mask: jax.Array | None = None) -> jax.Array:
    r"""The mean of what counts, as a scalar; zero where nothing counts.

        sum(values * m) / sum(m),   m[t, b] = t < lengths[b]  and  mask[t, b]

    It is the mean over steps: a row weighs as much as it is long, and one of length 0 nothing at all. What does not
    count may be anything, also NaN: it reaches neither the mean nor the gradient of ``values``. (What made a NaN out of
    finite numbers may still have a NaN for a slope; the losses of this package mask what goes into them.)

    Args:
        values: ``[...]``, with time first where there are lengths.
        lengths: int ``[*batch]`` of ``values [T, *batch, ...]``.
        mask: bool, with the first axes of ``values``.

    Raises:
        ValueError: for shapes that do not fit.
        TypeError: if the lengths are not integers, or the mask not bool.

    >>> values = jnp.array([[1.0, 2.0], [3.0, jnp.nan]])
    >>> float(masked_mean(values, lengths=jnp.array([2, 1])))
    2.0
    """
    values = jnp.asarray(values)
    valid = valid_steps("masked_mean", "values", values.shape, lengths, mask)
    values = values.astype(compute_dtype(values.dtype))
    return weighted_mean(values, valid if valid is None else as_wide(valid, values.ndim))


def weighted_mean(values: jax.Array, weights: jax.Array | None) -> jax.Array:
    """``sum(values * weights) / sum(weights)``, zero where all weights are; values of no weight may be anything."""
    if weights is None:
        weights = jnp.ones((1,) * values.ndim, values.dtype)
    weights = jnp.broadcast_to(weights, values.shape).astype(values.dtype)
    total = weights.sum()
    values = jnp.where(weights == 0, jnp.zeros((), values.dtype), values)
    return (values * weights).sum() / jnp.where(total == 0, jnp.ones((), values.dtype), total)


def valid_steps(
    where: str, name: str, shape: tuple[int, ...], lengths: Any, mask: Any, same: bool = False, named: str = "mask"
) -> jax.Array | None:
    """What counts of an array called ``name``, from both; None if all does.

    With ``same`` the result has as many axes as the array; else it may have less, which are the array's first.
    """
    valid = None
    if lengths is not None:
        given, lengths = lengths, check_ints(where, "lengths", lengths)
        if not shape or lengths.shape != shape[1 : 1 + lengths.ndim]:
            raise ValueError(
                f"{where}: lengths must have the batch axes of {name} behind its first axis, the time, "
                f"got {describe(lengths)} for {name} of shape {list(shape)}."
            )
        valid = _length_mask(where, given, shape[0])
    if mask is not None:
        mask = jnp.asarray(mask)
        if mask.dtype != bool:
            raise TypeError(f"{where}: {named} must be bool, got {describe(mask)}; compare with != 0 first.")
        if mask.shape != shape[: mask.ndim]:
            raise ValueError(
                f"{where}: {named} must have the first axes of {name}, got {describe(mask)} for {name} of shape "
                f"{list(shape)}."
            )
        ndim = mask.ndim if valid is None else max(mask.ndim, valid.ndim)
        valid = as_wide(mask, ndim) if valid is None else as_wide(mask, ndim) & as_wide(valid, ndim)
    if valid is not None and same:
        valid = jnp.broadcast_to(as_wide(valid, len(shape)), shape)
    return valid


def masked_softmax(scores: jax.Array, valid: jax.Array | None, axis: int) -> jax.Array:
    """Softmax over what is valid; zeros elsewhere, and everywhere where nothing is."""
    if valid is None or not scores.shape[axis]:
        return jax.nn.softmax(scores, axis) if scores.shape[axis] else scores
    scores = jnp.where(valid, scores, jnp.finfo(scores.dtype).min)
    top = jax.lax.stop_gradient(scores.max(axis, keepdims=True))
    powers = jnp.where(valid, jnp.exp(scores - top), jnp.zeros((), scores.dtype))
    total = powers.sum(axis, keepdims=True)
    return powers / jnp.where(total == 0, jnp.ones((), total.dtype), total)
