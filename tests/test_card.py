"""Every entry of a cell's page against what is counted or differentiated."""

import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax.card import card, jacobian_class
from rnnjax.engines.choice import UnfitError
from rnnjax.online import EProp, SnAp1
from tests.cells_table import CELLS, VARIANTS, some_params
from tests.lm.tiny_run import rnnjax as command

ALONE = {
    name: row
    for name, row in (CELLS | VARIANTS).items()
    if not isinstance(row.cell, rnnjax.Network) and "conv" not in name
}
SOME = [name for name in CELLS if name in ALONE]
FUNCTIONS = {
    "sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh, "exp": jnp.exp, "relu": jax.nn.relu, "max": jnp.maximum,
    "log_sigmoid": jax.nn.log_sigmoid, "softplus": jax.nn.softplus, "rsqrt": jax.lax.rsqrt, "sqrt": jnp.sqrt,
    "complex": jax.lax.complex, "real": jnp.real, "imag": jnp.imag, "cos": jnp.cos, "sin": jnp.sin, "sum": jnp.sum,
    "where": jnp.where, "silu": jax.nn.silu, "concatenate": lambda *parts: jnp.concatenate(parts), "abs": jnp.abs,
    "expm1": jnp.expm1, "log1p": jnp.log1p, "log": jnp.log,
}  # fmt: skip


def values(name):
    row = ALONE[name]
    params = some_params(row.cell, row.input_size)
    rng = np.random.default_rng(3)
    state = jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32), jax.eval_shape(row.cell.initial_state)
    )
    return row, params, state, jnp.asarray(rng.normal(size=row.input_size), jnp.float32)


