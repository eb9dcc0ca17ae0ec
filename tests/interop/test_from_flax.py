"""Cells of flax.linen and flax.nnx, in both directions."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rnnjax import GRU, LSTM, Bidirectional, ConvLSTM, Elman, MinGRU
from rnnjax.cells import MGU
from rnnjax.interop import from_flax, from_nnx, to_flax, to_nnx
from tests.interop.conversions import TOLERANCES, check_conversion, fill

LINEN = {  # the module, what ours is, and options of to_flax
    "SimpleCell": (nn.SimpleCell(4), Elman(4), {}),
    "SimpleCell, relu, residual": (
        nn.SimpleCell(4, activation_fn=nn.relu, residual=True),
        Elman(4, activation="relu"),
        {},
    ),
    "LSTMCell": (nn.LSTMCell(4), LSTM(4), {"optimized": False}),
    "OptimizedLSTMCell": (nn.OptimizedLSTMCell(4), LSTM(4), {}),
    "GRUCell": (nn.GRUCell(4), GRU(4), {}),
    "MGUCell": (nn.MGUCell(4), MGU(4), {}),
    "MGUCell, no reset": (nn.MGUCell(4, reset_gate=False), MGU(4, reset_gate=False), {}),
    "ConvLSTMCell": (nn.ConvLSTMCell(2, (3, 1)), ConvLSTM(2, spatial_shape=(2, 3), kernel_shape=(3, 1)), {}),
}
NNX = {
    "SimpleCell": (nnx.SimpleCell, {}, Elman(4), {}),
    "SimpleCell, relu, residual": (
        nnx.SimpleCell,
        {"activation_fn": nnx.relu, "residual": True},
        Elman(4, activation="relu"),
        {},
    ),
    "LSTMCell": (nnx.LSTMCell, {}, LSTM(4), {"optimized": False}),
    "OptimizedLSTMCell": (nnx.OptimizedLSTMCell, {}, LSTM(4), {}),
    "GRUCell": (nnx.GRUCell, {}, GRU(4), {}),
}


# Orthogonal matrices take long to compile.
CHEAP = {"recurrent_kernel_init": nnx.initializers.zeros_init(), "rngs": nnx.Rngs(0)}


def from_our_state(step, state, x):
    """A step of flax from our state to our state: the carry of an LSTM is (c, h) there."""
    if not hasattr(state, "c"):
        h, y = step(state.h, x)
        return type(state)(h), y
    (c, h), y = step((state.c, state.h), x)
    return type(state)(h, c), y


def linen_shapes(module):
    x = np.zeros((2, *((2, 3) if isinstance(module, nn.ConvLSTMCell) else ()), 3))
    carry = jax.eval_shape(lambda: module.initialize_carry(jax.random.key(0), x.shape))
    return jax.eval_shape(module.init, jax.random.key(0), carry, x)["params"]


@pytest.mark.quick
@pytest.mark.parametrize("name", LINEN)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_linen(name, dtype, x64):
    module, expected, options = LINEN[name]
    sizes = {"spatial_shape": (2, 3)} if isinstance(expected, ConvLSTM) else {}
    tree = fill(linen_shapes(module), dtype)

    def theirs(tree, state, x):
        return from_our_state(functools.partial(module.apply, {"params": tree}), state, x)

    def out(cell, params):  # the module that comes with it has no residual connection, which w_hh holds
        made, tree = to_flax(cell, params, **options)
        assert made.param_dtype == dtype and type(made) is type(module)
        if getattr(module, "residual", False):
            tree["h"]["kernel"] -= jnp.eye(4, dtype=dtype)
        return tree

    cell, params = check_conversion(
        "flax linen", name, dtype, tree, lambda tree: from_flax(module, tree, **sizes), out, theirs
    )
    assert cell == expected
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}
    shapes = jax.tree.map(jnp.shape, tree)
    assert jax.tree.map(jnp.shape, jax.eval_shape(lambda: out(cell, params))) == shapes


def test_to_flax_needs_no_residual_connection():
    """The identity is part of `w_hh`, so a module without the option computes the same."""
    module = nn.SimpleCell(4, residual=True)
    tree = fill(linen_shapes(module), "float32")
    plain, converted = to_flax(*from_flax(module, tree))
    h, x = fill((np.zeros((2, 4)), np.zeros((2, 3))), "float32")
    got = plain.apply({"params": converted}, h, x)[1]
    np.testing.assert_allclose(got, module.apply({"params": tree}, h, x)[1], atol=1e-6)
    assert not plain.residual


def test_from_flax_by_name_and_with_variables():
    tree = fill(linen_shapes(nn.MGUCell(4, reset_gate=False)), "float32")
    cell, params = from_flax("MGUCell", {"params": tree})
    assert cell == MGU(4, reset_gate=False) and params.b_hn is None
    np.testing.assert_array_equal(params.w_ih, np.concatenate([tree["if"]["kernel"], tree["in"]["kernel"]], 1))


@pytest.mark.parametrize("name", NNX)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_nnx(name, dtype, x64):
    make, arguments, expected, options = NNX[name]
    module = nnx.eval_shape(lambda: make(3, 4, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0), **arguments))
    definition, shapes = nnx.split(module)

    def theirs(weights, state, x):
        return from_our_state(nnx.merge(definition, weights), state, x)

    def out(cell, params):
        if make is nnx.GRUCell:  # which lacks b_hn, and a traced one is not known to be zero
            params = params._replace(b_hn=np.zeros(4, dtype))
        converted = to_nnx(cell, params, **options)
        assert type(converted) is make
        if arguments.get("residual"):
            converted.dense_h.kernel[...] -= jnp.eye(4, dtype=dtype)
        return nnx.split(converted)[1]

    def mask(d_params):
        return d_params._replace(b_hn=jnp.zeros(4, dtype)) if make is nnx.GRUCell else d_params

    cell, params = check_conversion(
        "flax nnx",
        name,
        dtype,
        fill(shapes, dtype),
        lambda weights: from_nnx(nnx.merge(definition, weights)),
        out,
        theirs,
        mask,
    )
    assert cell == expected
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}


def test_the_gru_of_nnx_has_no_place_for_b_hn():
    cell, params = from_nnx(nnx.GRUCell(3, 4, **CHEAP))
    assert not params.b_hn.any()
    assert type(to_nnx(cell, params)) is nnx.GRUCell
    moved = params._replace(b_hn=params.b_hn.at[1].set(1e-6))
    with pytest.raises(ValueError, match=r"to_nnx: a GRU with b_hn that is not zero .* nnx_cell keeps it\."):
        to_nnx(cell, moved)
    with pytest.raises(ValueError, match="to_nnx: b_hn must be known"):
        jax.eval_shape(lambda params: nnx.split(to_nnx(cell, params))[1], params)


LSTM_TREE = {layer: {"kernel": np.zeros((3, 4)), "bias": np.zeros(4)} for layer in ("ii", "if", "ig", "io")}
LSTM_TREE |= {layer: {"kernel": np.zeros((4, 4)), "bias": np.zeros(4)} for layer in ("hi", "hf", "hg", "ho")}
CONV_TREE = {
    layer: {"kernel": np.zeros((2, 2, size, 8)), "bias": np.zeros(8)} for layer, size in (("ih", 3), ("hh", 2))
}
SIMPLE_TREE = {"i": {"kernel": np.zeros((3, 4)), "bias": np.zeros(4)}, "h": {"kernel": np.zeros((4, 4))}}


def ones(key, shape, dtype):
    return jnp.ones(shape, dtype)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: from_flax(nn.LSTMCell(4, gate_fn=nn.hard_sigmoid), LSTM_TREE), ValueError, "gate_fn=hard_sigmoid"),
        (lambda: from_flax(nn.LSTMCell(4, activation_fn=nn.relu), LSTM_TREE), ValueError, "activation_fn=relu .* tanh"),
        (lambda: from_flax(nn.SimpleCell(4, activation_fn=nn.gelu), SIMPLE_TREE), ValueError, "tanh or relu"),
        (lambda: from_flax(nn.LSTMCell(4, carry_init=ones), LSTM_TREE), ValueError, "carry_init=ones .* start at zero"),
        (lambda: from_flax(nn.LSTMCell(4, dtype=jnp.bfloat16), LSTM_TREE), ValueError, "dtype=bfloat16"),
        (lambda: from_flax(nn.LSTMCell(5), LSTM_TREE), ValueError, r"must have shape \[5, 5\] \(module.features\)"),
        (lambda: from_flax(nn.LSTMCell, LSTM_TREE), TypeError, "module must be a cell .* got a class"),
        (lambda: from_flax(LSTM(4), LSTM_TREE), TypeError, "module must be a cell of flax.linen .* got LSTM"),
        (lambda: from_flax(nn.RNN(nn.LSTMCell(4)), LSTM_TREE), ValueError, r"pass its cell and params\['cell'\]"),
        (lambda: from_flax("Dense", {}), ValueError, "flax.linen.Dense has no exact counterpart"),
        (lambda: from_flax("GRUCell", LSTM_TREE), ValueError, r"params must hold 'ir', got \['hf', 'hg'"),
        (lambda: from_flax("GRUCell", {n: {} for n in "ir iz in hr hz hn".split()}), ValueError, "must hold 'kernel'"),
        (lambda: from_flax("ConvLSTMCell", CONV_TREE), ValueError, "spatial_shape must be given"),
        (lambda: from_flax("ConvLSTMCell", CONV_TREE, spatial_shape=(5, 5)), ValueError, r"the kernel \(2, 2\)"),
        (
            lambda: from_flax(nn.ConvLSTMCell(2, (2, 2), strides=(2, 2)), CONV_TREE, spatial_shape=(5, 5)),
            ValueError,
            r"strides=\(2, 2\)",
        ),
        (
            lambda: from_flax(nn.ConvLSTMCell(2, (2, 2), padding="VALID"), CONV_TREE, spatial_shape=(5, 5)),
            ValueError,
            "padding='VALID'",
        ),
        (lambda: to_flax(MinGRU(4), None), ValueError, "to_flax: MinGRU.* linen_cell makes a module of it"),
        (lambda: to_flax(Bidirectional((LSTM(4),)), None), ValueError, "to_flax: Bidirectional"),
        (lambda: from_nnx(nnx.GRUCell), TypeError, "module must be a cell of flax.nnx"),
        (lambda: from_nnx(nnx.Dropout(0.5)), ValueError, "flax.nnx.Dropout has no exact"),
        (
            lambda: from_nnx(nnx.GRUCell(3, 4, gate_fn=nnx.hard_sigmoid, **CHEAP)),
            ValueError,
            "gate_fn=hard_sigmoid",
        ),
        (
            lambda: from_nnx(nnx.SimpleCell(3, 4, dtype=jnp.bfloat16, **CHEAP)),
            ValueError,
            "dtype=bfloat16 and parameters of float32",
        ),
        (lambda: to_nnx(MGU(4), None), ValueError, "to_nnx: MGU.* nnx_cell makes a module of it"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
