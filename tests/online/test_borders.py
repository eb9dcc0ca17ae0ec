"""What crosses the border of a chunk: against the gradient of the whole sequence, and against cutting."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax import cells
from rnnjax.online import RTRL, UORO, Cut, EProp, Immediate, Read, SnAp1
from rnnjax.testing.problems import fast_jit

T, B, I, H = 12, 2, 3, 4
CELLS = {
    "gru": cells.GRU(H),
    "lstm": cells.LSTM(H),
    "slstm": cells.SLSTM(H),
    "indrnn": cells.IndRNN(H),
    "diagonal": cells.DiagonalLSTM(H),
    "lru": cells.LRU(H, state_size=3),
    "mingru": cells.MinGRU(H),
    "minlstm": cells.MinLSTM(H),
    "sru": cells.SRU(H),
    "projected": cells.ProjectedLSTM(H),
}
ELEMENTWISE = ["indrnn", "diagonal", "lru", "mingru", "minlstm", "sru"]
DENSE = ["gru", "lstm", "slstm"]


@functools.lru_cache
def problem(name):
    """A cell, its parameters, the inputs, and weights of the outputs in the loss, all float64."""
    cell, rng = CELLS[name], np.random.default_rng(7)
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), I))
    params = jax.tree.map(lambda leaf: jnp.asarray(0.6 * rng.normal(size=leaf.shape)), shapes)
    return cell, params, jnp.asarray(rng.normal(size=(T, B, I))), jnp.asarray(rng.normal(size=(T, B, H)))


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def loss_and_state(cell, params, state, xs, weights, **options):
    state, ys = rnnjax.unroll(cell, params, state, xs, implementation="scan", **options)
    return jnp.sum(ys * weights), state


def whole(name, resets=None):
    """The gradient of the loss of the whole sequence."""
    return flat(_slope(name)(problem(name)[1], resets))


@functools.lru_cache
def _slope(name):
    cell, _, xs, weights = problem(name)
    state = cell.initial_state((B,), jnp.float64)
    return fast_jit(jax.grad(lambda p, resets: loss_and_state(cell, p, state, xs, weights, resets=resets)[0]))


def in_chunks(name, border, chunk_len, resets=None):
    """The sum of the gradients of the chunks, with a border or without one, and the last trace."""
    cell, params, xs, weights = problem(name)

    @jax.jit
    def one(state, trace, xs, weights, resets, n):
        chunk = {"xs": xs, "resets": resets}

        def loss(params):
            start = jax.lax.stop_gradient(state)
            start = start if border is None else border.enter(params, start, trace, chunk)
            return loss_and_state(cell, params, start, xs, weights, resets=resets)

        (_, new), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        if border is not None:
            trace = border.advance(
                params, state, trace, chunk, lambda p, s: loss_and_state(cell, p, s, xs, weights, resets=resets)[1], n
            )
        return new, trace, gradient

    state = cell.initial_state((B,), jnp.float64)
    first = {"xs": xs[:chunk_len], "resets": resets}
    trace = None if border is None else border.start(params, state, first)
    total = 0.0
    for n in range(0, T, chunk_len):
        here = slice(n, n + chunk_len)
        state, trace, gradient = one(state, trace, xs[here], weights[here], None if resets is None else resets[here], n)
        total = total + flat(gradient)
    return total, trace


def reader(params, chunk):
    return Read(params, chunk["xs"], chunk["resets"])


def distance(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("chunk_len", [1, 3, T])
@pytest.mark.parametrize("name", ["lstm", "lru", "projected"])
def test_rtrl_is_the_whole_gradient(name, chunk_len, x64):
    got, _ = in_chunks(name, RTRL(CELLS[name], reader), chunk_len)
    assert distance(got, whole(name)) < 1e-10


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_a_diagonal_trace_is_exact_where_the_recurrence_is_elementwise(name, x64):
    got, _ = in_chunks(name, SnAp1(CELLS[name], reader), 3)
    assert distance(got, whole(name)) < 1e-10


@pytest.mark.parametrize("name", DENSE)
def test_a_diagonal_trace_is_better_than_none_and_not_exact(name, x64):
    """Several chunks, so that the rules can differ; one chunk alone would hide the trace."""
    want = whole(name)
    cut, _ = in_chunks(name, None, 3)
    snap, _ = in_chunks(name, SnAp1(CELLS[name], reader), 3)
    eprop, _ = in_chunks(name, EProp(CELLS[name], reader), 3)
    assert 1e-3 < distance(snap, want) < 0.5 * distance(cut, want)
    assert distance(eprop, snap) > 1e-3


def test_a_diagonal_trace_is_what_its_definition_says(x64):
    """For a GRU: the influence of a weight on its own unit, by a loop that drops all other terms of the exact one."""
    cell, params, xs, _ = problem("gru")
    _, trace = in_chunks("gru", SnAp1(cell, reader), 4)
    for row in range(B):
        h, want = jnp.zeros(H), jax.tree.map(lambda p: np.zeros(p.shape), params)

        def new(params, h, x):
            return cell.step(params, cells.states.HiddenState(h), x)[1]

        for x in xs[:, row]:
            by_params, by_h = jax.jacrev(new, argnums=(0, 1))(params, h, x)
            for field in params._fields:
                d, e = np.asarray(getattr(by_params, field)), getattr(want, field)
                for column in range(e.shape[-1]):
                    unit = column % H
                    e[..., column] = by_h[unit, unit] * e[..., column] + d[unit][..., column]
            h = new(params, h, x)
        got = jax.tree.map(lambda leaf: leaf[row], trace[0][0])  # noqa: B023
        np.testing.assert_allclose(flat(got), flat(want), atol=1e-12)


def stacked():
    """Two layers with a residual connection and a norm, float64, and the same as for one cell."""
    net = rnnjax.Stack((cells.IndRNN(H), cells.MinGRU(H)), residual=True, norm="rms")
    _, params, xs, weights = problem("indrnn")
    keys = jax.random.split(jax.random.key(2))
    layers = (params, CELLS["mingru"].init(keys[1], H, jnp.float64))
    params = net.init(keys[0], I, jnp.float64)._replace(layers=layers)
    return net, params, xs, weights


def test_a_stack_has_a_trace_a_layer(x64):
    """Exact once what a lower layer does to the state of a higher one, across the border, is cut by hand."""
    net, params, xs, weights = stacked()
    state, half = net.initial_state((B,), jnp.float64), T // 2
    border = SnAp1(net)
    middle, _ = rnnjax.unroll(net, params, state, xs[:half], implementation="scan")
    trace = border.start(params, state, xs)
    trace = border.advance(params, state, trace, xs[:half], None, 0)

    def with_border(params):
        start = border.enter(params, middle, trace, xs[half:])
        return loss_and_state(net, params, start, xs[half:], weights[half:])[0]

    def by_layers(params):
        """The state in the middle, where each layer follows its own parameters alone."""
        ys, states = xs[:half], []
        for depth, cell in enumerate(net.cells):
            seen = jax.lax.stop_gradient(ys)
            if depth:
                seen = seen / jnp.sqrt(jnp.mean(seen**2, -1, keepdims=True) + 1e-5)
            s, out = rnnjax.unroll(cell, params.layers[depth], state.layers[depth], seen, implementation="scan")
            states.append(s)
            ys = out if not depth else ys + out
        return net.join(states)

    def by_hand(params):
        return loss_and_state(net, params, by_layers(params), xs[half:], weights[half:])[0]

    got, want = jax.grad(with_border)(params), jax.grad(by_hand)(params)
    np.testing.assert_allclose(flat(by_layers(params)), flat(middle), atol=1e-6)
    assert distance(flat(got.layers), flat(want.layers)) < 1e-5
    cut = jax.grad(lambda p: loss_and_state(net, p, middle, xs[half:], weights[half:])[0])(params)
    assert distance(flat(cut.layers), flat(want.layers)) > 1e-2


def test_lengths_leave_a_row_s_trace_alone(x64):
    """A row that ends within the chunk has the trace of its valid steps, whatever stands behind."""
    cell, params, xs, _ = problem("gru")
    state = cell.initial_state((B,), jnp.float64)

    def trace(steps, lengths, xs=xs):
        border = SnAp1(cell, lambda params, chunk: Read(params, chunk, None, lengths))
        return border.advance(params, state, border.start(params, state, xs), xs[:steps], None, 0)

    padded = trace(7, jnp.array([4, 7]), xs.at[4:, 0].set(jnp.nan))
    for row, steps in enumerate((4, 7)):
        np.testing.assert_allclose(padded[0][0].w_hh[row], trace(steps, None)[0][0].w_hh[row], atol=1e-12)


def test_immediate_is_one_step_chunks_with_one_update(x64):
    """The mean of the gradients of single steps; with a chunk of one step, cutting."""
    cell, params, xs, weights = problem("gru")
    state, total = cell.initial_state((B,), jnp.float64), 0.0

    def loss_fn(params, state, chunk):
        state, ys = rnnjax.unroll(cell, params, state, chunk["xs"], implementation="scan")
        return jnp.mean(ys * chunk["weights"]), state, {"first": jnp.mean(ys[0])}

    stream, s = {"xs": xs, "weights": weights}, state
    slope = jax.jit(jax.grad(lambda p, s, c: loss_fn(p, s, c)[:2], has_aux=True))
    for t in range(T):
        gradient, s = slope(params, s, jax.tree.map(lambda a: a[t : t + 1], stream))  # noqa: B023
        total = total + flat(gradient) / T
    optimizer = summed()

    def run(chunk_len, border):
        return rnnjax.tbptt(
            loss_fn, optimizer, params, optimizer.init(params), state, stream, chunk_len=chunk_len, border=border
        )

    got = run(T, Immediate())
    np.testing.assert_allclose(flat(got.opt_state), total, atol=1e-12)
    assert distance(flat(run(T, Cut()).opt_state), total) > 1e-2
    np.testing.assert_allclose(
        flat(run(1, Immediate()).opt_state), flat(run(1, Cut()).opt_state), rtol=1e-12, atol=1e-14
    )


def test_memory_does_not_grow_with_the_stream():
    """What a compiled training needs beside its arguments, with four times the steps."""
    cell = rnnjax.GRU(4)
    params, state, optimizer = cell.init(jax.random.key(0), I), cell.initial_state((B,)), optax.sgd(0.1)

    def loss_fn(params, state, chunk):
        state, ys = rnnjax.unroll(cell, params, state, chunk, implementation="scan")
        return jnp.mean(ys**2), state

    def temporary(steps):
        def run(xs):
            return rnnjax.tbptt(
                loss_fn, optimizer, params, optimizer.init(params), state, xs, chunk_len=4, border=RTRL(cell)
            ).params

        shape = jax.ShapeDtypeStruct((steps, B, I), jnp.float32)
        return jax.jit(run).lower(shape).compile().memory_analysis().temp_size_in_bytes

    updates, trace = (2048 - 512) // 4, 4 * flat(RTRL(cell).start(params, state, None)).size
    assert temporary(2048) - temporary(512) < updates * 20 < updates * trace / 100  # a loss and a norm each


@pytest.mark.parametrize(("name", "border"), [("lstm", RTRL), ("mingru", SnAp1)])
def test_resets_clear_the_trace(name, border, x64):
    resets = jnp.zeros((T, B), bool).at[4, 0].set(True).at[9, 1].set(True)
    got, _ = in_chunks(name, border(CELLS[name], reader), 3, resets)
    assert distance(got, whole(name, resets)) < 1e-10
    assert distance(got, whole(name)) > 1e-3


def test_uoro_is_right_in_the_mean(x64):
    """The mean of many keys, within five of its own standard errors in every entry; one key is far off."""
    cell, params, xs, weights = problem("gru")
    state = cell.initial_state((B,), jnp.float64)
    half = T // 2

    def run(params, state):
        return loss_and_state(cell, params, state, xs[:half], weights[:half])[1]

    def border_gradient(key):
        border = UORO(key)
        zero = border.start(params, state, None)
        trace = border.advance(params, state, zero, None, run, 0)
        middle = run(params, state)
        trace = border.advance(params, middle, trace, None, run, 1)
        start = run(params, middle)

        def loss(params):
            return loss_and_state(cell, params, border.enter(params, start, trace, None), xs[half:], weights[half:])[0]

        return jax.grad(loss)(params)

    def exact(params):
        start = run(params, run(params, state))
        return loss_and_state(cell, params, start, xs[half:], weights[half:])[0]

    draws = jax.jit(jax.vmap(border_gradient))(jax.random.split(jax.random.key(3), 4000))
    draws = np.stack([flat(jax.tree.map(lambda leaf: leaf[n], draws)) for n in range(4000)])  # noqa: B023
    error = (draws.mean(0) - flat(jax.grad(exact)(params))) / (draws.std(0) / np.sqrt(len(draws)))
    assert np.abs(error).max() < 5  # of 108 normal numbers the largest is near 2.6
    assert distance(draws[0], flat(jax.grad(exact)(params))) > 0.05


def summed():
    """An optimizer that adds gradients up and changes nothing."""

    def update(gradients, total, params=None):
        return jax.tree.map(jnp.zeros_like, gradients), jax.tree.map(jnp.add, total, gradients)

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update)


@pytest.mark.parametrize(("name", "border"), [("lstm", RTRL), ("sru", SnAp1)])
def test_tbptt_with_a_border_is_backpropagation_through_all_of_time(name, border, x64):
    """With five chunks, the last of them shorter, in one call and in two that hand the trace on."""
    cell, params, xs, weights = problem(name)
    state, optimizer = cell.initial_state((B,), jnp.float64), summed()
    params = {"cell": params, "scale": jnp.ones(())}

    def read(params, chunk):
        return Read(params["cell"], chunk["xs"])

    def loss_fn(params, state, chunk):
        loss, state = loss_and_state(cell, params["cell"], state, chunk["xs"], chunk["weights"])
        return params["scale"] * loss, state

    def run(stream, opt_state, state, trace=None):
        return rnnjax.tbptt(
            loss_fn, optimizer, params, opt_state, state, stream, chunk_len=5, border=border(cell, read), trace=trace
        )

    stream = {"xs": xs, "weights": weights}
    once = run(stream, optimizer.init(params), state)
    first = run(jax.tree.map(lambda a: a[:5], stream), optimizer.init(params), state)
    twice = run(jax.tree.map(lambda a: a[5:], stream), first.opt_state, first.state, first.trace)
    for result in (once, twice):
        assert distance(flat(result.opt_state["cell"]), whole(name)) < 1e-10
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(run(stream, optimizer.init(params), state)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_uoro_in_tbptt_takes_a_network(x64):
    """Its first chunk has no trace, so the gradient there is that of cutting; later ones differ."""
    net = rnnjax.Stack((cells.GRU(3), cells.LSTM(3)))
    params, state = net.init(jax.random.key(0), I, jnp.float64), net.initial_state((B,), jnp.float64)
    xs = problem("gru")[2]

    def loss_fn(params, state, chunk):
        state, ys = rnnjax.unroll(net, params, state, chunk)
        return jnp.mean(ys**2), state

    def norms(border):
        optimizer = summed()
        result = rnnjax.tbptt(loss_fn, optimizer, params, optimizer.init(params), state, xs, chunk_len=4, border=border)
        return np.asarray(result.info.grad_norm)

    cut, uoro = norms(Cut()), norms(UORO(jax.random.key(0)))
    np.testing.assert_allclose(uoro[0], cut[0], rtol=1e-12)
    assert (np.abs(uoro[1:] / cut[1:] - 1) > 1e-6).all()


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: SnAp1(cells.ProjectedLSTM(4)), TypeError, r"^SnAp1: cell must be an affine or a linear cell"),
        (lambda: SnAp1(cells.LayerNormLSTM(4)), ValueError, r"^SnAp1: the update of LayerNormLSTM must treat every "),
        (lambda: EProp(cells.GRU), TypeError, r"^EProp: cell must be"),
        (lambda: SnAp1(rnnjax.Bidirectional((cells.GRU(4),))), TypeError, r"^SnAp1: cell must go step by step"),
    ],
)
def test_errors(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()


@pytest.mark.parametrize("border", [RTRL, SnAp1, EProp])
def test_a_border_that_does_not_find_its_cell_says_how(border):
    cell = rnnjax.GRU(3)
    params = cell.init(jax.random.key(0), 2)
    own, xs = {"cell": params}, np.ones((4, 2, 2), np.float32)
    optimizer = optax.sgd(0.1)

    def loss_fn(params, state, chunk):
        return jnp.zeros(()), state

    for given, chunk, reader, sentence in (
        (params, {"x": xs}, None, r"what the cell reads in a chunk must be an array, got \{'x'"),
        (own, xs, None, "the parameters of the cell must be GRUParams, as its init makes, got .'cell'"),
        (own, {"x": xs}, lambda p, c: (p["cell"], c["x"]), "reader must return a rnnjax.online.Read, got"),
    ):
        advice = r".*; pass \w+\(cell, reader\) with a function"
        with pytest.raises(TypeError, match=f"^{border.__name__}: {sentence}{advice}"):
            rnnjax.tbptt(loss_fn, optimizer, given, optimizer.init(given), cell.initial_state((2,)), chunk,
                         chunk_len=2, border=border(cell, reader))  # fmt: skip
