"""What the network has to beat: the most frequent class, and naive Bayes on n-grams (scikit-learn)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .data import UNITS, Examples

__all__ = ["majority", "naive_bayes", "scores"]


def scores(labels: np.ndarray, guessed: np.ndarray, classes: int) -> dict[str, Any]:
    """Accuracy, the mean over the classes of the share found (balanced), and counts ``[true, guessed]``."""
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (labels, guessed), 1)
    sizes = counts.sum(1)
    found = np.diag(counts)[sizes > 0] / sizes[sizes > 0]
    return {
        "accuracy": float(np.trace(counts) / max(counts.sum(), 1)),
        "balanced_accuracy": float(found.mean()),
        "confusion": counts,
    }


def majority(examples: Examples) -> float:
    """Accuracy on the test part of the class that is the most frequent in training."""
    most = np.bincount(examples.of("train")[1]).argmax()
    return float((examples.of("test")[1] == most).mean())


def naive_bayes(
    examples: Examples, unit: str, ngrams: tuple[int, int], alphas: Sequence[float] = (1.0, 0.5, 0.2, 0.1, 0.05)
) -> dict[str, Any]:
    """Multinomial naive Bayes on counts of n-grams of a unit.

    The smoothing is chosen on the validation part; then it learns from training and validation together, which the
    network, with its early stopping, cannot.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB

    def accuracy(alpha: float, learn: Sequence[str], test: str) -> float:
        if unit == "characters":
            count = CountVectorizer(analyzer="char", ngram_range=ngrams)
        else:
            count = CountVectorizer(tokenizer=UNITS[unit], token_pattern=None, lowercase=False, ngram_range=ngrams)
        texts, labels = examples.of(*learn)
        model = MultinomialNB(alpha=alpha).fit(count.fit_transform(texts), labels)
        texts, labels = examples.of(test)
        return float(model.score(count.transform(texts), labels))

    alpha = max(alphas, key=lambda value: accuracy(value, ("train",), "valid"))
    return {"unit": unit, "ngrams": ngrams, "alpha": alpha, "accuracy": accuracy(alpha, ("train", "valid"), "test")}
