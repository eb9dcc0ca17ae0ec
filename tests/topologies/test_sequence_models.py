"""`ManyToOne`, `ManyToMany` and `OneToOne`: against NumPy loops, the laws of `unroll`, and each other."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax import GRU, LSTM, Bidirectional, ConvLSTM, Stack
from rnnjax.cells.registry import cell_from_repr
from rnnjax.topologies import Attention, EncoderDecoder, ManyToMany, ManyToOne, OneToMany, OneToOne, mse_loss
from rnnjax.topologies.many_to_many import ManyToManyParams
from rnnjax.topologies.many_to_one import pool
from tests.cells_table import fast_jit
from tests.references.numpy_core import numpy_gru
from tests.topologies.helpers import KEY, random_params

T, B, V, E, O = 5, 4, 7, 3, 2
LENGTHS = np.array([5, 2, 0, 3])
RNG = np.random.default_rng(0)
SYMBOLS = RNG.integers(V, size=(T, B))
BOTH = Bidirectional((GRU(3), GRU(2)))
SUM = Bidirectional((GRU(3), GRU(2)), merge="sum")


def numpy_row(network, params, xs):
    """The outputs ``[T, F]`` of one row, and what each direction wrote last, one number at a time."""

    def along(cell_params, xs):
        state, ys = (np.zeros(cell_params.w_hh.shape[0]),), []
        for x in xs:
            state, y = numpy_gru(cell_params, state, x)
            ys.append(y)
        return np.array(ys).reshape(len(xs), -1)

    if not isinstance(network, Bidirectional):
        ys = along(params, xs)
        return ys, ys[-1:].sum(0)
    for layer in params.layers:
        up, down = along(layer.forward, xs), along(layer.backward, xs[::-1])[::-1]
        merge = np.add if network.merge == "sum" else lambda *parts: np.concatenate(parts, -1)
        xs, ends = merge(up, down), merge(up[-1:].sum(0), down[:1].sum(0))
    return xs, ends


def numpy_pool(ys, ends, pooling, params):
    if pooling == "last":
        return ends
    if pooling == "mean":
        return ys.mean(0)
    if pooling == "max":
        return ys.max(0)
    scores = np.array([np.tanh(y @ params.w + params.b) @ params.v for y in ys])
    weights = np.exp(scores) / np.exp(scores).sum()
    return sum(a * y for a, y in zip(weights, ys))


@pytest.mark.parametrize(
    ("network", "pooling"),
    [
        (GRU(3), "last"),
        (GRU(3), "max"),
        (BOTH, "last"),
        (SUM, "last"),
        (BOTH, "mean"),
        (SUM, "attention"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{type(value).__name__}-{getattr(value, 'merge', '')}",
)
def test_many_to_one_is_a_numpy_loop(x64, network, pooling):
    model = ManyToOne(network, O, vocab_size=V, embed_size=E, pooling=pooling)
    params = random_params(model, np.float64)
    symbols = np.where(np.arange(T)[:, None] < LENGTHS, SYMBOLS, -1)
    got = np.asarray(fast_jit(model.apply)(params, symbols, lengths=LENGTHS))
    table, head = np.asarray(params.embedding), params.head
    for b in range(B):
        pooled = np.zeros(head.w.shape[0])
        if LENGTHS[b]:
            ys, ends = numpy_row(network, jax.tree.map(np.asarray, params.network), table[symbols[: LENGTHS[b], b]])
            pooled = numpy_pool(ys, ends, pooling, params.pooling)
        np.testing.assert_allclose(got[b], pooled @ head.w + head.b, rtol=1e-11, atol=1e-12)


def test_many_to_many_is_a_numpy_loop(x64):
    for network, inputs in ((BOTH, {"vocab_size": V}), (GRU(3), {"input_size": V})):
        model = ManyToMany(network, O, **inputs)
        params = random_params(model, np.float64)
        numbers = np.eye(V)[SYMBOLS]
        got = np.asarray(fast_jit(model.apply)(params, SYMBOLS if "vocab_size" in inputs else numbers, lengths=LENGTHS))
        for b in range(B):
            ys, _ = (
                numpy_row(network, jax.tree.map(np.asarray, params.network), numbers[: LENGTHS[b], b])
                if (LENGTHS[b])
                else (np.zeros((0, params.head.w.shape[0])), None)
            )
            np.testing.assert_allclose(got[: LENGTHS[b], b], ys @ params.head.w + params.head.b, rtol=1e-11, atol=1e-12)
            np.testing.assert_array_equal(got[LENGTHS[b] :, b], 0)


@pytest.mark.quick
def test_last_is_the_final_output_of_unroll_and_one_to_one_is_one_step():
    stack = Stack((LSTM(3), LSTM(4)))
    model = ManyToOne(stack, O, input_size=2)
    params, xs = random_params(model), jnp.asarray(RNG.normal(size=(T, B, 2)), jnp.float32)
    state, _ = rnnjax.unroll(stack, params.network, stack.initial_state((B,)), xs, lengths=jnp.asarray(LENGTHS))
    np.testing.assert_allclose(fast_jit(model.features)(params, xs, lengths=LENGTHS), state.layers[-1].h, rtol=1e-6)
    single = OneToOne(stack, O, input_size=2)
    assert jax.tree.map(np.shape, random_params(single)) == jax.tree.map(np.shape, params)
    _, y = fast_jit(stack.step)(params.network, stack.initial_state((T, B)), xs)  # two batch axes
    np.testing.assert_allclose(
        fast_jit(single.apply)(params, xs), y @ params.head.w + params.head.b, rtol=1e-5, atol=1e-6
    )


@pytest.mark.quick
def test_outputs_of_a_cell_know_nothing_of_the_future_and_others_do():
    xs = jnp.asarray(RNG.normal(size=(T, 1, 2)), jnp.float32)
    other = xs.at[3].add(1.0)
    for network, causal in ((Stack((GRU(3), GRU(3))), True), (BOTH, False)):
        model = ManyToMany(network, O, input_size=2)
        params = random_params(model)
        run = fast_jit(model.apply)
        change = np.abs(np.asarray(run(params, xs)) - np.asarray(run(params, other))).max((1, 2)) > 1e-7
        np.testing.assert_array_equal(change, [not causal] * 3 + [True] * 2)


def test_many_to_many_goes_on_where_it_stopped():
    model = ManyToMany(Stack((GRU(3), LSTM(4))), O, vocab_size=V, embed_size=E)
    params, resets = random_params(model), jnp.asarray(RNG.integers(2, size=(T, B)).astype(bool))
    whole = fast_jit(model.apply)(params, SYMBOLS, resets=resets)
    state = model.start(params, (B,))
    advance = fast_jit(model.advance)
    state, low = advance(params, state, SYMBOLS[:2], resets=resets[:2])
    _, high = advance(params, state, SYMBOLS[2:], resets=resets[2:])
    np.testing.assert_allclose(np.concatenate([low, high]), whole, rtol=1e-5, atol=1e-6)
    state, plain = model.start(params, (B,)), fast_jit(model.apply)(params, SYMBOLS, resets=jnp.zeros((T, B), bool))
    step = fast_jit(model.step)
    for t in range(T):
        state, output = step(params, state, SYMBOLS[t])
        np.testing.assert_allclose(output, plain[t], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        ManyToOne(BOTH, O, input_size=2, pooling="attention"),
        ManyToOne(GRU(3), O, input_size=2, pooling="max"),
        ManyToMany(SUM, O, input_size=2),
    ],
    ids=["attention", "max", "synced"],
)
def test_nan_in_the_padding_reaches_nothing(model):
    params, xs = random_params(model), RNG.normal(size=(T, B, 2)).astype(np.float32)
    valid = np.arange(T)[:, None, None] < LENGTHS[:, None]

    def loss(params, xs):
        return jnp.square(model.apply(params, xs, lengths=LENGTHS)).sum()

    run = fast_jit(jax.value_and_grad(loss, (0, 1)))
    clean, dirty = (run(params, jnp.asarray(np.where(valid, xs, dirt))) for dirt in (np.float32(0), np.float32("nan")))
    for got, want in zip(jax.tree.leaves(dirty), jax.tree.leaves(clean), strict=True):
        np.testing.assert_array_equal(got, want)
    assert all(np.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(clean))
    assert not np.asarray(dirty[1][1])[~np.broadcast_to(valid, xs.shape)].any()


def test_images_are_answered_from_all_their_numbers(x64):
    cell = ConvLSTM(2, spatial_shape=(3,))
    one, two = ManyToOne(cell, O, input_size=1), ManyToOne(Bidirectional((cell, cell), merge="sum"), O, input_size=1)
    xs = jnp.asarray(RNG.normal(size=(T, B, 3, 1)))
    params = random_params(one, np.float64)
    state, _ = rnnjax.unroll(
        cell, params.network, cell.initial_state((B,), jnp.float64), xs, lengths=jnp.asarray(LENGTHS)
    )
    np.testing.assert_allclose(fast_jit(one.features)(params, xs, lengths=LENGTHS), state.h.reshape(B, 6), rtol=1e-12)
    params = random_params(two, np.float64)
    net, start = two.network, two.network.initial_state((B,), jnp.float64)
    state, _ = rnnjax.unroll(net, params.network, start, xs, lengths=jnp.asarray(LENGTHS))
    ends = state.layers[-1].forward.h + state.layers[-1].backward.h
    np.testing.assert_allclose(fast_jit(two.features)(params, xs, lengths=LENGTHS), ends.reshape(B, 6), rtol=1e-12)
    frames = ManyToMany(cell, O, input_size=1)
    params, state = random_params(frames, np.float64), frames.start(random_params(frames, np.float64), (B,))
    _, first = fast_jit(frames.step)(params, state, xs[0])
    np.testing.assert_allclose(fast_jit(frames.apply)(params, xs[:1])[0], first, rtol=1e-12)


@pytest.mark.quick
def test_dropout_needs_a_key_and_keeps_the_mean():
    """With one-hot symbols and one layer only the head's inputs are thinned, and the head is linear."""
    model, plain = (ManyToOne(GRU(4), O, vocab_size=V, dropout=rate) for rate in (0.5, 0.0))
    params = random_params(model)
    symbols = SYMBOLS[:2]
    want, *same = fast_jit(
        lambda key: (plain.apply(params, symbols), model.apply(params, symbols), plain.apply(params, symbols, key=key))
    )(KEY)
    for outputs in same:
        np.testing.assert_array_equal(outputs, want)
    many = fast_jit(jax.vmap(lambda key: model.apply(params, SYMBOLS[:2], key=key)))(jax.random.split(KEY, 4000))
    many = np.asarray(many)
    assert many.std(0).min() > 0.02
    np.testing.assert_allclose(many.mean(0), want, atol=0.03)
    deep = ManyToOne(Stack((GRU(4), GRU(4))), O, vocab_size=V, embed_size=E, dropout=0.5)
    params = random_params(deep)
    thinned = fast_jit(lambda key: deep.features(params, SYMBOLS, key=key))
    first, second, again = (
        thinned(jax.random.key(seed)) for seed in (1, 2, 1)
    )  # of the embedding and between the layers
    assert (np.asarray(first) != np.asarray(second)).all()
    np.testing.assert_array_equal(first, again)


