"""How often a model is right, over what counts in a padded batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rnnjax.kinds import public
from rnnjax.topologies.losses import check_labels, paired
from rnnjax.topologies.masks import weighted_mean

__all__ = ["accuracy", "binary_accuracy", "sequence_accuracy"]


@public
def accuracy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    lengths: jax.Array | None = None,
    mask: jax.Array | None = None,
    ignore_label: int | None = None,
    top_k: int = 1,
) -> jax.Array:
    """The share of labels that are among the ``top_k`` largest logits; of equal ones the first come first.

    Args:
        logits: ``[..., V]``.
        labels: int ``[...]``.
        lengths: int ``[*batch]`` of ``labels [T, *batch, ...]``: steps at and past a row's length do not count.
        mask: bool, with the first axes of the labels: what counts.
        ignore_label: a label that does not count.
        top_k: how many classes are named, at least 1.

    Returns:
        A float32 scalar; zero where nothing counts.

    Raises:
        ValueError: for shapes that do not fit, a label outside 0 to V - 1, or a ``top_k`` outside of 1 to V.
        TypeError: if labels or lengths are not integers, or the mask not bool.

    >>> logits = jnp.array([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]])
    >>> float(accuracy(logits, jnp.array([1, 2]))), float(accuracy(logits, jnp.array([1, 2]), top_k=2))
    (0.5, 1.0)
    """
    logits, labels, valid = check_labels("accuracy", logits, labels, lengths, mask, ignore_label)
    if not 1 <= top_k <= logits.shape[-1]:
        raise ValueError(f"accuracy: top_k must lie between 1 and V = {logits.shape[-1]}, got {top_k}.")
    named = logits.argmax(-1)[..., None] if top_k == 1 else jax.lax.top_k(logits, top_k)[1]
    return weighted_mean((named == labels[..., None]).any(-1).astype(jnp.float32), valid)


@public
def binary_accuracy(
    logits: jax.Array, labels: jax.Array, *, lengths: jax.Array | None = None, mask: jax.Array | None = None
) -> jax.Array:
    """The share of answers, yes where a logit is above zero, that are those of the labels, yes where above one half.

    Args:
        logits: ``[...]``, or ``[..., 1]`` where the labels are ``[...]``.
        labels: ``[...]``, bool, int or probabilities.
        lengths: int ``[*batch]`` of ``labels [T, *batch, ...]``: steps at and past a row's length do not count.
        mask: bool, with the first axes of the labels: what counts.

    Returns:
        A float32 scalar; zero where nothing counts.

    Raises:
        ValueError: for shapes that do not fit.
        TypeError: if the lengths are not integers, or the mask not bool.

    >>> float(binary_accuracy(jnp.array([3.0, -1.0, 2.0, 0.1]), jnp.array([1, 0, 0, 1])))
    0.75
    """
    z, y, valid = paired("binary_accuracy", "logits", logits, "labels", labels, lengths, mask)
    return weighted_mean(((z > 0) == (y > 0.5)).astype(jnp.float32), valid)


@public
def sequence_accuracy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    lengths: jax.Array | None = None,
    mask: jax.Array | None = None,
    ignore_label: int | None = None,
) -> jax.Array:
    """The share of sequences that are right at every step that counts; those without such a step do not count.

    Args:
        logits: ``[T, *batch, V]``.
        labels: int ``[T, *batch]``.
        lengths: int ``[*batch]``: steps at and past a row's length do not count.
        mask: bool, with the first axes of the labels: what counts.
        ignore_label: a label that does not count.

    Returns:
        A float32 scalar; zero where nothing counts.

    Raises:
        ValueError: for shapes that do not fit, or a label outside 0 to V - 1.
        TypeError: if labels or lengths are not integers, or the mask not bool.

    >>> logits = jax.nn.one_hot(jnp.array([[1, 0], [2, 2]]), 3)
    >>> float(sequence_accuracy(logits, jnp.array([[1, 0], [2, 1]])))
    0.5
    """
    logits, labels, valid = check_labels("sequence_accuracy", logits, labels, lengths, mask, ignore_label)
    valid = jnp.ones(labels.shape, bool) if valid is None else valid
    right = (logits.argmax(-1) == labels) | ~valid
    return weighted_mean(right.all(0).astype(jnp.float32), valid.any(0))
