"""The regularisers one by one, and what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import GRU, LSTM, SLSTM, Regularized, Stack
from rnnjax.networks import (
    activation_regularization,
    drop_connect,
    dropout,
    zoneout,
)
from rnnjax.networks.masks import locked_mask
from tests.cells_table import Row, assert_close, fast_jit, loss_of, make_problem, plain
from tests.networks.rates import RATES
from tests.references.numpy_core import sigmoid

KEY = jax.random.key(0)
OTHER = jax.random.key(1)


# --- the pure functions ---


@pytest.mark.quick
def test_locked_dropout_is_one_mask_a_sequence():
    xs = jax.random.normal(OTHER, (5, 4, 300))
    ys = dropout(KEY, xs, 0.2, locked=True)
    mask = np.asarray(locked_mask(KEY, xs.shape, 0.2))
    np.testing.assert_allclose(ys, np.asarray(xs) * mask / 0.8, rtol=1e-6)
    np.testing.assert_allclose(mask.mean(), 0.8, atol=0.03)
    gradient = jax.grad(lambda xs: dropout(KEY, xs, 0.2, locked=True).sum())(xs)
    np.testing.assert_allclose(gradient, np.broadcast_to(mask / 0.8, xs.shape), rtol=1e-6)
    assert dropout(None, xs, 0.2, locked=True) is xs and dropout(KEY, xs, 0, locked=True) is xs
    assert dropout(KEY, xs.astype(jnp.bfloat16), 0.2, locked=True).dtype == jnp.bfloat16
    assert dropout(KEY, xs[:0], 0.2, locked=True, resets=jnp.zeros((0, 4), bool)).shape == (0, 4, 300)


@pytest.mark.quick
def test_zoneout_keeps_old_values():
    old, new = jnp.zeros(10_000), jnp.ones(10_000)
    kept = np.asarray(zoneout(KEY, old, new, 0.15)) == 0
    np.testing.assert_allclose(kept.mean(), 0.15, atol=0.015)
    np.testing.assert_array_equal(zoneout(KEY, old, new, 0.15, expected=True) == 0, kept)
    assert zoneout(None, old, new, 0.15) is new
    gradients = jax.grad(lambda o, n: zoneout(KEY, o, n, 0.15).sum(), (0, 1))(old, new)
    np.testing.assert_array_equal(gradients[0], kept)
    np.testing.assert_array_equal(gradients[1], ~kept)


def test_drop_connect_is_a_function_of_the_raw_weights():
    stack = Stack((LSTM(20), LSTM(20)))
    params = jax.tree.map(lambda leaf: leaf + 3.0, stack.init(KEY, 20))
    dropped = drop_connect(OTHER, params, 0.3)
    kept = [np.asarray(layer.w_hh) != 0 for layer in dropped.layers]
    for layer, raw, keep in zip(dropped.layers, params.layers, kept):
        np.testing.assert_allclose(layer.w_hh, np.where(keep, np.asarray(raw.w_hh) / 0.7, 0), rtol=1e-6)
        np.testing.assert_allclose(keep.mean(), 0.7, atol=0.04)
        np.testing.assert_array_equal(layer.w_ih, raw.w_ih)
        np.testing.assert_array_equal(layer.b, raw.b)
    assert not (kept[0] == kept[1]).all()  # pitfall 11: a key a layer
    both = drop_connect(OTHER, params, 0.3, fields=("w_ih", "w_hh")).layers[0]
    assert not ((np.asarray(both.w_ih) == 0) == (np.asarray(both.w_hh) == 0)).all()
    assert drop_connect(None, params, 0.3) is params


def test_gradient_of_a_dropped_weight_is_zero_and_of_a_kept_one_is_scaled(x64):
    problem = plain(make_problem(Row(LSTM(4))))
    params, state, xs = problem[:3]

    def loss(params, key, rate):
        return loss_of(*rnnjax.unroll(Regularized(LSTM(4), weight_dropout=rate), params, state, xs, key=key))

    key_w = jax.random.split(KEY, 4)[1]
    dropped = drop_connect(key_w, params, 0.4)
    keep = np.asarray(dropped.w_hh) != 0
    gradients = fast_jit(lambda raw, seen: (jax.grad(loss)(raw, KEY, 0.4), jax.grad(loss)(seen, None, 0.0)))
    got, want = gradients(params, dropped)  # want: with respect to the weights that the cell saw
    np.testing.assert_allclose(got.w_hh, np.where(keep, np.asarray(want.w_hh) / 0.6, 0), rtol=1e-9)
    np.testing.assert_allclose(got.w_ih, want.w_ih, rtol=1e-9)
    assert 0 < keep.mean() < 1 and (np.asarray(want.w_hh)[~keep] != 0).all()


def test_activation_regularizers_are_means_over_what_is_valid(x64):
    rng = np.random.default_rng(0)
    ys = rng.normal(size=(6, 3, 4))
    lengths, resets = np.array([6, 0, 3]), rng.random((6, 3)) < 0.4
    squares = [ys[t, row] ** 2 for row in range(3) for t in range(lengths[row])]
    pairs = {(t, row) for row in range(3) for t in range(1, lengths[row])}
    steps = [(ys[t, row] - ys[t - 1, row]) ** 2 for t, row in pairs]
    inside = [(ys[t, row] - ys[t - 1, row]) ** 2 for t, row in pairs if not resets[t, row]]
    poisoned = np.where((np.arange(6)[:, None] >= lengths)[..., None], np.nan, ys)
    ar, tar = activation_regularization, functools.partial(activation_regularization, temporal=True)
    for function, want in (
        (functools.partial(ar, lengths=lengths), np.mean(squares)),
        (functools.partial(tar, lengths=lengths), np.mean(steps)),
        (functools.partial(tar, lengths=lengths, resets=jnp.asarray(resets)), np.mean(inside)),
    ):
        value, gradient = fast_jit(jax.value_and_grad(function))(jnp.asarray(poisoned))
        np.testing.assert_allclose(value, want, rtol=1e-12)
        assert np.isfinite(gradient).all()
        assert (np.asarray(gradient)[np.isnan(poisoned)] == 0).all()
    np.testing.assert_allclose(ar(ys), (ys**2).mean(), rtol=1e-12)
    np.testing.assert_allclose(tar(jnp.asarray(ys)), (np.diff(ys, axis=0) ** 2).mean(), rtol=1e-12)
    zero = np.zeros(3, int)
    assert ar(ys, lengths=zero) == tar(jnp.asarray(ys), lengths=zero) == tar(jnp.asarray(ys[:1])) == ar(ys[:0]) == 0
    assert ar(jnp.ones((2, 3), jnp.bfloat16)).dtype == jnp.float32


# --- cells and shapes of their own ---


def test_zoneout_of_a_stabilised_memory_is_that_of_the_memory_itself(x64):
    """A literal loop over ``exp(m) c`` and ``exp(m) n``, which has no stabiliser that a kept ``c`` could miss."""
    cell = SLSTM(4)
    problem = plain(make_problem(Row(cell), seq_len=7))
    xs, start = 3 * problem.xs, cell.initial_state((3,), jnp.float64)
    net = Regularized(cell, zoneout_c=0.5)
    state, ys = fast_jit(lambda params: rnnjax.unroll(net, params, start, xs, key=KEY))(problem.params)
    key_zc = jax.random.split(jax.random.split(KEY, 4)[3], 3)[2]
    kept = np.asarray(jax.random.bernoulli(key_zc, 0.5, (7, 3, 4)))
    w_ih, w_hh, b = map(np.asarray, problem.params)
    h, memory, count = np.zeros((3, 3, 4))
    for x, keep, y in zip(np.asarray(xs), kept, ys):
        i, f, g, o = np.split(x @ w_ih + b + h @ w_hh, 4, axis=-1)
        new_memory = sigmoid(f) * memory + np.exp(i) * np.tanh(g)
        new_count = sigmoid(f) * count + np.exp(i)
        h = sigmoid(o) * new_memory / new_count
        memory, count = np.where(keep, memory, new_memory), np.where(keep, count, new_count)
        np.testing.assert_allclose(y, h, rtol=1e-10)
    np.testing.assert_allclose(np.exp(state.m) * state.c, memory, rtol=1e-10)
    np.testing.assert_allclose(np.exp(state.m) * state.n, count, rtol=1e-10)


@pytest.mark.quick
@pytest.mark.parametrize("shape", [(0, 2, 3), (5, 0, 3)], ids=["no step", "no row"])
def test_no_step_and_no_row(shape):
    cell = Regularized(LSTM(4), **RATES)
    state = jax.tree.map(lambda leaf: leaf + 2.0, cell.initial_state(shape[1:2]))
    resets = jnp.ones(shape[:2], bool)
    final, ys = rnnjax.unroll(cell, cell.init(KEY, 3), state, jnp.ones(shape), key=KEY, resets=resets)
    assert ys.shape == (*shape[:2], 4)
    jax.tree.map(np.testing.assert_array_equal, final, state)


def test_a_stack_within_a_stack_has_keys_of_its_own(x64):
    rates = {"recurrent_dropout": 0.3, "zoneout_h": 0.2}
    lstm, middle, top = (Regularized(cell, **rates) for cell in (LSTM(5), GRU(4), GRU(3)))
    stack = Stack((lstm, Stack((middle, top), dropout=0.4)), dropout=0.5)
    problem = plain(make_problem(Row(stack), seq_len=4))

    def by_hand(p):
        (between, within), ((a, b), (c, d)) = jax.random.split(KEY, (2, 2)), (p.params.layers, p.state.layers)
        low, ys = rnnjax.unroll(lstm, a, c, p.xs, key=within[0])
        ys, (between, within) = dropout(between[1], ys, 0.5), jax.random.split(within[1], (2, 2))
        mid, ys = rnnjax.unroll(middle, b.layers[0], d.layers[0], ys, key=within[0])
        ys = dropout(between[1], ys, 0.4)
        high, ys = rnnjax.unroll(top, b.layers[1], d.layers[1], ys, key=within[1])
        return type(p.state)((low, type(p.state)((mid, high)))), ys

    run = fast_jit(lambda p: (rnnjax.unroll(stack, *p[:3], key=KEY), by_hand(p)))
    assert_close(*run(problem))


@pytest.mark.quick
def test_resets_may_be_lists():
    cell, flags = LSTM(4), [[t == 2, t == 3] for t in range(5)]
    params, state, xs = cell.init(KEY, 3), cell.initial_state((2,)), jax.random.normal(OTHER, (5, 2, 3))
    net = Regularized(cell, input_dropout=0.4, recurrent_dropout=0.4)
    lists = rnnjax.unroll(net, params, state, xs, resets=flags, key=KEY)
    arrays = rnnjax.unroll(net, params, state, xs, resets=jnp.asarray(flags), key=KEY)
    jax.tree.map(np.testing.assert_array_equal, lists, arrays)
    pairs = np.diff(np.asarray(xs), axis=0)[~np.asarray(flags)[1:]]
    value = activation_regularization(xs, temporal=True, resets=flags)
    np.testing.assert_allclose(value, (pairs**2).mean(), rtol=1e-5)


# --- errors ---


@pytest.mark.quick
@pytest.mark.parametrize("rate", [1.0, -0.1, float("nan")])
def test_rates_outside_their_range(rate):
    one = jnp.ones((2, 3))
    params = LSTM(4).init(KEY, 3)
    sentence = r"must lie in \[0, 1\), got \S+\.$"
    for name, call in {
        "dropout: rate": lambda: dropout(None, one, rate, locked=True),
        "zoneout: rate": lambda: zoneout(KEY, one, one, rate),
        "drop_connect: rate": lambda: drop_connect(KEY, params, rate),
        **{f"Regularized: {name}": lambda name=name: Regularized(LSTM(4), **{name: rate}) for name in RATES},
    }.items():
        with pytest.raises(ValueError, match=f"^{name} {sentence}"):
            call()


CLEAR = {"recurrent_dropout": 0.1}


@pytest.mark.quick
@pytest.mark.parametrize(
    ("cell", "rates", "options", "sentence"),
    [
        (GRU(4), {"zoneout_c": 0.1}, {}, "Regularized: zoneout_c needs a state with a field c, got HiddenState of GRU"),
        (
            Stack((LSTM(4), Stack((GRU(4),)))),
            {"zoneout_c": 0.1},
            {},
            "Regularized: zoneout_c needs a state with a field c, got HiddenState of GRU (cell 1.0); set it to 0.",
        ),
        (GRU, {}, {}, "Regularized: cell must be a cell, got the class GRU; make an instance of it."),
        (
            Stack((Regularized(GRU(4), **CLEAR), GRU(4))),
            {"zoneout_h": 0.1},
            {},
            "Regularized: recurrent dropout and zoneout must be set once around a cell, got them in another Regulari",
        ),
        (
            SLSTM(4),
            {"zoneout_c": 0.1, "expected_zoneout": True},
            {},
            "Regularized: expected_zoneout with zoneout_c needs a state whose c has a meaning by itself, got SLSTMSt",
        ),
        (
            Stack((LSTM(4), rnnjax.cells.GRUResetBefore(4))),
            CLEAR,
            {},
            "Regularized: recurrent_dropout needs an affine cell with w_hh, or one whose step reads h in matmuls "
            "alone, got GRUResetBefore; take zoneout_h or weight_dropout.",
        ),
        (GRU(4), CLEAR, {"implementation": "fused"}, "unroll: 'fused' needs "),
        (
            GRU(4),
            {"input_dropout": 0.1},
            {"resets": jnp.zeros((5, 3), bool)},
            "unroll: resets must have shape [5, 2], as xs without features, got bool[5,3].",
        ),
    ],
    ids=["no c", "no c inside", "class", "twice", "together", "h elsewhere", "implementation", "resets"],
)
def test_errors_of_a_regularized_cell(cell, rates, options, sentence):
    with pytest.raises((ValueError, TypeError)) as caught:
        net = Regularized(cell, **rates)
        rnnjax.unroll(net, net.init(KEY, 3), None, jnp.ones((5, 2, 3)), key=KEY, **options)
    assert str(caught.value).startswith(sentence)


@pytest.mark.quick
def test_errors_of_the_functions():
    with pytest.raises(
        ValueError, match=r"^drop_connect: params must have an array 'w_x', got b, w_hh, w_ih; name one"
    ):
        drop_connect(KEY, LSTM(4).init(KEY, 3), 0.5, fields=("w_x",))
    xs, tar = jnp.ones((4, 2, 3)), functools.partial(activation_regularization, temporal=True)
    for where, of, call in (
        ("dropout", "xs", functools.partial(dropout, KEY, xs, 0.5, locked=True)),
        ("activation_regularization", "ys", functools.partial(tar, xs)),
    ):
        with pytest.raises(
            ValueError, match=rf"^{where}: resets must have shape \[4, 2\], as {of} without features, got"
        ):
            call(resets=jnp.ones((4, 3), bool))
        with pytest.raises(TypeError, match=rf"^{where}: resets must be bool, got i32\[4,2\]; compare with != 0 first"):
            call(resets=jnp.ones((4, 2), jnp.int32))
    with pytest.raises(ValueError, match=r"^activation_regularization: lengths must have the batch shape of ys"):
        activation_regularization(jnp.ones((4, 2, 3)), lengths=jnp.ones(3, int))
