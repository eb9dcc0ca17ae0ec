"""The one table of cells, and what the laws measure on each: a new cell joins them by one row."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
import rnnjax.testing
from rnnjax import (
    GRU,
    LRU,
    LSTM,
    Bidirectional,
    ConvLSTM,
    Elman,
    LearnedState,
    MinGRU,
    MinLSTM,
    ProjectedLSTM,
    Regularized,
    Stack,
)
from rnnjax.cell import param_shapes
from rnnjax.cells import SRU, GRUResetBefore, RecurrentHighway
from rnnjax.initializers import Chrono, Glorot, Identity, Orthogonal, Uniform
from rnnjax.testing import assert_close
from rnnjax.testing.problems import Outcome, Problem, fast_jit, forward, loss_of, plain, with_gradients
from rnnjax.testing.problems import unroll_problem as unroll

__all__ = [
    "CELLS",
    "CORE",
    "NAMES",
    "NETWORKS",
    "VARIANTS",
    "Outcome",
    "Problem",
    "Row",
    "able",
    "assert_close",
    "fast_jit",
    "forward",
    "loop",
    "loop_with_gradients",
    "loss_of",
    "make_problem",
    "params_type",
    "plain",
    "rows",
    "rows_and_implementations",
    "some_params",
    "unroll",
    "with_gradients",
]


class Row(NamedTuple):
    cell: Any
    input_size: int = 3


CELLS = {
    "elman": Row(Elman(4)),
    "lstm": Row(LSTM(4)),
    "gru": Row(GRU(5)),
    "stack": Row(Stack((LSTM(5), GRU(4)))),
    "residual_stack": Row(Stack((GRU(4), LSTM(4)), residual=True, norm="layer")),
    "deep_stack": Row(Stack((Elman(4),) * 3, residual=True, norm="rms")),
    "learned_state": Row(rnnjax.LearnedState(GRU(4))),
    "min_gru": Row(MinGRU(4)),
    "min_lstm": Row(MinLSTM(4)),
    "lru": Row(LRU(4, state_size=5)),
    "sru": Row(SRU(4)),
    "peephole_lstm": Row(rnnjax.cells.PeepholeLSTM(4)),
    "coupled_lstm": Row(rnnjax.cells.CoupledLSTM(4)),
    "layernorm_lstm": Row(rnnjax.cells.LayerNormLSTM(4)),
    "layernorm_gru": Row(rnnjax.cells.LayerNormGRU(5)),
    "mgu": Row(rnnjax.cells.MGU(4)),
    "indrnn": Row(rnnjax.cells.IndRNN(4)),
    "diagonal_gru": Row(rnnjax.cells.DiagonalGRU(4)),
    "diagonal_lstm": Row(rnnjax.cells.DiagonalLSTM(4)),
    "leaky": Row(rnnjax.cells.LeakyRNN(4, learn_tau=True)),
    "mi_lstm": Row(rnnjax.cells.MILSTM(4)),
    "slstm": Row(rnnjax.SLSTM(4)),
    "minimal_rnn": Row(rnnjax.cells.MinimalRNN(4)),
    "gru_reset_before": Row(GRUResetBefore(4)),
    "projected_lstm": Row(ProjectedLSTM(3, cell_size=5)),
    "highway": Row(RecurrentHighway(4, depth=2)),
    "conv_lstm": Row(ConvLSTM(2, spatial_shape=(4,))),
}
# Made of cells, and run by `unroll` alone, or evaluated in another way than the cell inside.
NETWORKS = {
    "bidirectional": Row(Bidirectional((GRU(3), (GRU(3), Elman(2))))),
    "bidirectional_sum": Row(Bidirectional((LearnedState(Elman(3)),), merge="sum")),
    "regularized": Row(
        Regularized(LSTM(4), recurrent_dropout=0.1, zoneout_h=0.2, zoneout_c=0.4, expected_zoneout=True)
    ),
}
# What a repr may hold.
NAMES = {**vars(rnnjax.cells), **vars(rnnjax.networks), **vars(rnnjax.initializers)}
# What looks closer than the laws do, each on its own words, takes these rows.
CORE = ("lstm", "gru", "stack")
# The mathematics of a row above with another nonlinearity or other initial values: no law sees a difference, so
# only the tests of references, initialisers and value semantics take these too.
VARIANTS = {
    "irnn": Row(Elman(4, activation="relu", recurrent_init=Identity(0.5))),
    "elman_torch_init": Row(Elman(4, input_init=Uniform(), recurrent_init=Uniform(0.5))),
    "lstm_chrono": Row(LSTM(4, forget_bias=Chrono(max_lag=20))),
    "lstm_scaled": Row(LSTM(4, forget_bias=2.0, input_init=Glorot(0.5), recurrent_init=Orthogonal(0.9))),
    "gru_chrono": Row(GRU(5, update_bias=Chrono(max_lag=20))),
    "gru_biased": Row(GRU(5, update_bias=-1.0)),
    "min_gru_positive": Row(MinGRU(4, candidate="g", update_bias=Chrono(max_lag=20))),
    "min_lstm_positive": Row(MinLSTM(4, candidate="g", forget_bias=Chrono(max_lag=20))),
    "sru_square": Row(SRU(4, forget_bias=1.0), 4),
    "peephole_chrono": Row(rnnjax.cells.PeepholeLSTM(4, forget_bias=Chrono(max_lag=20))),
    "coupled_chrono": Row(rnnjax.cells.CoupledLSTM(4, forget_bias=Chrono(max_lag=20))),
    "layernorm_lstm_coarse": Row(rnnjax.cells.LayerNormLSTM(4, forget_bias=Chrono(max_lag=20), epsilon=0.1)),
    "layernorm_gru_coarse": Row(rnnjax.cells.LayerNormGRU(5, update_bias=1.0, epsilon=0.1)),
    "mgu_without_reset": Row(rnnjax.cells.MGU(4, reset_gate=False, forget_bias=Chrono(max_lag=20))),
    "indrnn_tanh": Row(rnnjax.cells.IndRNN(4, activation="tanh", recurrent_range=(-0.5, 1.5))),
    "diagonal_gru_biased": Row(rnnjax.cells.DiagonalGRU(4, update_bias=-1.0)),
    "diagonal_lstm_chrono": Row(rnnjax.cells.DiagonalLSTM(4, forget_bias=Chrono(max_lag=20))),
    "leaky_fixed": Row(rnnjax.cells.LeakyRNN(4, tau=100.0, dt=20.0)),
    "leaky_relu": Row(rnnjax.cells.LeakyRNN(4, learn_tau=True, activation="relu")),
    "mi_rnn": Row(rnnjax.cells.MIRNN(4, alpha=0.5, beta=2.0)),
    "mi_lstm_general": Row(rnnjax.cells.MILSTM(4, forget_bias=0.0, alpha=2.0, beta=0.5)),
    "slstm_exp": Row(rnnjax.SLSTM(4, forget_gate="exp")),
    "minimal_rnn_chrono": Row(rnnjax.cells.MinimalRNN(4, update_bias=Chrono(max_lag=20))),
    "stack_of_one": Row(Stack((LSTM(4),))),
    "norm_stack": Row(Stack((LSTM(5), GRU(4)), norm="rms")),
    "stack_of_stacks": Row(Stack((Stack((Elman(4), GRU(2))), LSTM(4)))),
    "conv_lstm_2d": Row(ConvLSTM(2, spatial_shape=(3, 2)), 2),
    "conv_lstm_3d": Row(ConvLSTM(2, spatial_shape=(1, 2, 3), kernel_shape=(1, 3, 3)), 1),
    "stack_of_conv_lstms": Row(
        Stack((ConvLSTM(1, spatial_shape=(3, 2)), ConvLSTM(2, spatial_shape=(3, 2), kernel_shape=1))), 2
    ),
}


def rows(table: dict[str, Row] = CELLS) -> pytest.MarkDecorator:
    """Parametrizes a test over `row`."""
    return pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in table.items()])


def able(cell: Any) -> list[str]:
    """The implementations that take a cell.

    But "newton", which has its laws, and its own precision, in `tests.engines.test_newton`, and compiles for long.
    """
    return [name for name in rnnjax.implementations(cell) if name != "newton"]


def rows_and_implementations(*names: str) -> pytest.MarkDecorator:
    """Parametrizes a test over `row` and `implementation`: every registered one that takes the cell."""
    found = []
    for name in names:
        for implementation in able(CELLS[name].cell):
            marks = [pytest.mark.quick] if name == "gru" else []
            found.append(pytest.param(CELLS[name], implementation, id=f"{name}-{implementation}", marks=marks))
    return pytest.mark.parametrize(("row", "implementation"), found)


def make_problem(row: Row, *args: Any, **options: Any) -> Problem:
    """`rnnjax.testing.make_problem` for a row."""
    return rnnjax.testing.make_problem(row.cell, row.input_size, *args, **options)


def some_params(cell: Any, input_size: int, dtype: Any = np.float32) -> Any:
    """Random parameters where nobody asks how a cell begins: initialisers take longer to compile than most tests."""
    rng, shapes = np.random.default_rng(0), param_shapes(cell, input_size, jnp.dtype(dtype))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), leaf.dtype), shapes)


def params_type(cell: Any) -> Any:
    """The NamedTuple that holds the parameters of a cell."""
    return type(jax.eval_shape(lambda: cell.init(jax.random.key(0), 1)))


def loop(row: Row, problem: Problem, reverse: bool = False) -> Any:
    """`unroll` as the words of its documentation say it."""
    return rnnjax.testing.problems.loop(row.cell, problem, reverse)


def loop_with_gradients(row: Row, problem: Problem, reverse: bool = False) -> Outcome:
    """`loop`, differentiated by JAX."""
    return rnnjax.testing.problems.loop_with_gradients(row.cell, problem, reverse)
