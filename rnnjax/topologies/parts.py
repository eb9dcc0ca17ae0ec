"""What topologies are made of: a reader of the input, a network over time, an affine map, and masks of what counts."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cell import Cell, compute_dtype, matmul
from rnnjax.checks import check_ints, check_key, describe, did_you_mean, is_traced, shape_of, short
from rnnjax.initializers import Glorot
from rnnjax.kinds import check_fields, public
from rnnjax.network import Network, input_shape, output_shape
from rnnjax.networks.masks import dropout
from rnnjax.promotion import as_wide, promoting

__all__ = [
    "Dense",
    "Reader",
    "Reading",
    "affine",
    "check_network",
    "flat",
    "init_dense",
    "judged_steps",
    "length_mask",
    "masked_mean",
    "masked_softmax",
    "split_key",
    "valid_steps",
    "weighted_mean",
    "with_dropout",
]


class Dense(NamedTuple):
    """Parameters of an affine map."""

    w: jax.Array  # [F, O]
    b: jax.Array  # [O]


def init_dense(key: jax.Array, size: int, output_size: int, dtype: Any) -> Dense:
    """Glorot weights and no bias."""
    return Dense(Glorot()(key, (size, output_size), dtype), jnp.zeros((output_size,), dtype))


@promoting
def affine(params: Dense, x: jax.Array) -> jax.Array:
    """``x @ w + b`` in the dtype of the weights, accumulated and returned in float32 or wider."""
    dtype = compute_dtype(params.w.dtype)
    return matmul(x, params.w, dtype) + params.b.astype(dtype)


@dataclasses.dataclass(frozen=True)
class Reader:
    """Turns an input into numbers: floats as they are, symbols by a table or as one-hot vectors."""

    owner: str
    input_size: int | None
    vocab_size: int | None
    embed_size: int

    def __post_init__(self) -> None:
        if (self.input_size is None) == (self.vocab_size is None):
            raise ValueError(
                f"{self.owner}: exactly one of input_size (numbers) and vocab_size (symbols) must be given, "
                f"got input_size={short(self.input_size)} and vocab_size={self.vocab_size!r}."
            )
        check_fields(self, self.owner, least={"embed_size": 0})
        if self.embed_size and self.vocab_size is None:
            raise ValueError(
                f"{self.owner}: embed_size is for symbols, got {self.embed_size} without vocab_size; "
                "leave it out, or pass vocab_size in place of input_size."
            )

    @property
    def size(self) -> int:
        """The numbers that one input becomes."""
        return self.embed_size or self.vocab_size or self.input_size or 0

    def init(self, key: jax.Array, dtype: Any) -> jax.Array | None:
        """The table ``[V, E]``, standard normal; None where there is none."""
        return jax.random.normal(key, (self.vocab_size or 0, self.embed_size), dtype) if self.embed_size else None

    def read(
        self, table: jax.Array | None, xs: Any, dtype: Any, rate: float = 0.0, key: Any = None, lengths: Any = None,
        valid: Any = None,
    ) -> jax.Array:  # fmt: skip
        """``[...]`` symbols or ``[..., I]`` numbers to ``[..., size]``; with a key, dropout thins what a table holds.

        The symbol -1 is none at all and reads as zeros. Any other outside of 0 to V - 1 that counts is an error, and
        where it is traced it reads as NaN, so that it shows.
        """
        if self.vocab_size is None:
            xs = jnp.asarray(xs)
            if not jnp.issubdtype(xs.dtype, jnp.floating):
                raise TypeError(f"{self.owner}: inputs must be floating, got {describe(xs)}; symbols need vocab_size.")
            return xs
        judge = judged_steps(lengths, shape_of(xs), valid)
        xs = check_ints(self.owner, "symbols", xs, low=0, high=self.vocab_size - 1, but=-1, judge=judge)
        if table is None:
            ys = jax.nn.one_hot(xs, self.vocab_size, dtype=dtype)
            wrong = (xs >= self.vocab_size) | (xs < -1)
            return jnp.where(wrong[..., None], jnp.nan, ys)
        # An index below zero would count from behind.
        ys = table.at[jnp.where(xs < 0, self.vocab_size, xs)].get(mode="fill", fill_value=jnp.nan)
        return dropout(key, jnp.where((xs == -1)[..., None], jnp.zeros((), table.dtype), ys), rate)


class Reading:
    """A model that reads numbers (``input_size``) or symbols (``vocab_size``, ``embed_size``)."""

    input_size: int | None
    vocab_size: int | None
    embed_size: int

    @property
    def _reader(self) -> Reader:
        return Reader(type(self).__name__, self.input_size, self.vocab_size, self.embed_size)


def check_network(owner: str, name: str, network: Any, *, both: bool = False, flat: bool = False) -> None:
    """Raises unless it is a cell or, with ``both``, any network; with ``flat`` its features are one axis."""
    usable = not isinstance(network, type) and isinstance(network, Cell | Network if both else Cell)
    if not usable:
        what = "a cell or a network" if both else "a cell"
        why = ", which needs the future" if isinstance(network, Network) else ""
        raise TypeError(f"{owner}: {name} must be {what}, got {short(network)}{why}.")
    if flat and len(input_shape(network, 1)) > 1:
        raise ValueError(f"{owner}: {name} must be a cell whose features are one axis, got {short(network)}.")


def run_options(where: str, options: dict[str, Any]) -> dict[str, Any]:
    """How a network runs: ``implementation`` and ``remat``; all else would change what is computed.

    Raises:
        TypeError: for another keyword.
    """
    known = ("implementation", "remat")
    for name in options:
        if name not in known:
            guess = did_you_mean(name, (*known, "lengths", "valid", "key")) or "."
            raise TypeError(f"{where}: options must be {' or '.join(known)}, got {name}={short(options[name])}{guess}")
    return options


def flat(network: Any, ys: jax.Array) -> jax.Array:
    """Outputs ``[..., F]`` of a network, its features on one axis."""
    inner = output_shape(network, 1)
    return ys.reshape(*ys.shape[: ys.ndim - len(inner)], math.prod(inner))


def with_dropout(network: Any, rate: float) -> Any:
    """The network with this rate in the place of every ``dropout`` in it that is zero; others keep what they have."""
    if not isinstance(network, Network) or not dataclasses.is_dataclass(network) or not rate:
        return network

    def spread(value: Any) -> Any:
        return tuple(map(spread, value)) if isinstance(value, tuple) else with_dropout(value, rate)

    values = {field.name: spread(getattr(network, field.name)) for field in dataclasses.fields(network)}
    if values.get("dropout") == 0:
        values["dropout"] = rate
    return dataclasses.replace(network, **values)  # type: ignore[type-var]


def split_key(where: str, key: jax.Array | None, count: int) -> list[Any]:
    """So many keys, or as many times None."""
    return [None] * count if key is None else list(jax.random.split(check_key(where, key), count))


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
