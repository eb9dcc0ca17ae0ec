"""What is made of blocks of symbols: counts, ids in one array (in memory or in a file), and where documents begin."""

from __future__ import annotations

import collections
import contextlib
import heapq
import io
import pickle
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, NamedTuple

import numpy as np

from rnnjax.text.vocabulary import Vocabulary, code_points

__all__ = ["Counts", "DocumentFinder", "Piece", "Sink", "count_symbols", "encode", "opened", "part_of", "part_starts"]

_MOST_WORDS = 1 << 21  # that stand in memory at a time, about 300 MB
_RUN = 4096  # words of a file that are read at once


class Counts:
    """Counts of symbols: an array over code points, and words in a dict, which is written out when it grows too large.

    What is written out are sorted runs in temporary files; they are merged when they are read, so that the counts are
    exact, whatever the number of different words.
    """

    def __init__(self) -> None:
        self._codes = np.zeros(0, np.int64)
        self._words: collections.Counter[str] = collections.Counter()
        self._runs: list[IO[bytes]] = []

    def add(self, block: Sequence[str]) -> None:
        """Counts a block of symbols."""
        if isinstance(block, str):
            counts = np.bincount(code_points(block), minlength=len(self._codes))
            counts[: len(self._codes)] += self._codes
            self._codes = counts
            return
        self._words.update(block)
        if len(self._words) > _MOST_WORDS:
            run = tempfile.TemporaryFile(prefix="rnnjax-")
            weakref.finalize(self, run.close)
            words = sorted(self._words.items())
            for first in range(0, len(words), _RUN):
                pickle.dump(words[first : first + _RUN], run)
            self._runs.append(run)
            self._words.clear()

    def items(self) -> Iterator[tuple[str, int]]:
        """Every symbol with its count, once."""
        for code in np.flatnonzero(self._codes).tolist():
            yield chr(code), int(self._codes[code])
        if not self._runs:
            yield from self._words.items()
            return
        merged = heapq.merge(sorted(self._words.items()), *map(_read, self._runs))
        word, count = "", 0
        for next_word, more in merged:
            if next_word != word and count:
                yield word, count
                count = 0
            word, count = next_word, count + more
        if count:
            yield word, count


def count_symbols(blocks: Iterable[Sequence[str]]) -> Counts:
    """How often each symbol occurs in blocks of symbols."""
    counts = Counts()
    for block in blocks:
        counts.add(block)
    return counts


def _read(run: IO[bytes]) -> Iterator[tuple[str, int]]:
    # Several readers may be at different places of it.
    place = 0
    with contextlib.suppress(EOFError):
        while True:
            run.seek(place)
            words: list[Any] = pickle.load(run)
            place = run.tell()
            yield from words


class DocumentFinder:
    """Finds, block by block, the symbols right after a separator (non-overlapping, as in `str.split`)."""

    def __init__(self, separator: str) -> None:
        self._separator = separator
        # The end of the text since the last separator, as far as a separator may have begun in it.
        self._tail = ""

    def __call__(self, symbols: Sequence[str]) -> np.ndarray:
        """Positions (int64) in the block, its length for the symbol after it."""
        separator = self._separator
        text = self._tail + "".join(symbols)
        ends, end = [], text.find(separator) + len(separator)
        while end >= len(separator):
            ends.append(end - len(self._tail))
            end = text.find(separator, end) + len(separator)
        since = ends[-1] + len(self._tail) if ends else 0
        self._tail = text[max(since, len(text) - len(separator) + 1) :]
        found = np.array(ends, np.int64)
        if isinstance(symbols, str):
            return found
        # A word begins at or after the separator's end; a token that straddles it belongs to the document
        # before.
        lengths = np.fromiter(map(len, symbols), np.int64, len(symbols))
        return np.searchsorted(np.cumsum(lengths) - lengths, found)


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
