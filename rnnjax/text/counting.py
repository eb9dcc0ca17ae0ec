"""How often each symbol of a text occurs, counted block by block in bounded memory."""

from __future__ import annotations

import collections
import contextlib
import heapq
import pickle
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

import numpy as np

from rnnjax.text.vocabulary import code_points

__all__ = ["Counts", "count_symbols"]

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
