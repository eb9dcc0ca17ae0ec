"""Initialisers against their closed forms and their statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnjax import GRU, LSTM, Elman, Stack
from rnnjax.initializers import Chrono, Glorot, Identity, Initializer, Orthogonal, Uniform, per_gate
from tests.cells_table import CELLS, VARIANTS, rows

KEY = jax.random.key(0)
ALL = [Chrono(10), Glorot(), Identity(), Orthogonal(), Uniform()]


def blocks(w, num_gates):
    return np.split(np.asarray(w, np.float64), num_gates, axis=-1)


@pytest.mark.quick
@pytest.mark.parametrize("init", ALL, ids=repr)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_shape_dtype_and_protocol(init, dtype):
    assert isinstance(init, Initializer)
    value = init(KEY, (6, 4), jnp.dtype(dtype))
    assert value.shape == (6, 4) and value.dtype == dtype
    np.testing.assert_array_equal(value, init(KEY, (6, 4), jnp.dtype(dtype)))
    assert init == eval(repr(init)) and hash(init) == hash(eval(repr(init)))


@pytest.mark.parametrize("init", ALL, ids=repr)
def test_float64_in_float64_mode(init, x64):
    assert init(KEY, (6, 4), jnp.float64).dtype == jnp.float64


@pytest.mark.quick
@pytest.mark.parametrize("shape", [(16, 16), (16, 5), (5, 16), (1, 7)])
def test_orthogonal_along_the_shorter_axis(shape):
    singular = np.linalg.svd(np.asarray(Orthogonal(0.7)(KEY, shape), np.float64), compute_uv=False)
    np.testing.assert_allclose(singular, 0.7, rtol=1e-5)


@pytest.mark.quick
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.02)])
@pytest.mark.parametrize("cell", [Elman(16), LSTM(16), GRU(16)], ids=lambda cell: type(cell).__name__)
def test_every_gate_of_the_recurrent_weights_is_orthogonal(cell, dtype, tolerance):
    """Pitfalls 5 and 10: a jointly orthogonal [H, 4H] has gates with singular values from 0 to 1."""
    w_hh = cell.init(KEY, 3, jnp.dtype(dtype)).w_hh
    assert w_hh.dtype == dtype
    for block in blocks(w_hh, cell.num_gates):
        singular = np.linalg.svd(block, compute_uv=False)
        np.testing.assert_allclose(singular, 1, atol=tolerance)
    joint = np.split(np.asarray(Orthogonal()(KEY, (16, 64)), np.float64), 4, axis=-1)
    assert min(np.linalg.svd(block, compute_uv=False).min() for block in joint) < 0.3  # the test can fail


def test_orthogonal_is_haar_distributed():
    """The sign correction: without it the diagonal of Q from Householder's QR has one sign."""
    q = jax.vmap(lambda key: Orthogonal()(key, (3, 3)))(jax.random.split(KEY, 4000))
    np.testing.assert_allclose(np.mean(q, axis=0), 0, atol=0.05)
    np.testing.assert_allclose(np.mean(np.square(q), axis=0), 1 / 3, atol=0.03)
    np.testing.assert_allclose(np.mean(np.linalg.det(q)), 0, atol=0.06)


@pytest.mark.parametrize(
    ("init", "shape", "limit"),
    [
        (Glorot(), (300, 200), np.sqrt(6 / 500)),
        (Glorot(2.0), (300, 200), 2 * np.sqrt(6 / 500)),
        (Uniform(), (300, 225), 1 / 15),
        (Uniform(0.3), (300, 200), 0.3),
    ],
    ids=repr,
)
def test_bounds_and_variance_of_uniform_distributions(init, shape, limit):
    value = np.asarray(init(KEY, shape), np.float64)
    assert np.abs(value).max() <= limit
    assert np.abs(value).max() > 0.999 * limit
    np.testing.assert_allclose(value.var(), limit**2 / 3, rtol=0.02)
    np.testing.assert_allclose(value.mean(), 0, atol=0.02 * limit)


def test_glorot_of_a_cell_counts_one_gate():
    """The fan-out of a gate is H, not 4H; torch's 1 / sqrt(H) likewise."""
    w_ih = LSTM(100).init(KEY, 50).w_ih
    for block in blocks(w_ih, 4):
        assert 0.99 * np.sqrt(6 / 150) < np.abs(block).max() <= np.sqrt(6 / 150)
    w_ih = LSTM(100, input_init=Uniform()).init(KEY, 50).w_ih
    for block in blocks(w_ih, 4):
        assert 0.099 < np.abs(block).max() <= 0.1


def test_identity_is_exact():
    np.testing.assert_array_equal(Identity(0.5)(KEY, (3, 3)), 0.5 * np.eye(3))
    np.testing.assert_array_equal(Identity()(KEY, (2, 3)), np.eye(2, 3))
    cell = Elman(5, activation="relu", recurrent_init=Identity())
    params = cell.init(KEY, 2, jnp.bfloat16)
    np.testing.assert_array_equal(params.w_hh, np.eye(5))


