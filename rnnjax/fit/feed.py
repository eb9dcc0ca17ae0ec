"""Batches from any iterable: a list, a data loader, a generator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

import jax
import numpy as np

from rnnjax.checks import describe

__all__ = ["Feed", "as_function"]

_NOTHING = object()


class Feed:
    """An iterable as a function of the step, which it is not: it gives its batches in the order they come in.

    One that can be read again, as a list or a data loader, is, once an epoch; an iterator or generator ends, and the
    training with it. What a roll-back or a resumed run asks for again is gone: those go on with the next batch.

    Attributes:
        ended: whether the last batch has been given.
        steps_per_epoch: where the iterable has a length.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self._source = batches
        self._iterator: Iterator[Any] = iter(batches)
        self._again = self._iterator is not batches
        self._step, self._batch = -1, _NOTHING
        self._next = self._read()  # one ahead, so that the end is known before it comes
        if self._next is _NOTHING:
            raise ValueError(f"fit: batches must hold at least one, got an empty {type(batches).__name__}.")
        self.steps_per_epoch = len(batches) if self._again and isinstance(batches, Sized) else None

    @property
    def ended(self) -> bool:
        """Whether the last batch has been given."""
        return self._next is _NOTHING

    def __call__(self, step: int) -> Any:
        """The next batch, or the one before for the same step."""
        if step != self._step:
            self._step, self._batch = step, self._next
            self._next = self._read()
        return self._batch

    def _read(self) -> Any:
        found = next(self._iterator, _NOTHING)
        if found is _NOTHING and self._again:
            self._iterator = iter(self._source)
            found = next(self._iterator, _NOTHING)
        return found


def as_function(batches: Any) -> Callable[[int], Any]:
    """Batches as a function of the step.

    Raises:
        TypeError: if they are neither that nor an iterable.
        ValueError: if there are none.
    """
    if isinstance(batches, type):
        raise TypeError(f"fit: batches must be an instance, got the class {batches.__name__}.")
    if callable(batches):
        function: Callable[[int], Any] = batches
        return function
    whole = isinstance(batches, dict | str | bytes | np.ndarray | jax.Array) or (
        isinstance(batches, tuple) and all(isinstance(part, np.ndarray | jax.Array) for part in batches)
    )
    if whole or not isinstance(batches, Iterable):
        raise TypeError(
            "fit: batches must be a function of the step or an iterable of batches, got "
            f"{jax.tree.map(describe, batches)!s:.200}; write ShuffledBatches(arrays, batch_size, key=key), or lambda "
            "step: batch for one batch alone."
        )
    return Feed(batches)
