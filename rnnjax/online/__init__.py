"""Learning online: what crosses the border of a chunk of truncated backpropagation through time, see `rnnjax.tbptt`."""

from rnnjax.online.borders import Border, Cut, Immediate, Lookback, Read
from rnnjax.online.diagonal import EProp, SnAp1
from rnnjax.online.exact import RTRL
from rnnjax.online.names import border_from_name
from rnnjax.online.uoro import UORO

__all__ = [
    "RTRL",
    "UORO",
    "Border",
    "Cut",
    "EProp",
    "Immediate",
    "Lookback",
    "Read",
    "SnAp1",
    "border_from_name",
]
