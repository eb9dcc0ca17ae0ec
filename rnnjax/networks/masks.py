"""Masks and penalties as pure functions: each that is random takes a key and says how long one mask lasts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cell import check_resets, compute_dtype
from rnnjax.checks import check_ints, check_real, describe, is_traced
from rnnjax.kinds import public
from rnnjax.promotion import as_wide

__all__ = [
    "activation_regularization",
    "check_rate",
    "drop_connect",
    "dropout",
    "locked_mask",
    "zoneout",
]


def check_rate(where: str, name: str, rate: float) -> float:
    """A rate in [0, 1), as a plain float; raises for anything else."""
    return check_real(where, name, rate, least=0, below=1)


def _rate(where: str, rate: Any) -> Any:
    """The same for a function, whose rate may be traced: to be annealed within a program, or mapped over."""
    return check_real(where, "rate", rate, least=0, below=1, traced=True)


def _is_zero(rate: Any) -> bool:
    return not is_traced(rate) and rate == 0


@public
def dropout(
    key: jax.Array | None,
    xs: jax.Array,
    rate: float | jax.Array,
    *,
    locked: bool = False,
    resets: jax.Array | None = None,
    reverse: bool = False,
) -> jax.Array:
    r"""Inverted dropout (Srivastava et al., 2014), or with ``locked`` one mask a sequence (Gal and Ghahramani, 2016).

        ys = xs * m / (1 - rate),   m ~ Bernoulli(1 - rate)

    with an ``m`` for every element, so that it is new at every step; locked, with one for every example and unit, the
    same at all steps ("variational"). Between the layers of a stack it is ``Stack(..., dropout=rate, locked=...)``.

    Args:
        key: used once a call; None drops nothing.
        xs: any shape; ``[T, *batch, H]`` where it is locked.
        rate: the share that is dropped, in [0, 1); it may be traced.
        locked: whether a mask lasts a sequence.
        resets: bool ``[T, *batch]`` of rows that hold several sequences, each of which gets a locked mask of its own.
        reverse: whether the resets are meant for time that runs backwards, as in `unroll`.

    Returns:
        As ``xs``. The gradient of what was dropped is zero.

    Raises:
        ValueError: for a rate outside [0, 1), and for a locked mask of an ``xs`` without a time axis, or with resets of
            another shape.
        TypeError: if these resets are not bool.

    >>> import jax, jax.numpy as jnp
    >>> ys = dropout(jax.random.key(0), jnp.ones((7, 2, 100)), 0.5, locked=True)
    >>> bool((ys == ys[0]).all()), bool((ys[:, 0] == ys[:, 1]).all())
    (True, False)
    """
    rate, xs = _rate("dropout", rate), jnp.asarray(xs)
    if locked:
        if not xs.ndim:
            raise ValueError(f"dropout: a locked xs must have shape [T, *batch, H], got {describe(xs)}.")
        resets = None if resets is None else _check_resets("dropout", resets, xs, "xs")
    if key is None or _is_zero(rate):
        return xs
    if locked:
        return scale_kept(locked_mask(key, xs.shape, rate, resets=resets, reverse=reverse), xs, rate)
    return scale_kept(jax.random.bernoulli(key, 1 - rate, xs.shape), xs, rate)


def scale_kept(keep: jax.Array, x: jax.Array, rate: Any) -> jax.Array:
    """``x / (1 - rate)`` where ``keep`` is set, and zero with gradient zero elsewhere."""
    return jnp.where(keep, (x / (1 - rate)).astype(x.dtype), jnp.zeros((), x.dtype))


def locked_mask(
    key: jax.Array,
    shape: tuple[int, ...],
    rate: float | jax.Array,
    *,
    resets: jax.Array | None = None,
    reverse: bool = False,
) -> jax.Array:
    """Which units a sequence keeps: bool, drawn once a sequence and the same at all of its steps.

    Args:
        key: used once.
        shape: ``(T, *batch, ...)``.
        rate: the share that is dropped.
        resets: bool ``[T, *batch]``; a set flag begins another sequence in the row, which draws a mask of its own.
        reverse: whether time runs backwards, so that a sequence ends with the step *before* its flag.

    Returns:
        ``[1, *batch, ...]`` without resets, else ``[T, *batch, ...]``.

    >>> import jax
    >>> locked_mask(jax.random.key(0), (7, 2, 5), 0.5).shape
    (1, 2, 5)
    """
    length = shape[0]
    if resets is None or not length:
        return jax.random.bernoulli(key, 1 - rate, (1, *shape[1:]))
    masks = jax.random.bernoulli(key, 1 - rate, shape)  # that of the step where a sequence begins holds for all of it
    time = as_wide(jnp.arange(length), resets.ndim)
    if reverse:
        begin = jax.lax.cummin(jnp.where(resets, time, length - 1), axis=0, reverse=True)
    else:
        begin = jax.lax.cummax(jnp.where(resets, time, 0), axis=0)
    return jnp.take_along_axis(masks, as_wide(begin, masks.ndim), axis=0)


@public
def zoneout(
    key: jax.Array | None, old: jax.Array, new: jax.Array, rate: float | jax.Array, *, expected: bool = False
) -> jax.Array:
    r"""Zoneout (Krueger et al., 2017): a unit of the state keeps its old value with probability ``rate``.

        s' = old where m, else new,   m ~ Bernoulli(rate)

    Args:
        key: used once a call, and so a new one for each step and each part of the state; None returns ``new``.
        old: the state before the step.
        new: the state after the step, of the same shape.
        rate: the probability of keeping, in [0, 1); it may be traced.
        expected: without a key, returns the mean ``rate * old + (1 - rate) * new``, with which the paper evaluates.

    Raises:
        ValueError: for a rate outside [0, 1).

    >>> import jax, jax.numpy as jnp
    >>> float(zoneout(None, jnp.zeros(()), jnp.ones(()), 0.25, expected=True))
    0.75
    """
    rate = _rate("zoneout", rate)
    old, new = jnp.asarray(old), jnp.asarray(new)
    if old.shape != new.shape:
        raise ValueError(f"zoneout: old and new must have one shape, got {describe(old)} and {describe(new)}.")
    if key is not None and not _is_zero(rate):
        return jnp.where(jax.random.bernoulli(key, rate, new.shape), old, new)
    return rate * old + (1 - rate) * new if expected and key is None and not _is_zero(rate) else new


@public
def drop_connect(key: jax.Array | None, params: Any, rate: float | jax.Array, fields: Sequence[str] = ("w_hh",)) -> Any:
    r"""DropConnect (Wan et al., 2013) on recurrent weights, as in the AWD-LSTM (Merity et al., 2018).

        w = w_raw * m / (1 - rate),   m ~ Bernoulli(1 - rate)

    A function of the raw weights: they are what the optimiser holds, and their gradient is that of ``w``, scaled
    alike and zero where an entry was dropped.

    Args:
        key: one a call; every array of that name (every layer's) gets a key of its own from it. One mask holds for
            all steps and examples of whatever the result is used for. None drops nothing.
        params: of a cell, or any tree of them, such as `StackParams`.
        rate: the share that is dropped, in [0, 1); it may be traced.
        fields: names of the arrays that lose entries.

    Returns:
        As ``params``.

    Raises:
        ValueError: for a rate outside [0, 1), or a field that ``params`` have nowhere.

    >>> import jax, rnnjax
    >>> params = rnnjax.LSTM(50).init(jax.random.key(0), input_size=3)
    >>> dropped = drop_connect(jax.random.key(1), params, 0.5)
    >>> round(float((dropped.w_hh == 0).mean()), 1), bool((dropped.w_ih == params.w_ih).all())
    (0.5, True)
    """
    rate = _rate("drop_connect", rate)
    fields = (fields,) if isinstance(fields, str) else tuple(fields)
    flat, treedef = jax.tree_util.tree_flatten_with_path(params)
    names = [_name(path) for path, _ in flat]
    for field in fields:
        if field not in names:
            known = ", ".join(sorted({name for name in names if name}))
            raise ValueError(f"drop_connect: params must have an array {field!r}, got {known}; name one of these.")
    if key is None or _is_zero(rate):
        return params
    chosen = [index for index, name in enumerate(names) if name in fields]
    leaves = [leaf for _, leaf in flat]
    for k, index in zip(jax.random.split(key, len(chosen)), chosen, strict=True):
        leaves[index] = scale_kept(jax.random.bernoulli(k, 1 - rate, leaves[index].shape), leaves[index], rate)
    return jax.tree.unflatten(treedef, leaves)


def _name(path: tuple[Any, ...]) -> str | None:
    """The field of a NamedTuple or the key of a dict that leads to a leaf."""
    last = path[-1] if path else None
    return getattr(last, "name", getattr(last, "key", None))


@public
def activation_regularization(
    ys: jax.Array, *, temporal: bool = False, lengths: jax.Array | None = None, resets: jax.Array | None = None
) -> jax.Array:
    r"""Penalties on outputs, means over all valid steps (Merity et al., 2017), to be added to the loss times a factor.

        ys[t] ** 2                   activation regularisation, AR: of the outputs after their dropout, times 2 there
        (ys[t] - ys[t-1]) ** 2       temporal, TAR: of the outputs before it, times 1 in the AWD-LSTM

    Args:
        ys: ``[T, *batch, H]``.
        temporal: whether it is the second.
        lengths: int ``[*batch]``; steps at and past a row's length count nowhere, and what stands there, also NaN,
            reaches neither value nor gradient.
        resets: bool ``[T, *batch]``; a pair of steps whose second one is marked spans two sequences and does not count.

    Returns:
        A scalar, float32 or wider; zero where no step is valid.

    Raises:
        ValueError: for lengths or resets of another shape.
        TypeError: if the resets are not bool.

    >>> import jax.numpy as jnp
    >>> float(activation_regularization(jnp.full((4, 2, 3), 2.0)))
    4.0
    >>> float(activation_regularization(jnp.arange(5.0)[:, None], temporal=True))
    1.0
    """
    where, ys = "activation_regularization", jnp.asarray(ys)
    if not ys.ndim:
        raise ValueError(f"{where}: ys must have shape [T, *batch, H], got {describe(ys)}.")
    valid = _valid(where, ys, lengths)
    if not temporal:
        return _mean_square(ys, valid)
    if valid is not None:
        ys = jnp.where(valid, ys, jnp.zeros((), ys.dtype))  # before the difference, which would spread a NaN
        valid = valid[1:]  # a step's predecessor is valid if the step is
    if resets is not None:
        joined = ~as_wide(_check_resets(where, resets, ys, "ys")[1:], ys.ndim)
        valid = joined if valid is None else valid & joined
    dtype = compute_dtype(ys.dtype)
    return _mean_square(ys[1:].astype(dtype) - ys[:-1].astype(dtype), valid)


def _check_resets(where: str, resets: Any, array: jax.Array, name: str) -> jax.Array:
    """The resets of ``array [T, *batch, ...]``, where they themselves say how many axes are those of the batch."""
    resets = jnp.asarray(resets)
    axes = max(1, min(resets.ndim, array.ndim - 1))
    return check_resets(where, resets, array.shape[:axes], name)


def _valid(where: str, ys: jax.Array, lengths: jax.Array | None) -> jax.Array | None:
    """Bool ``[T, *batch, 1]``, with as many axes as ``ys``."""
    if lengths is None:
        return None
    lengths = check_ints(where, "lengths", lengths, low=0, high=ys.shape[0])
    if lengths.shape != ys.shape[1 : 1 + lengths.ndim]:
        raise ValueError(f"{where}: lengths must have the batch shape of ys = {describe(ys)}, got {describe(lengths)}.")
    return as_wide(jnp.arange(ys.shape[0]), ys.ndim) < as_wide(lengths[None], ys.ndim)


def _mean_square(ys: jax.Array, valid: jax.Array | None) -> jax.Array:
    wide = ys.astype(compute_dtype(ys.dtype))
    if valid is None:
        return jnp.sum(wide**2) / max(ys.size, 1)
    wide = jnp.where(valid, wide, 0)  # before the square, whose derivative at a NaN is one
    count = jnp.sum(jnp.broadcast_to(valid, ys.shape), dtype=wide.dtype)
    return jnp.sum(wide**2) / jnp.maximum(count, 1)
