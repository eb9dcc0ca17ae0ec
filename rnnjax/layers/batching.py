r"""Batches of ragged sequences that waste little: buckets of similar lengths, and documents packed into rows.

A batch padded to its longest sequence computes ``B * max(lengths)`` steps, of which ``sum(lengths)`` count. Buckets put
sequences of similar lengths together. Packing puts several documents into one row, one behind the other, and leaves it
to ``resets`` of `unroll` that none sees another. Everything here runs on the host in NumPy, for shapes depend on data.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rnnjax.cell import check_size, describe

__all__ = [
    "Bucket",
    "Buckets",
    "Packed",
    "bucket_boundaries",
    "bucket_by_length",
    "pack_documents",
    "pad_sequences",
    "padded_share",
    "unpack_documents",
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


class Packed(NamedTuple):
    """Documents packed into N rows of T steps, and where each of them went."""

    xs: np.ndarray  # [T, N, ...]; zeros behind the last document of a row
    resets: np.ndarray  # bool [T, N]: the first step of every document
    ends: np.ndarray  # bool [T, N]: the last step of every document, the resets for ``reverse=True``
    lengths: np.ndarray  # int [N]: steps of a row that hold documents
    segment_ids: np.ndarray  # int [T, N]: the document of every step; -1 in padding
    positions: np.ndarray  # int [T, N]: the step within its document; 0 in padding
    rows: np.ndarray  # int [D]: the row of every document
    starts: np.ndarray  # int [D]: its first step there
    sizes: np.ndarray  # int [D]: its length
    padding: float  # the share of steps that hold nothing, in [0, 1)


def padded_share(lengths: Any, batch_size: int | None = None) -> float:
    """The share of steps that hold nothing if sequences are padded, in the order given, to the longest of their batch.

    Args:
        lengths: int ``[D]``, each at least 1.
        batch_size: B, the last batch may be smaller; None is one batch of all.

    Raises:
        ValueError: for no lengths, or one below 1.
        TypeError: if the lengths are not integers.

    >>> padded_share([10, 2, 10, 10], batch_size=2)
    0.2
    """
    sizes = _check_lengths("padded_share", lengths)
    if batch_size is None:
        batch_size = len(sizes)
    check_size("padded_share", "batch_size", batch_size)
    parts = [sizes[i : i + batch_size] for i in range(0, len(sizes), batch_size)]
    return _share(sizes, sum(len(part) * int(part.max()) for part in parts))


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
    return Buckets(tuple(batches), tuple(map(int, tops)), _share(sizes, steps))


def pad_sequences(
    sequences: Sequence[Any], indices: Any = None, seq_len: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The padded arrays of one batch, as `unroll` takes them.

    Args:
        sequences: arrays ``[L, ...]``.
        indices: int ``[B]``, which of them, -1 for a row that holds nothing; None takes all.
        seq_len: T, at least the greatest L; None takes that.

    Returns:
        ``xs [T, B, ...]`` with zeros in the padding, and ``lengths [B]``.

    Raises:
        ValueError: for no sequences, arrays that do not fit together, or a ``seq_len`` that is too small.

    >>> xs, lengths = pad_sequences([[1, 2, 3], [4]])
    >>> xs.tolist(), lengths.tolist()
    ([[1, 4], [2, 0], [3, 0]], [3, 1])
    """
    arrays = _check_arrays("pad_sequences", "sequence", sequences)
    indices = np.arange(len(arrays)) if indices is None else np.asarray(indices)
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


def pack_documents(
    documents: Sequence[Any],
    *,
    seq_len: int | None = None,
    num_rows: int | None = None,
    keep_order: bool = False,
) -> Packed:
    r"""Packs documents one behind the other into rows ``[T, N]``, without cutting any.

    With ``unroll(cell, params, state, packed.xs, lengths=packed.lengths, resets=packed.resets)`` every document starts
    from the cell's initial state, and `unpack_documents` returns to each the outputs that it would have had alone.

    * ``seq_len`` alone: rows of T steps, as many as best fit needs; slice them into batches.
    * ``num_rows`` alone: N streams of about the same length, as long as needed, and documents of any length. Cut the
      streams into chunks of time for `tbptt`: the state carries a document from chunk to chunk.
    * Both: exactly that shape, or an error.

    Equal lengths give an equal layout, so targets are packed by a second call.

    Args:
        documents: arrays ``[L, ...]`` of one dtype, L at least 1.
        seq_len: T.
        num_rows: N.
        keep_order: places the documents in the order given, so that shuffled documents give other rows; else the
            longest first, which leaves less padding.

    Raises:
        ValueError: for no documents, an empty one, one longer than ``seq_len``, arrays that do not fit together, more
            than ``num_rows`` rows of ``seq_len`` hold, or neither of the two.
        TypeError: if a size is not an int.

    >>> packed = pack_documents([[1, 2, 3], [4], [5, 6]], seq_len=4)
    >>> packed.xs.T.tolist(), packed.lengths.tolist(), packed.padding
    ([[1, 2, 3, 4], [5, 6, 0, 0]], [4, 2], 0.25)
    >>> packed.resets.T.astype(int).tolist()
    [[1, 0, 0, 1], [1, 0, 0, 0]]
    """
    where = "pack_documents"
    arrays = _check_arrays(where, "document", documents)
    if seq_len is None and num_rows is None:
        raise ValueError(f"{where}: seq_len or num_rows must be given, got neither; seq_len is the length of a row.")
    for name, value in (("seq_len", seq_len), ("num_rows", num_rows)):
        if value is not None:
            check_size(where, name, value)
    sizes = np.asarray([len(array) for array in arrays], np.int64)
    for index in np.flatnonzero(sizes == 0)[:1]:
        raise ValueError(f"{where}: every document must have at least one step, got none in documents[{index}].")
    order = np.arange(len(sizes)) if keep_order else np.argsort(-sizes, kind="stable")
    if seq_len is None:
        rows, starts, used = _to_shortest(sizes, order, num_rows or 1)
    else:
        rows, starts, used = _best_fit(sizes, order, seq_len, num_rows)
    length, count = int(used.max()) if seq_len is None else seq_len, len(used)
    positions = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    places = np.repeat(rows * length + starts, sizes) + positions  # of every step, where rows follow each other

    def fill(values: Any, empty: Any, dtype: Any) -> np.ndarray:
        flat = np.full((count * length, *np.shape(values)[1:]), empty, dtype)
        flat[places] = values
        return np.ascontiguousarray(flat.reshape(count, length, *flat.shape[1:]).swapaxes(0, 1))

    return Packed(
        xs=fill(np.concatenate(arrays), 0, arrays[0].dtype),
        resets=fill(positions == 0, False, bool),
        ends=fill(positions == np.repeat(sizes - 1, sizes), False, bool),
        lengths=used.astype(np.int32),
        segment_ids=fill(np.repeat(np.arange(len(sizes)), sizes), -1, np.int32),
        positions=fill(positions, 0, np.int32),
        rows=rows,
        starts=starts,
        sizes=sizes,
        padding=_share(sizes, count * length),
    )


