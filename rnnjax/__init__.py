"""rnnjax: recurrent networks in JAX, in pure functions."""

from rnnjax.cell import AffineCell, Cell, affine_step, check_cell
from rnnjax.cells import GRU, LSTM, Elman, cell_from_name
from rnnjax.implementations import implementations, register_unroll
from rnnjax.initializers import Chrono, Glorot, Identity, Orthogonal, Uniform
from rnnjax.layers import Stack, dropout, unroll_stack
from rnnjax.tbptt import TBPTTInfo, TBPTTResult, tbptt
from rnnjax.unroll import unroll

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "AffineCell",
    "Cell",
    "Chrono",
    "Elman",
    "Glorot",
    "Identity",
    "Orthogonal",
    "Stack",
    "TBPTTInfo",
    "TBPTTResult",
    "Uniform",
    "affine_step",
    "cell_from_name",
    "check_cell",
    "dropout",
    "implementations",
    "register_unroll",
    "tbptt",
    "unroll",
    "unroll_stack",
]
