"""The cells against Haiku."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnjax import LSTM, ConvLSTM, Elman
from rnnjax.cells import GRUResetBefore
from tests.references.jax_references import assert_same_outcome


@pytest.fixture
def hk():
    return pytest.importorskip("haiku", reason="haiku is not installed on this Python")


def igfo(w, bias=False):
    """Gates i, g, f, o; and pitfall 4: Haiku adds 1 to f in every step, so its bias has 1 less than ours."""
    i, f, g, o = jnp.split(w, 4, axis=-1)
    return jnp.concatenate([i, g, f - 1 if bias else f, o], axis=-1)


def elman(p):
    return {"vanilla_rnn/linear": {"w": p.w_ih, "b": p.b / 2}, "vanilla_rnn/linear_1": {"w": p.w_hh, "b": p.b / 2}}


def lstm(p):
    return {"lstm/linear": {"w": jnp.concatenate([igfo(p.w_ih), igfo(p.w_hh)]), "b": igfo(p.b, bias=True)}}


def conv_lstm(p, name):
    bias = igfo(p.b, bias=True)
    return {
        f"{name}/input_to_hidden": {"w": igfo(p.w_ih), "b": bias},
        f"{name}/hidden_to_hidden": {"w": igfo(p.w_hh), "b": jnp.zeros_like(bias)},
    }


def gru(p):
    """Gates z, r, n; and pitfall 1: what Haiku calls z is our 1 - z, the sigmoid of the negated sum."""

    def zrn(w):
        r, z, n = jnp.split(w, 3, axis=-1)
        return jnp.concatenate([-z, r, n], axis=-1)

    return {"gru": {"w_i": zrn(p.w_ih), "w_h": zrn(p.w_hh), "b": zrn(p.b)}}


# Our cell, the core and its arguments, and our parameters as its tree.
HAIKU = {
    "VanillaRNN": (Elman(4, activation="relu"), "VanillaRNN", (4,), elman),
    "LSTM": (LSTM(4), "LSTM", (4,), lstm),
    "GRU": (GRUResetBefore(4), "GRU", (4,), gru),
    "Conv1DLSTM": (ConvLSTM(2, spatial_shape=(5,)), "Conv1DLSTM", ((5,), 2, 3), lambda p: conv_lstm(p, "conv1_dlstm")),
    "Conv2DLSTM": (
        ConvLSTM(2, spatial_shape=(2, 3)),
        "Conv2DLSTM",
        ((2, 3), 2, 3),
        lambda p: conv_lstm(p, "conv2_dlstm"),
    ),
    "Conv3DLSTM": (
        ConvLSTM(2, spatial_shape=(2, 1, 3), kernel_shape=(3, 1, 5)),
        "Conv3DLSTM",
        ((2, 1, 3), 2, (3, 1, 5)),
        lambda p: conv_lstm(p, "conv3_dlstm"),
    ),
}


@pytest.mark.parametrize("name", HAIKU)
def test_haiku(hk, name, x64):
    cell, core, arguments, tree = HAIKU[name]
    module = hk.without_apply_rng(hk.transform(lambda x, state: getattr(hk, core)(*arguments)(x, state)))

    def theirs(params, state, xs):
        start = hk.LSTMState(state.h, state.c) if hasattr(state, "c") else state.h

        def step(carry, x):
            y, carry = module.apply(tree(params), x, carry)
            return carry, y

        final, ys = jax.lax.scan(step, start, xs)
        return type(state)(*final) if hasattr(state, "c") else type(state)(final), ys

    assert_same_outcome(cell, theirs)


@pytest.mark.parametrize("name", HAIKU)
def test_trees_are_those_of_haiku(hk, name):
    """Otherwise a parameter of theirs might be one that they do not read."""
    cell, core, arguments, tree = HAIKU[name]
    module = hk.transform(lambda x, state: getattr(hk, core)(*arguments)(x, state))
    state = cell.initial_state((1,))
    start = hk.LSTMState(*state) if hasattr(state, "c") else state.h
    x = np.zeros((1, *getattr(cell, "spatial_shape", ()), 3), np.float32)
    want = jax.eval_shape(module.init, jax.random.key(0), x, start)
    got = jax.eval_shape(lambda: tree(cell.init(jax.random.key(0), 3)))
    assert got == want
