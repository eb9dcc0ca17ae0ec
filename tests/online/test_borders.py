"""What crosses the border of a chunk: against the gradient of the whole sequence, and against cutting."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax import cells
from rnnjax.online import RTRL, UORO, Cut, EProp, Read, SnAp1

T, B, I, H = 12, 2, 3, 4
CELLS = {
    "gru": cells.GRU(H),
    "lstm": cells.LSTM(H),
    "slstm": cells.SLSTM(H),
    "indrnn": cells.IndRNN(H),
    "lru": cells.LRU(H, state_size=3),
    "mingru": cells.MinGRU(H),
    "minlstm": cells.MinLSTM(H),
    "sru": cells.SRU(H),
    "projected": cells.ProjectedLSTM(H),
}
ELEMENTWISE = ["indrnn", "lru", "mingru", "minlstm", "sru"]
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
    cell, params, xs, weights = problem(name)
    state = cell.initial_state((B,), jnp.float64)
    return flat(jax.grad(lambda p: loss_and_state(cell, p, state, xs, weights, resets=resets)[0])(params))


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
            return cell.step(params, cells.gru.GRUState(h), x)[1]

        for x in xs[:, row]:
            by_params, by_h = jax.jacrev(new, argnums=(0, 1))(params, h, x)
            for field in params._fields:
                d, e = np.asarray(getattr(by_params, field)), getattr(want, field)
                for column in range(e.shape[-1]):
                    unit = column % H
                    e[..., column] = by_h[unit, unit] * e[..., column] + d[unit][..., column]
            h = new(params, h, x)
        got = jax.tree.map(lambda leaf: leaf[row], trace[0])  # noqa: B023
        np.testing.assert_allclose(flat(got), flat(want), atol=1e-12)


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
    ],
)
def test_errors(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