def named(tree):
    return {jax.tree_util.keystr(path).lstrip("."): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("name", SOME)
def test_the_equations_compute_the_step(name):
    """Run as Python, line by line, they give the next state and the output."""
    row, params, state, x = values(name)
    page = card(row.cell, row.input_size)
    space = {re.sub(r"\W", "_", k): v for k, v in {**named(params), **named(state), "x": x}.items()}
    for line in page.equations:
        target, _, text = line.replace("'", "_new").partition(" = ")
        text = re.sub(r"\b(\w+)\[(\d+)\]", lambda m: f"block({m[1]}, {m[2]}, {text_blocks(page, m[1])})", text)
        space[target] = eval(text, {"__builtins__": {}, **FUNCTIONS, "block": block}, space)
    new, y = row.cell.step(params, state, x)
    np.testing.assert_allclose(space["y"], y, rtol=2e-5, atol=2e-6)
    for key, leaf in named(new).items():
        np.testing.assert_allclose(space[f"{key}_new"], leaf, rtol=2e-5, atol=2e-6)


def block(array, n, count):
    return array[n] if array.ndim > 1 else jnp.split(array, count)[n]


def text_blocks(page, name):
    """Into how many parts a name is cut: one more than the highest that is asked for."""
    text = " ".join(page.equations).replace("'", "_new")
    return 1 + max(int(n) for n in re.findall(rf"\b{name}\[(\d+)\]", text))


@pytest.mark.parametrize("name", SOME)
def test_the_class_is_that_of_the_jacobian(name):
    """Differentiated: which entries of a row a unit's next state follows, and whether they depend on the state."""
    row, params, state, x = values(name)
    flat, unravel = jax.flatten_util.ravel_pytree(state)

    def new(flat):
        return jax.flatten_util.ravel_pytree(row.cell.step(params, unravel(flat), x)[0])[0]

    one, other = (np.asarray(jax.jacfwd(new)(a)) for a in (flat, flat + 0.3))
    leaves = jax.tree.leaves(state)
    size = leaves[0].size
    within = np.kron(np.ones((len(leaves), len(leaves))), np.eye(size)) > 0 if one.shape[0] == size * len(leaves) else 0
    kind = card(row.cell, row.input_size).jacobian
    linear = np.allclose(one, other, atol=1e-6)
    alone = not np.any(one * ~within) if isinstance(within, np.ndarray) else False
    assert kind == jacobian_class(row.cell)
    if linear and alone:
        assert kind == "linear"
    elif alone:
        assert kind == ("diagonal" if len(leaves) == 1 else f"blocks of {len(leaves)}")
    else:
        assert kind == "dense"


@pytest.mark.parametrize("name", SOME)
def test_costs_are_what_xla_counts(name):
    row, params, state, x = values(name)
    page = card(row.cell, row.input_size, batch_size=7)
    found = jax.jit(row.cell.step).lower(params, state, x).cost_analysis()
    total = page.operations.matmul + page.operations.pointwise - page.operations.transcendental
    # XLA counts some functions as several operations, and comparisons and signs not at all.
    assert 0.9 * total <= found["flops"] <= total + 4 * page.operations.transcendental
    assert page.num_parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    y = row.cell.step(params, state, x)[1]
    rows = x.size + y.size + 2 * sum(leaf.size for leaf in jax.tree.leaves(state))
    assert page.step_bytes == 4 * (page.num_parameters + 7 * rows)


def test_matrix_products_of_an_lstm_by_hand():
    page = card(rnnjax.LSTM(16), 5, batch_size=3, peak_flops=1e9, peak_bytes=1e6)
    assert page.operations.matmul == 2 * (5 + 16) * 64 and page.operations.transcendental == 5 * 16
    assert page.floor == (page.step_bytes / 1e6, "memory")
    fast = card(rnnjax.LSTM(16), 5, batch_size=3, peak_flops=1e3, peak_bytes=1e12).floor
    assert fast == (3 * (page.operations.matmul + page.operations.pointwise) / 1e3, "arithmetic")
    assert page.gates == (("i", "sigmoid"), ("f", "sigmoid"), ("g", "tanh"), ("o", "sigmoid"))
    assert page.recurrent_blocks == 4


@pytest.mark.parametrize("name", ["lstm", "layernorm_gru", "lru", "projected_lstm", "diagonal_lstm"])
def test_what_takes_it_takes_it_and_what_does_not_says_so(name):
    row, params, state, x = values(name)
    page = card(row.cell, row.input_size)
    able = [engine for engine, reason in page.engines.items() if not reason]
    assert tuple(able) == rnnjax.implementations(row.cell)
    refused = {engine: reason for engine, reason in page.engines.items() if reason}
    for engine, reason in refused.items():
        with pytest.raises((UnfitError, ValueError), match=re.escape(reason)):
            rnnjax.unroll(row.cell, params, state, x[None], implementation=engine)
    for border, kind in (("snap1", SnAp1), ("eprop", EProp)):
        word = page.borders[border]
        if word in ("", "exact"):
            kind(row.cell)
            assert (word == "exact") == (page.jacobian != "dense")
        else:
            with pytest.raises((TypeError, ValueError), match=re.escape(word)):
                kind(row.cell)


def test_the_command_prints_the_page(capsys, tmp_path):
    found = command(capsys, "card", "gru", "--hidden", "8", "--input", "3")
    assert found.code == 0 and found.out.strip() == str(card(rnnjax.GRU(8), 3))
    facts = json.loads(command(capsys, "card", "lru", "--json").out)
    assert facts["jacobian"] == "linear" and facts["num_parameters"] == sum(
        map(math.prod, facts["parameters"].values())
    )
    file = tmp_path / "mine.py"
    file.write_text("import rnnjax\nclass Mine(rnnjax.GRU):\n    pass\n")
    assert command(capsys, "card", f"{file}:Mine", "--hidden", "4").out.startswith("Mine: input 4, hidden 4, state 4")
    wrong = command(capsys, "card", "grru")
    assert wrong.code == 2 and "did you mean 'gru'" in wrong.err


def test_errors():
    with pytest.raises(TypeError, match=r"^card: cell must be a cell, got Stack.*rnnjax\.network\.leaves"):
        card(rnnjax.Stack((rnnjax.GRU(3),)))
    with pytest.raises(ValueError, match=r"^card: batch_size must"):
        card(rnnjax.GRU(3), batch_size=0)


def test_a_large_cell_is_known_by_a_small_one():
    """The Jacobian of 100,000 units would be 40 GB, and so would be its weights."""
    assert rnnjax.card(rnnjax.cells.RecurrentHighway(100_000), 2).jacobian == "dense"
