"""Gradients by lag and what chunks cut, against loops that differentiate from every state anew."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax.analysis import gradient_flow, gradient_lost
from rnnjax.analysis.gradient_flow import _follow_back, kept_share
from tests.cells_table import CELLS, fast_jit, make_problem

# Several fields, images, layers in a tuple and on top of each other; other cells are in the files beside this one.
HANDFUL = ("slstm", "conv_lstm", "residual_stack", "deep_stack")


def loss_fn(ys):
    """One loss a step and example, in which every output has a weight of its own."""
    weights = jnp.cos(jnp.arange(ys.size, dtype=ys.dtype)).reshape(ys.shape)
    return jnp.sum((weights * ys + ys**2).reshape(*ys.shape[:2], -1), axis=-1)


def loop_norms(cell, problem, times):
    """Backpropagation in words: norms ``[B, 1 + fields]`` for every time and lag, the whole state's first."""
    step = fast_jit(cell.step)
    pull = fast_jit(lambda p, s, x, ds, dy: jax.vjp(lambda s: cell.step(p, s, x), s)[1]((ds, dy))[0])
    states, ys = [problem.state], []
    for x in problem.xs:
        state, y = step(problem.params, states[-1], x)
        states.append(state)
        ys.append(np.asarray(y, np.float64))
    weights = np.cos(np.arange(np.size(ys))).reshape(np.shape(ys))
    norms = {}
    for t in times:
        back = jax.tree.map(jnp.zeros_like, problem.state)
        dy = jnp.asarray(weights[t] + 2 * ys[t], jnp.float32)  # the gradient of `loss_fn`, by hand
        for lag in range(1, t + 2):
            back = pull(problem.params, states[t + 1 - lag], problem.xs[t + 1 - lag], back, dy)
            dy = jnp.zeros_like(dy)
            fields = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(back)]
            fields = [field.reshape(len(field), -1) for field in fields]
            vectors = [np.concatenate(fields, axis=-1), *fields]
            norms[t, lag] = np.stack([np.linalg.norm(v, axis=-1) for v in vectors], axis=-1)
    return norms


@pytest.mark.parametrize("name", HANDFUL)
def test_norms_are_those_of_a_loop(name):
    cell = CELLS[name].cell
    problem = make_problem(CELLS[name], seq_len=5)
    flow = gradient_flow(cell, problem.params, problem.state, problem.xs, loss_fn, times=[4, 2], max_lag=3)
    norms = loop_norms(cell, problem, (4, 2))
    for lag in (1, 2, 3):
        expected = np.concatenate([norms[4, lag], norms[2, lag]])
        np.testing.assert_allclose(flow.norm[lag - 1], expected[:, 0].mean(), rtol=1e-4)
        np.testing.assert_allclose(flow.typical[lag - 1], np.exp(np.log(expected[:, 0]).mean()), rtol=1e-4)
        np.testing.assert_allclose(flow.by_name[lag - 1], expected[:, 1:].mean(axis=0), rtol=1e-4, atol=1e-6)
        if name == "residual_stack":  # a GRU below an LSTM
            assert flow.names == ("L1.h", "L2.h", "L2.c")
            both = np.hypot(expected[:, 2], expected[:, 3]).mean()
            np.testing.assert_allclose(flow.by_layer[lag - 1], [expected[:, 1].mean(), both], rtol=1e-4)
        if name == "deep_stack":
            assert flow.names == ("L1.h", "L2.h", "L3.h")
            np.testing.assert_allclose(flow.by_layer, flow.by_name)


@pytest.fixture(scope="module")
def scaled():
    """h' = relu(a h + 1) with positive states: the gradient by lag is ``a**k``."""
    cell = rnnjax.Elman(3, activation="relu", recurrent_init=rnnjax.initializers.Identity(0.1))
    params = cell.init(jax.random.key(0), 1)
    return cell, params._replace(b=jnp.ones(3), w_ih=jnp.zeros((1, 3)))


def first_output(ys):
    return ys[..., 0]


@pytest.mark.quick
@pytest.mark.parametrize("a", [0.1, 10.0])
def test_norms_beyond_the_range_of_float32(scaled, a):
    cell, params = scaled
    if a > 1:  # the states must stay finite: they start at zero and have no input
        params = params._replace(b=jnp.full(3, 1e-30))
    params = params._replace(w_hh=a * jnp.eye(3))
    flow = gradient_flow(cell, params, cell.initial_state((2,)), jnp.zeros((60, 2, 1)), first_output, times=[59])
    np.testing.assert_allclose(np.log(flow.norm), np.log(a) * flow.lags, rtol=1e-5)
    np.testing.assert_allclose(np.log(flow.typical), np.log(a) * flow.lags, rtol=1e-5)


