r"""Gate saturation, dead units and redundant ones, over a text of any length.

A gate is left-saturated where it is below 0.1 and right-saturated where it is above 0.9 (Karpathy, Johnson and
Fei-Fei, 2015): a forget gate that is right-saturated most of the time is a perfect integrator, one that is
left-saturated reads the moment alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from rnnjax.analysis.recording import SymbolModel, leaves_of, read_text
from rnnjax.analysis.units import Leaf, select_units
from rnnjax.kinds import public

__all__ = ["LeafStatistics", "UnitStatistics", "unit_statistics"]


@dataclasses.dataclass(frozen=True)
class LeafStatistics:
    """Statistics of the units of one leaf, arrays ``[n]``."""

    kind: str  # of the `Leaf`
    mean: np.ndarray
    deviation: np.ndarray
    left: np.ndarray  # share of time below 0.1; nan but for gates
    right: np.ndarray  # share of time above 0.9


@dataclasses.dataclass(frozen=True)
class UnitStatistics:
    """What `unit_statistics` found.

    Attributes:
        leaves: statistics by leaf, such as ``L1.f``.
        dead: units of the state that hardly ever change.
        redundant: pairs of units of one leaf of the state with their correlation, the closest first.
        count: symbols read.
    """

    leaves: dict[str, LeafStatistics]
    dead: tuple[str, ...]
    redundant: tuple[tuple[str, str, float], ...]
    count: int


@public
def unit_statistics(
    model: SymbolModel,
    ids: np.ndarray,
    *,
    select: Sequence[str] | None = None,
    dead: float = 1e-3,
    redundant: float = 0.95,
    **reading: Any,
) -> UnitStatistics:
    r"""Reads a text and says which gates are saturated, which units are dead, and which are copies of each other.

    Args:
        model: the model.
        ids: integers ``[n]``.
        select: which leaves, see `select_units`; by default states and gates. Single units make whole leaves.
        dead: a unit of the state is dead if its standard deviation is below this.
        redundant: two units of one leaf of the state are redundant if the size of their correlation is above this.
        **reading: options of `read_text`: ``streams``, ``window``, ``warmup``, ``starts``.

    Raises:
        ValueError: as `read_text` does.
    """
    known: dict[str, Leaf] = leaves_of(model.cell, model.params, model.inputs[0])
    leaves = [leaf for leaf, _ in select_units(select, known)]
    offsets: dict[str, np.ndarray] = {}
    sums: dict[str, list[Any]] = {leaf: [0.0] * 4 for leaf in leaves}
    for part in read_text(model, ids, select=leaves, **reading):
        weight = part.counted.ravel().astype(np.float32)
        for leaf in leaves:
            values = part.values[leaf].reshape(len(weight), -1)
            offset = offsets.setdefault(leaf, values.mean(axis=0))
            found = _moments(values, offset, weight, known[leaf].kind == "state")
            sums[leaf] = [total + np.asarray(new, np.float64) for total, new in zip(sums[leaf], found, strict=True)]
    result, dull, twins = {}, [], []
    for leaf in leaves:
        total, products, low, high = (array / len(ids) for array in sums[leaf])
        kind, covariance = known[leaf].kind, products - np.multiply.outer(total, total) if products.ndim == 2 else None
        variance = products - total**2 if covariance is None else np.diag(covariance)
        deviation = np.sqrt(np.maximum(variance, 0))
        if kind != "gate":
            low, high = np.full_like(low, np.nan), np.full_like(high, np.nan)
        result[leaf] = LeafStatistics(kind, total + offsets[leaf], deviation, low, high)
        if covariance is not None:
            dull += [f"{leaf}.{k}" for k in np.flatnonzero(deviation < dead).tolist()]
            live = np.where(deviation < dead, np.inf, deviation)
            correlation = np.triu(covariance / live / live[:, None], 1)
            pairs = np.argwhere(np.abs(correlation) > redundant).tolist()
            twins += [(f"{leaf}.{a}", f"{leaf}.{b}", float(correlation[a, b])) for a, b in pairs]
    return UnitStatistics(result, tuple(dull), tuple(sorted(twins, key=lambda pair: -abs(pair[2]))), len(ids))


@functools.partial(jax.jit, static_argnames="products")
def _moments(values: jax.Array, offset: jax.Array, weight: jax.Array, products: bool) -> tuple[jax.Array, ...]:
    """Sums of the values, of their squares or all their products, and how often they are below 0.1 and above 0.9."""
    v = values - offset
    square = (v * weight[:, None]).T @ v if products else weight @ (v * v)
    return weight @ v, square, weight @ (values < 0.1).astype(v.dtype), weight @ (values > 0.9).astype(v.dtype)
