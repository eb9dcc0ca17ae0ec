"""Recorded states against a loop over `cell.step`, gates against the equations of the cells, texts against one pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax.analysis import gate_values, leaves_of, parse_unit, read_text, record, text_values
from rnnjax.analysis.recording import SymbolModel, select_units, step_layers
from tests.cells_table import CELLS, fast_jit


def perturbed(cell, input_size, seed=0):
    """Parameters none of which is zero or one."""
    params = cell.init(jax.random.key(seed), input_size)
    keys = iter(jax.random.split(jax.random.key(seed + 1), 100))
    return jax.tree.map(lambda p: p + 0.5 * jax.random.normal(next(keys), p.shape), params)


def sigmoid(z):
    return 1 / (1 + np.exp(-np.asarray(z, np.float64)))


@pytest.mark.parametrize("name", ["stack", "deep_stack"])
def test_states_are_those_of_a_loop(name):
    cell = {
        "stack": rnnjax.Stack((rnnjax.LSTM(4), rnnjax.LearnedState(rnnjax.GRU(4))), residual=True, norm="layer"),
        "deep_stack": CELLS["deep_stack"].cell,
    }[name]
    params, rng = perturbed(cell, 3), np.random.default_rng(0)
    xs, resets = jnp.array(rng.normal(size=(6, 2, 3)), jnp.float32), np.zeros((6, 2), bool)
    resets[3, 1] = True
    start = rnnjax.start_state(cell, params, (2,))
    final, values = record(cell, params, start, xs, select=["state"], resets=resets)
    state, step = start, fast_jit(cell.step)
    for t in range(6):
        state = jax.tree.map(
            lambda fresh, old, t=t: jnp.where(resets[t].reshape(-1, *(1,) * (old.ndim - 1)), fresh, old), start, state
        )
        state, _ = step(params, state, xs[t])
        if name == "stack":
            expected = {"L1.h": state.layers[0].h, "L1.c": state.layers[0].c, "L2.h": state.layers[1].h}
        else:
            expected = {"L1.h": state.first.h, "L2.h": state.rest.h[:, 0], "L3.h": state.rest.h[:, 1]}
        assert values.keys() == expected.keys()
        for leaf, value in expected.items():
            np.testing.assert_allclose(values[leaf][t], value, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), final, state)


def test_layers_take_the_steps_of_their_cell():
    for name in ("deep_stack", "residual_stack", "learned_state"):
        cell, size = CELLS[name]
        params = perturbed(cell, size)
        x = jnp.ones((2, size))
        state = rnnjax.start_state(cell, params, (2,))
        ours, own = fast_jit(
            lambda *args, cell=cell: (step_layers(cell, *args, lambda cell, *args: cell.step(*args)), cell.step(*args))
        )(params, state, x)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, own)


CHUNK = 4  # steps


def steps(name):
    """Old and new states and gates of some steps of a cell, as NumPy."""
    cell, size = CELLS[name]
    params = perturbed(cell, size)
    xs = jax.random.normal(jax.random.key(9), (CHUNK, 2, size))

    def run(params, state, xs):
        def step(state, x):
            new, _ = cell.step(params, state, x)
            return new, (state, new, gate_values(cell, params, state, new, x))

        return jax.lax.scan(step, state, xs)[1]

    old, new, gates = fast_jit(run)(params, cell.initial_state((2,)), xs)
    gates = {name: np.asarray(gate.value, np.float64) for name, gate in gates.items()}
    return jax.tree.map(np.asarray, (params, old, new)), gates, np.asarray(xs)


LSTMS = ("lstm", "peephole_lstm", "coupled_lstm", "layernorm_lstm", "mi_lstm", "projected_lstm", "slstm")


@pytest.mark.parametrize("name", LSTMS)
def test_gates_of_lstms_make_the_new_state(name):
    (params, old, new), gates, _ = steps(name)
    i = 1 - gates["f"] if name == "coupled_lstm" else gates["i"]
    np.testing.assert_allclose(gates["f"] * old.c + i * gates["g"], new.c, rtol=1e-4, atol=1e-5)
    if name == "slstm":
        np.testing.assert_allclose(gates["o"] * new.c / new.n, new.h, rtol=1e-4, atol=1e-5)
        return
    c = new.c.astype(np.float64)
    if name == "layernorm_lstm":
        c = (c - c.mean(-1, keepdims=True)) / np.sqrt(c.var(-1, keepdims=True) + 1e-5) * params.gain_c + params.b_c
    h = gates["o"] * np.tanh(c)
    np.testing.assert_allclose(h @ params.w_proj if name == "projected_lstm" else h, new.h, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gru", "layernorm_gru", "gru_reset_before", "mgu", "minimal_rnn"])
def test_gates_of_grus_make_the_new_state(name):
    (_, old, new), gates, _ = steps(name)
    keep, candidate = {"mgu": "fn", "minimal_rnn": "uz"}.get(name, "zn")
    np.testing.assert_allclose(gates[keep] * old.h + (1 - gates[keep]) * gates[candidate], new.h, rtol=1e-4, atol=1e-5)


def test_gates_are_those_of_numpy():
    for name, order in (("lstm", "ifgo"), ("gru", "rzn")):
        (params, old, _), gates, xs = steps(name)
        zx = np.split(xs @ params.w_ih.astype(np.float64) + params.b, len(order), axis=-1)
        zh = np.split(old.h @ params.w_hh.astype(np.float64), len(order), axis=-1)
        for k, gate in enumerate(order[:2] if name == "gru" else order):
            z = zx[k] + zh[k]
            np.testing.assert_allclose(gates[gate], np.tanh(z) if gate == "g" else sigmoid(z), rtol=1e-4, atol=1e-6)


def test_gates_of_other_cells():
    cell = rnnjax.MinGRU(4)  # h' = keep * h + ..: the slope by h
    params, x = perturbed(cell, 3), jnp.ones(3)
    low, high = (cell.initial_state()._replace(h=jnp.full(4, v)) for v in (0.0, 1.0))
    slope = cell.step(params, high, x)[0].h - cell.step(params, low, x)[0].h
    np.testing.assert_allclose(gate_values(cell, params, low, None, x)["keep"].value, slope, rtol=1e-5)
    cell = rnnjax.Elman(4)
    params, state = perturbed(cell, 3), cell.initial_state()._replace(h=jnp.arange(4.0))
    (z0,) = gate_values(cell, params, state, None, x).values()
    np.testing.assert_allclose(np.tanh(z0.pre), cell.step(params, state, x)[1], rtol=1e-5)
    assert z0.value is None
    cell = rnnjax.LRU(4)
    assert not gate_values(cell, perturbed(cell, 3), cell.initial_state(), None, x)


@pytest.fixture(scope="module")
def model():
    cell = rnnjax.Stack((rnnjax.LSTM(3), rnnjax.GRU(2)))
    keys = jax.random.split(jax.random.key(0), 3)
    return SymbolModel(
        cell, perturbed(cell, 4), jax.random.normal(keys[0], (6, 4)), jax.random.normal(keys[1], (2, 6)), jnp.zeros(6)
    )


IDS = np.random.default_rng(0).integers(0, 6, 61).astype(np.uint8)


def test_a_text_in_pieces_is_the_text_in_one(model):
    state = model.cell.initial_state(())
    _, whole = record(model.cell, model.params, state, model.inputs[IDS], select=["L1.c", "L2.r.1", "L1.z_f"])
    starts = np.array([0, 17, 40])
    _, reset = record(
        model.cell, model.params, state, model.inputs[IDS], select=["L1.c", "L2.r.1", "L1.z_f"],
        resets=np.isin(np.arange(61), starts),
    )  # fmt: skip
    for expected, options in (
        (whole, {"streams": 1, "window": 16}),
        (whole, {"streams": 4, "window": 16, "warmup": 100}),  # the warm-up reaches back to the start: exact
        (whole, {"streams": 2, "window": 16, "warmup": 100, "begin": 20, "end": 50}),
        (reset, {"streams": 4, "window": 16, "warmup": 100, "starts": starts}),
    ):
        begin, end = options.get("begin", 0), options.get("end", 61)
        seen = np.zeros(61, int)
        for part in read_text(model, IDS, select=["L1.c", "L2.r.1", "L1.z_f"], **options):
            positions, values = part.rows()
            np.add.at(seen, positions, 1)
            assert {leaf: v.shape[1] for leaf, v in values.items()} == {"L1.c": 3, "L2.r": 1, "L1.z_f": 3}
            for leaf, value in values.items():
                np.testing.assert_allclose(value, np.asarray(expected[leaf])[positions], rtol=1e-4, atol=1e-5)
        assert (seen[begin:end] == 1).all() and seen.sum() == end - begin
    few = text_values(model, IDS, ["L2.r.1", "L1.c.2", "L1.c.0"], streams=4, window=16, warmup=100)
    expected = np.stack([whole["L2.r"][:, 0], whole["L1.c"][:, 2], whole["L1.c"][:, 0]], axis=1)
    np.testing.assert_allclose(few, expected, rtol=1e-4, atol=1e-5)


def test_selection_and_names(model):
    leaves = leaves_of(model.cell, model.params, model.inputs[0])
    assert {name: leaf.kind for name, leaf in leaves.items() if name.startswith("L2.")} == {
        "L2.h": "state", "L2.r": "gate", "L2.z": "gate", "L2.n": "candidate", "L2.z_r": "pre", "L2.z_z": "pre",
        "L2.z_n": "pre",
    }  # fmt: skip
    assert str(parse_unit("L1.c.2", leaves)) == "L1.c.2"
    assert select_units(["L2.h.1", "L1.c", "L2.h.0", "L1.c.1"], leaves) == (("L1.c", None), ("L2.h", (0, 1)))
    everything = {leaf for leaf, _ in select_units(None, leaves)}
    assert everything == {leaf for leaf, about in leaves.items() if about.kind != "pre"}
    for name, message in (
        ("L3.c.0", "layers are L1 to L2"),
        ("L2.c.0", "the leaves of L2 are h, r, z, n"),
        ("L1.c.3", "the units of L1.c are L1.c.0 to L1.c.2"),
        ("L1.c.-1", "are L1.c.0 to"),
        ("nonsense", "such as L1.h.0"),
    ):
        with pytest.raises(ValueError, match=message):
            select_units([name], leaves)
    with pytest.raises(ValueError, match="text not empty"):
        next(read_text(model, IDS[:0]))
