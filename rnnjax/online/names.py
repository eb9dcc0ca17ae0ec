"""Borders by name, as the command line has them."""

from __future__ import annotations

from typing import Any

import jax

from rnnjax.checks import did_you_mean
from rnnjax.online.across import AnyBorder, Cut, Immediate, Lookback, Reader
from rnnjax.online.diagonal import EProp, SnAp1
from rnnjax.online.whole import RTRL, UORO

__all__ = ["BORDER_NAMES", "border_from_name", "check_border_name"]

BORDER_NAMES = ("cut", "immediate", "lookback:K", "snap1", "eprop", "rtrl", "uoro")
_OF_CELLS: dict[str, Any] = {"snap1": SnAp1, "eprop": EProp, "rtrl": RTRL}


def check_border_name(where: str, name: str) -> str:
    """The name, in small letters.

    Raises:
        ValueError: unless it is that of a border.
    """
    kind, colon, steps = str(name).strip().lower().partition(":")
    known = {full.partition(":")[0] for full in BORDER_NAMES}
    if kind not in known or bool(colon) != (kind == "lookback") or (colon and not (steps.isdecimal() and int(steps))):
        guess = did_you_mean(kind, known) or "."
        raise ValueError(f"{where}: border must be one of {', '.join(BORDER_NAMES)}, got {name!r}{guess}")
    return f"{kind}{colon}{int(steps) if colon else ''}"


def border_from_name(name: str, cell: Any, reader: Reader | None = None, *, key: jax.Array | None = None) -> AnyBorder:
    """The border of that name.

    Args:
        name: one of `BORDER_NAMES`; ``lookback:128`` is ``Lookback(128)``.
        cell: what runs.
        reader: as in `RTRL`.
        key: of ``"uoro"``.

    >>> import rnnjax
    >>> border_from_name("lookback:128", rnnjax.GRU(4))
    Lookback(steps=128)
    """
    kind, _, steps = check_border_name("border_from_name", name).partition(":")
    if kind in _OF_CELLS:
        found: AnyBorder = _OF_CELLS[kind](cell, reader)
        return found
    if kind == "lookback":
        return Lookback(int(steps))
    if kind == "uoro":
        return UORO(jax.random.key(0) if key is None else key)
    return Cut() if kind == "cut" else Immediate()
