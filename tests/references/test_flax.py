"""The cells against flax.linen."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnjax import GRU, LSTM, Elman
from rnnjax.cells import MGU
from tests.cells_table import (
    Outcome,
    Row,
    assert_close,
    fast_jit,
    loss_of,
    make_problem,
    params_type,
    plain,
    with_gradients,
)

FLAX = {  # our cell; gates in our order: flax's name of the input's layer and of the state's
    "SimpleCell": (Elman(4), [("i", "h")]),
    "LSTMCell": (LSTM(4), [("ii", "hi"), ("if", "hf"), ("ig", "hg"), ("io", "ho")]),
    "OptimizedLSTMCell": (LSTM(4), [("ii", "hi"), ("if", "hf"), ("ig", "hg"), ("io", "ho")]),
    "GRUCell": (GRU(4), [("ir", "hr"), ("iz", "hz"), ("in", "hn")]),
    "MGUCell": (MGU(4), [("if", "hf"), ("in", "hn")]),
    "MGUCell(reset_gate=False)": (MGU(4, reset_gate=False), [("if", "hf"), ("in", "hn")]),
}


def ours_from_flax(cell, tree, gates):
    """Linear, so that it maps gradients as well as parameters."""
    join = partial(jnp.concatenate, axis=-1)
    params = {
        "w_ih": join([tree[i]["kernel"] for i, _ in gates]),
        "w_hh": join([tree[h]["kernel"] for _, h in gates]),
        # Of the two layers one has the bias; the candidate of GRU and MGU has two.
        "b": join([tree[i]["bias"] if "bias" in tree[i] else tree[h]["bias"] for i, h in gates]),
    }
    if isinstance(cell, GRU | MGU):
        params["b_hn"] = tree["hn"].get("bias")
    return params_type(cell)(**params)


@pytest.mark.quick
@pytest.mark.parametrize("name", FLAX)
def test_flax(name, x64):
    linen = pytest.importorskip("flax.linen")
    cell, gates = FLAX[name]
    name, _, without_reset = name.partition("(")
    module = getattr(linen, name)(4, param_dtype=jnp.float64, **({"reset_gate": False} if without_reset else {}))
    rng = np.random.default_rng(0)
    carry = (jnp.zeros(4), jnp.zeros(4)) if isinstance(cell, LSTM) else jnp.zeros(4)
    shapes = jax.eval_shape(module.init, jax.random.key(0), carry, jnp.zeros(3))["params"]
    tree = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape)), shapes)
    problem = plain(make_problem(Row(cell)))._replace(params=ours_from_flax(cell, tree, gates))
    got = with_gradients(cell, "scan")(problem)

    def loss(differentiable):
        tree, state, xs = differentiable
        carry = (state.c, state.h) if isinstance(cell, LSTM) else state.h  # pitfall 2: flax has c first
        carry, ys = jax.lax.scan(lambda carry, x: module.apply({"params": tree}, carry, x), carry, xs)
        final = type(state)(carry[1], carry[0]) if isinstance(cell, LSTM) else type(state)(carry)
        return loss_of(final, ys), (final, ys)

    @fast_jit
    def theirs(*differentiable):
        (d_tree, d_state, d_xs), (final, ys) = jax.grad(loss, has_aux=True)(differentiable)
        return Outcome(final, ys, (ours_from_flax(cell, d_tree, gates), d_state, d_xs))

    assert_close(got, theirs(tree, problem.state, problem.xs))
