"""Cells of Equinox, in both directions."""

import sys

import jax
import numpy as np
import pytest

from rnnjax import GRU, LSTM
from rnnjax.cells import MGU
from rnnjax.interop import equinox_layer, from_equinox, to_equinox
from tests.interop.conversions import TOLERANCES, check_conversion, fill


@pytest.fixture
def eqx():
    return pytest.importorskip("equinox", reason="equinox is not installed on this Python")


@pytest.mark.parametrize(("name", "expected"), [("LSTMCell", LSTM(4)), ("GRUCell", GRU(4))])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_equinox(eqx, name, expected, dtype, x64):
    def theirs(module, state, x):
        if name == "LSTMCell":
            h, c = jax.vmap(module)(x, tuple(state))
            return type(state)(h, c), h
        h = jax.vmap(module)(x, state.h)
        return type(state)(h), h

    make = getattr(eqx.nn, name)
    shapes = eqx.filter_eval_shape(lambda: make(3, 4, key=jax.random.key(0)))
    module = fill(shapes, dtype)
    cell, params = check_conversion("equinox", name, dtype, module, from_equinox, to_equinox, theirs)
    assert cell == expected
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}
    back = to_equinox(cell, params)
    assert jax.tree.structure(back) == jax.tree.structure(module)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(module), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell"])
def test_without_bias(eqx, name):
    module = fill(
        eqx.filter_eval_shape(lambda: getattr(eqx.nn, name)(3, 4, use_bias=False, key=jax.random.key(0))), "float32"
    )
    cell, params = from_equinox(module)
    h, c, x = fill((np.zeros(4), np.zeros(4), np.zeros(3)), "float32")
    state = cell.initial_state()._replace(h=h, **({"c": c} if name == "LSTMCell" else {}))
    want = module(x, (h, c))[0] if name == "LSTMCell" else module(x, h)
    np.testing.assert_allclose(cell.step(params, state, x)[1], want, atol=1e-6)


def test_refusals(eqx):
    with pytest.raises(TypeError, match=r"module must be an equinox\.nn.LSTMCell or GRUCell"):
        from_equinox(GRU(4))
    with pytest.raises(ValueError, match=r"to_equinox: MGU.* has no exact counterpart"):
        to_equinox(MGU(4), None)


@pytest.mark.parametrize(
    "call", [lambda: to_equinox(LSTM(4), None), lambda: equinox_layer(LSTM(4), 3, key=jax.random.key(0))]
)
def test_without_equinox(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "equinox", None)
    with pytest.raises(ModuleNotFoundError, match=r"equinox is needed, .* pip install equinox"):
        call()
