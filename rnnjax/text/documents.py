"""Where documents begin in a text that is read block by block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["DocumentFinder"]


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