def test_share_lost_to_the_cut(scaled):
    cell, params = scaled
    params = params._replace(w_hh=0.5 * jnp.eye(3))
    xs = jnp.zeros((12, 2, 1))
    flow = gradient_flow(cell, params, cell.initial_state((2,)), xs, first_output, times=[11], chunk_len=4)
    # Counted: a step at place p of its chunk reaches the state k steps back if that lies in the chunk, k <= p.
    kept = [np.mean([k <= p for p in range(4)]) for k in flow.lags]
    np.testing.assert_allclose(kept_share(flow.lags, 4), kept)
    full = 0.5**flow.lags
    np.testing.assert_allclose(flow.lost, 1 - np.sum(full * kept) / np.sum(full), rtol=1e-5)


def test_no_gradient_passes_a_reset(scaled):
    cell, params = scaled
    xs, resets = jnp.zeros((6, 2, 1)), jnp.zeros((6, 2), bool).at[3].set(True)
    flow = gradient_flow(cell, params, cell.initial_state((2,)), xs, first_output, times=[5], resets=resets)
    np.testing.assert_allclose(flow.norm, [0.1, 0.01, 0, 0, 0, 0], rtol=1e-5)


def test_default_times_and_one_compilation(scaled):
    cell, params = scaled
    xs, state = jnp.zeros((40, 2, 1)), cell.initial_state((2,))
    flow = gradient_flow(cell, params, state, xs, first_output)
    assert len(flow.times) == 16 and flow.times[0] == 20 and flow.times[-1] == 39 and flow.lags[-1] == 21
    before = _follow_back._cache_size()
    twice = gradient_flow(cell, params, state, xs, lambda ys: 2 * ys[..., 0])  # another loss
    assert _follow_back._cache_size() == before
    np.testing.assert_allclose(twice.norm, 2 * flow.norm, rtol=1e-5)


def test_gradient_lost_is_that_of_a_loop_with_stops():
    cell, chunk_len = CELLS["lstm"].cell, 3
    problem = make_problem(CELLS["lstm"], seq_len=5)

    def loss(params, cut):
        state, ys = problem.state, []
        for t, x in enumerate(problem.xs):
            state = jax.lax.stop_gradient(state) if cut and t % chunk_len == 0 else state
            state, y = cell.step(params, state, x)
            ys.append(y)
        return jnp.mean(loss_fn(jnp.stack(ys)))

    gradients = fast_jit(lambda p: (jax.grad(loss)(p, False), jax.grad(loss)(p, True)))(problem.params)
    full, cut = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(g)]) for g in gradients)
    lost = gradient_lost(cell, problem.params, problem.state, problem.xs, loss_fn, chunk_len=chunk_len)
    np.testing.assert_allclose(lost.norm, np.linalg.norm(full), rtol=1e-4)
    np.testing.assert_allclose(lost.norm_cut, np.linalg.norm(cut), rtol=1e-4)
    np.testing.assert_allclose(lost.share, np.linalg.norm(full - cut) / np.linalg.norm(full), rtol=1e-4)
    np.testing.assert_allclose(lost.cosine, full @ cut / lost.norm / lost.norm_cut, rtol=1e-4)
    assert 0.01 < lost.share < 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"times": [6]}, "different steps between 0 and T - 1 = 5"),
        ({"times": [1, 1]}, "different steps"),
        ({"times": [2], "max_lag": 4}, "between 1 and 3"),
        ({"chunk_len": 0}, "chunk_len must be at least 1"),
    ],
)
def test_errors(scaled, options, words):
    cell, params = scaled
    with pytest.raises(ValueError, match=words):
        gradient_flow(cell, params, cell.initial_state((2,)), jnp.zeros((6, 2, 1)), first_output, **options)


def test_errors_of_shapes(scaled):
    cell, params = scaled
    state, xs = cell.initial_state((2,)), jnp.zeros((6, 2, 1))
    with pytest.raises(ValueError, match=r"one loss a step and example, of shape \[6, 2\], got f32\[\]"):
        gradient_flow(cell, params, state, xs, jnp.mean)
    with pytest.raises(ValueError, match=r"xs must have shape \[T, 2, I\]"):
        gradient_flow(cell, params, state, xs[:, 0], first_output)
    with pytest.raises(ValueError, match=r"state must be what Elman\.initial_state makes"):
        gradient_lost(cell, params, rnnjax.LSTM(3).initial_state((2,)), xs, first_output, chunk_len=2)
    with pytest.raises(TypeError, match="floating"):
        gradient_flow(cell, params, state._replace(h=jnp.zeros((2, 3), int)), xs, first_output)