def unpack_documents(packed: Packed, ys: Any) -> list[Any]:
    """The inverse of `pack_documents` for anything computed from its rows, such as the outputs of `unroll`.

    Args:
        packed: from `pack_documents`.
        ys: ``[T, N, ...]``, of NumPy or JAX; gradients flow through.

    Returns:
        One array ``[L, ...]`` a document, in the order in which they were given.

    Raises:
        ValueError: if ``ys`` does not have the steps and rows of ``packed``.

    >>> packed = pack_documents([[1, 2, 3], [4], [5, 6]], seq_len=4)
    >>> [document.tolist() for document in unpack_documents(packed, packed.xs)]
    [[1, 2, 3], [4], [5, 6]]
    """
    if tuple(ys.shape[:2]) != packed.resets.shape:
        raise ValueError(
            f"unpack_documents: ys must have shape [{', '.join(map(str, packed.resets.shape))}, ...], as the rows of "
            f"packed, got {describe(ys)}."
        )
    layout = zip(packed.rows.tolist(), packed.starts.tolist(), packed.sizes.tolist(), strict=True)
    return [ys[start : start + size, row] for row, start, size in layout]


def _share(sizes: np.ndarray, steps: int) -> float:
    """The share of ``steps`` that sequences of these sizes leave empty."""
    return (steps - int(sizes.sum())) / steps


def _best_fit(
    sizes: np.ndarray, order: np.ndarray, seq_len: int, num_rows: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row and first step of every document, and the steps used of every row: each goes where least room is left."""
    index = int(sizes.argmax())
    if sizes[index] > seq_len:
        raise ValueError(
            f"pack_documents: every document must fit into a row of seq_len = {seq_len}, got {sizes[index]} steps in "
            f"documents[{index}]; cut it, or give num_rows alone for rows as long as needed."
        )
    rows, starts = np.zeros_like(sizes), np.zeros_like(sizes)
    used = [0] * (num_rows or 0)
    room = [(seq_len, row) for row in range(num_rows or 0)]  # what is left of every row, in increasing order
    for i in order.tolist():
        size = int(sizes[i])
        place = bisect.bisect_left(room, (size, -1))
        if place == len(room):
            if num_rows is not None:
                raise ValueError(
                    f"pack_documents: the documents must fit into num_rows = {num_rows} rows of seq_len = {seq_len}, "
                    f"got {sizes.sum()} steps in documents that leave no room for all; give more rows, or longer ones."
                )
            used.append(0)
            room.append((seq_len, len(used) - 1))
        left, row = room.pop(place)
        bisect.insort(room, (left - size, row))
        rows[i], starts[i] = row, used[row]
        used[row] += size
    return rows, starts, np.asarray(used)


def _to_shortest(sizes: np.ndarray, order: np.ndarray, num_rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `_best_fit`, where each document goes to the row that is the shortest so far."""
    rows, starts, used = np.zeros_like(sizes), np.zeros_like(sizes), np.zeros(num_rows, np.int64)
    for i in order:
        row = int(used.argmin())
        rows[i], starts[i] = row, used[row]
        used[row] += sizes[i]
    return rows, starts, used


def _check_lengths(where: str, lengths: Any, name: str = "lengths") -> np.ndarray:
    array = np.asarray(lengths)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{where}: {name} must be a list of at least one length, got {lengths!r}.")
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{where}: {name} must be integers, got {describe(array)}.")
    if array.min() < 1:
        raise ValueError(f"{where}: {name} must be at least 1, got {array.min()} at index {array.argmin()}.")
    return array.astype(np.int64)


def _check_arrays(where: str, kind: str, arrays: Sequence[Any]) -> list[np.ndarray]:
    """The sequences as arrays that differ in their first axis alone."""
    found = [np.asarray(array) for array in arrays]
    if not found:
        raise ValueError(f"{where}: there must be at least one {kind}, got none.")
    for index, array in enumerate(found):
        # An empty list has no dtype of its own, and what is wrong with it is its length.
        same = array.ndim and (array.shape[1:], array.dtype) == (found[0].shape[1:], found[0].dtype)
        if not same and array.shape != (0,):
            raise ValueError(
                f"{where}: every {kind} must be an array [L, ...] with the dtype and the other axes of the first, "
                f"{describe(found[0])}, got {describe(array)} in {kind}s[{index}]."
            )
    return found
