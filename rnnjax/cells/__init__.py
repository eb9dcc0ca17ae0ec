"""Cells, one file a family, and the table that gives each its name."""

from rnnjax.cells.elman import Elman, ElmanParams, ElmanState
from rnnjax.cells.gru import GRU, GRUParams, GRUState
from rnnjax.cells.lstm import LSTM, LSTMParams, LSTMState
from rnnjax.cells.registry import CELLS, cell_from_name

__all__ = [
    "CELLS",
    "GRU",
    "LSTM",
    "Elman",
    "ElmanParams",
    "ElmanState",
    "GRUParams",
    "GRUState",
    "LSTMParams",
    "LSTMState",
    "cell_from_name",
]
