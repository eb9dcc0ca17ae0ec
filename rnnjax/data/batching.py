r"""Batches of ragged sequences that waste little: buckets of similar lengths.

A batch padded to its longest sequence computes ``B * max(lengths)`` steps, of which ``sum(lengths)`` count. Buckets put
sequences of similar lengths together; `pack_documents` puts several of them into one row. Everything here runs on the
host in NumPy, for shapes depend on data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rnnjax.cell import check_size, describe
from rnnjax.checks import short
from rnnjax.kinds import public

__all__ = [
    "Bucket",
    "Buckets",
    "bucket_boundaries",
    "bucket_by_length",
    "check_arrays",
    "pad_sequences",
    "share_of_padding",
    "time_first",
]

_MAX_CANDIDATES = 1024  # lengths that a boundary may take: keeps the exact search below a second


class Bucket(NamedTuple):
    """One batch: which sequences it holds, and the length they are padded to."""

    indices: np.ndarray  # int [B]; -1 is a row that holds nothing
    seq_len: int


class Buckets(NamedTuple):
    """What `bucket_by_length` returns."""

    batches: tuple[Bucket, ...]
    boundaries: tuple[int, ...]  # the lengths that batches may have
    padding: float  # the share of steps that hold nothing, in [0, 1)


@public
def time_first(arrays: Any) -> Any:
    """Arrays ``[B, T, ...]`` as ``[T, B, ...]``, and back: the first two axes of every array of a tree change places.

    Time comes first everywhere in this library, since a loop over time takes its slices from the first axis. Within
    `jax.jit` the turn is a part of the program. A ``lengths`` array, which has one axis, stays as it is.

    Raises:
        TypeError: for what is no array.

    >>> time_first({"x": np.zeros((32, 20, 3)), "lengths": np.zeros(32)})["x"].shape
    (20, 32, 3)
    """
    leaves = jax.tree.leaves(arrays, is_leaf=lambda leaf: leaf is None)
    for leaf in leaves or [arrays]:
        if not hasattr(leaf, "swapaxes") or isinstance(leaf, type) or getattr(leaf.dtype, "kind", "O") in "OUS":
            raise TypeError(f"time_first: arrays must be a tree of arrays, got {short(leaf)}.")
    return jax.tree.map(lambda array: array.swapaxes(0, 1) if array.ndim > 1 else array, arrays)


@public
def bucket_boundaries(lengths: Any, num_buckets: int) -> tuple[int, ...]:
    """The lengths to pad to, at most ``num_buckets`` of them, that leave the least padding in all.

    Found by dynamic programming over the distinct lengths (over 1024 of them, evenly spread in rank, where there are
    more).

    Args:
        lengths: int ``[D]``, each at least 1.
        num_buckets: how many, and so for how many shapes a jitted function compiles.

    Returns:
        Lengths in increasing order; the last is the greatest of all.

    Raises:
        ValueError: for no lengths, one below 1, or no bucket.
        TypeError: if the lengths or ``num_buckets`` are not integers.

    >>> bucket_boundaries([1, 2, 2, 3, 50, 51], num_buckets=2)
    (3, 51)
    """
    sizes = _check_lengths("bucket_boundaries", lengths)
    check_size("bucket_boundaries", "num_buckets", num_buckets)
    tops = np.unique(sizes)
    if len(tops) > _MAX_CANDIDATES:
        tops = tops[np.linspace(0, len(tops) - 1, _MAX_CANDIDATES).round().astype(int)]
    below = np.searchsorted(np.sort(sizes), tops, side="right")  # how many sequences are no longer than each
    count = np.concatenate([[0], below]).astype(np.int64)
    # cost[j]: the steps in all of the sequences up to the j-th top, padded with the buckets so far.
    cost = np.concatenate([[0], below * tops.astype(np.int64)])
    choices = []
    for _ in range(min(num_buckets, len(tops)) - 1):
        best, choice = cost.copy(), np.zeros(len(cost), np.int64)
        for j in range(1, len(cost)):
            options = cost[:j] + (count[j] - count[:j]) * int(tops[j - 1])
            choice[j] = int(options.argmin())
            best[j] = options[choice[j]]
        cost = best
        choices.append(choice)
    found, j = [], len(tops)
    for choice in [*reversed(choices), np.zeros(len(cost), np.int64)]:
        if j:
            found.append(int(tops[j - 1]))
            j = int(choice[j])
    return tuple(reversed(found))


@public
def bucket_by_length(
    lengths: Any,
    batch_size: int,
    *,
    num_buckets: int = 8,
    boundaries: Sequence[int] | None = None,
    seed: int | None = None,
) -> Buckets:
    """Batches of sequences of similar lengths: every sequence in exactly one, and few shapes.

    Sequences are ordered by length and cut into batches, and each batch is padded to the smallest boundary that holds
    it. So every batch has exactly B rows and one of the lengths in ``boundaries``, and a jitted function compiles at
    most as often. One batch of the shortest sequences may have rows that hold nothing: their index is -1, and
    `pad_sequences` gives them length 0.

    Args:
        lengths: int ``[D]``, each at least 1.
        batch_size: B.
        num_buckets: how many lengths may be chosen, by `bucket_boundaries` from those of the batches.
        boundaries: the lengths to pad to, instead of choosing them; the greatest must hold every sequence.
        seed: shuffles sequences among the batches of one boundary, and the batches; None goes from the shortest to
            the longest. Take another seed each epoch.

    Returns:
        `Buckets`, with the padding that is left.

    Raises:
        ValueError: for no lengths, one below 1, or one above every boundary.
        TypeError: if the lengths or sizes are not integers.

    >>> buckets = bucket_by_length([2, 9, 3, 10, 2, 9], batch_size=2, num_buckets=2)
    >>> [(batch.indices.tolist(), batch.seq_len) for batch in buckets.batches]
    [([0, 4], 2), ([2, 1], 10), ([5, 3], 10)]
    >>> round(buckets.padding, 2)
    0.2
    """
    sizes = _check_lengths("bucket_by_length", lengths)
    check_size("bucket_by_length", "batch_size", batch_size)
    rng = None if seed is None else np.random.default_rng(seed)
    order = np.arange(len(sizes)) if rng is None else rng.permutation(len(sizes))
    order = order[np.argsort(sizes[order], kind="stable")]
    filler = -len(order) % batch_size
    last = np.arange(batch_size - filler - 1, len(order), batch_size)  # where a batch ends: its longest sequence
    longest = sizes[order[last]]
    if boundaries is None:
        boundaries = bucket_boundaries(longest, num_buckets)
    tops = np.unique(_check_lengths("bucket_by_length", boundaries, "boundaries"))
    if longest[-1] > tops[-1]:
        raise ValueError(
            f"bucket_by_length: the greatest boundary must hold every sequence, got {tops[-1]} for a length of "
            f"{longest[-1]}; add a boundary, or cut the sequence."
        )
    bucket = np.searchsorted(tops, longest)  # of every batch
    if rng is not None:
        for part in np.split(order, last[np.flatnonzero(np.diff(bucket))] + 1):
            rng.shuffle(part)  # a view of `order`: whatever is in the bucket fits into each of its batches
    rows = np.concatenate([np.full(filler, -1), order]).reshape(-1, batch_size)
    batches = [Bucket(row, int(tops[which])) for row, which in zip(rows, bucket, strict=True)]
    if rng is not None:
        batches = [batches[i] for i in rng.permutation(len(batches))]
    steps = sum(batch.seq_len * batch_size for batch in batches)
    return Buckets(tuple(batches), tuple(map(int, tops)), share_of_padding(sizes, steps))


@public
def pad_sequences(
    sequences: Sequence[Any], indices: Any = None, seq_len: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The padded arrays of one batch, as `unroll` takes them.

    Args:
        sequences: arrays ``[L, ...]``.
        indices: int ``[B]``, which of them, -1 for a row that holds nothing; None takes all.
        seq_len: T, at least the greatest L of these; None takes that.

    Returns:
        ``xs [T, B, ...]`` with zeros in the padding, and ``lengths [B]``.

    Raises:
        ValueError: for no sequences, arrays that do not fit together, an index of none of them, or a ``seq_len`` that
            is too small.
        TypeError: if ``indices`` or ``seq_len`` are not integers.

    >>> xs, lengths = pad_sequences([[1, 2, 3], [4]])
    >>> xs.tolist(), lengths.tolist()
    ([[1, 4], [2, 0], [3, 0]], [3, 1])
    """
    arrays = check_arrays("pad_sequences", "sequence", sequences)
    indices = np.arange(len(arrays)) if indices is None else _check_indices(indices, len(arrays))
    lengths = np.asarray([len(arrays[i]) if i >= 0 else 0 for i in indices], np.int32)
    longest = int(lengths.max(initial=0))
    seq_len = longest if seq_len is None else seq_len
    if longest > seq_len:
        raise ValueError(f"pad_sequences: seq_len must be at least the longest sequence, {longest}, got {seq_len}.")
    xs = np.zeros((seq_len, len(indices), *arrays[0].shape[1:]), arrays[0].dtype)
    for row, i in enumerate(indices):
        if i >= 0:
            xs[: lengths[row], row] = arrays[i]
    return xs, lengths


