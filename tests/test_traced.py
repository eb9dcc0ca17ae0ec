"""Named values against the equations of the cells in NumPy, what holding them does, and programs without the names."""

import importlib
import pkgutil
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

import rnnjax
import rnnjax.cell
import rnnjax.cells
from rnnjax.cell import leaf_names
from rnnjax.traced import name_values, observe
from tests.cells_table import CELLS, VARIANTS, fast_jit, make_problem

ONE_CELL = {name: row for name, row in CELLS.items() if not re.search("stack|learned_state", name)}
TABLE = {**ONE_CELL, **{name: VARIANTS[name] for name in ("slstm_exp", "mgu_without_reset", "leaky_relu", "mi_rnn")}}


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def further(leaf):
    """A distance for each unit, not the same for all, which a norm would undo."""
    return np.array([1.0, 0.5, 0.25, 2.0, 1.5], np.float32)[: leaf.shape[-1]]


def norm(c, epsilon=1e-5):
    return (c - c.mean(-1, keepdims=True)) / np.sqrt(c.var(-1, keepdims=True) + epsilon)


def lstm(p, old, v):
    c = v["f"] * old["c"] + v["i"] * v["g"]
    return {"c": c, "h": v["o"] * np.tanh(c)}


def gated(keep, candidate):
    return lambda p, old, v: {"h": v[keep] * old["h"] + (1 - v[keep]) * v[candidate]}


def layernorm_lstm(p, old, v):
    c = lstm(p, old, v)["c"]
    return {"c": c, "h": v["o"] * np.tanh(p.gain_c * norm(c) + p.b_c)}


def slstm(p, old, v):
    c, n = v["f"] * old["c"] + v["i"] * v["g"], v["f"] * old["n"] + v["i"]
    return {"c": c, "n": n, "h": v["o"] * c / n}


def highway(p, old, v):
    s = old["h"]
    for layer in range(2):
        s = v[f"n{layer}"] * v[f"t{layer}"] + s * (1 - v[f"t{layer}"])
    return {"h": s}


# The new state from the old one and what is named, as in the paper's equations.
EQUATIONS = {
    "elman": lambda p, old, v: {"h": np.tanh(v["z_h"])},
    "indrnn": lambda p, old, v: {"h": np.maximum(v["z_h"], 0)},
    "leaky": lambda p, old, v: {
        "h": (1 - sigmoid(p.logit_alpha)) * old["h"] + sigmoid(p.logit_alpha) * np.tanh(v["z_n"])
    },
    "leaky_relu": lambda p, old, v: {
        "h": (1 - sigmoid(p.logit_alpha)) * old["h"] + sigmoid(p.logit_alpha) * np.maximum(v["z_n"], 0)
    },
    "lstm": lstm,
    "peephole_lstm": lstm,
    "mi_lstm": lstm,
    "conv_lstm": lstm,
    "coupled_lstm": lambda p, old, v: lstm(p, old, {**v, "i": 1 - v["f"]}),
    "layernorm_lstm": layernorm_lstm,
    "projected_lstm": lambda p, old, v: {"c": lstm(p, old, v)["c"], "h": lstm(p, old, v)["h"] @ p.w_proj},
    "slstm": slstm,
    "slstm_exp": slstm,
    "gru": gated("z", "n"),
    "layernorm_gru": gated("z", "n"),
    "gru_reset_before": gated("z", "n"),
    "diagonal_gru": gated("z", "n"),
    "diagonal_gru_biased": gated("z", "n"),
    "diagonal_lstm": lstm,
    "diagonal_lstm_chrono": lstm,
    "mgu": gated("f", "n"),
    "mgu_without_reset": gated("f", "n"),
    "minimal_rnn": gated("u", "z"),
    "min_gru": lambda p, old, v: {"h": v["keep"] * old["h"] + v["add"] * v["n"], "add": 1 - v["keep"]},
    "min_lstm": lambda p, old, v: {"h": v["keep"] * old["h"] + v["add"] * v["g"], "add": 1 - v["keep"]},
    "sru": lambda p, old, v: {"c": v["f"] * old["c"] + v["add"] * v["n"], "add": 1 - v["f"]},
    "highway": highway,
    "mi_rnn": lambda p, old, v: {},
    "lru": lambda p, old, v: {},
}


