"""Every cell against a literal NumPy loop that shares no code with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from tests.cells_table import CELLS, VARIANTS, forward, make_problem, plain
from tests.references import numpy_affine, numpy_core, numpy_layers, numpy_linear, numpy_plain

STEPS = numpy_core.STEPS | numpy_affine.STEPS | numpy_linear.STEPS | numpy_plain.STEPS | numpy_layers.STEPS


def test_every_cell_has_a_numpy_loop():
    """A new row of the table needs an independent transcription of its equations here."""
    assert CELLS.keys() <= STEPS.keys()


@pytest.mark.quick
@pytest.mark.parametrize("name", STEPS)
def test_cell_is_its_numpy_loop(name, x64):
    row = (CELLS | VARIANTS)[name]
    problem = plain(make_problem(row))
    final, ys = jax.tree.map(np.asarray, forward(row.cell, "scan")(problem))
    params, state, xs = jax.tree.map(np.asarray, tuple(problem[:3]))
    for b in range(xs.shape[1]):
        single = jax.tree.map(lambda leaf, b=b: leaf[b], state)
        for t, x in enumerate(xs[:, b]):
            single, y = STEPS[name](params, single, x)
            np.testing.assert_allclose(ys[t, b], y, rtol=1e-12, atol=1e-12)
        for got, want in zip(jax.tree.leaves(final), jax.tree.leaves(single), strict=True):
            np.testing.assert_allclose(got[b], want, rtol=1e-12, atol=1e-12)


@pytest.mark.quick
def test_forget_bias_is_applied_once():
    """Pitfall 4: in `b` from the start, and never added by a step."""
    cell = rnnjax.LSTM(2, forget_bias=3.0)
    params = cell.init(jax.random.key(0), 1)
    np.testing.assert_array_equal(params.b, [0, 0, 3, 3, 0, 0, 0, 0])
    silent = jax.tree.map(jnp.zeros_like, params)._replace(b=params.b)
    state = cell.initial_state()._replace(c=jnp.ones(2))
    state, _ = cell.step(silent, state, jnp.zeros(1))
    np.testing.assert_allclose(state.c, 1 / (1 + np.exp(-3.0)), rtol=1e-6)