@pytest.mark.quick
def test_half_precision_weights_and_no_steps():
    model = ManyToOne(BOTH, O, vocab_size=V, embed_size=E, pooling="attention")
    params = random_params(model)
    run = fast_jit(model.apply)
    low = run(jax.tree.map(lambda w: w.astype(jnp.bfloat16), params), SYMBOLS)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, run(params, SYMBOLS), atol=0.1)
    for pooling in ("last", "mean", "max", "attention"):
        empty = dataclasses.replace(model, pooling=pooling)
        params = random_params(empty)
        np.testing.assert_allclose(
            fast_jit(empty.apply)(params, SYMBOLS[:0]), np.broadcast_to(params.head.b, (B, O)), rtol=1e-6
        )


@pytest.mark.quick
def test_symbols_outside_the_vocabulary():
    """None at all, -1, reads as zeros, also in a table; a wrong one is an error, shows where it is traced, and is no
    matter in the padding."""
    for size in (0, E):
        model = ManyToMany(GRU(3), O, vocab_size=V, embed_size=size)
        params = random_params(model)
        floats = ManyToMany(GRU(3), O, input_size=size or V)
        nothing = floats.apply(params._replace(embedding=None), jnp.zeros((2, 1, size or V)))
        np.testing.assert_allclose(model.apply(params, np.full((2, 1), -1)), nothing, rtol=1e-6)
        for bad in (V, -2):
            wrong = np.array([[0], [bad]])
            with pytest.raises(ValueError, match=f"^ManyToMany: symbols must lie between 0 and {V - 1}, or"):
                model.apply(params, wrong)
            np.testing.assert_array_equal(np.isnan(fast_jit(model.apply)(params, wrong)).any((1, 2)), [False, True])
            assert np.isfinite(model.apply(params, wrong, lengths=np.array([1]))).all()