@pytest.mark.parametrize("name", TABLE)
def test_named_values_make_the_new_state(name):
    """And a state that is held changes nothing where it is, and moves with ``y`` where it is not."""
    cell = TABLE[name].cell
    params, state, xs, *_ = make_problem(TABLE[name])
    kinds = {}

    @fast_jit
    def run(params, state, x):
        (new, y), found = observe(cell.step, params, state, x)
        plain = cell.step(params, state, x)
        same, moved = {}, {}
        for leaf, value in zip(leaf_names(new), jax.tree.leaves(new), strict=True):
            same[leaf] = observe(cell.step, params, state, x, hold={leaf: lambda _, value=value: value})[0]
            moved[leaf] = observe(cell.step, params, state, x, hold={leaf: lambda v: v + further(v)})[0]
        kinds.update({name: seen.made_by for name, seen in found.items()})
        return plain, (new, y), [(value, before) for value, _, before in found.values()], same, moved

    plain, (new, y), found, same, moved = run(params, state, xs[0])
    assert_equal(plain, (new, y))
    values = {name: np.asarray(value, np.float64) for name, (value, _) in zip(kinds, found, strict=True)}
    named_state = {leaf: values[leaf] for leaf in leaf_names(new)}
    assert_equal(named_state, dict(zip(leaf_names(new), jax.tree.leaves(new), strict=True)))
    for kind, (value, before) in zip(kinds.values(), found, strict=True):
        function = {"logistic": sigmoid, "tanh": np.tanh, "exp": np.exp}.get(kind)
        assert (function is None) == (before is None)
        if function is not None:
            np.testing.assert_allclose(value, function(np.asarray(before, np.float64)), rtol=1e-5, atol=1e-7)
    old = dict(zip(leaf_names(state), map(np.asarray, jax.tree.leaves(state)), strict=True))
    for leaf, expected in EQUATIONS[name](jax.tree.map(np.asarray, params), old, values).items():
        np.testing.assert_allclose(values[leaf], expected, rtol=1e-4, atol=1e-5)
    for leaf in old:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), same[leaf], plain)
        held = dict(zip(leaf_names(new), jax.tree.leaves(moved[leaf][0]), strict=True))
        np.testing.assert_allclose(held[leaf], values[leaf] + further(values[leaf]), rtol=1e-5)
        if leaf == "m":  # the stabiliser of an sLSTM changes no output
            np.testing.assert_allclose(moved[leaf][1], y, rtol=1e-4, atol=1e-6)
        else:
            assert np.abs(moved[leaf][1] - y).max() > 1e-3  # in the same step


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("name", ONE_CELL)
def test_programs_are_the_same_without_the_names(name, monkeypatch):
    """Values and gradients: what XLA is given does not differ in a character.

    Every cell in one engine, and a cell of each kind in the scan too.
    """
    row = ONE_CELL[name]
    problem = make_problem(row)
    engine = next(n for n in ("fused", "hoisted", "scan") if n in rnnjax.implementations(row.cell))

    def programs():
        # A class of its own, as what was traced for one cell is kept for all that are equal to it.
        cell = object.__new__(type("Copy", (type(row.cell),), {}))
        cell.__dict__.update(row.cell.__dict__)

        def loss(params, state, xs, implementation):
            final, ys = rnnjax.unroll(cell, params, state, xs, resets=problem.resets, implementation=implementation)
            return jnp.sum(ys**2) + sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(final))

        lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)), static_argnums=3).lower
        return {
            implementation: lowered(*problem[:3], implementation).as_text()
            for implementation in {engine, "scan" if name in ("gru", "lru") else engine}
        }

    named, calls = programs(), []
    for module in (rnnjax.cell, *(importlib.import_module(m.name) for m in modules())):
        if hasattr(module, "name_values"):
            monkeypatch.setattr(module, "name_values", lambda **values: calls.extend(values))
    assert programs() == named and calls


def modules():
    return pkgutil.iter_modules(rnnjax.cells.__path__, "rnnjax.cells.")


def test_a_bfloat16_output_follows_a_held_state():
    cell = rnnjax.LSTM(4)
    params, state, xs, *_ = make_problem(CELLS["lstm"], dtype=jnp.bfloat16)
    for held in ("h", "c"):
        (new, y), _ = observe(cell.step, params, state, xs[0], hold={held: jnp.zeros_like})
        assert y.dtype == new.h.dtype == jnp.bfloat16 and not np.asarray(y, np.float32).any()


def f(x):
    y = jnp.tanh(x)
    name_values(f=y)
    return y


def g(x):
    return checkpoint_name(jnp.tanh(x), "f")


