"""The cells that are compared, of about equally many parameters, and how fast each of them learns."""

from typing import Any, NamedTuple

import rnnjax
from experiments.lru_block import LRUBlock

__all__ = ["COLORS", "NAMES", "Entry", "entry"]

NAMES = ("Elman", "IRNN", "LSTM", "GRU", "chrono LSTM", "LRU")
COLORS = {
    "Elman": "#D55E00",
    "IRNN": "#CC79A7",
    "LSTM": "#0072B2",
    "GRU": "#009E73",
    "chrono LSTM": "#56B4E9",
    "LRU": "#E69F00",
}


class Entry(NamedTuple):
    """A cell and its learning rate."""

    cell: Any
    lr: float


def entry(name: str, lag: int, width: float = 1.0) -> Entry:
    """A cell by its name.

    Args:
        name: one of `NAMES`.
        lag: the longest dependency, which only the chrono initialisation is told.
        width: factor on all sizes.
    """

    def size(units: int) -> int:
        return max(1, round(units * width))

    match name:
        case "Elman":
            return Entry(rnnjax.Elman(size(128)), 2e-3)
        case "IRNN":
            return Entry(
                rnnjax.Elman(
                    size(128),
                    activation="relu",
                    input_init=rnnjax.initializers.Glorot(0.1),
                    recurrent_init=rnnjax.initializers.Identity(),
                ),
                5e-4,
            )
        case "LSTM":
            return Entry(rnnjax.LSTM(size(64)), 8e-3)
        case "GRU":
            return Entry(rnnjax.GRU(size(74)), 8e-3)
        case "chrono LSTM":
            return Entry(rnnjax.LSTM(size(64), forget_bias=rnnjax.initializers.Chrono(max(3, lag))), 8e-3)
        case "LRU":
            return Entry(LRUBlock(size(48), r_min=0.9, r_max=0.999), 8e-3)
        case _:
            raise ValueError(f"entry: a cell must be one of {', '.join(NAMES)}, got {name!r}.")
