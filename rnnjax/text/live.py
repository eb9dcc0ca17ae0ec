"""A text that has no end, or none that one could wait for: read by a thread, and turned into ids as they are taken."""

from __future__ import annotations

import codecs
import collections
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from rnnjax.text.encoding import Counts, DocumentFinder
from rnnjax.text.sources import LONGEST_WORD
from rnnjax.text.vocabulary import Vocabulary, tokenize
from rnnjax.text.wide import HEAD, check_wide

__all__ = ["LiveText", "Stretch"]

_BLOCK_BYTES = 1 << 16
_LOOK = 0.1  # seconds after which one that waits looks around


class Stretch(NamedTuple):
    """Ids `[n]`, one after the other in the text, and which of them begin a document (bool `[n]`)."""

    ids: np.ndarray
    starts: np.ndarray


class LiveText:
    r"""The text of a pipe, read once, as fast as it is taken and no faster.

    A thread reads ahead until `room` symbols wait; then whoever writes has to wait, as for any pipe. Symbols that are
    not in the vocabulary become its unknown one.

    Args:
        path: of a pipe or a file, `"-"` for the standard input.
        level: `"char"`, `"byte"` or `"word"`.
        encoding: of the text (not at the byte level). Before the vocabulary is known, bytes that are not in it are an
            error; later they become U+FFFD, so that one of them does not end a training of days.
        separator: ends a document, see `rnnjax.text.TextOptions`; None for a text that is one whole.
        room: symbols that may wait.
    """

    def __init__(self, path: str, level: str, encoding: str, separator: str | None, room: int) -> None:
        self.name = "standard input" if path == "-" else path
        self._path, self._level, self._room = path, level, room
        self._encoding = "latin-1" if level == "byte" else encoding
        if separator is not None and level == "byte":
            separator = separator.encode("utf-8").decode("latin-1")
        self._finder = None if separator is None else DocumentFinder(separator)
        self._next_starts = True  # whether the next symbol begins a document
        self._changed = threading.Condition()
        self._waiting: collections.deque[Sequence[str]] = collections.deque()
        self._size = 0  # symbols in it
        self._ended, self._error, self._lenient = False, "", False
        self._parts: list[Stretch] = []  # ids that are not taken yet
        self._ready = 0  # how many these are
        self.vocabulary: Vocabulary | None = None
        self.symbols_read = 0
        threading.Thread(target=self._read, name="stream", daemon=True).start()

    def learn(self, count: int, min_count: int) -> Vocabulary:
        """The vocabulary of the first `count` symbols, with the unknown one; they are taken later all the same.

        Raises:
            ValueError: for an empty stream, or bytes that are not in the encoding.
        """
        counts, seen = Counts(), 0
        with self._changed:
            self._room, room = max(self._room, count), self._room
            while self._level != "byte" and self._size < count and not self._ended:
                self._changed.notify_all()
                self._changed.wait(_LOOK)
            self._room = room
            blocks = list(self._waiting)
        for block in blocks:
            part = block[: count - seen]
            counts.add(part)
            seen += len(part)
        if self._error:
            raise ValueError(self._error)
        if not seen and self._level != "byte":
            raise ValueError(f"stream: {self.name} ended before its first symbol; write some text into it.")
        self.vocabulary = Vocabulary.from_counts(self._level, counts, min_count, unknown=True)
        return self.vocabulary

    def ahead(self) -> int:
        """Symbols that have been read and are not taken yet."""
        with self._changed:
            return self._size + self._ready

    def full(self) -> bool:
        """Whether as much has been read as may wait, so that the text waits for who takes it."""
        with self._changed:
            return self._size >= self._room

    def take(self, count: int, expired: Callable[[], bool] = lambda: False) -> Stretch | None:
        """The next `count` symbols, fewer at the end of the text, none after it.

        Args:
            count: of symbols.
            expired: is asked ten times a second while it waits; True gives up, and nothing is lost.

        Returns:
            None if it has given up.

        Raises:
            ValueError: if the text cannot be read on.
        """
        while self._ready < count:
            with self._changed:
                self._lenient = True
                while not self._waiting and not self._ended:
                    if expired():
                        return None
                    self._changed.wait(_LOOK)
                if not self._waiting:
                    if self._error:
                        raise ValueError(self._error)
                    break
                block = self._waiting.popleft()
                self._size -= len(block)
                self._changed.notify_all()
            self._encode(block)
        nothing = Stretch(np.zeros(0, np.int32), np.zeros(0, bool))
        ids, starts = (np.concatenate([*arrays]) for arrays in zip(*(self._parts or [nothing])))
        self._parts = [Stretch(ids[count:], starts[count:])]
        self._ready = len(ids[count:])
        return Stretch(ids[:count], starts[:count])

    def _encode(self, block: Sequence[str]) -> None:
        if self.vocabulary is None:
            raise ValueError("stream: the vocabulary must be known before symbols are taken; call learn first.")
        ids = self.vocabulary.lookup(block).astype(self.vocabulary.dtype)
        starts = np.zeros(len(ids) + 1, bool)
        starts[0] = self._next_starts
        if self._finder is not None:
            starts[self._finder(block)] = True
        self._next_starts = bool(starts[-1])
        self._parts.append(Stretch(ids, starts[:-1]))
        self._ready += len(ids)

    def _read(self) -> None:
        error = f"stream: {self.name} cannot be read."  # whatever happens, nobody waits for this thread
        try:
            if self._path == "-" and sys.stdin is None:
                raise OSError("it is closed")
            handle = sys.stdin.fileno() if self._path == "-" else os.open(self._path, os.O_RDONLY)
            try:
                self._read_from(handle)
            finally:
                if self._path != "-":
                    os.close(handle)
            error = ""
        except OSError as raised:
            error = f"stream: {self.name} cannot be read: {raised.strerror or raised}."
        except ValueError as raised:
            error = str(raised)
        finally:
            with self._changed:
                self._ended, self._error = True, error
                self._changed.notify_all()

    def _read_from(self, handle: int) -> None:
        decoder = codecs.getincrementaldecoder(self._encoding)("strict")
        rest, started, offset, data, head = "", False, 0, b"-", b""
        while data:
            data = os.read(handle, _BLOCK_BYTES)
            if len(head) < HEAD and self._level != "byte":
                head += data[:HEAD]
                check_wide("stream", self.name, head, self._encoding)
            decoder.errors = "replace" if self._lenient else "strict"
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeError as error:
                raise ValueError(
                    f"stream: {self.name} must be {self._encoding} text, got what is not within bytes {offset:,} to "
                    f"{offset + len(data):,}; pass the right encoding=, or read any bytes with level='byte'."
                ) from error
            offset += len(data)
            if not started and text:
                started, text = True, text if self._encoding == "latin-1" else text.removeprefix("\ufeff")
            if self._level != "word":
                self._put(text)
                continue
            tokens = tokenize(rest + text)
            # The last one may go on; one that is too long is no word of anybody, and is cut.
            rest = tokens.pop() if tokens and data and len(tokens[-1]) < LONGEST_WORD else ""
            self._put(tokens)

    def _put(self, block: Sequence[str]) -> None:
        if not block:
            return
        with self._changed:
            while self._size >= self._room:
                self._changed.wait()
            self._waiting.append(block)
            self._size += len(block)
            self.symbols_read += len(block)
            self._changed.notify_all()
