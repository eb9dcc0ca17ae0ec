"""From blocks of symbols to ids in one array, in memory or in a file, and the places where documents begin."""

from __future__ import annotations

import io
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from typing import IO, NamedTuple

import numpy as np

from rnnjax.text.documents import DocumentFinder
from rnnjax.text.vocabulary import Vocabulary

__all__ = ["Piece", "Sink", "encode", "opened", "part_of", "part_starts"]

ALIGN = 64  # bytes, of where the document starts begin in a file


class Piece(NamedTuple):
    """Symbols `start` to `stop` of the text belong to `part`: 0 train, 1 valid, 2 test."""

    part: int
    start: int
    stop: int


class Sink:
    """Where ids and document starts go as they come: a file, or bytes in memory, as `io.BytesIO` has them.

    First the ids, then, at the next multiple of `ALIGN`, the document starts, which wait in a file of their own.
    """

    def __init__(self, file: IO[bytes], count: int, dtype: np.dtype) -> None:
        self._file, self._dtype = file, dtype.newbyteorder("<")
        self._end = count * dtype.itemsize
        self._starts: IO[bytes] | None = None
        self.num_starts = 0

    def put(self, at: int, ids: np.ndarray) -> None:
        """Ids from position `at` on."""
        place = at * self._dtype.itemsize
        if self._file.tell() != place:
            self._file.seek(place)
        self._file.write(ids.astype(self._dtype, copy=False).tobytes())

    def put_starts(self, starts: np.ndarray) -> None:
        """The next document starts, int64."""
        if self._starts is None:
            self._starts = tempfile.TemporaryFile(prefix="rnnjax-")
            weakref.finalize(self, self._starts.close)
        self._starts.write(starts.astype("<i8").tobytes())
        self.num_starts += len(starts)

    def finish(self) -> None:
        """Brings everything into the file."""
        self._file.seek(self._end)
        self._file.write(b"\0" * (-self._end % ALIGN))
        if self._starts is not None:
            with self._starts as starts:
                starts.seek(0)
                shutil.copyfileobj(starts, self._file)
        self._file.flush()


def opened(
    file: IO[bytes], count: int, dtype: np.dtype, num_starts: int | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The ids and the document starts in a file that `Sink` wrote, mapped into memory and not read.

    Args:
        file: may be closed afterwards; one in memory is not, as the arrays lie in it.
        count: of ids.
        dtype: of them.
        num_starts: of document starts, or None.
    """

    def array(dtype: np.dtype, place: int, size: int) -> np.ndarray:
        if isinstance(file, io.BytesIO):
            return np.frombuffer(file.getbuffer(), dtype, size, place)
        return np.asarray(np.memmap(file, dtype, "r", place, (size,)))

    ids = array(dtype, 0, count)
    if num_starts is None:
        return ids, None
    place = -(-count * dtype.itemsize // ALIGN) * ALIGN
    return ids, array(np.dtype("<i8"), place, num_starts) if num_starts else np.zeros(0, np.int64)


def encode(
    blocks: Iterable[Sequence[str]],
    vocabulary: Vocabulary,
    unknown: str,
    count: int,
    pieces: Sequence[Piece],
    separator: str | None,
    sink: Sink,
) -> int | None:
    """Writes the ids of a text, train before valid before test, and where its documents begin.

    Args:
        blocks: of symbols, as `rnnjax.text.sources.read_symbols` has them.
        vocabulary: gives them their ids.
        unknown: as in `Vocabulary.encode`.
        count: of the ids.
        pieces: of the text, all of it in order.
        separator: between documents, in the symbols of the level; None for a text that is one whole.
        sink: gets both; starts are positions in the text, sorted and distinct, the first one 0.

    Returns:
        The number of documents; None without a separator.
    """
    sizes = [sum(piece.stop - piece.start for piece in pieces if piece.part == part) for part in range(3)]
    filled = [0, sizes[0], sizes[0] + sizes[1]]  # where the next id of each part goes
    finder = None if separator is None else DocumentFinder(separator)
    documents, last = 1, 0
    if finder is not None:
        sink.put_starts(np.zeros(1, np.int64))
    done, at = 0, 0  # ids so far; the piece that the next one belongs to
    for symbols in blocks:
        ids = vocabulary.lookup(symbols, unknown)
        known = ids >= 0 if unknown == "skip" else None
        if finder is not None:
            found = finder(symbols)
            if known is not None and not known.all():
                found = np.concatenate(([0], np.cumsum(known)))[found]
            found = found + done
            found = found[(found > 0) & (found < count)]
            found = np.unique(found[found > last])
            documents += len(found)  # those of which a symbol is left
            if len(found):
                last = int(found[-1])
                sink.put_starts(found)
        ids = ids if known is None else ids[known]
        while len(ids) and at < len(pieces):
            part, _, stop = pieces[at]
            here = ids[: stop - done]
            sink.put(filled[part], here)
            filled[part] += len(here)
            done += len(here)
            ids = ids[len(here) :]
            at += done == stop
    return None if finder is None else documents


def part_of(ids: np.ndarray, pieces: Sequence[Piece], part: int) -> np.ndarray:
    """The ids of a part, a view."""
    sizes = [sum(piece.stop - piece.start for piece in pieces if piece.part == one) for one in range(3)]
    return ids[sum(sizes[:part]) : sum(sizes[: part + 1])]


def part_starts(starts: np.ndarray | None, pieces: Sequence[Piece], part: int) -> np.ndarray | None:
    """Where documents begin in a part: a view for one at the start of the text, a copy for others.

    Where a piece begins, what came before it in its part did not come before it in the text: a document of its own.
    """
    if starts is None:
        return None
    own = [piece for piece in pieces if piece.part == part]
    if len(own) == 1 and own[0].start == 0:
        return starts[: int(np.searchsorted(starts, own[0].stop))]
    found, size = [np.zeros(0, np.int64)], 0
    for _, start, stop in own:
        low, high = np.searchsorted(starts, [start + 1, stop])
        found.append(np.concatenate(([start], starts[low:high])) - start + size)
        size += stop - start
    return np.concatenate(found)
