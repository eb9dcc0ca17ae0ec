"""Which implementations of an unroll exist, which cells each takes, and which one is the default."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from rnnjax.cell import Cell

__all__ = ["Controls", "Implementation", "UnrollFn", "choose", "implementations", "register_unroll", "registrations"]


class Controls(NamedTuple):
    """What happens at a step beside the cell's own mathematics; None where there is nothing to do.

    Attributes:
        valid: bool ``[T, *batch]``; where False the state passes unchanged (the output there is masked later).
        resets: bool ``[T, *batch]``; where True the state becomes ``fresh`` before the step.
        fresh: the state that a reset restores; None if and only if ``resets`` is.
    """

    valid: jax.Array | None = None
    resets: jax.Array | None = None
    fresh: Any = None


class UnrollFn(Protocol):
    """An implementation: the final state and ``ys [T, *batch, H]`` of a cell over ``xs [T, *batch, I]``."""

    def __call__(
        self, cell: Any, params: Any, state: Any, xs: jax.Array, controls: Controls, *, reverse: bool, remat: Any
    ) -> tuple[Any, jax.Array]: ...


@dataclasses.dataclass(frozen=True)
class Implementation:
    """A registered implementation.

    Attributes:
        name: what ``implementation=`` selects.
        fn: the function; see `UnrollFn`.
        supports: whether it takes this cell at all.
        priority: the supported one with the highest priority is the default; ``"scan"`` has 0. A function of
            ``(cell, backend, dtype)``, so that the choice can depend on where the program runs.
    """

    name: str
    fn: UnrollFn
    supports: Callable[[Cell], bool]
    priority: Callable[[Cell, str, Any], int]


_REGISTRY: dict[str, Implementation] = {}
_registrations = 0


def register_unroll(
    name: str,
    fn: UnrollFn,
    *,
    supports: Callable[[Cell], bool] = lambda cell: True,
    priority: Callable[[Cell, str, Any], int] | int = -1,
) -> None:
    """Adds an implementation, or replaces the one of that name.

    Args:
        name: what ``implementation=`` selects.
        fn: computes the unroll; see `UnrollFn`. It must equal ``"scan"`` in values, final state and gradients.
        supports: tells whether it takes a cell.
        priority: a number, or a function of ``(cell, backend, dtype)``. The highest becomes the default for a
            cell, ``"scan"`` has 0, and a negative number is only used when named.
    """
    global _registrations
    rank = priority if callable(priority) else (lambda cell, backend, dtype: priority)
    _REGISTRY[name] = Implementation(name, fn, supports, rank)
    _registrations += 1


def registrations() -> int:
    """How many there have been: what was compiled before the last one may have chosen otherwise."""
    return _registrations


def implementations(cell: Cell) -> tuple[str, ...]:
    """The names that ``implementation=`` takes for this cell.

    >>> import rnnjax
    >>> "scan" in rnnjax.implementations(rnnjax.LSTM(8))
    True
    """
    return tuple(entry.name for entry in _REGISTRY.values() if entry.supports(cell))


def choose(cell: Cell, name: str | None, dtype: Any, without: str | None = None) -> Implementation:
    """The implementation of that name, or with None the one of the highest priority on the default backend.

    Args:
        cell: what is to be unrolled.
        name: of the implementation, or None.
        dtype: of the state.
        without: the name of one that is left out, because it asks for another to build on.

    Raises:
        ValueError: if there is none of that name for the cell.
    """
    able = [entry for entry in _REGISTRY.values() if entry.name != without and entry.supports(cell)]
    if name is None:
        return max(able, key=lambda entry: entry.priority(cell, jax.default_backend(), dtype))
    for entry in able:
        if entry.name == name:
            return entry
    available = ", ".join(entry.name for entry in able)
    raise ValueError(f"unroll: no {name!r} implementation for {type(cell).__name__}; available: {available}.")