def share_of_padding(sizes: np.ndarray, steps: int) -> float:
    """The share of ``steps`` that sequences of these sizes leave empty."""
    return (steps - int(sizes.sum())) / steps


def _as_array(where: str, name: str, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # nested lists that differ in length, for example
        array = np.asarray(None)
    if array.dtype.kind not in "biufcV":
        raise TypeError(f"{where}: {name} must be an array of numbers, got {short(value)}.")
    return array


def _check_lengths(where: str, lengths: Any, name: str = "lengths") -> np.ndarray:
    array = _as_array(where, name, lengths)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{where}: {name} must be a list of at least one length, got {short(lengths)}.")
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{where}: {name} must be integers, got {describe(array)}.")
    if array.min() < 1:
        raise ValueError(f"{where}: {name} must be at least 1, got {array.min()} at index {array.argmin()}.")
    return array.astype(np.int64)


def check_arrays(where: str, kind: str, arrays: Sequence[Any]) -> list[np.ndarray]:
    """The sequences as arrays that differ in their first axis alone."""
    if isinstance(arrays, str | bytes | Mapping) or not hasattr(arrays, "__iter__") or not getattr(arrays, "ndim", 1):
        raise TypeError(f"{where}: there must be a list of {kind}s, got {short(arrays)}.")
    found = [_as_array(where, f"{kind}s[{index}]", array) for index, array in enumerate(arrays)]
    if not found:
        raise ValueError(f"{where}: there must be at least one {kind}, got none.")
    # An empty list has no dtype of its own, and where it is wrong, that is for its length.
    first = next((array for array in found if array.shape != (0,)), found[0])
    for index, array in enumerate(found):
        same = array.ndim and (array.shape[1:], array.dtype) == (first.shape[1:], first.dtype)
        if not same and array.shape != (0,):
            raise ValueError(
                f"{where}: every {kind} must be an array [L, ...] with the dtype and the other axes of the first, "
                f"{describe(first)}, got {describe(array)} in {kind}s[{index}]."
            )
    return [array if array.shape != (0,) else first[:0] for array in found]


def _check_indices(indices: Any, count: int) -> np.ndarray:
    array = _as_array("pad_sequences", "indices", indices)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"pad_sequences: indices must be integers, got {describe(array)}.")
    if array.ndim != 1:
        raise ValueError(f"pad_sequences: indices must have shape [B], got {describe(array)}.")
    for index in array[(array < -1) | (array >= count)][:1]:
        raise ValueError(
            f"pad_sequences: indices must lie between 0 and {count - 1}, or be -1 for a row that holds nothing, got "
            f"{index}."
        )
    return array.astype(np.int64)