MODELS = [
    OneToOne(LSTM(3), O, input_size=2),
    ManyToOne(BOTH, O, vocab_size=V, pooling="attention", dropout=0.1),
    ManyToMany(Stack((GRU(3), LSTM(4))), O, input_size=2),
    OneToMany(LSTM(3), V, input_size=2, feed="zeros"),
    EncoderDecoder(BOTH, GRU(4), V, vocab_size=V, attention=Attention("general", "feed")),
]


@pytest.mark.quick
@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_models_are_values(model):
    assert pickle.loads(pickle.dumps(model)) == model and hash(pickle.loads(pickle.dumps(model))) == hash(model)
    assert cell_from_repr(repr(model)) == model
    assert dataclasses.replace(model, output_size=9) != model
    shapes = jax.eval_shape(model.init, KEY)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    assert len(set(names)) == len(names) and all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))


def test_gradient_descent_learns_which_symbol_came_first():
    """From end to end, with a mean over rows: the target is in the first step alone."""
    model = ManyToOne(GRU(8), 1, vocab_size=2)
    symbols = np.random.default_rng(3).integers(2, size=(4, 64))
    targets = symbols[0].astype(np.float32)

    optimizer = optax.adam(0.03)

    def update(carry, _):
        params, opt_state = carry
        loss, slope = jax.value_and_grad(lambda p: mse_loss(model.apply(p, symbols), targets))(params)
        updates, opt_state = optimizer.update(slope, opt_state)
        return (optax.apply_updates(params, updates), opt_state), loss

    params = model.init(KEY)
    _, losses = jax.jit(lambda carry: jax.lax.scan(update, carry, length=200))((params, optimizer.init(params)))
    assert losses[-1] < 0.1 * targets.var()  # the loss of their mean; of eight seeds the worst is at 0.0006 of it


