"""Cells by name, and implementations by name."""

import functools
import pickle
import random
import re
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import GRU, LSTM, Chrono, Elman, Identity, Orthogonal, Stack, Uniform, cell_from_name
from rnnjax.cells import CELLS
from rnnjax.engines import choice, choose, register_unroll
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
        ("lstm(4)", "cell: cannot read 'lstm(4)' (options must be name=value)"),
        ("lstm(**{'a': 1})", "(options must be name=value)"),
        ("lstm(forget_bias=2.0", "cell: cannot read 'lstm(forget_bias=2.0'"),
        ("lstm(forget_bias=1)(2)", "cell: cannot read"),
        ("lstm(forget_bias=1 + 1j * __name__)", "cell: cannot read"),
        ("lstm(forget_bias=print(1))", "(print is no initialiser)"),
        ("lstm(forget_bias=__import__('os').system('true'))", "cell: cannot read"),
        ("elman(recurrent_init=per_gate())", "(per_gate is no initialiser)"),
        ("elman(recurrent_init=Initializer())", "(Initializer is no initialiser)"),
        ("lstm(forget_bias=Chrono(1))", "Chrono: max_lag must be at least 3 steps, got 1."),
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
    monkeypatch.setattr(choice, "_REGISTRY", dict(choice._REGISTRY))


def constant(cell, params, state, xs, controls, *, reverse, remat, value):
    return state, jnp.full((*xs.shape[:-1], cell.hidden_size), value, xs.dtype)


def test_a_file_is_one_module_and_shadows_none(tmp_path, monkeypatch):
    """Pitfall 17: two cells of a file are equal, also by a relative path, and a file random.py is not Python's."""
    (tmp_path / "random.py").write_text("from rnnjax import GRU\n\n\nclass Mine(GRU):\n    pass\n")
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    monkeypatch.chdir(tmp_path)
    assert cell_from_name("random.py:Mine", 4) == cell_from_name(f"{tmp_path}/random.py:Mine", 4)
    assert "Mine" not in vars(sys.modules.get("random", random))
    with pytest.raises(ValueError, match=r"'broken.py' cannot be run: ModuleNotFoundError"):
        cell_from_name("broken.py:Mine", 4)


@pytest.mark.usefixtures("clean_registry")
def test_register_unroll():
    row = Row(LSTM(4))
    problem = make_problem(row)
    register_unroll("seven", functools.partial(constant, value=7.0), supports=lambda cell: isinstance(cell, LSTM))
    assert "seven" in rnnjax.implementations(LSTM(4))
    assert "seven" not in rnnjax.implementations(GRU(4))
    _, ys = rnnjax.unroll(row.cell, *problem[:3], implementation="seven")
    np.testing.assert_array_equal(ys, 7)
    _, ys = rnnjax.unroll(row.cell, *problem[:3], implementation="seven", lengths=problem.lengths)
    padding = np.arange(8)[:, None] >= np.asarray(problem.lengths)
    np.testing.assert_array_equal(np.asarray(ys)[..., 0], np.where(padding, 0, 7))  # masked for every implementation
    with pytest.raises(ValueError, match=r"^unroll: no 'seven' implementation for GRU; available: scan"):
        choose(GRU(4), "seven", jnp.float32)


@pytest.mark.usefixtures("clean_registry")
def test_priority_decides_the_default():
    row = Row(LSTM(4))
    _, usual = rnnjax.unroll(row.cell, *make_problem(row)[:3])
    register_unroll("unasked", functools.partial(constant, value=1.0))  # priority -1: only when named
    _, ys = rnnjax.unroll(row.cell, *make_problem(row)[:3])
    np.testing.assert_array_equal(ys, usual)

    def rank(cell, backend, dtype):
        assert isinstance(backend, str)
        return 1000 if dtype == jnp.bfloat16 else -1

    register_unroll("half", functools.partial(constant, value=2.0), priority=rank)
    assert choose(row.cell, None, jnp.dtype(jnp.bfloat16)).name == "half"
    assert choose(row.cell, None, jnp.dtype(jnp.float32)).name not in ("half", "unasked")
    _, ys = rnnjax.unroll(row.cell, *make_problem(row, dtype=jnp.bfloat16)[:3])
    np.testing.assert_array_equal(ys, 2)
    register_unroll("half", functools.partial(constant, value=3.0), priority=2000)  # replaces
    assert rnnjax.implementations(row.cell).count("half") == 1
    _, ys = rnnjax.unroll(row.cell, *make_problem(row, dtype=jnp.bfloat16)[:3])
    np.testing.assert_array_equal(ys, 3)


def test_every_cell_has_the_reference():
    assert rnnjax.implementations(GRU(4))[0] == "scan"
    assert {"scan", "layered"} <= set(rnnjax.implementations(Stack((GRU(4),))))
    assert "layered" not in rnnjax.implementations(GRU(4))
