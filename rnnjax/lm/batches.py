"""Where the chunks of a training come from."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rnnjax.text import corpus as corpora
from rnnjax.text.corpus import Chunk, Corpus

__all__ = ["Batches", "CorpusBatches", "Validation"]


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
