"""Fixed points that are known: of one unit by bisection, of contractions by iteration, and of a trained flip-flop."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax.analysis import find_fixed_points
from rnnjax.analysis.fixed_points import visited_states
from rnnjax.analysis.flat import flatten_state
from tests.cells_table import CELLS, fast_jit, make_problem


@pytest.fixture(scope="module")
def one_unit():
    """h' = tanh(w h + b), and starts all over its range."""
    cell = rnnjax.Elman(1)
    params = cell.init(jax.random.key(0), 1)
    starts = cell.initial_state((40,))._replace(h=jnp.linspace(-1, 1, 40)[:, None])

    def find(w, b, **options):
        scaled = params._replace(w_hh=jnp.full((1, 1), w), b=jnp.full(1, b))
        return find_fixed_points(cell, scaled, starts, jnp.zeros(1), steps=100, **options)

    return find


def bisect(w, b, low, high):
    """The root of tanh(w h + b) - h between two values of different sign."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.tanh(w * middle + b) > middle else (low, middle)
    return low


@pytest.mark.quick
@pytest.mark.parametrize("w", [1.2, 3.0])
def test_one_unit_above_one(one_unit, w):
    found = one_unit(w, 0.0)
    end = bisect(w, 0.0, 1e-3, 1.0)
    order = np.argsort(found.points[:, 0])
    np.testing.assert_allclose(found.points[order, 0], [-end, 0, end], atol=2e-5)
    slopes = w * (1 - np.array([end, 0, end]) ** 2)
    np.testing.assert_allclose(found.eigenvalues[order, 0], slopes, atol=2e-4)
    assert found.stable[order].tolist() == [True, False, True]
    assert found.fixed.all() and found.hits.sum() == 40 and found.states.h.shape == (3, 1)


def test_one_unit_below_one(one_unit):
    found = one_unit(0.5, 0.0)
    assert found.points.shape == (1, 1) and found.hits.tolist() == [40] and found.stable.tolist() == [True]
    np.testing.assert_allclose(found.points, 0, atol=1e-5)


def test_slow_point_where_a_pair_has_just_vanished(one_unit):
    # w = 2 is tangent to the diagonal at h = -1 / sqrt(2) for b = sqrt(2) - atanh(1 / sqrt(2)) = 0.53284.
    found = one_unit(2.0, 0.54284)
    assert found.fixed.tolist() == [True, False] and found.stable.tolist() == [True, False]
    np.testing.assert_allclose(found.points[0, 0], bisect(2.0, 0.54284, 0.0, 1.0), atol=1e-5)
    slow = found.points[1, 0].astype(float)
    assert slow == pytest.approx(-(0.5**0.5), abs=0.01)
    np.testing.assert_allclose(found.speed[1], (np.tanh(2 * slow + 0.54284) - slow) ** 2 / 2, rtol=1e-3)
    assert one_unit(2.0, 0.54284, max_speed=1e-6).fixed.tolist() == [True]


@pytest.mark.parametrize("name", ["lstm"])
def test_contraction_has_the_point_where_it_ends(name):
    cell = CELLS[name].cell
    problem = make_problem(CELLS[name], batch=(6,), seq_len=3)
    x, params = problem.xs[0, 0], jax.tree.map(lambda leaf: 0.5 * leaf, problem.params)
    found = find_fixed_points(cell, params, problem.state, x, steps=20)
    step = fast_jit(cell.step)
    state = jax.tree.map(lambda leaf: leaf[0], problem.state)
    for _ in range(100):
        state = step(params, state, x)[0]
    assert found.fixed.tolist() == found.stable.tolist() == [True] and found.hits.tolist() == [6]
    np.testing.assert_allclose(found.points[0], flatten_state(cell, state), atol=2e-5)
    for leaf, expected in zip(jax.tree.leaves(found.states), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(leaf[0], expected, atol=2e-5)


def flip_flop(key, length, batch):
    """Pulses of -1 and 1 on three channels, and the last pulse of each; every channel starts with one."""
    key_sign, key_on = jax.random.split(key)
    on = jax.random.bernoulli(key_on, 0.25, (length, batch, 3)).at[0].set(True)
    pulses = jnp.where(on, jax.random.rademacher(key_sign, on.shape, float), 0)
    last = jax.lax.cummax(jnp.where(on, jnp.arange(length)[:, None, None], 0), axis=0)
    return pulses, jnp.take_along_axis(pulses, last, axis=0)


@pytest.fixture(scope="module")
def trained():
    cell = rnnjax.Elman(24)
    w_out = 0.3 * jax.random.normal(jax.random.key(1), (24, 3))
    params = (cell.init(jax.random.key(0), 3), w_out)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 800))

    def loss(params, key):
        xs, targets = flip_flop(key, 16, 32)
        _, ys = rnnjax.unroll(cell, params[0], cell.initial_state((32,)), xs)
        return jnp.mean((ys @ params[1] - targets) ** 2)

    def update(carry, key):
        value, gradient = jax.value_and_grad(loss)(carry[0], key)
        updates, opt_state = optimizer.update(gradient, carry[1])
        return (optax.apply_updates(carry[0], updates), opt_state), value

    keys = jax.random.split(jax.random.key(2), 800)
    train = jax.jit(lambda params: jax.lax.scan(update, (params, optimizer.init(params)), keys))
    (params, _), losses = train(params)
    assert losses[-20:].mean() < 0.01
    return cell, *params


def test_flip_flop_has_eight_stable_fixed_points(trained):
    cell, params, w_out = trained
    xs, _ = flip_flop(jax.random.key(3), 30, 32)
    states = visited_states(cell, params, cell.initial_state((32,)), xs, count=96, key=jax.random.key(4), noise=0.05)
    found = find_fixed_points(cell, params, states, jnp.zeros(3), steps=60)
    memories = found.points[found.stable] @ np.asarray(w_out)
    assert len(memories) == 8
    assert {tuple(row) for row in np.sign(memories)} == set(itertools.product([-1.0, 1.0], repeat=3))
    np.testing.assert_allclose(np.abs(memories), 1, atol=0.25)
    # Between them lie saddles, with at least one direction out.
    saddles = found.fixed & ~found.stable
    assert saddles.any() and (np.abs(found.eigenvalues[saddles, 0]) > 1).all()
    step = fast_jit(cell.step)
    for point, speed in zip(found.points, found.speed, strict=True):
        moved = step(params, cell.initial_state()._replace(h=point), jnp.zeros(3))[0].h - point
        np.testing.assert_allclose(np.sum(moved**2) / 2, speed, rtol=0.2, atol=1e-12)


def test_visited_states_are_visited():
    cell = rnnjax.Elman(1)
    params = cell.init(jax.random.key(0), 1)._replace(w_hh=jnp.full((1, 1), 0.5))
    start, xs = np.array([[0.3], [-0.6]], np.float32), np.zeros((4, 2, 1), np.float32)
    states = visited_states(
        cell, params, cell.initial_state((2,))._replace(h=start), xs, count=60, key=jax.random.key(0)
    )
    path = [start]
    for _ in xs:
        path.append(np.tanh(0.5 * path[-1]))
    distances = np.abs(np.asarray(states.h) - np.concatenate(path).T)  # [60, (T + 1) * B]
    assert states.h.shape == (60, 1) and distances.min(axis=1).max() < 1e-6
    assert len(set(distances.argmin(axis=1))) == 10  # every one of them is drawn


def test_errors():
    cell = rnnjax.GRU(3)
    params, states = cell.init(jax.random.key(0), 2), cell.initial_state((4,))
    with pytest.raises(ValueError, match=r"x must be one input without batch axes, got f32\[4,2\]"):
        find_fixed_points(cell, params, states, jnp.zeros((4, 2)))
    with pytest.raises(ValueError, match="states must hold at least one state"):
        find_fixed_points(cell, params, cell.initial_state((0,)), jnp.zeros(2))
    with pytest.raises(ValueError, match="count must be at least 1"):
        visited_states(cell, params, states, jnp.zeros((3, 4, 2)), count=0, key=jax.random.key(0))


def test_plateaus_that_no_sequence_reaches_are_left_out(x64):
    """h' = (1 - z) tanh(0) + z h with z = sigmoid(8 h - 4): beyond h = 2.7 float32 says that nothing moves."""
    cell = rnnjax.GRU(1)
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0), 1))
    params = params._replace(w_hh=jnp.array([[0.0, 8.0, 0.0]], jnp.float32), b=jnp.array([0.0, -4.0, 0.0], jnp.float32))
    visited = cell.initial_state((41,))._replace(h=jnp.linspace(-1, 1, 41, dtype=jnp.float32)[:, None])
    starts = visited._replace(h=jnp.concatenate([visited.h, jnp.array([[3.0], [4.0], [5.0]], jnp.float32)]))
    x = jnp.zeros(1, jnp.float32)
    anywhere = find_fixed_points(cell, params, starts, x, steps=0, max_distance=100.0)
    beyond = anywhere.points[:, 0] > 2
    assert anywhere.fixed[beyond].all() and anywhere.hits[beyond].sum() >= 3  # which are none
    boundless = find_fixed_points(cell, params, starts, x, steps=0, max_distance=np.inf)
    np.testing.assert_array_equal(boundless.points, anywhere.points)
    found = find_fixed_points(cell, params, starts, x, steps=0, visited=visited)
    assert found.fixed.sum() == 1 and found.far == anywhere.hits[beyond].sum() and found.points.max() < 2
    np.testing.assert_allclose(found.points[found.fixed], [[0.0]], atol=1e-5)
    np.testing.assert_allclose(found.distance[found.fixed], [0.0], atol=1e-5)
    assert found.distance.max() <= 1 and found.lowest_speed <= 1e-10
    # float64 sees that they move, if slowly: q = ((1 - z) h)^2 / 2.
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (params, starts, x))
    exact = find_fixed_points(
        cell, *wide, steps=0, polish_steps=0, tolerance=1e-22, max_distance=100.0, merge_distance=0.0
    )
    far = exact.points[:, 0] > 2
    want = ((1 - 1 / (1 + np.exp(4 - 8 * exact.points[far, 0]))) * exact.points[far, 0]) ** 2 / 2
    np.testing.assert_allclose(exact.speed[far], want, rtol=1e-4, atol=1e-28)
    assert far.sum() == 3 and exact.fixed[far].sum() < 3 and exact.points.dtype == np.float64
