"""Where a sequence starts: `LearnedState`, `start_state` and `ContextState`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import GRU, LSTM, SLSTM, ConvLSTM, LearnedState, Stack, start_state
from rnnjax.topologies.bridge import ContextState
from tests.cells_table import Row, fast_jit, loss_of, make_problem
from tests.references.numpy_core import numpy_gru, numpy_lstm

KEY = jax.random.key(0)
STACK = Stack((LearnedState(GRU(4)), LSTM(3)))


@pytest.fixture
def problem(x64):
    return make_problem(Row(STACK))


def loop(problem):
    """Each row from the learned state of the first layer and zeros of the second, and so again after each reset."""
    params, _, xs, lengths, resets = jax.tree.map(np.asarray, tuple(problem[:5]))
    (gru, start), lstm = params.layers
    fresh = (tuple(start), (np.zeros(3), np.zeros(3)))
    ys, finals = np.zeros((*xs.shape[:2], 3)), []
    for b in range(xs.shape[1]):
        low, high = fresh
        for t in range(lengths[b]):
            if resets[t, b]:
                low, high = fresh
            low, y = numpy_gru(gru, low, xs[t, b])
            high, ys[t, b] = numpy_lstm(lstm, high, y)
        finals.append((*low, *high))
    return [np.stack(leaves) for leaves in zip(*finals)], ys


@pytest.mark.parametrize("implementation", ["scan", None])
def test_a_reset_restores_the_learned_state(problem, implementation):
    """Against a NumPy loop, in float64 to the last digits; the gradient against finite differences."""

    def unroll(start):
        layers = (problem.params.layers[0]._replace(start=start), problem.params.layers[1])
        params = problem.params._replace(layers=layers)
        return rnnjax.unroll(
            STACK, params, None, problem.xs, lengths=problem.lengths, resets=problem.resets,
            implementation=implementation,
        )  # fmt: skip

    start, run = problem.params.layers[0].start, fast_jit(unroll)
    state, ys = run(start)
    want_state, want = loop(problem)
    np.testing.assert_allclose(ys, want, rtol=1e-12, atol=1e-12)
    for got, leaf in zip(jax.tree.leaves(state), want_state, strict=True):
        np.testing.assert_allclose(got, leaf, rtol=1e-12, atol=1e-12)
    slope = fast_jit(jax.grad(lambda start: loss_of(*unroll(start))))(start).h
    for unit in range(4):
        above, below = (loss_of(*run(start._replace(h=start.h.at[unit].add(d)))) for d in (1e-5, -1e-5))
        np.testing.assert_allclose(slope[unit], (above - below) / 2e-5, rtol=1e-6)


@pytest.mark.quick
def test_start_state_of_any_cell():
    params = STACK.init(KEY, 2)
    low, high = params.layers
    params = params._replace(layers=(low._replace(start=low.start._replace(h=jnp.arange(4.0))), high))
    for dtype in (jnp.float32, jnp.bfloat16):
        state = start_state(STACK, params, (2, 3), dtype)
        np.testing.assert_array_equal(state.layers[0].h, np.broadcast_to(np.arange(4.0), (2, 3, 4)).astype(dtype))
        np.testing.assert_array_equal(state.layers[1].c, np.zeros((2, 3, 3)))
        assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(dtype)}
    around = LearnedState(STACK)  # the outer of two decides
    np.testing.assert_array_equal(
        start_state(around, around.init(KEY, 2)._replace(cell=params)).layers[0].h, np.zeros(4)
    )
    plain = GRU(4)
    np.testing.assert_array_equal(start_state(plain, plain.init(KEY, 2), (3,)).h, np.zeros((3, 4)))
    np.testing.assert_array_equal(STACK.initial_state((3,)).layers[0].h, np.zeros((3, 4)))  # knows no parameters


@pytest.mark.quick
def test_training_begins_from_the_state_of_the_cell_inside():
    """And in half precision too; every leaf has a name that a checkpoint can hold."""

    @dataclasses.dataclass(frozen=True)
    class Begins(GRU):
        def initial_state(self, batch_shape=(), dtype=jnp.float32):
            state = super().initial_state(batch_shape, dtype)
            return state._replace(h=state.h + 2)

    params = LearnedState(Begins(4)).init(KEY, 2, jnp.bfloat16)
    np.testing.assert_array_equal(params.start.h, np.full(4, 2.0, jnp.bfloat16))
    paths = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    assert paths == {".cell.w_ih", ".cell.w_hh", ".cell.b", ".cell.b_hn", ".start.h"}


@pytest.mark.quick
def test_a_learned_state_keeps_the_fast_implementation():
    """The operation of an engine of affine cells is in the program, alone and within a stack; a scan has none."""
    for cell in (LearnedState(GRU(4)), Stack((LearnedState(GRU(4)),))):
        problem = make_problem(Row(cell))
        for implementation in (None, "scan"):
            run = functools.partial(rnnjax.unroll, cell, implementation=implementation)
            program = str(jax.make_jaxpr(lambda p, run=run: run(*p[:3]))(problem))
            assert ("rnnjax[" in program) == (implementation is None)


@pytest.mark.parametrize("activation", [None, "tanh"])
def test_state_from_a_context(activation):
    """Every number of every leaf is a row of an affine map; of images too, whose state has three axes."""
    rng = np.random.default_rng(0)
    context = rng.normal(size=(2, 3, 5)).astype(np.float32)
    for cell in (Stack((LSTM(4), GRU(2))), ConvLSTM(3, spatial_shape=(2, 4))):
        start = ContextState(cell, activation)
        params = start.init(KEY, 5)
        params = params._replace(
            b=jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params.b)
        )
        state = start.apply(params, jnp.asarray(context))
        assert jax.tree.structure(state) == jax.tree.structure(cell.initial_state((2, 3)))
        ws, bs = jax.tree.leaves(params.w), jax.tree.leaves(params.b)
        assert len({np.asarray(w).tobytes() for w in ws}) == len(ws)  # a key for every leaf
        for leaf, like, w, b in zip(jax.tree.leaves(state), jax.tree.leaves(cell.initial_state((2, 3))), ws, bs):
            want = np.einsum("xyc,cn->xyn", context, w) + np.asarray(b)
            want = np.tanh(want) if activation else want
            assert leaf.shape == like.shape
            np.testing.assert_allclose(leaf.reshape(want.shape), want, rtol=1e-5, atol=1e-5)
        assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(start.init(KEY, 5).b))
        low = start.apply(jax.tree.map(lambda a: a.astype(jnp.bfloat16), params), jnp.asarray(context), jnp.bfloat16)
        assert {leaf.dtype for leaf in jax.tree.leaves(low)} == {jnp.dtype(jnp.bfloat16)}


def test_a_context_reaches_the_outputs_and_the_gradient(x64):
    cell = Stack((LSTM(4), GRU(2)))
    start, problem = ContextState(cell, "tanh"), make_problem(Row(cell), seq_len=3)
    maps = start.init(KEY, 5, jnp.float64)

    def loss(context):
        state = start.apply(maps, context, jnp.float64)
        return loss_of(*rnnjax.unroll(cell, problem.params, state, problem.xs))

    context = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)))
    measure = fast_jit(jax.value_and_grad(loss))
    slope = measure(context)[1][1, 2]
    above, below = (measure(context.at[1, 2].add(d))[0] for d in (1e-5, -1e-5))
    np.testing.assert_allclose(slope, (above - below) / 2e-5, rtol=1e-6)


@pytest.mark.parametrize("cell", [SLSTM(4), Stack((GRU(2), Stack((SLSTM(4),) * 2)))], ids=["one", "nested"])
def test_only_h_of_an_slstm_is_learned_or_set(cell):
    """The normaliser stays a sum of positive weights, and every number that is a parameter has a gradient."""
    xs, plain = jnp.ones((3, 2, 3)), jax.tree_util.tree_leaves_with_path(cell.initial_state((2,)))
    learned, context = LearnedState(cell), ContextState(cell)
    params, maps = learned.init(KEY, 3), context.init(KEY, 5)
    begin = {
        "learned": (params.start, lambda start: start_state(learned, params._replace(start=start), (2,))),
        "context": (maps.w, lambda w: context.apply(maps._replace(w=w), np.eye(5)[:2])),
    }
    for start, make in begin.values():
        start = jax.tree.map(lambda leaf: leaf + 0.3, start)
        names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(start)]
        assert names and all(name.endswith(".h") for name in names)
        state = jax.tree_util.tree_leaves_with_path(make(start))
        for (path, leaf), (same, other) in zip(state, plain, strict=True):
            assert path == same and leaf.shape == other.shape
            if jax.tree_util.keystr(path) in names:
                assert (leaf != other).all()
            else:
                np.testing.assert_array_equal(leaf, other)
        slope = fast_jit(jax.grad(lambda s, make=make: rnnjax.unroll(cell, params.cell, make(s), xs)[1].sum()))(start)
        for leaf in jax.tree.leaves(slope):  # of w, the rows of the two contexts
            assert np.isfinite(leaf).all() and (np.atleast_2d(leaf)[:2] != 0).all()


@dataclasses.dataclass(frozen=True)
class Misnamed(GRU):
    """A cell that names a field that its state does not have."""

    free_state = ("c",)


@dataclasses.dataclass(frozen=True)
class Counts(GRU):
    """A cell with a state of integers."""

    def initial_state(self, batch_shape=(), dtype=jnp.float32):
        return jnp.zeros(batch_shape, jnp.int32)


@pytest.mark.quick
@pytest.mark.parametrize("wrapper", [LearnedState, ContextState])
def test_errors_of_cells_with_a_start(wrapper):
    name = wrapper.__name__
    with pytest.raises(TypeError, match=rf"^{name}: cell must be a cell, got the class GRU"):
        wrapper(GRU)
    with pytest.raises(TypeError, match=rf"^{name}: the state of Counts must be of floating dtypes, got i32\[\]; make"):
        wrapper(Counts(4))
    sentence = rf"^{name}: free_state of Misnamed must be a tuple of fields of its state, of h, got \('c',\)\.$"
    with pytest.raises(ValueError, match=sentence):
        wrapper(Stack((GRU(3), Misnamed(4))))


@pytest.mark.quick
def test_errors_of_a_context():
    with pytest.raises(ValueError, match=r"^ContextState: activation must be None or 'tanh', got 'relu'\.$"):
        ContextState(GRU(4), "relu")
    start = ContextState(GRU(4))
    with pytest.raises(ValueError, match=r"^ContextState.init: context_size must be at least 1, got 0\.$"):
        start.init(KEY, 0)
    params = start.init(KEY, 5)
    sentence = (
        r"^ContextState.apply: context must have shape \[\*batch, C\] with C = 5 \(from params.w\), got f32\[2,4\]\.$"
    )
    with pytest.raises(ValueError, match=sentence):
        start.apply(params, jnp.ones((2, 4)))
    np.testing.assert_array_equal(
        start.apply(params, [1, 0, 2, 0, 1]).h, start.apply(params, jnp.array([1, 0, 2, 0, 1])).h
    )
