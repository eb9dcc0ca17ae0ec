"""Shuffled batches that are a function of the step, so that a resumed training meets the same ones."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from rnnjax.cell import check_size
from rnnjax.checks import check_choice, short
from rnnjax.data.batching import Bucket, bucket_by_length
from rnnjax.kinds import public

__all__ = ["ShuffledBatches"]

_LAST = ("drop", "fill")


class ShuffledBatches:
    """Batches of all examples in an order that is new in each epoch.

    ``batches(step)`` is a pure function of the step, the key and the arrays: nothing is drawn along the way, so a
    training that stops anywhere goes on with the batches it would have met. Every batch is full. Where B does not
    divide N, ``last="drop"`` leaves ``N mod B`` examples out, others in each epoch; ``last="fill"`` feeds every
    example, and completes the last batch with the first examples of the epoch.

    With ``lengths``, batches hold sequences of similar lengths (`bucket_by_length`): ``trim`` cuts each to one
    of ``boundaries``, and a jitted update compiles once for each of them.

    Args:
        arrays: a pytree of arrays with the same leading axis N, one entry an example.
        batch_size: B.
        key: for the order.
        last: ``"drop"`` or ``"fill"``.
        lengths: int ``[N]``, of the sequences, each at least 1.
        num_buckets: how many lengths batches may have at most; None is one for every 8 batches of an epoch, up to 8:
            another length costs a compilation, and is worth it where many batches have it.
        trim: ``(batch, seq_len) -> batch``, which cuts the time axis of the arrays that have one; nothing before
            ``seq_len`` is padding in all rows.

    Attributes:
        num_examples: N.
        steps_per_epoch: N / B, rounded down or up as ``last`` says.
        boundaries: the lengths that batches have, none without ``lengths``.

    Raises:
        ValueError: for arrays whose leading axes differ, more rows than examples, an unknown ``last``, or ``lengths``
            without ``trim``.

    >>> import jax, numpy as np
    >>> data = {"x": np.arange(10.0), "label": np.arange(10) % 2}
    >>> batches = ShuffledBatches(data, batch_size=4, key=jax.random.key(0))
    >>> batches.steps_per_epoch, {name: array.shape for name, array in batches(0).items()}
    (2, {'label': (4,), 'x': (4,)})
    >>> len({*batches(0)["x"], *batches(1)["x"]}), bool((batches(5)["x"] == batches(5)["x"]).all())
    (8, True)
    """

    @public
    def __init__(
        self,
        arrays: Any,
        batch_size: int,
        *,
        key: jax.Array,
        last: str = "drop",
        lengths: Any = None,
        num_buckets: int | None = None,
        trim: Callable[[Any, int], Any] | None = None,
    ) -> None:
        where = "ShuffledBatches"
        check_size(where, "batch_size", batch_size)
        check_choice(where, "last", last, _LAST)
        self.arrays = jax.tree.map(functools.partial(_on_host, where, "arrays"), arrays)
        self.num_examples = _common_length(where, self.arrays)
        if batch_size > self.num_examples:
            raise ValueError(
                f"{where}: batch_size must be at most the number of examples, {self.num_examples}, got {batch_size}; "
                "take smaller batches."
            )
        self.batch_size, self.last, self.trim = batch_size, last, trim
        self.steps_per_epoch = (self.num_examples + (batch_size - 1 if last == "fill" else 0)) // batch_size
        self._seed = [int(word) for word in np.asarray(jax.random.key_data(key)).ravel()]
        self.lengths: np.ndarray | None = None
        self.boundaries: tuple[int, ...] = ()
        if (lengths is None) != (trim is None):
            raise ValueError(
                f"{where}: lengths and trim go together, got {'lengths' if trim is None else 'trim'} alone; trim cuts "
                "a batch to the length of its bucket."
            )
        if lengths is not None:
            self.lengths = _on_host(where, "lengths", lengths)
            if self.lengths.shape != (self.num_examples,):
                raise ValueError(
                    f"{where}: lengths must have shape [N] with N = {self.num_examples}, got {self.lengths.shape}."
                )
            if num_buckets is None:
                num_buckets = min(8, max(1, self.steps_per_epoch // 8))
            # The same few lengths in every epoch, whatever its batches.
            self.boundaries = bucket_by_length(self.lengths, batch_size, num_buckets=num_buckets).boundaries
        self._epochs: dict[int, tuple[Bucket, ...]] = {}  # the last two

    @public
    def __call__(self, step: int) -> Any:
        """The batch of this step, from 0: a pytree of arrays ``[B, ...]``."""
        check_size("ShuffledBatches", "step", step, least=0)
        epoch, place = divmod(step, self.steps_per_epoch)
        rows, seq_len = self._epoch(epoch)[place]
        batch = jax.tree.map(lambda array: array[rows], self.arrays)
        return batch if self.trim is None else self.trim(batch, seq_len)

    def __repr__(self) -> str:
        shapes = [f"{array.dtype}{list(array.shape)}" for array in jax.tree.leaves(self.arrays)]
        buckets = f", boundaries={self.boundaries}" if self.boundaries else ""
        return (
            f"ShuffledBatches({', '.join(shapes)}, batch_size={self.batch_size}, key={self._seed}, "
            f"last={self.last!r}{buckets})"
        )

    def _epoch(self, epoch: int) -> tuple[Bucket, ...]:
        if epoch not in self._epochs:
            self._epochs = {**dict(list(self._epochs.items())[-1:]), epoch: self._make_epoch(epoch)}
        return self._epochs[epoch]

    def _make_epoch(self, epoch: int) -> tuple[Bucket, ...]:
        rng = np.random.default_rng([*self._seed, epoch])
        order = np.resize(rng.permutation(self.num_examples), self.steps_per_epoch * self.batch_size)
        if self.lengths is None:
            return tuple(Bucket(rows, 0) for rows in order.reshape(-1, self.batch_size))
        # What is dropped or repeated has been chosen at random, so no batch has rows that hold nothing.
        buckets = bucket_by_length(
            self.lengths[order], self.batch_size, boundaries=self.boundaries, seed=int(rng.integers(2**31))
        )
        return tuple(Bucket(order[batch.indices], batch.seq_len) for batch in buckets.batches)


def _on_host(where: str, name: str, value: Any) -> np.ndarray:
    """A leaf as an array of NumPy; lists of several lengths and keys are none."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError):
        raise TypeError(f"{where}: {name} must be arrays of numbers, got {short(value)}.") from None


def _common_length(where: str, arrays: Any) -> int:
    named, _ = jax.tree_util.tree_flatten_with_path(arrays)
    found = {jax.tree_util.keystr(path).lstrip(".") or "arrays": array.shape for path, array in named}
    lengths = {shape[0] if shape else None for shape in found.values()}
    length = lengths.pop() if len(lengths) == 1 else None
    if not length:
        shapes = ", ".join(f"{name} {list(shape)}" for name, shape in found.items()) or "no arrays"
        raise ValueError(f"{where}: arrays must have the same leading axis of N examples, at least one, got {shapes}.")
    return length
