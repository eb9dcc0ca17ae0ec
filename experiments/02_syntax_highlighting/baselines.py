"""What a network has to beat: tables of the most frequent class, by character, by its neighbours, and by word."""

import collections
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

__all__ = ["NgramTable", "most_frequent_tag", "scores"]


def scores(labels: np.ndarray, guessed: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Accuracy, recall and precision of every class (None where there is none), and counts ``[true, guessed]``."""
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, (labels, guessed), 1)

    def share(sizes: np.ndarray) -> dict[str, float | None]:
        return {name: float(counts[i, i] / sizes[i]) if sizes[i] else None for i, name in enumerate(classes)}

    return {
        "accuracy": float(np.trace(counts) / max(counts.sum(), 1)),
        "recall": share(counts.sum(1)),
        "precision": share(counts.sum(0)),
        "confusion": counts,
    }


class NgramTable:
    """The class that a character has most often among the same neighbours in training.

    Neighbourhoods grow from the character alone, ``(0, 0)``, to the last of ``contexts``, each ``(left, right)``; the
    largest one that training knows decides.

    Args:
        contexts: the neighbourhoods, from small to large.
        sources: ids ``[L]`` and labels ``[L]`` of each file.
        size: all ids are below it.
    """

    def __init__(
        self, contexts: Sequence[tuple[int, int]], sources: Iterable[tuple[np.ndarray, np.ndarray]], size: int
    ) -> None:
        if max(left + right + 1 for left, right in contexts) * np.log2(size + 1) > 62:
            raise ValueError(f"NgramTable: a neighbourhood must fit into 62 bits, got {contexts} of {size} symbols.")
        self.contexts, self.size = tuple(contexts), size
        pairs = list(sources)
        labels = np.concatenate([told for _, told in pairs]).astype(np.int64)
        classes = int(labels.max()) + 1
        self._tables = []
        for context in self.contexts:
            keys = np.concatenate([self._keys(ids, context) for ids, _ in pairs])
            known, place = np.unique(keys, return_inverse=True)
            counts = np.bincount(place * classes + labels, minlength=len(known) * classes)
            self._tables.append((known, counts.reshape(-1, classes).argmax(1)))

    def predict(self, ids: np.ndarray, count: int | None = None) -> np.ndarray:
        """The class of every character of a file, ``[L]``, by the first ``count`` neighbourhoods."""
        guessed = np.zeros(len(ids), np.int64)
        for context, (known, best) in list(zip(self.contexts, self._tables))[:count]:
            keys = self._keys(ids, context)
            place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
            guessed = np.where(known[place] == keys, best[place], guessed)
        return guessed

    def _keys(self, ids: np.ndarray, context: tuple[int, int]) -> np.ndarray:
        left, right = context
        around = np.pad(
            ids.astype(np.int64), (left, right), constant_values=self.size
        )  # ends are a symbol of their own
        keys = np.zeros(len(ids), np.int64)
        for shift in range(left + right + 1):
            keys = keys * (self.size + 1) + around[shift : shift + len(ids)]
        return keys


def most_frequent_tag(sentences: Iterable[Sequence[tuple[str, str]]]) -> tuple[dict[str, str], str]:
    """The tag that each word has most often, and the one of all words, for those that are not there."""
    of_word: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    overall: collections.Counter = collections.Counter()
    for sentence in sentences:
        for word, tag in sentence:
            of_word[word][tag] += 1
            overall[tag] += 1
    return {word: tags.most_common(1)[0][0] for word, tags in of_word.items()}, overall.most_common(1)[0][0]