@pytest.mark.quick
@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: ManyToOne(GRU, 2, input_size=2), TypeError, r"^ManyToOne: network must be a cell or a network"),
        (
            lambda: OneToOne(BOTH, 2, input_size=2),
            TypeError,
            r"^OneToOne: network must be a cell, got .*needs the future",
        ),
        (
            lambda: ManyToOne(GRU(3), 2),
            ValueError,
            r"^ManyToOne: exactly one of input_size .*=None and vocab_size=None",
        ),
        (lambda: ManyToOne(GRU(3), 2, 2, 2), ValueError, r"got input_size=2 and vocab_size=2\.$"),
        (lambda: ManyToOne(GRU(3), 2, 2, embed_size=2), ValueError, r"embed_size is for symbols, got 2 without"),
        (lambda: ManyToOne(GRU(3), 0, 2), ValueError, r"^ManyToOne: output_size must be at least 1, got 0\.$"),
        (lambda: ManyToOne(GRU(3), 2, 2, pooling="sum"), ValueError, r"pooling must be 'last', 'mean', 'max' or"),
        (lambda: ManyToMany(GRU(3), 2, 2, dropout=1.0), ValueError, r"^ManyToMany: dropout must lie in"),
        (
            lambda: ManyToMany(BOTH, 2, 2).start(ManyToManyParams(None, None, None)),
            TypeError,
            r"^ManyToMany.start: network must be a cell, got Bidir",
        ),
        (lambda: pool(np.ones((2, 3, 4)), "mean", lengths=[1]), ValueError, r"^pool: lengths must have the batch axes"),
        (lambda: pool(np.ones((2, 3, 4)), "attention"), ValueError, r"^pool: pooling='attention' needs params"),
    ],
)
def test_errors(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()


@pytest.mark.quick
def test_errors_of_inputs():
    model = ManyToOne(GRU(3), O, vocab_size=V)
    with pytest.raises(TypeError, match=r"^ManyToOne: symbols must be integers, got f32\[5,4\]\.$"):
        model.apply(random_params(model), SYMBOLS.astype(np.float32))
    model = ManyToOne(GRU(3), O, input_size=2)
    with pytest.raises(ValueError, match=r"xs must have shape \[T, 4, I\] with I = 2"):
        model.apply(random_params(model), np.ones((5, 4, 3), np.float32))
    with pytest.raises(ValueError, match=r"xs must have shape \[T, \*batch, I\], got f32\[2\]\.$"):
        model.apply(random_params(model), np.ones(2, np.float32))
