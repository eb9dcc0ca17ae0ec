"""The line to beat on names: an interpolated n-gram model of characters."""

import collections
import math
from collections.abc import Iterable, Sequence

__all__ = ["WittenBell"]

_BEFORE = -1


class WittenBell:
    r"""Interpolated Witten-Bell over sequences that each begin anew.

        p(w | h) = (c(h, w) + N(h) p(w | h')) / (c(h) + N(h))

    with h the last ``order - 1`` symbols or what there is since the start, which is a symbol of its own, N(h) the
    number of different symbols after h, h' without its first symbol, and 1 / V at the end of the recursion.

    Source: Witten and Bell (1991); Chen and Goodman (1998) for the recursion.
    """

    def __init__(self, sequences: Iterable[Sequence[int]], vocab_size: int, order: int) -> None:
        self.vocab_size, self.order = vocab_size, order
        self.counts: dict[tuple[int, ...], collections.Counter[int]] = collections.defaultdict(collections.Counter)
        for sequence in sequences:
            for context, symbol in self._places(sequence):
                for start in range(len(context) + 1):
                    self.counts[context[start:]][symbol] += 1

    def nll(self, sequence: Sequence[int]) -> float:
        """Nats of a sequence."""
        return -sum(math.log(self.probability(symbol, context)) for context, symbol in self._places(sequence))

    def probability(self, symbol: int, context: tuple[int, ...]) -> float:
        """Of a symbol after a context."""
        lower = self.probability(symbol, context[1:]) if context else 1 / self.vocab_size
        counts = self.counts.get(context)
        if not counts:
            return lower
        return (counts[symbol] + len(counts) * lower) / (counts.total() + len(counts))

    def _places(self, sequence: Sequence[int]) -> Iterable[tuple[tuple[int, ...], int]]:
        whole = [_BEFORE, *sequence]
        for t in range(1, len(whole)):
            yield tuple(whole[max(0, t - self.order + 1) : t]), whole[t]
