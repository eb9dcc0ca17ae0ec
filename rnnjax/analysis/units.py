"""How units are called, and which of them somebody asks for.

A unit is called ``L2.c.137``: layer 2 (the first is 1), leaf ``c``, number 137 (the first is 0). Leaves are those of
the state (``h``, ``c``, ...), what the cell names in its step, such as its gates (``i``, ``f``, ...), and the same
before the nonlinearity (``z_i``, ...).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from rnnjax.checks import short
from rnnjax.kinds import public

__all__ = ["HOW_TO_NAME", "Leaf", "Selection", "Unit", "parse_unit", "select_units"]

Selection = tuple[tuple[str, tuple[int, ...] | None], ...]  # leaves, and which of their units; None for all
_SHOWN = ("state", "gate", "candidate", "value")
HOW_TO_NAME = (
    "name a value where the cell's step computes it, as in f = jax.ad_checkpoint.checkpoint_name(f, 'f'), and it "
    "becomes a leaf"
)


class Unit(NamedTuple):
    """One number of one leaf of one layer."""

    leaf: str  # "L2.c"
    number: int

    def __str__(self) -> str:
        return f"{self.leaf}.{self.number}"


@dataclasses.dataclass(frozen=True)
class Leaf:
    """What a layer has under one name: its number of units, and what they are."""

    size: int
    kind: str  # "state", "gate" (0 to 1), "candidate" (-1 to 1), "value" or "pre" (before the nonlinearity)


@public
def parse_unit(name: str, leaves: dict[str, Leaf]) -> Unit:
    """The unit of a name such as ``L2.c.137``.

    Raises:
        ValueError: if there is no such layer, leaf or unit; it says what there is.

    >>> parse_unit("L1.c.3", {"L1.h": Leaf(4, "state"), "L1.c": Leaf(4, "state")})
    Unit(leaf='L1.c', number=3)
    """
    leaf, _, number = name.rpartition(".")
    layers = sorted({int(known[1 : known.index(".")]) for known in leaves})
    if leaf not in leaves:
        layer = name.split(".")[0]
        mine = [known.partition(".")[2] for known in leaves if known.startswith(f"{layer}.")]
        what = (
            f"the leaves of {layer} are {', '.join(mine)}; {HOW_TO_NAME}" if mine else f"layers are L1 to L{layers[-1]}"
        )
        raise ValueError(f"unit: a unit must be LAYER.LEAF.NUMBER such as L1.h.0, got {short(name)}; {what}.")
    size = leaves[leaf].size
    if not number.isdecimal() or int(number) >= size:
        raise ValueError(
            f"unit: the units of {leaf} are {leaf}.0 to {leaf}.{size - 1}, got {short(name)}; take one of them."
        )
    return Unit(leaf, int(number))


def select_units(names: Sequence[str] | None, leaves: dict[str, Leaf]) -> Selection:
    """Leaves and units by name, in the order of the leaves.

    Args:
        names: units (``L2.c.137``), leaves (``L2.c``), kinds (``state``, ``gate``, ``candidate``, ``value``,
            ``pre``); None for all but ``pre``.
        leaves: from `leaves_of`.

    Raises:
        ValueError: for a name that is none of these.
    """
    wanted: dict[str, set[int] | None] = {}
    for name in _SHOWN if names is None else names:
        whole = [leaf for leaf, about in leaves.items() if name in (leaf, about.kind)]
        wanted |= dict.fromkeys(whole)
        if not whole and name not in (*_SHOWN, "pre"):
            unit = parse_unit(name, leaves)
            chosen = wanted.setdefault(unit.leaf, set())
            if chosen is not None:
                chosen.add(unit.number)
    return tuple(
        (leaf, None if (units := wanted[leaf]) is None else tuple(sorted(units))) for leaf in leaves if leaf in wanted
    )
