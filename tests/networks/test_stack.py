"""`Stack`: layers by hand, dropout between them, norms, and deep ones in one loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

import rnnjax
from rnnjax import GRU, LSTM, LearnedState, Stack
from rnnjax.networks import dropout
from rnnjax.networks.stack import NormParams, StackParams, normalize
from tests.cells_table import CELLS, Row, able, assert_close, fast_jit, loss_of, make_problem, plain, with_gradients

ROW = CELLS["stack"]
KEY = jax.random.key(0)


def run(row, problem, rate=0.0, **options):
    return rnnjax.unroll(dataclasses.replace(row.cell, dropout=rate), *problem[:3], **options)


@pytest.mark.quick
def test_a_stack_of_one_is_the_cell():
    row = Row(LSTM(4))
    problem = make_problem(row)
    stack = Stack((row.cell,))
    params, state = type_of_params(stack)((problem.params,)), type(stack.initial_state())((problem.state,))
    want_state, want = rnnjax.unroll(row.cell, *problem[:3], lengths=problem.lengths, resets=problem.resets)
    for implementation in able(stack):
        got_state, got = rnnjax.unroll(
            stack, params, state, problem.xs, lengths=problem.lengths, resets=problem.resets,
            implementation=implementation,
        )  # fmt: skip
        assert_close(got, want, 1e-6)
        assert_close(got_state.layers[0], want_state, 1e-6)


def type_of_params(cell):
    return type(jax.eval_shape(lambda: cell.init(KEY, 3)))


@pytest.mark.quick
def test_layers_have_their_own_sizes_keys_and_dtypes():
    stack = Stack((LSTM(5), GRU(4), GRU(4)))
    params = stack.init(KEY, 3, jnp.bfloat16)
    assert [layer.w_ih.shape for layer in params.layers] == [(3, 20), (5, 12), (4, 12)]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    assert not jnp.any(params.layers[1].w_hh == params.layers[2].w_hh)
    assert stack.hidden_size == 4
    state = stack.initial_state((2,), jnp.bfloat16)
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [(2, 5), (2, 5), (2, 4), (2, 4)]
    assert stack == Stack([LSTM(5), GRU(4), GRU(4)])  # a list becomes a tuple, and so hashable
    assert hash(stack) == hash(Stack([LSTM(5), GRU(4), GRU(4)]))


@pytest.mark.parametrize(
    ("cells", "kind", "sentence"),
    [
        ((), ValueError, "Stack: cells must hold at least one cell, got none."),
        (LSTM(4), TypeError, "Stack: cells must be a tuple of cells, got LSTM("),
        ((LSTM(4), 3), TypeError, "Stack: every layer must be a cell, got 3."),
        ((LSTM,), TypeError, "Stack: every layer must be a cell, got the class LSTM"),
    ],
)
def test_errors_of_a_stack(cells, kind, sentence):
    with pytest.raises(kind) as caught:
        Stack(cells)
    assert str(caught.value).startswith(sentence)


@pytest.mark.quick
def test_dropout_keeps_the_mean_and_the_dtype():
    x = jnp.full((100, 100), 3.0)
    y = np.asarray(dropout(KEY, x, 0.25))
    np.testing.assert_allclose(np.unique(y), [0, 4], rtol=1e-6)
    np.testing.assert_allclose((y == 0).mean(), 0.25, atol=0.02)
    assert dropout(KEY, x.astype(jnp.bfloat16), 0.25).dtype == jnp.bfloat16
    np.testing.assert_array_equal(dropout(KEY, x, 0.25), y)  # the key is all the randomness
    assert not np.array_equal(dropout(jax.random.key(1), x, 0.25), y)
    assert dropout(KEY, x, 0) is x


def test_gradient_of_dropout_uses_the_same_mask():
    x = jnp.arange(1.0, 101.0)
    slope = jax.grad(lambda x: dropout(KEY, x, 0.5).sum())(x)
    np.testing.assert_allclose(slope * x, dropout(KEY, x, 0.5), rtol=1e-6)


@pytest.mark.quick
@pytest.mark.parametrize("rate", [1.0, -0.1, 1.5, float("nan")])
def test_rate_of_dropout(rate):
    with pytest.raises(ValueError, match=r"^dropout: rate must lie in \[0, 1\), got \S+\.$"):
        dropout(KEY, jnp.ones(3), rate)
    with pytest.raises(ValueError, match=r"^Stack: dropout must lie in \[0, 1\), got \S+\.$"):
        Stack((GRU(4), GRU(4)), dropout=rate)


@pytest.mark.quick
def test_without_a_key_nothing_is_dropped():
    problem = make_problem(ROW)
    options = {"lengths": problem.lengths, "resets": problem.resets, "reverse": True}
    assert_close(run(ROW, problem, 0.5, **options), rnnjax.unroll(ROW.cell, *problem[:3], **options), 0)


def reference(problem, drop):
    """Layer by layer and step by step, with `drop(t, y)` between the two layers."""
    (lstm, gru), (p0, p1) = ROW.cell.cells, problem.params.layers
    s0, s1 = problem.state.layers
    ys = []
    for t, x in enumerate(problem.xs):
        s0, y = lstm.step(p0, s0, x)
        s1, y = gru.step(p1, s1, drop(t, y))
        ys.append(y)
    return (s0, s1), jnp.stack(ys)


def test_dropout_between_layers_and_nowhere_else():
    """Pitfall 11: one mask an element, so new at every step; the states and the top layer are left alone."""
    problem = make_problem(ROW, seq_len=6)
    # The mask the library draws: that of the second of two keys, over all outputs of the first layer at once.
    key = jax.random.split(KEY, 2)[1]
    mask = dropout(key, jnp.ones((6, 3, 5)), 0.4)
    assert len({np.asarray(m).tobytes() for m in mask}) == 6
    want_states, want = reference(problem, lambda t, y: y * mask[t])
    got_state, got = run(ROW, problem, rate=0.4, key=KEY)
    assert_close(got, want, 1e-5)
    assert_close(got_state.layers, want_states, 1e-5)


def test_keys_decide_about_dropout():
    """Pitfall 11: the same key gives the same run, another key another, and no global seed exists."""
    problem = make_problem(ROW)
    first, again, other = (np.asarray(run(ROW, problem, rate=0.4, key=key)[1]) for key in (KEY, KEY, jax.random.key(1)))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_masks_of_layers_differ():
    """Three layers that pass their input through show the two masks as a product."""
    stack = Stack((Passes(50), Passes(50), Passes(50)), dropout=0.5)
    params, state = stack.init(KEY, 50), stack.initial_state()
    for implementation in (None, "stacked"):
        _, ys = rnnjax.unroll(stack, params, state, jnp.ones((40, 50)), key=KEY, implementation=implementation)
        np.testing.assert_allclose(np.unique(ys), [0, 4])
        np.testing.assert_allclose((np.asarray(ys) == 4).mean(), 0.25, atol=0.04)  # 0.5 if the masks were one


def test_stacked_layers_have_the_masks_of_layers_one_by_one(x64):
    stack = Stack((GRU(4),) * 4, norm="rms", residual=True, dropout=0.5)
    problem = make_problem(Row(stack))
    for locked in (False, True):
        net, options = dataclasses.replace(stack, locked=locked), {"resets": problem.resets, "key": KEY}
        got, want = (rnnjax.unroll(net, *problem[:3], implementation=how, **options) for how in ("stacked", "scan"))
        assert_close(got, want)


@dataclasses.dataclass(frozen=True)
class Passes:
    """A cell that copies its input to its output."""

    hidden_size: int

    def init(self, key, input_size, dtype=jnp.float32):
        return jnp.ones((), dtype)

    def initial_state(self, batch_shape=(), dtype=jnp.float32):
        return jnp.zeros(batch_shape, dtype)

    def step(self, params, state, x):
        return state, params * x


def test_padding_stays_clean_under_dropout():
    problem = make_problem(ROW)
    padding = np.arange(8)[:, None] >= np.asarray(problem.lengths)
    xs = jnp.where(padding[..., None], jnp.nan, problem.xs)

    def loss(params):
        _, ys = run(ROW, problem._replace(params=params, xs=xs), lengths=problem.lengths, rate=0.5, key=KEY)
        return ys.sum(), ys

    gradient, ys = jax.grad(loss, has_aux=True)(problem.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert (np.asarray(ys)[padding] == 0).all()


DEEP = Stack((GRU(4), LSTM(4), GRU(4)), residual=True, norm="layer")


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_norms_are_those_of_torch(norm, x64):
    torch = pytest.importorskip("torch", reason="torch is not installed on this Python")
    x, scale, bias = np.random.default_rng(0).normal(size=(3, 2, 5))
    x = x * 1e-2  # so small that the epsilon counts
    wide = [torch.tensor(a, requires_grad=True) for a in (x, scale[0], bias[0])]
    if norm == "layer":
        want = torch.nn.functional.layer_norm(wide[0], (5,), *wide[1:], eps=1e-5)
    else:
        want = torch.nn.functional.rms_norm(wide[0], (5,), wide[1], eps=1e-5)
    (want**2).sum().backward()
    params = NormParams(jnp.asarray(scale[0]), jnp.asarray(bias[0]) if norm == "layer" else None)
    np.testing.assert_allclose(normalize(norm, params, jnp.asarray(x)), want.detach().numpy(), rtol=1e-12)
    slope = jax.grad(lambda p, x: (normalize(norm, p, x) ** 2).sum(), (0, 1))(params, jnp.asarray(x))
    for got, leaf in zip(jax.tree.leaves(slope), [*wide[1 : 3 if norm == "layer" else 2], wide[0]], strict=True):
        np.testing.assert_allclose(got, leaf.grad.numpy(), rtol=1e-9, atol=1e-12)
    low = normalize(norm, params, jnp.asarray(x, jnp.bfloat16))
    assert low.dtype == jnp.bfloat16


@pytest.mark.quick
def test_residual_stack_runs_layer_by_layer_as_step_by_step():
    """And a layer whose output is zero leaves the sum as it is."""
    problem = make_problem(Row(DEEP))
    options = {"lengths": problem.lengths, "resets": problem.resets}
    got, final = rnnjax.unroll(DEEP, *problem[:3], **options), []
    for row in range(3):
        state = jax.tree.map(lambda leaf, row=row: leaf[row], problem.state)
        for t in range(int(problem.lengths[row])):
            state = DEEP.initial_state() if problem.resets[t, row] else state
            state, y = DEEP.step(problem.params, state, problem.xs[t, row])
            np.testing.assert_allclose(got[1][t, row], y, rtol=1e-5, atol=1e-5)
        final.append(state)
    assert_close(got[0], jax.tree.map(lambda *rows: jnp.stack(rows), *final), 1e-5)
    quiet = jax.tree.map(jnp.zeros_like, problem.params.layers[2])
    params = problem.params._replace(layers=(*problem.params.layers[:2], quiet))
    below = Stack(DEEP.cells[:2], residual=True, norm="layer")
    cut = StackParams(problem.params.layers[:2], problem.params.norms[:2])
    start = DEEP.initial_state((3,))
    _, got = rnnjax.unroll(DEEP, params, start, problem.xs)
    assert_close(got, rnnjax.unroll(below, cut, below.initial_state((3,)), problem.xs)[1], 1e-6)


def test_dropout_leaves_the_residual_connections_alone():
    """The mask stands between the norm and the layer."""
    stack = Stack((Passes(50), Passes(50)), residual=True, dropout=0.5)
    params, state = stack.init(KEY, 50), stack.initial_state()
    _, ys = rnnjax.unroll(stack, params, state, jnp.ones((40, 50)), key=KEY)
    np.testing.assert_allclose(np.unique(ys), [1, 3])  # x, and x + 2x where the branch is kept


@pytest.mark.quick
def test_params_of_a_stack_without_norms_are_what_they_were():
    """Checkpoints name leaves by path, and programs may make `StackParams` of layers alone."""
    stack = Stack((GRU(4), GRU(4)), residual=True)
    params = stack.init(KEY, 3)
    assert jax.tree.structure(params) == jax.tree.structure(StackParams(params.layers))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    fields = ("w_ih", "w_hh", "b", "b_hn")
    assert paths == [f".layers[{depth}].{field}" for depth in range(2) for field in fields]
    assert repr(Stack((GRU(4),))) == f"Stack(cells=({GRU(4)!r},), residual=False, norm=None, dropout=0.0, locked=False)"
    assert [n and n._fields for n in DEEP.init(KEY, 3).norms] == [None, ("scale", "bias"), ("scale", "bias")]
    assert {leaf.dtype for leaf in jax.tree.leaves(DEEP.init(KEY, 3, jnp.bfloat16))} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.quick
def test_errors_of_layers_that_do_not_fit():
    sentence = r"^Stack: with residual=True cells\[2\] must have hidden_size = 4, as cells\[0\] has, got 3; make it as"
    with pytest.raises(ValueError, match=sentence):
        Stack((GRU(4), LSTM(4), GRU(3)), residual=True)
    with pytest.raises(ValueError, match=r"^Stack: norm must be 'layer', 'rms' or None, got 'batch'\.$"):
        Stack((GRU(4),), norm="batch")
    params, state, xs, *_ = make_problem(ROW)
    more = params._replace(layers=(*params.layers, params.layers[1]))
    with pytest.raises(ValueError, match=r"^unroll: params must be what the init of this Stack makes, got StackParams"):
        rnnjax.unroll(ROW.cell, more, state, xs)
    entries = "^Stack: parameters and states must have one entry a layer in layers, 2 here, got "
    with pytest.raises(ValueError, match=entries + "3 of them in StackParams; take those made for these layers\\."):
        ROW.cell.step(more, state, xs[0])
    for broken, got in (
        (state._replace(layers=state.layers[:1]), "1 of them in StackState"),
        (state.layers[0], "LSTM"),
    ):
        with pytest.raises(ValueError, match=entries + got):
            ROW.cell.step(params, broken, xs[0])
        with pytest.raises(ValueError, match=r"^unroll: state must be what Stack.initial_state makes, got"):
            rnnjax.unroll(ROW.cell, params, broken, xs)
    deep, state, xs, *_ = make_problem(Row(DEEP))
    with pytest.raises(ValueError, match=r"^Stack: params.norms must have 3 entries for norm='layer', got 0; t"):
        DEEP.step(StackParams(deep.layers), state, xs[0])


@pytest.mark.parametrize(
    "stack",
    [Stack((GRU(4),) * 4, residual=True, norm="layer"), Stack((LearnedState(LSTM(4)),) * 4)],
    ids=["residual", "learned"],
)
def test_stacked_layers_are_layers_one_by_one(stack, x64):
    """Values, final states and all gradients, on ragged rows with resets, in both directions of time."""
    problem = make_problem(Row(stack))
    for reverse in (False, True):
        want = with_gradients(stack, "scan", reverse)(problem)
        assert_close(with_gradients(stack, "stacked", reverse)(problem), want)


def count_equations(jaxpr):
    """All equations of a program, also those within loops and calls."""
    return sum(1 + sum(map(count_equations, jaxprs_in_params(e.params))) for e in jaxpr.eqns)


@pytest.mark.quick
def test_program_of_stacked_layers_grows_by_its_weights_alone():
    """Compile time follows the size of the program, here of the loss with its gradient."""

    def size(depth, implementation):
        stack = Stack((GRU(4),) * depth, residual=True, norm="rms")
        problem = plain(make_problem(Row(stack), seq_len=3))

        def loss(params):
            return loss_of(*rnnjax.unroll(stack, params, *problem[1:3], implementation=implementation))

        return count_equations(jax.make_jaxpr(jax.grad(loss))(problem.params).jaxpr)

    one_by_one = (size(16, "fused") - size(8, "fused")) / 8
    stacked = (size(16, "stacked") - size(8, "stacked")) / 8
    assert stacked < one_by_one / 3


@pytest.mark.quick
def test_deep_stacks_are_stacked_by_themselves():
    """From the measured depth on, and only where the layers are equal."""
    for stack, stacks in (
        (Stack((GRU(4),) * 16), True),
        (Stack((GRU(4),) * 4), False),
        (Stack((*(GRU(4),) * 15, LSTM(4))), False),
    ):
        problem = plain(make_problem(Row(stack), seq_len=3))
        program = jax.make_jaxpr(lambda p, s, x, stack=stack: rnnjax.unroll(stack, p, s, x))(*problem[:3])
        assert ("length=15" in str(program)) is stacks


class Halving(Stack):
    """Threads data in its own way."""

    def thread(self, visit, params, state, xs, controls, **options):
        return super().thread(visit, params, state, xs / 2, controls, **options)


def test_what_derives_from_a_stack_is_threaded_in_its_own_way(x64):
    """However many equal layers it has."""
    stack = Halving((GRU(4),) * 12)
    problem = plain(make_problem(Row(stack), seq_len=3))
    state, ys = rnnjax.unroll(stack, *problem[:3])
    params, start, xs = problem[:3]
    assert_close((state, ys), rnnjax.unroll(Stack(stack.cells), params, start, xs / 2, implementation="scan"))
    assert "stacked" not in rnnjax.implementations(stack)


def test_layers_of_unlike_dtypes_run_one_by_one(x64):
    """Weights that cannot lie on top of each other."""
    stack = Stack((GRU(4),) * 3)
    problem = plain(make_problem(Row(stack)))
    *low, high = problem.params.layers
    params = StackParams((*low, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), high)))
    got, want = (rnnjax.unroll(stack, params, *problem[1:3], implementation=how) for how in ("stacked", "scan"))
    assert_close(got, want, 1e-6)


def test_ensemble_by_vmap_is_a_loop_over_its_members(x64):
    """Also of stacked layers: final states, outputs and gradients of every member."""
    cell, members = Stack((LearnedState(GRU(4)), Stack((LSTM(4),) * 3))), 3
    params = fast_jit(jax.vmap(lambda key: cell.init(key, 2, jnp.float64)))(jax.random.split(KEY, members))
    params = jax.tree.map(lambda leaf: leaf + 0.1 * np.cos(np.arange(leaf.size)).reshape(leaf.shape), params)
    problem = make_problem(Row(cell, 2))

    def outcome(params, problem):
        def loss(params):
            controls = {"lengths": problem.lengths, "resets": problem.resets}
            state, ys = rnnjax.unroll(cell, params, None, problem.xs, **controls)
            return loss_of(state, ys), (state, ys)

        return jax.grad(loss, has_aux=True)(params)

    got = fast_jit(jax.vmap(outcome, in_axes=(0, None)))(params, problem)
    alone = fast_jit(outcome)
    for member in range(members):
        pick = lambda tree, m=member: jax.tree.map(lambda leaf: leaf[m], tree)  # noqa: E731
        assert_close(pick(got), alone(pick(params), problem))
    assert not np.allclose(got[1][1][0], got[1][1][1])
