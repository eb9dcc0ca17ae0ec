"""Losses of what counts in a padded batch (sigmoid, softmax, regression), and how often a model is right."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cell import compute_dtype, describe
from rnnjax.checks import check_ints, check_real, check_size, is_traced
from rnnjax.kinds import public
from rnnjax.promotion import as_wide, promoting
from rnnjax.topologies.parts import valid_steps, weighted_mean

__all__ = [
    "accuracy",
    "binary_accuracy",
    "binary_loss",
    "check_labels",
    "huber_loss",
    "mse_loss",
    "paired",
    "sequence_accuracy",
    "softmax_loss",
]


@public
def softmax_loss(
    logits: jax.Array,
    labels: jax.Array,
    *,
    lengths: jax.Array | None = None,
    mask: jax.Array | None = None,
    label_smoothing: float = 0.0,
    class_weights: jax.Array | None = None,
    ignore_label: int | None = None,
) -> jax.Array:
    r"""Cross-entropy of one class out of V, in nats: the mean over what counts.

        log p    = log_softmax(logits)
        losses_i = -(1 - eps) * w[labels_i] * log p[i, labels_i] - eps / V * sum_c w[c] * log p[i, c]
        loss     = sum_i losses_i / sum_i w[labels_i]

    with ``w = 1`` unless there are class weights, and ``eps = label_smoothing`` (Szegedy et al., 2016). It is what
    ``torch.nn.functional.cross_entropy`` computes with these options, but zero where nothing counts. Neither logits
    nor labels of what does not count reach the loss or a gradient, be they NaN.

    Args:
        logits: ``[..., V]``; ``[B, V]`` for a class a sequence, ``[T, B, V]`` for one a step.
        labels: int ``[...]``, from 0 to V - 1; where they are traced, another one that counts makes the loss NaN.
        lengths: int ``[*batch]`` of ``labels [T, *batch, ...]``: steps at and past a row's length do not count.
        mask: bool, with the first axes of the labels: what counts.
        label_smoothing: the share of the probability that is spread evenly over all classes, in [0, 1]; it may be
            traced.
        class_weights: ``[V]``.
        ignore_label: a label that does not count, such as -1 or -100.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: for shapes that do not fit, a label outside 0 to V - 1, or a smoothing outside [0, 1].
        TypeError: if labels or lengths are not integers, or the mask not bool.

    >>> logits, labels = jnp.zeros((3, 2, 4)), jnp.zeros((3, 2), int)
    >>> bool(jnp.isclose(softmax_loss(logits, labels, lengths=jnp.array([3, 1])), jnp.log(4.0)))
    True
    """
    logits, labels, valid = check_labels("softmax_loss", logits, labels, lengths, mask, ignore_label)
    label_smoothing = check_real("softmax_loss", "label_smoothing", label_smoothing, least=0, most=1, traced=True)
    dtype, classes = compute_dtype(logits.dtype), logits.shape[-1]
    if valid is not None:
        logits = jnp.where(valid[..., None], logits, jnp.zeros((), logits.dtype))
        labels = jnp.where(valid, labels, 0)
    labels = jnp.where(labels < 0, classes, labels)  # a negative index would count from behind
    log_p = jax.nn.log_softmax(logits.astype(dtype))
    weights = jnp.ones(labels.shape, dtype)
    losses = -jnp.take_along_axis(log_p, labels[..., None], axis=-1, mode="fill")[..., 0]
    if class_weights is not None:
        class_weights = _check_weights("softmax_loss", class_weights, classes, dtype)
        weights = class_weights.at[labels].get(mode="clip")
        log_p, losses = promoting(jnp.multiply)(log_p, class_weights), losses * weights
    if is_traced(label_smoothing) or label_smoothing:
        losses = (1 - label_smoothing) * losses - label_smoothing * log_p.mean(-1)
    return _mean(losses, weights, valid)


@public
def binary_loss(
    logits: jax.Array,
    labels: jax.Array,
    *,
    lengths: jax.Array | None = None,
    mask: jax.Array | None = None,
    label_smoothing: float = 0.0,
    class_weights: jax.Array | None = None,
) -> jax.Array:
    r"""Cross-entropy of yes or no, in nats, for one question or many at once: the mean over what counts.

        y'_i     = (1 - eps) * y_i + eps / 2
        losses_i = -w[1] * y'_i * log sigmoid(z_i) - w[0] * (1 - y'_i) * log sigmoid(-z_i)
        loss     = sum_i losses_i / sum_i (w[1] * y_i + w[0] * (1 - y_i))

    with logits z, labels y and ``eps = label_smoothing``. It is `softmax_loss` of the two logits ``(0, z)``.

    Args:
        logits: ``[...]``, or ``[..., 1]`` where the labels are ``[...]``.
        labels: ``[...]``: bool, int or probabilities, from 0 to 1; each feature behind the batch axes is a question
            of its own.
        lengths: int ``[*batch]`` of ``labels [T, *batch, ...]``: steps at and past a row's length do not count.
        mask: bool, with the first axes of the labels: what counts.
        label_smoothing: in [0, 1]; it may be traced.
        class_weights: ``[2]``, of no and yes.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: for shapes that do not fit, or a label or a smoothing outside [0, 1].
        TypeError: if the lengths are not integers, or the mask not bool.

    >>> logits = jnp.array([[2.0], [-2.0]])  # [B, 1], from a model with output_size=1
    >>> bool(jnp.isclose(binary_loss(logits, jnp.array([True, False])), jnp.log1p(jnp.exp(-2.0))))
    True
    """
    label_smoothing = check_real("binary_loss", "label_smoothing", label_smoothing, least=0, most=1, traced=True)
    z, y, valid = paired("binary_loss", "logits", logits, "labels", labels, lengths, mask)
    if not is_traced(y) and bool(((y < 0) | (y > 1)).any()):
        raise ValueError(
            f"binary_loss: labels must lie between 0 and 1, got values from {float(y.min()):g} to {float(y.max()):g}."
        )
    smooth = (1 - label_smoothing) * y + label_smoothing / 2
    yes, no = smooth * jax.nn.softplus(-z), (1 - smooth) * jax.nn.softplus(z)
    if class_weights is None:
        return _mean(yes + no, jnp.ones((), z.dtype), valid)
    w = _check_weights("binary_loss", class_weights, 2, z.dtype)
    return _mean(w[1] * yes + w[0] * no, w[1] * y + w[0] * (1 - y), valid)


@public
def mse_loss(
    predictions: jax.Array, targets: jax.Array, *, lengths: jax.Array | None = None, mask: jax.Array | None = None
) -> jax.Array:
    r"""Mean squared error over what counts: ``mean (predictions - targets)^2``, also over the features.

    Args:
        predictions: ``[...]``, or ``[..., 1]`` where the targets are ``[...]``. Shapes are never broadcast.
        targets: ``[...]``.
        lengths: int ``[*batch]`` of ``targets [T, *batch, ...]``: steps at and past a row's length do not count.
        mask: bool, with the first axes of the targets: what counts.

    Returns:
        A scalar, float32 or wider; zero where nothing counts.

    Raises:
        ValueError: for shapes that do not fit.
        TypeError: if the lengths are not integers, or the mask not bool.

    >>> float(mse_loss(jnp.array([[1.0], [jnp.nan]]), jnp.array([3.0, 0.0]), mask=jnp.array([True, False])))
    4.0
    """
    p, t, valid = paired("mse_loss", "predictions", predictions, "targets", targets, lengths, mask)
    return _mean(jnp.square(p - t), jnp.ones((), p.dtype), valid)


@public
def huber_loss(
    predictions: jax.Array,
    targets: jax.Array,
    *,
    delta: float = 1.0,
    lengths: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    r"""Mean over what counts of a loss that grows like a square near zero and like a line far off (Huber, 1964).

        r     = predictions - targets
        losses = r^2 / 2  where |r| <= delta,  else  delta * (|r| - delta / 2)

    Args:
        predictions: ``[...]``, or ``[..., 1]`` where the targets are ``[...]``. Shapes are never broadcast.
        targets: ``[...]``.
        delta: where the square ends, above zero; it may be traced.
        lengths: int ``[*batch]`` of ``targets [T, *batch, ...]``: steps at and past a row's length do not count.
        mask: bool, with the first axes of the targets: what counts.

    Returns:
        A scalar, float32 or wider; zero where nothing counts.

    Raises:
        ValueError: for shapes that do not fit, or a delta that is not above zero.
        TypeError: if the lengths are not integers, or the mask not bool.

    >>> float(huber_loss(jnp.array([0.5, 4.0]), jnp.zeros(2)))  # (0.125 + 3.5) / 2
    1.8125
    """
    import optax  # not at the top: who only runs a network need not wait for it

    delta = check_real("huber_loss", "delta", delta, above=0, traced=True)
    p, t, valid = paired("huber_loss", "predictions", predictions, "targets", targets, lengths, mask)
    # A traced delta comes in a dtype of its own, which must not widen the result.
    limit: Any = jnp.asarray(delta, p.dtype)
    return _mean(optax.losses.huber_loss(p, t, delta=limit), jnp.ones((), p.dtype), valid)


def check_labels(
    where: str, logits: Any, labels: Any, lengths: Any, mask: Any, ignore_label: int | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Logits ``[..., V]`` and int32 labels ``[...]`` as arrays, and which count; raises unless they are such."""
    logits = jnp.asarray(logits)
    found = check_ints(where, "labels", labels)
    if logits.ndim < 1 or found.shape != logits.shape[:-1]:
        raise ValueError(
            f"{where}: labels must have the shape of the logits without their last axis, "
            f"got {describe(labels) if hasattr(labels, 'dtype') else describe(found)} for logits {describe(logits)}."
        )
    valid = valid_steps(where, "labels", found.shape, lengths, mask, same=True)
    if not is_traced((labels, valid)):
        judge = True if valid is None else np.asarray(valid)
        check_ints(where, "labels", labels, low=0, high=logits.shape[-1] - 1, but=ignore_label, judge=judge)
    if ignore_label is not None:
        counts = found != ignore_label
        valid = counts if valid is None else valid & counts
    return logits, found, valid


