"""Recorded states against a loop over `cell.step`, texts in pieces against one pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax.analysis import record, text_values
from rnnjax.analysis.recording import SymbolModel, leaves_of, read_text, step_layers
from rnnjax.analysis.units import Leaf, parse_unit, select_units
from tests.cells_table import CELLS, fast_jit


def perturbed(cell, input_size, seed=0):
    """Parameters none of which is zero or one."""
    params = cell.init(jax.random.key(seed), input_size)
    keys = iter(jax.random.split(jax.random.key(seed + 1), 100))
    return jax.tree.map(lambda p: p + 0.5 * jax.random.normal(next(keys), p.shape), params)


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
            expected = {f"L{number}.h": layer.h for number, layer in enumerate(state.layers, 1)}
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


def test_kinds_come_from_what_made_a_value():
    kinds = {
        name: leaf.kind for name, leaf in leaves_of(rnnjax.SLSTM(2), perturbed(rnnjax.SLSTM(2), 3), jnp.ones(3)).items()
    }
    assert kinds == {
        **dict.fromkeys(("L1.h", "L1.c", "L1.n", "L1.m"), "state"), **dict.fromkeys(("L1.i", "L1.f", "L1.o"), "gate"),
        "L1.g": "candidate", **dict.fromkeys(("L1.z_i", "L1.z_f", "L1.z_g", "L1.z_o"), "pre"),
    }  # fmt: skip
    cell, size = CELLS["conv_lstm"]
    leaves = leaves_of(cell, cell.init(jax.random.key(0), size), jnp.ones((4, size)))
    assert leaves["L1.f"] == Leaf(8, "gate") and leaves["L1.c"] == Leaf(8, "state")
    assert leaves_of(rnnjax.MinGRU(2), perturbed(rnnjax.MinGRU(2), 3), jnp.ones(3))["L1.n"].kind == "value"


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
    with pytest.raises(ValueError, match="text must not be empty"):
        next(read_text(model, IDS[:0]))
