"""What a network is made of: its arrays by name, with their shapes and sizes."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from rnnjax.cell import named_leaves
from rnnjax.checks import describe

__all__ = ["Summary", "summary", "title"]


class _Row(NamedTuple):
    name: str
    shape: tuple[int, ...]
    dtype: str
    numbers: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """What `summary` finds; ``str`` of it is a table.

    Attributes:
        title: the cell, network or model.
        rows: of every array its name, shape, dtype, how many numbers, and bytes.
        state: numbers in the state of one row, or None where the start state is not the cell's own affair.
    """

    title: str
    rows: tuple[_Row, ...]
    state: int | None

    @property
    def count(self) -> int:
        """All numbers."""
        return sum(row.numbers for row in self.rows)

    @property
    def bytes(self) -> int:
        """Of all arrays."""
        return sum(row.bytes for row in self.rows)

    def __str__(self) -> str:
        head = ("parameter", "shape", "dtype", "numbers", "bytes")
        cells = [(row.name, str(list(row.shape)), row.dtype, f"{row.numbers:,}", f"{row.bytes:,}") for row in self.rows]
        table = [head, *cells, ("all", "", "", f"{self.count:,}", f"{self.bytes:,}")]
        wide = [max(len(line[k]) for line in table) for k in range(5)]
        lines = [
            "  ".join(text.ljust(w) if k < 3 else text.rjust(w) for k, (text, w) in enumerate(zip(line, wide)))
            for line in table
        ]
        state = [] if self.state is None else [f"state: {self.state:,} numbers a row"]
        return "\n".join([self.title, *lines, *state])


def summary(cell: Any, params: Any) -> Summary:
    """The arrays of a cell, a network or a model, as a table.

    Args:
        cell: what the parameters belong to; it gives the title and the size of the state.
        params: what its ``init`` returns, or the shapes of it (`jax.eval_shape`).

    Raises:
        TypeError: if the parameters hold something else than arrays, or ``cell`` has no ``init``.

    >>> import jax, rnnjax
    >>> lstm = rnnjax.LSTM(256)
    >>> print(summary(lstm, lstm.init(jax.random.key(0), input_size=65)))
    LSTM(hidden_size=256)
    parameter  shape        dtype    numbers      bytes
    w_ih       [65, 1024]   float32   66,560    266,240
    w_hh       [256, 1024]  float32  262,144  1,048,576
    b          [1024]       float32    1,024      4,096
    all                              329,728  1,318,912
    state: 512 numbers a row
    """
    if isinstance(cell, type) or not callable(getattr(cell, "init", None)):
        raise TypeError(f"summary: cell must be a cell, a network or a model, an instance, got {describe(cell)}.")
    rows = []
    for name, leaf in named_leaves(params).items():
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise TypeError(f"summary: params must hold arrays, got {describe(leaf)} as {name or 'params'}.")
        count = int(np.prod(leaf.shape, dtype=np.int64))
        rows.append(_Row(name, tuple(leaf.shape), str(leaf.dtype), count, count * leaf.dtype.itemsize))
    state = None
    if hasattr(cell, "initial_state"):
        tree = jax.eval_shape(lambda: cell.initial_state(()))
        state = sum(int(np.prod(leaf.shape, dtype=np.int64)) for leaf in jax.tree.leaves(tree))
    return Summary(title(cell), tuple(rows), state)


def title(thing: Any) -> str:
    """``repr`` without the fields that stand at their defaults."""
    if isinstance(thing, tuple):
        return f"({', '.join(map(title, thing))}{',' if len(thing) == 1 else ''})"
    if not dataclasses.is_dataclass(thing) or isinstance(thing, type):
        return " ".join(repr(thing).split())
    shown = [field for field in dataclasses.fields(thing) if getattr(thing, field.name) != field.default]
    values = ", ".join(f"{field.name}={title(getattr(thing, field.name))}" for field in shown)
    return f"{type(thing).__name__}({values})"
