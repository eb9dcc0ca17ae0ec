"""Text to padded arrays and back: tokens, a vocabulary from the training part, pairs of sequences."""

import collections
import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["STOP", "UNKNOWN", "Pairs", "Vocabulary", "join", "make_pairs", "tokenize", "trim"]

STOP, UNKNOWN = 0, 1  # ends every sequence; any word that the vocabulary lacks
PADDING = -1  # reads as nothing
# Clitics stand alone, words keep their hyphens, anything else that is no space is a token.
_TOKEN = re.compile(r"'(?:s|t|re|ll|ve|d|m)\b|\w+(?:-\w+)*|[^\w\s]")
_LEFT = re.compile(r" ('(?:s|t|re|ll|ve|d|m)\b|[.,!?;:%)])")


def tokenize(text: str) -> list[str]:
    """Lower-case words and signs.

    >>> tokenize("A woman's T-shirt, twice.")
    ['a', 'woman', "'s", 't-shirt', ',', 'twice', '.']
    """
    return _TOKEN.findall(text.lower())


def join(tokens: Iterable[str]) -> str:
    """Tokens as a line of text; clitics and closing signs lean to the left.

    >>> join(tokenize("A woman's T-shirt, twice."))
    "a woman's t-shirt, twice."
    """
    return _LEFT.sub(r"\1", " ".join(tokens)).replace("( ", "(")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Symbols 0 (stop) and 1 (unknown), then the tokens by frequency."""

    tokens: tuple[str, ...]
    ids: dict[str, int]
    folded: int  # how many different words of the training part count as unknown

    @classmethod
    def of(cls, texts: Iterable[Sequence[str]], min_count: int = 1) -> "Vocabulary":
        """What occurs ``min_count`` times in the texts."""
        counts = collections.Counter(token for text in texts for token in text)
        kept = sorted((token for token in counts if counts[token] >= min_count), key=lambda t: (-counts[t], t))
        tokens = ("<stop>", "<unknown>", *kept)
        return cls(tokens, {token: i for i, token in enumerate(tokens)}, len(counts) - len(kept))

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, text: Sequence[str]) -> list[int]:
        """Symbols of a text, the stop at their end."""
        return [*(self.ids.get(token, UNKNOWN) for token in text), STOP]

    def decode(self, symbols: Iterable[int]) -> list[str]:
        """Tokens before the first stop."""
        found = []
        for symbol in symbols:
            if symbol == STOP:
                break
            found.append(self.tokens[symbol])
        return found


class Pairs(NamedTuple):
    """N pairs of sequences; lengths count the stop symbol, behind which is padding."""

    sources: np.ndarray  # int [N, T_in]
    source_lengths: np.ndarray  # int [N]
    targets: np.ndarray  # int [N, T_out]
    target_lengths: np.ndarray  # int [N]

    @property
    def longest(self) -> np.ndarray:
        """The longer of the two, of every pair."""
        return np.maximum(self.source_lengths, self.target_lengths)


def make_pairs(
    sources: Sequence[Sequence[str]], targets: Sequence[Sequence[str]], of_source: Vocabulary, of_target: Vocabulary
) -> Pairs:
    """Encoded and padded."""
    return Pairs(*_pad([of_source.encode(s) for s in sources]), *_pad([of_target.encode(t) for t in targets]))


def trim(pairs: Pairs, length: int) -> Pairs:
    """A batch whose longest sequence has this length, without padding that all rows share."""
    return pairs._replace(sources=pairs.sources[:, :length], targets=pairs.targets[:, :length])


def _pad(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(row) for row in rows], np.int32)
    padded = np.full((len(rows), max(lengths, default=1)), PADDING, np.int32)
    for row, symbols in zip(padded, rows):
        row[: len(symbols)] = symbols
    return padded, lengths
