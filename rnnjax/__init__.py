"""rnnjax: recurrent networks in JAX, in pure functions.

At the top stands what every program needs: cells, networks of them, and what runs, trains and keeps them. All else has
a room, which is loaded when its name is used: the other cells are in ``rnnjax.cells``, masks and penalties in
``rnnjax.networks``, initialisers in ``rnnjax.initializers``, batches in ``rnnjax.data``.

>>> import rnnjax
>>> rnnjax.data.pad_sequences
<function pad_sequences at 0x...>
>>> rnnjax.lstm
Traceback (most recent call last):
AttributeError: rnnjax has no 'lstm'; did you mean 'LSTM'?
"""

from rnnjax import _start  # noqa: F401  # isort: skip  (before all others: what Ctrl-C does while they load)

import importlib
from typing import TYPE_CHECKING, Any

from rnnjax import topologies  # noqa: F401  (its models join what `load` makes again)
from rnnjax.card import card
from rnnjax.cell import AffineCell, Cell, LinearCell, affine_step, linear_step
from rnnjax.cells import GRU, LRU, LSTM, SLSTM, ConvLSTM, Elman, MinGRU, MinLSTM, ProjectedLSTM
from rnnjax.checks import did_you_mean
from rnnjax.cpu import use_cores
from rnnjax.engines import implementations
from rnnjax.network import Network, network_step, start_state
from rnnjax.networks import Bidirectional, LearnedState, Regularized, Stack
from rnnjax.saving import load, load_tree, save, save_tree
from rnnjax.summary import summary
from rnnjax.tbptt import tbptt
from rnnjax.testing.contract import check_cell
from rnnjax.unroll import unroll

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LRU",
    "LSTM",
    "SLSTM",
    "AffineCell",
    "Bidirectional",
    "Cell",
    "ConvLSTM",
    "Elman",
    "LearnedState",
    "LinearCell",
    "MinGRU",
    "MinLSTM",
    "Network",
    "ProjectedLSTM",
    "Regularized",
    "Stack",
    "affine_step",
    "card",
    "check_cell",
    "implementations",
    "linear_step",
    "load",
    "load_tree",
    "network_step",
    "save",
    "save_tree",
    "start_state",
    "summary",
    "tbptt",
    "unroll",
    "use_cores",
]

_ROOMS = (
    "analysis",
    "cells",
    "data",
    "decoding",
    "engines",
    "fit",
    "forecast",
    "initializers",
    "interop",
    "lm",
    "networks",
    "online",
    "report",
    "testing",
    "text",
    "topologies",
)
_LIGHT = ("cells", "networks", "initializers", "data", "engines", "topologies")  # where a name is looked for
_WORDS = {"rnn": "Elman", "rnncell": "Elman", "simplernn": "Elman", "lstmcell": "LSTM", "grucell": "GRU"}

if not TYPE_CHECKING:  # which would take any name for one of ours

    def __getattr__(name: str) -> Any:
        if name in _ROOMS:
            return importlib.import_module(f"rnnjax.{name}")
        if name.startswith("_"):
            raise AttributeError(f"rnnjax has no {name!r}")
        for room in _LIGHT:
            if name in importlib.import_module(f"rnnjax.{room}").__all__:
                raise AttributeError(f"rnnjax has no {name!r}; write rnnjax.{room}.{name}.")
        word = _WORDS.get(name.lower().replace("_", ""))
        guess = f"; did you mean {word!r}?" if word else did_you_mean(name, (*__all__, *_ROOMS))
        raise AttributeError(f"rnnjax has no {name!r}{guess or '.'}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS})
