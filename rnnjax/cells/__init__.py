"""Cells, one file a family, and the table that gives each its name."""

from rnnjax.cells.combined import MILSTM, MIRNN, LayerNormGRU, LayerNormLSTM
from rnnjax.cells.conv_lstm import ConvLSTM
from rnnjax.cells.diagonal import DiagonalGRU, DiagonalLSTM
from rnnjax.cells.elman import Elman, IndRNN, LeakyRNN, MinimalRNN, leaky_noise
from rnnjax.cells.gru import GRU, MGU, GRUResetBefore
from rnnjax.cells.highway import RecurrentHighway
from rnnjax.cells.linear import LRU, SRU, MinGRU, MinLSTM
from rnnjax.cells.lstm import LSTM, CoupledLSTM, PeepholeLSTM, ProjectedLSTM
from rnnjax.cells.registry import CELLS, cell_from_name, describable
from rnnjax.cells.slstm import SLSTM

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
    "leaky_noise",
]

CELLS.update(
    conv_lstm=ConvLSTM,
    coupled_lstm=CoupledLSTM,
    diagonal_gru=DiagonalGRU,
    diagonal_lstm=DiagonalLSTM,
    elman=Elman,
    gru=GRU,
    gru_reset_before=GRUResetBefore,
    highway=RecurrentHighway,
    indrnn=IndRNN,
    layernorm_gru=LayerNormGRU,
    layernorm_lstm=LayerNormLSTM,
    leaky=LeakyRNN,
    lru=LRU,
    lstm=LSTM,
    mgu=MGU,
    mi_lstm=MILSTM,
    mi_rnn=MIRNN,
    min_gru=MinGRU,
    min_lstm=MinLSTM,
    minimal_rnn=MinimalRNN,
    peephole_lstm=PeepholeLSTM,
    projected_lstm=ProjectedLSTM,
    slstm=SLSTM,
    sru=SRU,
)
for _kind in CELLS.values():
    if isinstance(_kind, type):
        describable(_kind)
