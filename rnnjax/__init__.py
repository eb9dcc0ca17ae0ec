"""rnnjax: recurrent networks in JAX, in pure functions."""

from rnnjax import _start  # noqa: F401  # isort: skip  (before all others: what Ctrl-C does while they load)

from rnnjax import decoding, fit, online, topologies
from rnnjax.cell import AffineCell, Cell, LinearCell, affine_step, linear_step
from rnnjax.cells import (
    GRU,
    LRU,
    LSTM,
    MGU,
    MILSTM,
    MIRNN,
    SLSTM,
    SRU,
    ConvLSTM,
    CoupledLSTM,
    Elman,
    GRUResetBefore,
    IndRNN,
    LayerNormGRU,
    LayerNormLSTM,
    LeakyRNN,
    MinGRU,
    MinimalRNN,
    MinLSTM,
    PeepholeLSTM,
    ProjectedLSTM,
    RecurrentHighway,
    cell_from_name,
    cell_from_repr,
    leaky_noise,
)
from rnnjax.cpu import use_cores
from rnnjax.data import bucket_by_length, pack_documents, pad_sequences, padded_share, unpack_documents
from rnnjax.engines import implementations
from rnnjax.initializers import Chrono, Glorot, Identity, Orthogonal, Uniform
from rnnjax.network import Network, network_step, start_state
from rnnjax.networks import (
    Bidirectional,
    LearnedState,
    Regularized,
    Stack,
    activation_regularization,
    drop_connect,
    dropout,
    locked_dropout,
    temporal_activation_regularization,
    zoneout,
)
from rnnjax.saving import load, save
from rnnjax.tbptt import TBPTTResult, tbptt
from rnnjax.testing.contract import check_cell
from rnnjax.unroll import unroll

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LRU",
    "LSTM",
    "MGU",
    "MILSTM",
    "MIRNN",
    "SLSTM",
    "SRU",
    "AffineCell",
    "Bidirectional",
    "Cell",
    "Chrono",
    "ConvLSTM",
    "CoupledLSTM",
    "Elman",
    "GRUResetBefore",
    "Glorot",
    "Identity",
    "IndRNN",
    "LayerNormGRU",
    "LayerNormLSTM",
    "LeakyRNN",
    "LearnedState",
    "LinearCell",
    "MinGRU",
    "MinLSTM",
    "MinimalRNN",
    "Network",
    "Orthogonal",
    "PeepholeLSTM",
    "ProjectedLSTM",
    "RecurrentHighway",
    "Regularized",
    "Stack",
    "TBPTTResult",
    "Uniform",
    "activation_regularization",
    "affine_step",
    "bucket_by_length",
    "cell_from_name",
    "cell_from_repr",
    "check_cell",
    "decoding",
    "drop_connect",
    "dropout",
    "fit",
    "implementations",
    "leaky_noise",
    "linear_step",
    "load",
    "locked_dropout",
    "network_step",
    "online",
    "pack_documents",
    "pad_sequences",
    "padded_share",
    "save",
    "start_state",
    "tbptt",
    "temporal_activation_regularization",
    "topologies",
    "unpack_documents",
    "unroll",
    "use_cores",
    "zoneout",
]
