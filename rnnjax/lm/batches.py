"""Where the chunks of a training come from: a text that has been read, or one without an end.

What is read of the latter is trained on once, and never kept. A row of the batch needs text that goes on from chunk to
chunk, and there is only one text. So it is cut into segments of `SEGMENT` chunks; B segments, one after the other in
the text, are the B rows until they are used up. Every segment starts with a fresh state. One segment in `HELD_OUT` is
not trained on: of those a reservoir holds some, such that each of them so far is as likely to be in it (Vitter 1985,
algorithm R), and evaluations read it. Memory is that of the rows, of the text that was read ahead, and of the
reservoir, whatever has gone by.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rnnjax.text import corpus as corpora
from rnnjax.text.corpus import Chunk, Corpus
from rnnjax.text.live import LiveText, Stretch
from rnnjax.text.vocabulary import Vocabulary

__all__ = ["HELD_OUT", "SEGMENT", "Batches", "CorpusBatches", "LiveBatches", "Validation", "corpus_of"]


class Validation(NamedTuple):
    """Ids to evaluate on, and where documents begin in them (None for one whole)."""

    ids: np.ndarray
    starts: np.ndarray | None


class Batches(abc.ABC):
    """Chunks by the number of the update, and what evaluations read.

    Attributes:
        steps_per_epoch: chunks until the text begins again; None for one that does not.
        documents: whether chunks say where documents begin, in `resets`.
    """

    steps_per_epoch: int | None
    documents: bool

    @abc.abstractmethod
    def chunk(self, step: int, own: slice) -> Chunk:
        """The rows ``own`` of the chunk of an update, from 0; int32."""

    @abc.abstractmethod
    def validation(self) -> Validation:
        """What evaluations read now."""

    def more(self) -> bool:
        """Whether there is another chunk; of a text that begins again there always is."""
        return True

    def until(self, expired: Callable[[], bool]) -> None:  # noqa: B027
        """Whoever waits for text gives up when this says so."""

    def facts(self) -> dict[str, Any]:
        """What a line of metrics says besides."""
        return {}


class CorpusBatches(Batches):
    """The streams of a text that has been read (`rnnjax.text.corpus.streams`)."""

    def __init__(self, corpus: Corpus, batch_size: int, chunk_len: int) -> None:
        corpora.require_length(len(corpus.train), batch_size, chunk_len)
        self._corpus, self._chunk_len = corpus, chunk_len
        self._rows = corpora.streams(corpus.train, batch_size)
        self.steps_per_epoch = self._num_chunks = corpora.num_chunks(self._rows, chunk_len)
        self.documents = corpus.train_starts is not None

    def chunk(self, step: int, own: slice) -> Chunk:
        cursor = step % self._num_chunks * self._chunk_len
        found = corpora.chunk(self._rows[own], cursor, self._chunk_len, self._corpus.train_starts, own.start)
        return Chunk(found.inputs.astype(np.int32), found.targets.astype(np.int32), found.resets)

    def validation(self) -> Validation:
        return Validation(self._corpus.valid, self._corpus.valid_starts)


SEGMENT = 64  # chunks
HELD_OUT = 20


class LiveBatches(Batches):
    """The batches of a text that is read once.

    Args:
        text: whose vocabulary is known.
        rows: B, of a batch.
        chunk_len: T.
        held: about how many symbols the reservoir holds.
        seed: of the reservoir.
        valid: to evaluate on instead of a reservoir, for which nothing is held out then.
    """

    steps_per_epoch = None
    documents = True  # each row begins one at least

    def __init__(
        self, text: LiveText, rows: int, chunk_len: int, *, held: int, seed: int, valid: Validation | None = None
    ) -> None:
        self._text, self._rows, self._chunk_len, self._valid = text, rows, chunk_len, valid
        self._room = 0 if valid is not None else max(1, round(held / (SEGMENT * chunk_len + 1)))
        self._rng = np.random.default_rng(seed)
        self._held: list[Stretch] = []
        self._candidates, self._segments = 0, 0
        self._fresh: list[Stretch] = []  # segments of the next block that are there already
        self._block: Stretch | None = None  # [B, n T + 1]
        self._at = 0  # chunks of it that are used
        self._step, self._chunk = -1, Chunk(None, None)
        self._ended = False
        self._expired: Callable[[], bool] = lambda: False

    def until(self, expired: Callable[[], bool]) -> None:
        """True ends the training where it would wait, as the end of the text does."""
        self._expired = expired

    def more(self) -> bool:
        """Whether there is another chunk; waits for it."""
        if self._block is not None and self._at < (self._block.ids.shape[1] - 1) // self._chunk_len:
            return True
        if self._ended:
            return False
        self._block, self._at = self._next_block(), 0
        return self._block is not None

    def require(self) -> Stretch:
        """What there is to train on now; waits for it.

        Raises:
            ValueError: if the text has ended.
        """
        if not self.more() or self._block is None:
            raise ValueError(
                f"stream: batch_size * (chunk_len + 1) = {self._rows * (self._chunk_len + 1):,} symbols are needed at "
                f"least, and {self._text.name} gave {self._text.symbols_read:,}; use less of both, or more text."
            )
        return self._block

    def chunk(self, step: int, own: slice) -> Chunk:
        """The next one, or the one before for the same step; what a roll-back asks for again is gone.

        Raises:
            ValueError: if there is none.
        """
        if step != self._step:
            block = self.require()
            low = self._at * self._chunk_len
            high = low + self._chunk_len
            resets = block.starts[:, low:high].T.copy()
            resets[0] |= self._at == 0
            inputs, targets = (block.ids[:, low + k : high + k].T.astype(np.int32) for k in range(2))
            self._step, self._chunk, self._at = step, Chunk(inputs, targets, resets), self._at + 1
        return Chunk(*(array[:, own] for array in self._chunk))

    def validation(self) -> Validation:
        """The reservoir as it is now, or the text that was given."""
        if self._valid is not None or not self._held:
            return self._valid or Validation(np.zeros(0, np.int32), None)
        starts = [np.concatenate([[True], one.starts[1:]]) for one in self._held]
        return Validation(np.concatenate([one.ids for one in self._held]), np.flatnonzero(np.concatenate(starts)))

    def facts(self) -> dict[str, Any]:
        """Symbols that were read, those of them that are neither trained on nor held out yet, and who waits."""
        left = 0 if self._block is None else self._rows * (self._block.ids.shape[1] - self._at * self._chunk_len)
        behind = self._text.ahead() + left + sum(len(one.ids) for one in self._fresh)
        return {"read": self._text.symbols_read, "behind": behind, "text_waits": self._text.full()}

    def _next_block(self) -> Stretch | None:
        size = SEGMENT * self._chunk_len + 1
        while len(self._fresh) < self._rows:
            found = self._text.take(size, self._expired)
            if found is None:
                return None
            found.starts[:1] = True  # also in rows of the end, where one segment comes after another, or after a gap
            if len(found.ids) < size:
                self._ended = True
                return self._rest(found)
            self._segments += 1
            if self._room and self._segments % HELD_OUT == 1:  # the first one, so that it is never empty
                self._hold(found)
            else:
                self._fresh.append(found)
        ids, starts = (np.stack([one[k] for one in self._fresh]) for k in range(2))
        self._fresh = []
        return Stretch(ids, starts)

    def _rest(self, last: Stretch) -> Stretch | None:
        """The end of the text, in rows that are shorter, as far as it fills them."""
        ids, starts = (np.concatenate([one[k] for one in (*self._fresh, last)]) for k in range(2))
        self._fresh = []
        chunks = min(SEGMENT, (len(ids) // self._rows - 1) // self._chunk_len)
        if chunks < 1:
            return None
        size = chunks * self._chunk_len + 1
        ids, starts = (array[: self._rows * size].reshape(self._rows, size) for array in (ids, starts))
        return Stretch(ids, starts)

    def _hold(self, segment: Stretch) -> None:
        self._candidates += 1
        if len(self._held) < self._room:
            self._held.append(segment)
        elif (place := int(self._rng.integers(self._candidates))) < self._room:
            self._held[place] = segment


def corpus_of(vocabulary: Vocabulary, text: LiveText) -> Corpus:
    """What is known of a text that has not been read: its symbols."""
    nothing = np.zeros(0, vocabulary.dtype)
    return Corpus(vocabulary, nothing, nothing, nothing, None, None, None, "", f"{text.name}, as it comes", 0, 0)
