"""Cells, one file a family, and the table that gives each its name."""

from rnnjax.cells.conv_lstm import ConvLSTM
from rnnjax.cells.diagonal import DiagonalGRU, DiagonalLSTM
from rnnjax.cells.elman import Elman
from rnnjax.cells.gru import GRU
from rnnjax.cells.gru_reset_before import GRUResetBefore
from rnnjax.cells.highway import RecurrentHighway
from rnnjax.cells.indrnn import IndRNN
from rnnjax.cells.layernorm import LayerNormGRU, LayerNormLSTM
from rnnjax.cells.leaky import LeakyRNN
from rnnjax.cells.lru import LRU
from rnnjax.cells.lstm import LSTM
from rnnjax.cells.lstm_variants import CoupledLSTM, PeepholeLSTM
from rnnjax.cells.mgu import MGU
from rnnjax.cells.minimal import MinGRU, MinLSTM
from rnnjax.cells.minimal_rnn import MinimalRNN
from rnnjax.cells.multiplicative import MILSTM, MIRNN
from rnnjax.cells.projected_lstm import ProjectedLSTM
from rnnjax.cells.registry import CELLS, cell_from_name, describable
from rnnjax.cells.slstm import SLSTM
from rnnjax.cells.sru import SRU

__all__ = [
    "CELLS",
    "GRU",
    "LRU",
    "LSTM",
    "MGU",
    "MILSTM",
    "MIRNN",
    "SLSTM",
    "SRU",
    "ConvLSTM",
    "CoupledLSTM",
    "DiagonalGRU",
    "DiagonalLSTM",
    "Elman",
    "GRUResetBefore",
    "IndRNN",
    "LayerNormGRU",
    "LayerNormLSTM",
    "LeakyRNN",
    "MinGRU",
    "MinLSTM",
    "MinimalRNN",
    "PeepholeLSTM",
    "ProjectedLSTM",
    "RecurrentHighway",
    "cell_from_name",
    "describable",
]
