"""Cells, one file a family, and the table that gives each its name."""

from rnnjax.cells.conv_lstm import ConvLSTM, ConvLSTMParams
from rnnjax.cells.elman import Elman, ElmanParams, ElmanState
from rnnjax.cells.gru import GRU, GRUParams, GRUState
from rnnjax.cells.gru_reset_before import GRUResetBefore, GRUResetBeforeParams
from rnnjax.cells.highway import RecurrentHighway, RecurrentHighwayParams, RecurrentHighwayState
from rnnjax.cells.indrnn import IndRNN, IndRNNParams, IndRNNState
from rnnjax.cells.layernorm import LayerNormGRU, LayerNormGRUParams, LayerNormLSTM, LayerNormLSTMParams
from rnnjax.cells.leaky import LeakyParams, LeakyRNN, LeakyState, leaky_noise
from rnnjax.cells.lru import LRU, LRUParams, LRUState
from rnnjax.cells.lstm import LSTM, LSTMParams, LSTMState
from rnnjax.cells.lstm_variants import CoupledLSTM, CoupledLSTMParams, PeepholeLSTM, PeepholeLSTMParams
from rnnjax.cells.mgu import MGU, MGUParams, MGUState
from rnnjax.cells.minimal import MinGRU, MinGRUParams, MinGRUState, MinLSTM, MinLSTMParams, MinLSTMState
from rnnjax.cells.minimal_rnn import MinimalRNN, MinimalRNNParams, MinimalRNNState
from rnnjax.cells.multiplicative import MILSTM, MIRNN, MILSTMParams, MIRNNParams, MIRNNState
from rnnjax.cells.projected_lstm import ProjectedLSTM, ProjectedLSTMParams
from rnnjax.cells.registry import CELLS, cell_file, cell_from_name, cell_from_repr, describable
from rnnjax.cells.slstm import SLSTM, SLSTMParams, SLSTMState
from rnnjax.cells.sru import SRU, SRUParams, SRUState

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
    "ConvLSTMParams",
    "CoupledLSTM",
    "CoupledLSTMParams",
    "Elman",
    "ElmanParams",
    "ElmanState",
    "GRUParams",
    "GRUResetBefore",
    "GRUResetBeforeParams",
    "GRUState",
    "IndRNN",
    "IndRNNParams",
    "IndRNNState",
    "LRUParams",
    "LRUState",
    "LSTMParams",
    "LSTMState",
    "LayerNormGRU",
    "LayerNormGRUParams",
    "LayerNormLSTM",
    "LayerNormLSTMParams",
    "LeakyParams",
    "LeakyRNN",
    "LeakyState",
    "MGUParams",
    "MGUState",
    "MILSTMParams",
    "MIRNNParams",
    "MIRNNState",
    "MinGRU",
    "MinGRUParams",
    "MinGRUState",
    "MinLSTM",
    "MinLSTMParams",
    "MinLSTMState",
    "MinimalRNN",
    "MinimalRNNParams",
    "MinimalRNNState",
    "PeepholeLSTM",
    "PeepholeLSTMParams",
    "ProjectedLSTM",
    "ProjectedLSTMParams",
    "RecurrentHighway",
    "RecurrentHighwayParams",
    "RecurrentHighwayState",
    "SLSTMParams",
    "SLSTMState",
    "SRUParams",
    "SRUState",
    "cell_file",
    "cell_from_name",
    "cell_from_repr",
    "describable",
    "leaky_noise",
]
