"""Cores of Haiku, in both directions."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnjax import GRU, LSTM, ConvLSTM, Elman
from rnnjax.cells import MGU, GRUResetBefore
from rnnjax.interop import from_haiku, haiku_core, to_haiku
from tests.interop.conversions import TOLERANCES, check_conversion, fill

HAIKU = {  # arguments of the core, ours, and options of from_haiku
    "VanillaRNN": ((4,), Elman(4, activation="relu"), {}),
    "LSTM": ((4,), LSTM(4), {}),
    "GRU": ((4,), GRUResetBefore(4), {}),
    "Conv1DLSTM": (((5,), 2, 3), ConvLSTM(2, spatial_shape=(5,)), {"spatial_shape": (5,)}),
    "Conv2DLSTM": (
        ((2, 3), 2, (3, 1)),
        ConvLSTM(2, spatial_shape=(2, 3), kernel_shape=(3, 1)),
        {"spatial_shape": (2, 3)},
    ),
    "Conv3DLSTM": (
        ((2, 1, 3), 1, (1, 1, 3)),
        ConvLSTM(1, spatial_shape=(2, 1, 3), kernel_shape=(1, 1, 3)),
        {"spatial_shape": (2, 1, 3)},
    ),
}


@pytest.fixture
def hk():
    return pytest.importorskip("haiku", reason="haiku is not installed on this Python")


def transformed(hk, make):
    return hk.without_apply_rng(hk.transform(lambda x, state: make()(x, state)))


def start(hk, state):
    return hk.LSTMState(state.h, state.c) if hasattr(state, "c") else state.h


@pytest.mark.parametrize("name", HAIKU)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_haiku(hk, name, dtype, x64):
    arguments, expected, options = HAIKU[name]
    module = transformed(hk, lambda: getattr(hk, name)(*arguments))
    x = np.zeros((1, *getattr(expected, "spatial_shape", ()), 3), np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, start(hk, expected.initial_state((1,))))

    def theirs(tree, state, x):
        y, carry = module.apply(tree, x, start(hk, state))
        return (type(state)(*carry) if hasattr(state, "c") else type(state)(carry)), y

    cell, params = check_conversion(
        "haiku",
        name,
        dtype,
        fill(shapes, dtype),
        lambda tree: from_haiku(name, tree, **options),
        lambda cell, params: to_haiku(cell, params)[1],
        theirs,
    )
    assert cell == expected
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}
    back = jax.eval_shape(lambda: to_haiku(cell, params)[1])
    assert jax.tree.map(jnp.shape, back) == jax.tree.map(jnp.shape, shapes)


def test_the_core_of_to_haiku_reads_its_params(hk):
    cell = GRUResetBefore(4)
    shapes = jax.eval_shape(lambda: (cell.init(jax.random.key(0), 3), cell.initial_state((2,))))
    (params, state), x = fill((shapes, np.zeros((2, 3))), "float32")
    make, tree = to_haiku(cell, params, name="memory")
    y, _ = transformed(hk, make).apply(tree, x, state.h)
    np.testing.assert_allclose(y, cell.step(params, state, x)[1], atol=1e-6)


def test_from_haiku_within_a_model(hk):
    """A core knows its own path and the size of its images; a class or a name needs to be told."""
    made = []

    def model(x):
        with hk.experimental.name_scope("encoder"):
            made.append(hk.Conv1DLSTM((5,), 2, 3, name="eye"))
        y, _ = made[-1](x, made[-1].initial_state(1))
        return hk.Linear(3)(y)

    shapes = jax.eval_shape(hk.transform(model).init, jax.random.key(0), jnp.zeros((1, 5, 3)))
    tree = fill(shapes, "float32")
    cell, params = from_haiku(made[-1], tree)
    assert cell == ConvLSTM(2, spatial_shape=(5,))
    again, same = from_haiku(hk.Conv1DLSTM, tree, name="encoder/eye", spatial_shape=(5,))
    assert again == cell
    np.testing.assert_array_equal(params.b, same.b)
    with pytest.raises(ValueError, match=r"got .'encoder/eye/hidden_to_hidden', .* pass the path of the core as name"):
        from_haiku("Conv1DLSTM", tree, spatial_shape=(5,))


def test_vanilla_rnn_with_one_bias(hk):
    module = transformed(hk, lambda: hk.VanillaRNN(4, double_bias=False))
    tree = fill(jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 3)), jnp.zeros((1, 4))), "float32")
    _, params = from_haiku("VanillaRNN", tree)
    np.testing.assert_array_equal(params.b, tree["vanilla_rnn/linear"]["b"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: from_haiku("ResetCore", {}), "haiku.ResetCore has no exact counterpart"),
        (lambda: from_haiku("LSTM", {"gru": {}}), r"must hold 'w' of 'lstm/linear', got \['gru'\]"),
        (lambda: to_haiku(Elman(4), None), "VanillaRNN of Haiku has ReLU alone"),
        (lambda: to_haiku(GRU(4), None), "its GRU has the reset before the matmul; haiku_core makes a module"),
        (lambda: to_haiku(MGU(4), None), "Haiku has no such core"),
    ],
)
def test_refusals(hk, call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("call", [lambda: to_haiku(LSTM(4), None), lambda: haiku_core(LSTM(4))])
def test_without_haiku(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "haiku", None)
    with pytest.raises(ModuleNotFoundError, match=r"_\w+: dm-haiku is needed, .* pip install dm-haiku\."):
        call()
