"""A long text read side by side in pieces and window by window, with the state carried along."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rnnjax.checks import check_size

__all__ = ["windows"]


def windows(
    begin: int,
    end: int,
    *,
    streams: int,
    window: int,
    warmup: int,
    starts: np.ndarray | None,
    where: str,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Positions, which of them count, and where the state is reset, each ``[T, B]``, window after window.

    The positions from ``begin`` to ``end`` are cut into B contiguous pieces, and every one counts once. Every piece is
    read from ``warmup`` symbols before its beginning; what stands before position 0 is padding, after which the state
    is reset.

    Args:
        begin: the first position that counts.
        end: one after the last.
        streams: pieces; some stay empty if there are more than positions.
        window: T; the last window of a piece reaches beyond its end.
        warmup: steps that a piece begins early.
        starts: positions where a document starts, sorted: there the state is reset, too.
        where: opens error messages.

    Raises:
        ValueError: for no position at all, or a size out of range.

    >>> steps = list(windows(0, 5, streams=2, window=3, warmup=1, starts=None, where="example"))
    >>> [at.T.tolist() for at, _, _ in steps], [counted.T.tolist() for _, counted, _ in steps]
    ([[[-1, 0, 1], [2, 3, 4]], [[2, 3, 4], [5, 6, 7]]], [[[False, True, True], [False, True, True]], \
[[True, False, False], [False, False, False]]])
    """
    streams, window = check_size(where, "streams", streams), check_size(where, "window", window)
    warmup = check_size(where, "warmup", warmup, least=0)
    if not 0 <= begin < end:
        raise ValueError(f"{where}: the text must not be empty, got positions {begin} to {end}; use a longer text.")
    piece = -(-(end - begin) // streams)
    first = begin + np.arange(streams) * piece
    last = np.minimum(first + piece, end)
    for offset in range(-min(warmup, int(first[-1])), piece, window):
        at = first + offset + np.arange(window)[:, None]
        resets = at == 0
        if starts is not None and len(starts):
            resets |= starts[np.minimum(np.searchsorted(starts, at), len(starts) - 1)] == at
        yield at, (at >= first) & (at < last), resets
