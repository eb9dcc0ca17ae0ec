"""Cells by name, and implementations by name."""

import functools
import pickle
import random
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import GRU, LSTM, Elman, Stack
from rnnjax.cells import CELLS, cell_from_name
from rnnjax.engines import Engine, Job, choice, choose, register
from rnnjax.engines.choice import UnfitError
from rnnjax.initializers import Chrono, Identity, Orthogonal, Uniform
from tests.cells_table import Row, make_problem

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("spec", "cell"),
    [
        ("lstm", LSTM(8)),
        ("LSTM", LSTM(8)),
        ("gru()", GRU(8)),
        ("lstm(forget_bias=2.5)", LSTM(8, forget_bias=2.5)),
        ("lstm(forget_bias=-1)", LSTM(8, forget_bias=-1)),
        ("gru(update_bias=Chrono(max_lag=30))", GRU(8, update_bias=Chrono(30))),
        ("gru(update_bias=Chrono(30))", GRU(8, update_bias=Chrono(30))),
        (
            "elman(activation='relu', recurrent_init=Identity(0.5), input_init=Uniform(scale=0.1))",
            Elman(8, activation="relu", recurrent_init=Identity(0.5), input_init=Uniform(0.1)),
        ),
        ("elman(activation=relu)", Elman(8, activation="relu")),
        (" lstm ( recurrent_init = Orthogonal() ) ", LSTM(8, recurrent_init=Orthogonal())),
    ],
)
def test_cell_from_name(spec, cell):
    assert cell_from_name(spec, 8) == cell


