r"""Documents packed into rows, one behind the other, so that a batch has next to no padding.

It is left to ``resets`` of `unroll` that no document of a row sees another. Everything here runs on the host in NumPy,
for shapes depend on data.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rnnjax.cell import check_size, describe
from rnnjax.data.batching import check_arrays, share_of_padding
from rnnjax.kinds import public

__all__ = ["Packed", "pack_documents", "unpack_documents"]


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


@public
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
    arrays = check_arrays(where, "document", documents)
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
        padding=share_of_padding(sizes, count * length),
    )


@public
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
    if not hasattr(ys, "shape"):
        raise TypeError(f"unpack_documents: ys must be an array, got {describe(ys)}.")
    if tuple(ys.shape[:2]) != packed.resets.shape:
        raise ValueError(
            f"unpack_documents: ys must have shape [{', '.join(map(str, packed.resets.shape))}, ...], as the rows of "
            f"packed, got {describe(ys)}."
        )
    layout = zip(packed.rows.tolist(), packed.starts.tolist(), packed.sizes.tolist(), strict=True)
    return [ys[start : start + size, row] for row, start, size in layout]


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