def test_chrono_is_the_logarithm_of_a_uniform_lag():
    """exp(b) ~ U(1, max_lag - 1), so that 1 / (1 - sigmoid(b)) = 1 + exp(b) runs from 2 to max_lag."""
    b = np.asarray(Chrono(50)(KEY, (20_000,)), np.float64)
    assert b.min() >= 0 and b.max() <= np.log(49)
    lags = np.sort(np.exp(b))
    expected = np.linspace(1, 49, len(lags))
    assert np.abs(lags - expected).max() / 48 < 0.015  # Kolmogorov and Smirnov


@pytest.mark.quick
def test_chrono_of_an_lstm_and_of_a_gru():
    b_i, b_f, b_g, b_o = blocks(LSTM(64, forget_bias=Chrono(30)).init(KEY, 3).b, 4)
    assert (b_f >= 0).all() and (b_f <= np.log(29)).all() and len(np.unique(b_f)) > 50
    np.testing.assert_array_equal(b_i, -b_f)
    assert not b_g.any() and not b_o.any()
    params = GRU(64, update_bias=Chrono(30)).init(KEY, 3)
    b_r, b_z, b_n = blocks(params.b, 3)
    assert (b_z >= 0).all() and (b_z <= np.log(29)).all() and len(np.unique(b_z)) > 50
    assert not b_r.any() and not b_n.any() and not params.b_hn.any()


@pytest.mark.quick
def test_biases_of_fresh_cells():
    np.testing.assert_array_equal(LSTM(2).init(KEY, 3).b, [0, 0, 1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(LSTM(2, forget_bias=-2.0).init(KEY, 3).b, [0, 0, -2, -2, 0, 0, 0, 0])
    np.testing.assert_array_equal(GRU(2, update_bias=1.5).init(KEY, 3).b, [0, 0, 1.5, 1.5, 0, 0])
    np.testing.assert_array_equal(GRU(2).init(KEY, 3).b_hn, [0, 0])
    np.testing.assert_array_equal(Elman(2).init(KEY, 3).b, [0, 0])


@pytest.mark.parametrize(
    "cell",
    [LSTM(5), LSTM(5, forget_bias=Chrono(9)), GRU(5), Elman(5), Stack((LSTM(5), LSTM(5)))],
    ids=lambda cell: repr(cell)[:30],
)
def test_no_number_is_drawn_twice(cell):
    """Every gate, every weight and every layer has a key of its own."""
    leaves = jax.tree.leaves(cell.init(KEY, 5))
    numbers = np.concatenate([np.abs(np.asarray(leaf)).ravel() for leaf in leaves if leaf.ndim == 2])
    assert len(np.unique(numbers)) == len(numbers)
    other = jax.tree.leaves(cell.init(jax.random.key(1), 5))
    for a, b in zip(leaves, other, strict=True):
        assert a.ndim == 1 or not np.any(np.asarray(a) == np.asarray(b))


def test_per_gate_calls_the_initialiser_once_a_gate():
    calls = []

    def init(key, shape, dtype):
        calls.append((key, shape, dtype))
        return jnp.full(shape, len(calls), dtype)

    w = per_gate(init, KEY, (2, 3), 4, jnp.bfloat16)
    np.testing.assert_array_equal(w, [[1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]] * 2)
    assert {call[1:] for call in calls} == {((2, 3), jnp.bfloat16)}
    assert len({tuple(jax.random.key_data(key).tolist()) for key, *_ in calls}) == 4


def test_own_initialisers_work_in_a_cell():
    params = LSTM(3, input_init=Identity(2.0), recurrent_init=Uniform(0.1)).init(KEY, 3)
    np.testing.assert_array_equal(params.w_ih, np.tile(2 * np.eye(3), 4))
    assert np.abs(np.asarray(params.w_hh)).max() <= 0.1


@pytest.mark.parametrize("lag", [2, 0, -1])
def test_chrono_needs_three_steps(lag):
    with pytest.raises(ValueError, match=rf"^Chrono: max_lag must be at least 3, got {lag}\.$"):
        Chrono(lag)


@pytest.mark.quick
@rows(CELLS | VARIANTS)
def test_a_batch_size_is_no_batch_shape(row):
    with pytest.raises(TypeError, match=r"^initial_state: batch_shape must be a tuple .*, got 7; write \(32,\)\.$"):
        row.cell.initial_state(7)
    assert jax.tree.leaves(row.cell.initial_state([2, 7]))[0].shape[:2] == (2, 7)


def test_mapped_factorisations_are_no_batches():
    """Two batches of them at once, as of two gates, can wait for each other in jaxlib's pool of two threads."""
    keys = jax.random.split(KEY, 7)
    init = jax.jit(jax.vmap(lambda key: LSTM(4).init(key, 3).w_hh))
    alone = np.stack([LSTM(4).init(key, 3).w_hh for key in keys])
    np.testing.assert_allclose(init(keys), alone, rtol=1e-6, atol=1e-6)
    factorised = [line for line in init.lower(keys).as_text().splitlines() if "geqrf" in line]
    assert factorised and not any("7x4x4" in line for line in factorised)
