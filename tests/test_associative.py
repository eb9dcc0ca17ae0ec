"""What is specific to linear cells; that both implementations equal "scan" for every cell is among the laws."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import LRU, LinearCell, MinGRU, MinLSTM, linear_step
from rnnjax.cells import SRU
from rnnjax.engines import Controls, Job, choose, engine
from rnnjax.engines.scan import unroll_scan
from rnnjax.initializers import Chrono
from tests.cells_table import assert_close, fast_jit, loss_of
from tests.references.numpy_linear import STEPS

unroll_associative, unroll_hoisted = engine("associative").run, engine("hoisted").run
IMPLEMENTATIONS = pytest.mark.parametrize(
    "unroll", [unroll_associative, unroll_hoisted], ids=["associative", "hoisted"]
)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def compiled(unroll, cell):
    """An implementation as a function of params, state and xs."""
    return fast_jit(lambda params, state, xs: unroll(cell, params, state, xs, Controls()))


class MixedState(NamedTuple):
    re: jax.Array  # [*batch, 2]
    im: jax.Array
    total: jax.Array  # [*batch]
    h: jax.Array  # [*batch, 3]


@dataclasses.dataclass(frozen=True)
class Mixed:
    """Three recurrences: complex with coefficients from x, a sum whose coefficient is no array of x, and real."""

    hidden_size: int = 3

    def init(self, key, input_size, dtype=jnp.float32):
        return {"w": 0.5 * jax.random.normal(key, (input_size, 7), dtype), "decay": jnp.asarray(0.9, dtype)}

    def initial_state(self, batch_shape=(), dtype=jnp.float32):
        shapes = ((2,), (2,), (), (3,))
        return MixedState(*(jnp.full((*batch_shape, *shape), 0.3, dtype) for shape in shapes))

    def coefficients(self, params, x, dtype):
        z = x.astype(dtype) @ params["w"].astype(dtype)
        turn = jax.lax.complex(0.5 * jnp.cos(z[..., :2]), z[..., 2:4])
        a = (turn, params["decay"].astype(dtype), jnp.tanh(z[..., 4:]))
        return a, (turn**2, z[..., 0], z[..., 3:6])

    def output(self, params, state, x):
        return state.h * state.total[..., None] + (state.re * state.im)[..., :1]

    step = linear_step


@pytest.mark.parametrize(("reverse", "remat"), [(False, None), (True, 3)], ids=["forward", "reverse-remat"])
def test_several_recurrences_with_everything_that_may_happen(reverse, remat, x64):
    """A mixed state, masks, and resets to a state that is learned: values and all gradients are those of the loop."""
    cell = Mixed()
    assert isinstance(cell, LinearCell)
    params = cell.init(jax.random.key(0), 2, float)
    state, fresh = (jax.tree.map(lambda a, s=s: normal(s, *a.shape), cell.initial_state((3,), float)) for s in (1, 2))
    valid = jnp.arange(8)[:, None] < jnp.array([8, 5, 0])
    resets = jnp.asarray(np.random.default_rng(3).random((8, 3)) < 0.3)

    def outcome(unroll, remat, point):
        def loss(point):
            params, state, fresh, xs = point
            result = unroll(cell, params, state, xs, Controls(valid, resets, fresh), reverse=reverse, remat=remat)
            ys = jnp.where(valid[..., None], result[1], 0)
            return loss_of(result[0], ys), (result[0], ys)

        return jax.grad(loss, has_aux=True)(point)

    point = (params, state, fresh, normal(4, 8, 3, 2))
    want = fast_jit(partial(outcome, unroll_scan, None))(point)
    assert float(jnp.abs(want[0][2].h).sum()) > 0.1  # the state that a reset restores has a gradient
    for unroll in (unroll_associative, unroll_hoisted):
        assert_close(fast_jit(partial(outcome, unroll, remat))(point), want)


@IMPLEMENTATIONS
def test_chunks_of_a_min_lstm_are_one_pass(unroll, x64):
    """Pitfall 14: from a state with entries of both signs, against a NumPy loop over the whole."""
    cell = MinLSTM(4)
    params = jax.tree.map(lambda a: normal(1, *a.shape), cell.init(jax.random.key(0), 3))
    state = first = cell.initial_state((), float)._replace(h=jnp.array([-2.0, 0.0, 1e-3, 3.0]))
    xs = normal(2, 12, 3)
    chunks, run = [], compiled(unroll, cell)
    for start, stop in ((0, 5), (5, 6), (6, 6), (6, 12)):
        state, ys = run(params, state, xs[start:stop])
        chunks.append(ys)
    single, want = tuple(map(np.asarray, first)), []
    for x in np.asarray(xs):
        single, y = STEPS["min_lstm"](tuple(map(np.asarray, params)), single, x)
        want.append(y)
    np.testing.assert_allclose(jnp.concatenate(chunks), want, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(state.h, single[0], rtol=1e-12, atol=1e-12)


@IMPLEMENTATIONS
@pytest.mark.parametrize("cell", [MinGRU(4), MinLSTM(4)], ids=["min_gru", "min_lstm"])
def test_gradient_of_an_initial_state_of_zero(unroll, cell, x64):
    """Pitfall 15: finite, and the product of what the steps keep."""
    params = jax.tree.map(lambda a: normal(1, *a.shape), cell.init(jax.random.key(0), 3))
    xs = normal(2, 6, 3)
    state = cell.initial_state((), float)
    gradient = fast_jit(jax.grad(lambda s: unroll(cell, params, s, xs, Controls())[0].h.sum()))(state)
    z = np.asarray(xs @ params.w_ih + params.b)
    gates = 1 / (1 + np.exp(-z))
    keep = 1 - gates[:, :4] if isinstance(cell, MinGRU) else gates[:, 4:8] / (gates[:, :4] + gates[:, 4:8])
    np.testing.assert_allclose(gradient.h, keep.prod(axis=0), rtol=1e-12)


@IMPLEMENTATIONS
def test_impulse_response_of_an_lru(unroll, x64):
    """``Re(C lambda^k gamma B x)``, and D at the step of the impulse."""
    cell = LRU(4, state_size=5, r_min=0.5, r_max=0.9)
    params = cell.init(jax.random.key(0), 3, float)
    x = normal(1, 3)
    xs = jnp.zeros((9, 3)).at[2].set(x)
    _, ys = compiled(unroll, cell)(params, cell.initial_state((), float), xs)
    nu_log, theta_log, gamma_log, B, C, D = map(np.asarray, params)
    eigenvalues = np.exp(-np.exp(nu_log) + 1j * np.exp(theta_log))
    drive = np.exp(gamma_log) * (np.asarray(x) @ (B[:, :5] + 1j * B[:, 5:]))
    want = np.zeros((9, 4))
    for k in range(7):
        want[2 + k] = ((eigenvalues**k * drive) @ (C[:5] + 1j * C[5:])).real
    want[2] += np.asarray(x) @ D
    np.testing.assert_allclose(ys, want, rtol=1e-12, atol=1e-12)


@IMPLEMENTATIONS
def test_a_closed_min_gru_holds_its_state(unroll):
    cell = MinGRU(4, update_bias=-200.0)
    params = cell.init(jax.random.key(0), 3)
    state = cell.initial_state()._replace(h=jnp.array([-2.0, 0.1, 1e-3, 3.0]))
    final, ys = compiled(unroll, cell)(params, state, jnp.ones((50, 3)))
    np.testing.assert_array_equal(final.h, state.h)
    np.testing.assert_array_equal(ys, jnp.broadcast_to(state.h, (50, 4)))


@IMPLEMENTATIONS
def test_both_gates_of_a_min_lstm_closed(unroll):
    """``sigmoid(f) / (sigmoid(f) + sigmoid(i))`` is 0 / 0 in float32 here, and in truth ``sigmoid(f - i)``."""
    cell = MinLSTM(1)
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0), 1))
    state = cell.initial_state()._replace(h=jnp.ones(1))

    def final(b):
        return unroll(cell, params._replace(b=b), state, jnp.ones((1, 1)), Controls())[0].h[0]

    value, slope = fast_jit(jax.value_and_grad(final))(jnp.array([-301.0, -300.0, 0.0]))
    keep = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(value, keep, rtol=1e-5)
    np.testing.assert_allclose(slope, [-keep * (1 - keep), keep * (1 - keep), 1 - keep], rtol=1e-4)


@pytest.mark.parametrize(
    ("cell", "tolerance"),
    [
        (MinGRU(4, update_bias=-6.0), 1e-4),
        (MinLSTM(4, forget_bias=Chrono(2000)), 1e-4),
        # A phase in float32 is off by 1e-7, and 2000 steps turn by 2000 times that, however they are computed.
        (LRU(4, r_min=0.999), 2e-3),
    ],
    ids=["min_gru", "min_lstm", "lru"],
)
def test_long_products_of_gates_near_one(cell, tolerance):
    """2000 steps in float32, values and gradients, against the loop in float64."""
    params = cell.init(jax.random.key(0), 3)
    numbers = np.random.default_rng(1)
    xs = numbers.normal(size=(2000, 3)).astype(np.float32)
    state = jax.tree.map(lambda a: jnp.asarray(numbers.normal(size=a.shape), jnp.float32), cell.initial_state())

    def outcome(unroll, *point):
        def loss(*point):
            state, ys = unroll(cell, *point, Controls())
            return ys[-1].sum(), (state, ys)

        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*point)

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), (params, state, xs))
        want = fast_jit(partial(outcome, unroll_scan))(*wide)
    for unroll in (unroll_associative, unroll_hoisted):
        got = fast_jit(partial(outcome, unroll))(params, state, xs)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


@IMPLEMENTATIONS
def test_bfloat16_states_are_rounded_once(unroll):
    """100 steps that each add less than half a unit in the last place of bfloat16, which a loop over `step` loses."""
    cell = MinGRU(1)
    params = jax.tree.map(lambda a: jnp.zeros_like(a), cell.init(jax.random.key(0), 1, jnp.bfloat16))
    params = params._replace(b=jnp.array([-8.0, 2.0], jnp.bfloat16))
    state = cell.initial_state((), jnp.bfloat16)._replace(h=jnp.ones(1, jnp.bfloat16))
    final, ys = compiled(unroll, cell)(params, state, jnp.zeros((100, 1), jnp.bfloat16))
    assert final.h.dtype == ys.dtype == jnp.bfloat16
    keep = 1 - 1 / (1 + np.exp(8.0))
    np.testing.assert_allclose(np.asarray(ys[:, 0], float), 2 - keep ** np.arange(1, 101), rtol=2**-8)
    assert float(final.h[0]) > 1.02


def test_no_matmul_is_left_in_the_loop():
    cell = SRU(4)
    arguments = (cell.init(jax.random.key(0), 3), cell.initial_state((2,)), jnp.ones((7, 2, 3)))

    def loops(unroll):
        jaxpr = jax.make_jaxpr(lambda *a: unroll(cell, *a, Controls()))(*arguments)
        equations = []

        def visit(jaxpr, inside):
            for equation in jaxpr.eqns:
                if equation.primitive.name == "dot_general":
                    equations.append(inside)
                for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "jaxpr")):
                    if hasattr(inner, "jaxpr"):
                        visit(inner.jaxpr, inside or equation.primitive.name == "scan")

        visit(jaxpr.jaxpr, False)
        return equations

    assert set(loops(unroll_scan)) == {True}
    for unroll in (unroll_hoisted, unroll_associative):
        assert loops(unroll) == [False] * 3  # candidate and forget gate, highway gate, skip


def test_which_one_is_the_default():
    assert choose(Job(MinGRU(4), "cpu")).name == "hoisted"
    for backend in ("gpu", "tpu"):
        assert choose(Job(MinGRU(4), backend)).name == "associative"
        assert choose(Job(rnnjax.LSTM(4), backend)).name == "fused"
    assert not {"associative", "hoisted"} & set(rnnjax.implementations(rnnjax.GRU(4)))


def test_initial_values():
    def init(cell, input_size, dtype=jnp.float32):
        return fast_jit(lambda key: cell.init(key, input_size, dtype))(jax.random.key(0))

    cell = LRU(200, r_min=0.6, r_max=0.8, max_phase=0.5)
    params = init(cell, 30)
    radius, phase = np.exp(-np.exp(params.nu_log)), np.exp(params.theta_log)
    assert 0.6 < radius.min() < 0.61 and 0.79 < radius.max() < 0.8  # filled from edge to edge
    assert 0 < phase.min() < 0.02 and 0.48 < phase.max() <= 0.5
    # Uniform over the area: half of it lies beyond the root mean square of the radii.
    assert 0.4 < np.mean(radius**2 > (0.6**2 + 0.8**2) / 2) < 0.6
    np.testing.assert_allclose(np.exp(params.gamma_log), np.sqrt(1 - radius**2), rtol=1e-4)
    variances = [float(np.var(w)) for w in (params.w_ih, params.w_hy, params.w_skip)]
    np.testing.assert_allclose(variances, [1 / 60, 1 / 200, 1 / 30], rtol=0.1)
    edge = init(LRU(50, r_min=1.0), 3, jnp.bfloat16)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in edge)

    keep = jax.nn.sigmoid(init(MinLSTM(50, forget_bias=Chrono(100)), 3).b.reshape(3, 50))
    lag = 1 / (1 - keep[1] / (keep[0] + keep[1]))
    assert 2 <= lag.min() < 10 and 80 < lag.max() < 100.1
    z = jax.nn.sigmoid(init(MinGRU(50, update_bias=Chrono(100)), 3).b[:50])
    assert 2 <= (1 / z).min() < 10 and 80 < (1 / z).max() < 100.1
    np.testing.assert_array_equal(init(SRU(2, forget_bias=3.0, highway_bias=-1.0), 3).b, [3, 3, -1, -1])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (partial(MinGRU, 4, candidate="tanh"), "MinGRU: candidate must be 'linear' or 'g', got 'tanh'."),
        (partial(MinLSTM, 4, candidate="log"), "MinLSTM: candidate must be 'linear' or 'g', got 'log'."),
        (partial(SRU, 4, activation="g"), "SRU: activation must be 'tanh', 'relu' or 'identity', got 'g'."),
        (partial(LRU, 4, state_size=0), "LRU: state_size must be at least 1, got 0."),
        (partial(LRU, 4, r_min=0.9, r_max=0.5), "LRU: 0 <= r_min <= r_max <= 1 must hold, got 0.9 and 0.5."),
        (partial(LRU, 4, max_phase=7.0), "LRU: max_phase must be above 0 and at most 2 pi, got 7.0."),
    ],
)
def test_wrong_options(make, sentence):
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    "cell", [MinGRU(4), MinLSTM(4), LRU(4, state_size=5), SRU(4)], ids=lambda cell: type(cell).__name__
)
def test_wrong_arguments_of_unroll(cell):
    arguments: Any = (cell.init(jax.random.key(0), 3), cell.initial_state((2,)))
    for shape in ((7, 2, 4), (7, 3), (7, 5, 3)):
        with pytest.raises(
            ValueError, match=r"^unroll: xs must have shape \[T, 2, I\] with I = 3 \(from params.w_ih\)"
        ):
            rnnjax.unroll(cell, *arguments, jnp.ones(shape))
    for implementation in ("associative", "hoisted"):
        with pytest.raises(ValueError, match="needs remat to be None, True or an int, got 'gates'"):
            rnnjax.unroll(cell, *arguments, jnp.ones((7, 2, 3)), implementation=implementation, remat="gates")