def paired(
    where: str, name: str, got: Any, other: str, wanted: Any, lengths: Any, mask: Any
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Predictions and targets of one shape and dtype, with zeros where they do not count, and what does."""
    got, wanted = jnp.asarray(got), jnp.asarray(wanted)
    if got.shape == (*wanted.shape, 1):
        got = got[..., 0]
    if got.shape != wanted.shape:  # [B, 1] and [B] would broadcast to [B, B]
        raise ValueError(
            f"{where}: {name} must have the shape of the {other}, or one more axis of size 1, "
            f"got {describe(got)} for {other} {describe(wanted)}."
        )
    dtype = compute_dtype(got.dtype)
    got, wanted = got.astype(dtype), wanted.astype(dtype)
    valid = valid_steps(where, other, wanted.shape, lengths, mask, same=True)
    if valid is not None:  # before anything is computed, since the slope at a NaN is a NaN
        got, wanted = (jnp.where(valid, x, jnp.zeros((), dtype)) for x in (got, wanted))
    return got, wanted, valid


def _mean(losses: jax.Array, weights: jax.Array, valid: jax.Array | None) -> jax.Array:
    """``losses`` have been multiplied by the weights."""
    weights = jnp.broadcast_to(weights, losses.shape)
    if valid is not None:
        valid = as_wide(valid, losses.ndim)
        losses, weights = (jnp.where(valid, x, jnp.zeros((), x.dtype)) for x in (losses, weights))
    total = weights.sum()
    return losses.sum() / jnp.where(total == 0, jnp.ones((), total.dtype), total)


def _check_weights(where: str, weights: Any, classes: int, dtype: Any) -> jax.Array:
    weights = jnp.asarray(weights, dtype)
    if weights.shape != (classes,):
        raise ValueError(
            f"{where}: class_weights must have shape [{classes}], one for each class, got {describe(weights)}."
        )
    values = None if is_traced(weights) else np.asarray(weights, np.float64)
    if values is not None and not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(f"{where}: class_weights must be finite and not negative, got {values.tolist()}.")
    return weights


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
    check_size("accuracy", "top_k", top_k, most=logits.shape[-1])
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
