"""Where the chunks of a training come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from rnnjax.text import corpus as corpora
from rnnjax.text.corpus import Chunk, Corpus

__all__ = ["Batches", "CorpusBatches", "Validation"]


class Validation(NamedTuple):
    """Ids to evaluate on, and where documents begin in them (None for one whole)."""

    ids: np.ndarray
    starts: np.ndarray | None


class Batches(Protocol):
    """Chunks by the number of the update, and what evaluations read."""

    @property
    def steps_per_epoch(self) -> int | None:
        """Chunks until the text begins again; None for one that does not."""

    @property
    def documents(self) -> bool:
        """Whether chunks say where documents begin, in `resets`."""

    def chunk(self, step: int, own: slice) -> Chunk:
        """The rows ``own`` of the chunk of an update, from 0; int32."""

    def more(self) -> bool:
        """Whether there is another chunk."""

    def until(self, expired: Callable[[], bool]) -> None:
        """Whoever waits for text gives up when this says so."""

    def validation(self) -> Validation:
        """What evaluations read now."""

    def facts(self) -> dict[str, Any]:
        """What a line of metrics says besides."""


class CorpusBatches:
    """The streams of a text that has been read (`rnnjax.text.corpus.streams`)."""

    def __init__(self, corpus: Corpus, batch_size: int, chunk_len: int) -> None:
        corpora.require_length(len(corpus.train), batch_size, chunk_len)
        self._corpus, self._chunk_len = corpus, chunk_len
        self._rows = corpora.streams(corpus.train, batch_size)
        self.steps_per_epoch: int = corpora.num_chunks(self._rows, chunk_len)
        self.documents = corpus.train_starts is not None

    def chunk(self, step: int, own: slice) -> Chunk:
        """The rows ``own`` of the chunk of an update, from 0; int32."""
        cursor = step % self.steps_per_epoch * self._chunk_len
        found = corpora.chunk(self._rows[own], cursor, self._chunk_len, self._corpus.train_starts, own.start)
        return Chunk(found.inputs.astype(np.int32), found.targets.astype(np.int32), found.resets)

    def more(self) -> bool:
        """Always: the text begins again."""
        return True

    def until(self, expired: Callable[[], bool]) -> None:
        """Nothing waits."""

    def validation(self) -> Validation:
        """The validation text."""
        return Validation(self._corpus.valid, self._corpus.valid_starts)

    def facts(self) -> dict[str, Any]:
        """Nothing."""
        return {}