def test_every_name_makes_a_cell():
    required = {"conv_lstm": {"spatial_shape": (5,)}}
    for name, make in CELLS.items():
        assert name == name.lower()
        options = required.get(name, {})
        written = ", ".join(f"{key}={value}" for key, value in options.items())
        assert cell_from_name(f"{name}({written})", 3) == make(hidden_size=3, **options)
        assert options or cell_from_name(name, 3) == make(hidden_size=3)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("foo", f"cell: no cell is called 'foo'; known: {', '.join(sorted(CELLS))}, or path/"),
        ("", "cell: no cell is called ''"),
        ("lsmt", "cell: no cell is called 'lsmt'; did you mean 'lstm'? known: "),
        ("lstm(forget_bias=nan)", "LSTM: forget_bias must be a finite number, got nan."),
        ("lstm(forgetbias=2.0)", "LSTM: no option is called 'forgetbias'; did you mean 'forget_bias'? Its options: "),
        ("lstm(4)", "cell: cannot read 'lstm(4)' (options must be name=value)"),
        ("lstm(**{'a': 1})", "(options must be name=value)"),
        ("lstm(forget_bias=2.0", "cell: cannot read 'lstm(forget_bias=2.0'"),
        ("lstm(forget_bias=1)(2)", "cell: cannot read"),
        ("lstm(forget_bias=1 + 1j * __name__)", "cell: cannot read"),
        ("lstm(forget_bias=print(1))", "(print is no initialiser)"),
        ("lstm(forget_bias=__import__('os').system('true'))", "cell: cannot read"),
        ("elman(recurrent_init=per_gate())", "(per_gate is no initialiser)"),
        ("elman(recurrent_init=Initializer())", "(Initializer is no initialiser)"),
        ("lstm(forget_bias=Chrono(1))", "Chrono: max_lag must be at least 3, got 1."),
        ("lstm(forget_bias=Chrono(lag=9))", "unexpected keyword argument 'lag'"),
        ("lstm(forget=2)", "Its options: forget_bias, input_init, recurrent_init."),
        ("lstm(hidden_size=3)", "multiple values for keyword argument 'hidden_size'"),
        ("elman(activation=gelu)", "Elman: activation must be 'tanh' or 'relu', got 'gelu'."),
    ],
)
def test_error_of_cell_from_name(spec, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        cell_from_name(spec, 8)
    assert "\n" not in str(caught.value)


OWN = """
import dataclasses
from rnnjax.cells.gru import GRU

@dataclasses.dataclass(frozen=True)
class Mine(GRU):
    leak: float = 0.5
"""


def test_cell_from_a_file(tmp_path):
    path = tmp_path / "my_cells.py"
    path.write_text(OWN)
    cell = cell_from_name(f"{path}:Mine(leak=0.25)", 8)
    assert type(cell).__name__ == "Mine" and cell.hidden_size == 8 and cell.leak == 0.25
    assert cell == cell_from_name(f"{path}:Mine(leak=0.25)", 8)  # pitfall 17: one class, however often it is named
    assert pickle.loads(pickle.dumps(cell)) == cell
    with pytest.raises(ValueError, match="has no class 'Yours'"):
        cell_from_name(f"{path}:Yours", 8)
    with pytest.raises(FileNotFoundError, match=r"^cell: there is no file '.*nowhere\.py'\.$"):
        cell_from_name(f"{tmp_path}/nowhere.py:Mine", 8)


@pytest.fixture
def clean_registry(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(choice, "_engines", choice._engines)


def constant(cell, params, state, xs, controls, *, reverse, remat, value):
    return state, jnp.full((*xs.shape[:-1], cell.hidden_size), value, xs.dtype)


def test_a_file_is_one_module_and_shadows_none(tmp_path, monkeypatch):
    """Pitfall 17: two cells of a file are equal, also by a relative path, and a file random.py is not Python's."""
    (tmp_path / "random.py").write_text("from rnnjax import GRU\n\n\nclass Mine(GRU):\n    pass\n")
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    monkeypatch.chdir(tmp_path)
    assert cell_from_name("random.py:Mine", 4) == cell_from_name(f"{tmp_path}/random.py:Mine", 4)
    assert "Mine" not in vars(sys.modules.get("random", random))
    with pytest.raises(ValueError, match=r"'broken.py' cannot be run, line 1: ModuleNotFoundError"):
        cell_from_name("broken.py:Mine", 4)


@pytest.mark.usefixtures("clean_registry")
def test_register():
    row = Row(LSTM(4))
    problem = make_problem(row)

    def lstm_only(job):
        return "" if isinstance(job.cell, LSTM) else f"needs an LSTM, got {type(job.cell).__name__}"

    register(Engine("seven", functools.partial(constant, value=7.0), fits=lstm_only))
    assert "seven" in rnnjax.implementations(LSTM(4))
    assert "seven" not in rnnjax.implementations(GRU(4))
    _, ys = rnnjax.unroll(row.cell, *problem[:3], implementation="seven")
    np.testing.assert_array_equal(ys, 7)
    _, ys = rnnjax.unroll(row.cell, *problem[:3], implementation="seven", lengths=problem.lengths)
    padding = np.arange(8)[:, None] >= np.asarray(problem.lengths)
    np.testing.assert_array_equal(np.asarray(ys)[..., 0], np.where(padding, 0, 7))  # masked for every implementation
    with pytest.raises(
        UnfitError, match=r"^unroll: 'seven' needs an LSTM, got GRU; take implementation=None\.$"
    ) as refused:
        choose(Job(GRU(4)), "seven")
    assert (refused.value.engine, refused.value.reason) == ("seven", "needs an LSTM, got GRU")
    with pytest.raises(ValueError, match=r"^unroll: no 'eight' implementation for GRU; available: scan, fused.*\.$"):
        choose(Job(GRU(4)), "eight")


@pytest.mark.usefixtures("clean_registry")
def test_rank_decides_the_default():
    row = Row(LSTM(4))
    _, usual = rnnjax.unroll(row.cell, *make_problem(row)[:3])
    register(Engine("unasked", functools.partial(constant, value=1.0)))  # rank -1: only when named
    _, ys = rnnjax.unroll(row.cell, *make_problem(row)[:3])
    np.testing.assert_array_equal(ys, usual)

    def rank(job):
        assert isinstance(job.backend, str)
        return 1000 if job.dtype == jnp.bfloat16 and job.steps > 2 else -1

    register(Engine("half", functools.partial(constant, value=2.0), rank=rank))
    assert choose(Job(row.cell, dtype=jnp.dtype("bfloat16"))).name == "half"
    assert choose(Job(row.cell, dtype=jnp.dtype("bfloat16"), steps=2)).name not in ("half", "unasked")
    assert choose(Job(row.cell)).name not in ("half", "unasked")
    _, ys = rnnjax.unroll(row.cell, *make_problem(row, dtype=jnp.bfloat16)[:3])
    np.testing.assert_array_equal(ys, 2)
    register(Engine("half", functools.partial(constant, value=3.0), rank=lambda job: 2000))  # replaces
    assert rnnjax.implementations(row.cell).count("half") == 1
    _, ys = rnnjax.unroll(row.cell, *make_problem(row, dtype=jnp.bfloat16)[:3])
    np.testing.assert_array_equal(ys, 3)


def test_every_cell_has_the_reference():
    assert rnnjax.implementations(GRU(4))[0] == "scan"
    assert rnnjax.implementations(Stack((GRU(4),))) == rnnjax.implementations(GRU(4))
    assert rnnjax.implementations(Stack((GRU(4), rnnjax.MinGRU(4)))) == ("scan",)  # what both take
    assert "stacked" in rnnjax.implementations(rnnjax.LearnedState(Stack((GRU(4),) * 3)))
    for cells in ((GRU(4), GRU(4)), (GRU(4), GRU(4), GRU(3)), (GRU(3), GRU(4), GRU(4))):
        assert "stacked" not in rnnjax.implementations(Stack(cells))
    with pytest.raises(TypeError, match=r"^implementations: cell must be an instance, got the class LSTM; make one\.$"):
        rnnjax.implementations(LSTM)


@pytest.mark.parametrize("name", sorted(CELLS))
def test_options_go_by_name(name):
    """What torch calls LSTM(input_size, hidden_size) is an error that says so, not another cell."""
    kind = CELLS[name]
    with pytest.raises(TypeError) as caught:
        kind(64, 128)  # type: ignore[call-arg]
    sentence = str(caught.value)
    assert sentence.startswith(f"{kind.__name__}: hidden_size alone is given by position, got {kind.__name__}(64, 128)")
    assert f"{kind.__name__}(128).init(key, 64)" in sentence


def test_sizes_of_numpy_are_plain_ints():
    cell = rnnjax.cells.RecurrentHighway(np.int64(5), depth=np.uint8(2), transform_bias=np.float32(-1.0))
    assert cell == rnnjax.cells.RecurrentHighway(5, depth=2, transform_bias=-1.0)
    assert repr(cell).startswith("RecurrentHighway(hidden_size=5, depth=2, transform_bias=-1.0, ")
    params = rnnjax.LSTM(4).init(jax.random.key(0), np.int32(3))
    assert params.w_ih.shape == (3, 16)


@pytest.mark.parametrize(
    ("make", "kind", "sentence"),
    [
        (lambda: rnnjax.LSTM(2**40), ValueError, "LSTM: hidden_size must be at most 2147483647, got 1099511627776."),
        (lambda: rnnjax.LSTM(4, forget_bias="1"), TypeError, "LSTM: forget_bias must be a number, got '1'."),
        (lambda: rnnjax.LSTM(4, forget_bias=True), TypeError, "LSTM: forget_bias must be a number, got True."),
        (lambda: rnnjax.LSTM(4, forget_bias=jnp.ones(4)), TypeError, "LSTM: forget_bias must be a number, got f32[4]."),
        (lambda: rnnjax.cells.MIRNN(4, alpha=np.nan), ValueError, "MIRNN: alpha must be a finite number, got nan."),
        (lambda: rnnjax.cells.MGU(4, reset_gate="no"), TypeError, "MGU: reset_gate must be True or False, got 'no'."),
        (
            lambda: rnnjax.LSTM(4, input_init=rnnjax.initializers.Glorot),
            TypeError,
            "LSTM: input_init must be an instance, got the",
        ),
        (lambda: rnnjax.LSTM(4, input_init=3), TypeError, "LSTM: input_init must be an initialiser such as Glorot()"),
        (
            lambda: rnnjax.LSTM(4, forget_bias=rnnjax.initializers.Chrono),
            TypeError,
            "LSTM: forget_bias must be an instance, got",
        ),
        (lambda: rnnjax.LRU(4, state_size=0), ValueError, "LRU: state_size must be at least 1, got 0."),
        (lambda: rnnjax.initializers.Chrono(2.5), TypeError, "Chrono: max_lag must be an int, got 2.5."),
        (lambda: rnnjax.initializers.Glorot(np.nan), ValueError, "Glorot: scale must be a finite number"),
        (
            lambda: rnnjax.initializers.Uniform(-1),
            ValueError,
            "Uniform: scale must be a finite number of at least 0, got -1.",
        ),
        (lambda: rnnjax.LSTM(4).init(0, 3), TypeError, "LSTM.init: key must be a key of jax.random, got 0; make it"),
        (
            lambda: rnnjax.GRU(4).init(jax.random.split(jax.random.key(0)), 3),
            ValueError,
            "GRU.init: key must be one key",
        ),
        (lambda: rnnjax.GRU(4).init(jax.random.key(0), 3, int), TypeError, "GRU.init: dtype must be a floating dtype"),
        (lambda: rnnjax.GRU(4).init(jax.random.key(0), 3, "c8"), TypeError, "GRU.init: dtype must be a floating dtype"),
        (lambda: rnnjax.GRU(4).initial_state((2,), bool), TypeError, "initial_state: dtype must be a floating dtype"),
        (lambda: rnnjax.GRU(4).initial_state((-2,)), ValueError, "initial_state: every size of batch_shape must be at"),
        (lambda: cell_from_name(None, 3), TypeError, "cell_from_name: spec must be a name such as 'lstm', got None."),
    ],
)
def test_sentence_about_a_field(make, kind, sentence):
    with pytest.raises(kind) as caught:
        make()
    assert str(caught.value).startswith(sentence)
