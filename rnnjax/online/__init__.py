"""Learning online: what crosses the border of a chunk of truncated backpropagation through time, see `rnnjax.tbptt`."""

from rnnjax.online.across import Cut, Immediate, Lookback, Read
from rnnjax.online.diagonal import EProp, SnAp1
from rnnjax.online.whole import RTRL, UORO

__all__ = [
    "RTRL",
    "UORO",
    "Cut",
    "EProp",
    "Immediate",
    "Lookback",
    "Read",
    "SnAp1",
]