@pytest.mark.quick
def test_names_are_found_where_functions_call_functions():
    x = jnp.linspace(-1, 1, 5)

    @jax.custom_jvp
    def custom(x):
        return f(x)

    custom.defjvp(lambda primals, tangents: (custom(*primals), 7.0 * tangents[0]))

    @jax.custom_vjp
    def reverse(x):
        return f(x)

    reverse.defvjp(lambda x: (f(x), x), lambda x, d: (7.0 * d,))
    for function in (
        g,
        jax.jit(g),
        jax.jit(f),
        jax.checkpoint(f),
        custom,
        reverse,
        jax.jit(jax.jit(custom)),
        jax.vmap(f),
    ):
        y, found = observe(lambda x, function=function: function(x) + 1, x)
        assert_equal((y, found["f"].value), (np.asarray(f(x)) + 1, f(x)))
        assert_equal(observe(lambda x, function=function: function(x) + 1, x, hold={"f": lambda v: -v})[0], 1 - f(x))
    # What names nothing keeps the derivative that its author gave it.
    plain = jax.custom_jvp(lambda x: x * 2)
    plain.defjvp(lambda primals, tangents: (primals[0] * 2, 7.0 * tangents[0]))
    slope = jax.grad(lambda x: observe(lambda x: plain(f(x)), x)[0])(0.5)
    np.testing.assert_allclose(slope, 7 * (1 - np.tanh(0.5) ** 2), rtol=1e-6)


@pytest.mark.quick
def test_names_within_a_scan_come_stacked():
    cell = rnnjax.GRU(4)
    params, state, xs, _, resets, _ = make_problem(TABLE["gru"]._replace(cell=cell))
    for implementation, reverse in (("scan", False), ("fused", False), ("scan", True)):
        (final, ys), found = observe(
            lambda *args, i=implementation, r=reverse: rnnjax.unroll(
                cell, *args, resets=resets, implementation=i, reverse=r
            ),
            params, state, xs,
        )  # fmt: skip
        assert_equal(found["h"].value, ys)
        assert_equal(found["h"].value[0 if reverse else -1], final.h)
        assert found["z"].made_by == "logistic" and found["z"].value.shape == (*xs.shape[:2], 4)
        np.testing.assert_allclose(jax.nn.sigmoid(found["z"].before), found["z"].value, rtol=1e-6)
    closed = {"z": lambda z: jnp.ones_like(z)}  # keeps the old state
    (final, ys), _ = observe(lambda *args: rnnjax.unroll(cell, *args), params, state, xs, hold=closed)
    assert_equal(final, state)
    # Of two values with one name the later one is read, and both are held.
    twice = lambda x: f(f(x)) + 0 * x  # noqa: E731
    assert float(observe(twice, 0.5)[1]["f"].value) == float(jnp.tanh(jnp.tanh(0.5)))
    seen = []
    observe(twice, 0.5, hold={"f": lambda v: seen.append(v) or v})
    assert len(seen) == 2


def test_derivatives_and_transformations_pass_through():
    cell = rnnjax.LSTM(4)
    params, state, xs, *_ = make_problem(CELLS["lstm"])

    def total(params, watched):
        (_, y), found = observe(cell.step, params, state, xs[0])
        return jnp.sum(found["f"].value if watched else y)

    own = jax.grad(lambda p: jnp.sum(cell.step(p, state, xs[0])[1]))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), jax.grad(total)(params, False), own)
    width = slice(4, 8)
    slope = jax.grad(total)(params, True)
    assert np.any(slope.b[width]) and not np.any(np.delete(slope.b, np.r_[width]))
    alone = jax.vmap(lambda s, x: observe(cell.step, params, s, x)[1]["c"].value)(state, xs[0])
    np.testing.assert_allclose(alone, cell.step(params, state, xs[0])[0].c, rtol=1e-5, atol=1e-6)


@pytest.mark.quick
def test_errors_of_observe():
    x = jnp.ones(3)
    for function, kind in (
        (lambda x: jax.lax.while_loop(lambda x: x.sum() < 1, f, x), "while"),
        (lambda x: jax.lax.cond(x.sum() < 1, f, lambda x: x, x), "cond"),
    ):
        with pytest.raises(ValueError, match=f"observe: values cannot be handed out of a '{kind}', got the name 'f'"):
            observe(function, x)
    with pytest.raises(ValueError, match=r"hold must name values that the function names, got 'g'; it names f\."):
        observe(f, x, hold={"g": jnp.zeros_like})
    with pytest.raises(ValueError, match=r"it names nothing\. Name a value where .*checkpoint_name\(f, \"f\"\)"):
        observe(jnp.tanh, x, hold={"f": jnp.zeros_like})
    with pytest.raises(ValueError, match=r"what holds 'f' must be f32\[3\] as the value itself, got f32\[2\]"):
        observe(f, x, hold={"f": lambda v: v[:2]})
