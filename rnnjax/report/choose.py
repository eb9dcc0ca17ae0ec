"""Which units a page of bounded size holds: those asked for, those that tell labels, those that stand out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from rnnjax.analysis.gates import UnitStatistics
from rnnjax.analysis.search import LabelSearch
from rnnjax.analysis.units import Leaf, parse_unit

__all__ = ["asked_units", "ranked_units"]

_STANDING_OUT = 2  # units of every leaf that are taken early for what they are, whatever they tell


def asked_units(names: Sequence[str], leaves: Mapping[str, Leaf]) -> list[str]:
    """Units by name; a leaf (``L1.c``) stands for all of its units.

    Raises:
        ValueError: for a name that is neither.

    >>> asked_units(["L1.c", "L1.h.0"], {"L1.h": Leaf(2, "state"), "L1.c": Leaf(2, "state")})
    ['L1.c.0', 'L1.c.1', 'L1.h.0']
    """
    chosen: dict[str, None] = {}
    for name in names:
        if name in leaves:
            chosen |= dict.fromkeys(f"{name}.{k}" for k in range(leaves[name].size))
        else:
            unit = parse_unit(name, dict(leaves))
            chosen[f"{unit.leaf}.{unit.number}"] = None
    return list(chosen)


def ranked_units(
    asked: Sequence[str],
    found: Mapping[str, LabelSearch],
    statistics: UnitStatistics,
    top: int,
) -> dict[str, list[str]]:
    """All units, the most worth showing first, each with the reasons why it is where it is.

    First those asked for; then in turns the first, second, ... ``top``-th of every label, and of every leaf those
    that vary most and, of gates, those that are most often open and most often shut; then all others, leaf by leaf in
    turns, by how much they vary.

    Args:
        asked: names of units.
        found: from `search_units`, by label.
        statistics: from `unit_statistics`.
        top: units of every label.
    """
    queues: list[list[tuple[str, str]]] = []
    for label, search in found.items():
        queues.append([(unit.unit, f"{label} #{rank}") for rank, unit in enumerate(search.top(top), 1)])
    rest: list[list[tuple[str, str]]] = []
    for leaf, about in statistics.leaves.items():
        order = _descending(about.deviation)
        queues.append([(f"{leaf}.{k}", f"varies #{rank}") for rank, k in enumerate(order[:_STANDING_OUT], 1)])
        if about.kind == "gate":
            for what, share in (("open", about.right), ("shut", about.left)):
                best = [k for k in _descending(share)[:_STANDING_OUT] if share[k] > 0]
                queues.append([(f"{leaf}.{k}", f"{what} #{rank}") for rank, k in enumerate(best, 1)])
        rest.append([(f"{leaf}.{k}", "") for k in order])
    chosen: dict[str, list[str]] = {name: ["asked for"] for name in asked}
    for name, reason in (*_in_turns(queues), *_in_turns(rest)):
        reasons = chosen.setdefault(name, [])
        if reason:
            reasons.append(reason)
    return chosen


def _descending(values: np.ndarray) -> list[int]:
    return np.argsort(-values, kind="stable").tolist()


def _in_turns(queues: Sequence[Sequence[tuple[str, str]]]) -> Iterable[tuple[str, str]]:
    for rank in range(max(map(len, queues), default=0)):
        for queue in queues:
            if rank < len(queue):
                yield queue[rank]
