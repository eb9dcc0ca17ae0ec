"""`OneToMany`, `EncoderDecoder` and `Attention`: against NumPy loops, torch, and their own steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import GRU, LSTM, SLSTM, Bidirectional, ConvLSTM, Elman, Stack
from rnnjax.topologies import Attention, EncoderDecoder, OneToMany, mse_loss
from tests.cells_table import fast_jit
from tests.references.numpy_core import numpy_gru
from tests.topologies.helpers import KEY, random_params

T, S, B, V, O, E, Q = 5, 4, 3, 6, 7, 2, 5  # T steps of the source, S to be written; the memory is as wide as a query
LENGTHS, TARGET_LENGTHS = np.array([5, 0, 3]), np.array([4, 4, 2])
RNG = np.random.default_rng(0)
SOURCE, TARGETS = RNG.integers(V, size=(T, B)), RNG.integers(O, size=(S, B))
BOTH = Bidirectional(((GRU(3), GRU(2)),))


def seq2seq(attention):
    model = EncoderDecoder(BOTH, GRU(Q), O, vocab_size=V, output_embed_size=E, attention=attention)
    return model, random_params(model, np.float64)


def along(params, xs, h):
    ys = []
    for x in xs:
        (h,), _ = numpy_gru(params, (h,), x)
        ys.append(h)
    return ys, h


def numpy_seq2seq(attention, params, source, written):
    """Outputs and weights of one row, from the papers' equations; ``written`` is what each step has to predict."""
    params = jax.tree.map(np.asarray, params)
    (layer,), dec = params.encoder.layers, params.decoder
    xs = np.eye(V)[source]
    up, h_up = along(layer.forward, xs, np.zeros(3))
    down, h_down = along(layer.backward, xs[::-1], np.zeros(2))
    memory = [np.concatenate(pair) for pair in zip(up, down[::-1])]
    state = np.tanh(np.concatenate([h_up, h_down]) @ params.bridge.w.h + params.bridge.b.h)

    def attend(query):
        if not memory:
            return np.zeros(5), np.zeros(0)
        p = dec.attention
        scores = {
            "additive": lambda m: np.tanh(query @ p.w_query + m @ p.w_key) @ p.v,
            "dot": lambda m: query @ m,
            "general": lambda m: query @ (m @ p.w_key),
        }
        scores = np.array([scores[attention.score](m) for m in memory])
        weights = np.exp(scores) / np.exp(scores).sum()
        return sum(a * m for a, m in zip(weights, memory)), weights

    outputs, rows, u = [], [], np.zeros(Q)
    for previous in (None, *written[:-1]):
        x = np.zeros(E) if previous is None else dec.embedding[previous]
        if attention is None:
            (state,), seen = numpy_gru(dec.cell, (state,), x)
        elif attention.attend == "before":
            context, weights = attend(state)
            (state,), y = numpy_gru(dec.cell, (state,), np.concatenate([x, context]))
            seen = np.concatenate([y, context])
        else:
            x = np.concatenate([x, u]) if attention.attend == "feed" else x
            (state,), y = numpy_gru(dec.cell, (state,), x)
            context, weights = attend(y)
            seen = u = np.tanh(np.concatenate([context, y]) @ dec.mix.w + dec.mix.b)
        outputs.append(seen @ dec.head.w + dec.head.b)
        if attention is not None:
            rows.append(weights)
    return np.array(outputs), np.array(rows)


ATTENTIONS = [
    None,
    Attention("additive", "before", size=4),
    Attention("general", "after"),
    Attention("dot", "feed"),
    Attention("additive", "after"),
]


@pytest.mark.parametrize("attention", ATTENTIONS, ids=lambda a: a and f"{a.score}-{a.attend}")
def test_teacher_forcing_is_a_numpy_loop_and_a_loop_over_step(x64, attention):
    """Row 1 has no source at all. Two hypotheses a row read one memory, each its own words."""
    model, params = seq2seq(attention)
    targets = np.where(np.arange(S)[:, None] < TARGET_LENGTHS, TARGETS, -1)
    lengths = {"lengths": LENGTHS, "target_lengths": TARGET_LENGTHS}
    run = model.apply if attention is None else model.align
    got = jax.tree.map(np.asarray, fast_jit(run)(params, SOURCE, targets, **lengths))
    outputs, weights = (got, None) if attention is None else got
    for b, (size, end) in enumerate(zip(LENGTHS, TARGET_LENGTHS)):
        want, rows = numpy_seq2seq(attention, params, SOURCE[:size, b], TARGETS[:end, b])
        np.testing.assert_allclose(outputs[:end, b], want, rtol=1e-10, atol=1e-12)
        assert not outputs[end:, b].any()
        if weights is not None:
            np.testing.assert_allclose(weights[:end, b, :size], rows, rtol=1e-10, atol=1e-12)
            assert not weights[end:, b].any() and not weights[:, b, size:].any()

    others = (TARGETS + 1) % O  # the words of the second hypothesis
    both = np.stack([TARGETS, others], axis=-1).reshape(S, 2 * B)
    source = fast_jit(model.encode)(params, SOURCE, lengths=LENGTHS)
    state = jax.tree.map(lambda leaf: jnp.repeat(leaf, 2, axis=0), model.start(params, source))
    step, symbols = fast_jit(lambda state, symbols: model.stepper(params, source)(state, symbols)), np.full(2 * B, -1)
    logits = []
    for t in range(S):
        state, output = step(state, symbols)
        logits.append(output)
        symbols = both[t]
    logits = np.stack(logits).reshape(S, B, 2, O)
    for b, size in enumerate(LENGTHS):
        for k, words in enumerate((TARGETS, others)):
            want, _ = numpy_seq2seq(attention, params, SOURCE[:size, b], words[:, b])
            np.testing.assert_allclose(logits[:, b, k], want, rtol=1e-10, atol=1e-12)
    shapes = {np.shape(leaf) for leaf in jax.tree.leaves(state)}
    assert shapes == {(2 * B, Q)}  # a beam gathers these, and no memory


@pytest.mark.quick
def test_without_attention_it_is_torch():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    layers = Stack((LSTM(4), LSTM(4)))
    model = EncoderDecoder(layers, layers, O, input_size=3, bridge="copy")
    params, xs = random_params(model), RNG.normal(size=(T, B, 3)).astype(np.float32)
    lengths = np.array([5, 1, 3])
    nets = []
    for layer_params in (params.encoder, params.decoder.cell):
        net = torch.nn.LSTM(layer_params.layers[0].w_ih.shape[0], 4, num_layers=2)
        with torch.no_grad():
            for depth, layer in enumerate(layer_params.layers):
                for name, value in (("weight_ih", layer.w_ih.T), ("weight_hh", layer.w_hh.T), ("bias_ih", layer.b)):
                    getattr(net, f"{name}_l{depth}").copy_(torch.tensor(np.array(value)))
                getattr(net, f"bias_hh_l{depth}").zero_()
        nets.append(net)
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.tensor(xs), torch.tensor(lengths), enforce_sorted=False)
    read = np.concatenate([np.zeros((1, B, O)), np.eye(O)[TARGETS[:-1]]]).astype(np.float32)
    with torch.no_grad():
        ys, _ = nets[1](torch.tensor(read), nets[0](packed)[1])
        want = ys.numpy() @ np.asarray(params.decoder.head.w) + np.asarray(params.decoder.head.b)
    got = fast_jit(model.apply)(params, xs, TARGETS, lengths=lengths)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ATTENTIONS[:2], ids=["none", "additive"])
def test_scheduled_sampling_between_its_ends(x64, attention):
    """Nothing is teacher forcing, one is the network on its own; between them every row throws its own coins."""
    model, params = seq2seq(attention)

    def run(sampling, key):
        return model.apply(params, SOURCE, TARGETS, sampling=sampling, key=key)

    sample = fast_jit(run)
    forced = fast_jit(model.apply)(params, SOURCE, TARGETS)
    np.testing.assert_allclose(sample(0.0, KEY), forced, rtol=1e-10)
    free = np.asarray(fast_jit(lambda: model.apply(params, SOURCE, steps=S))())
    np.testing.assert_allclose(sample(1.0, KEY), free, rtol=1e-12)
    for b in range(B):  # what it wrote is what it read
        own = free.argmax(-1)[:, b]
        want, _ = numpy_seq2seq(attention, params, SOURCE[:, b], own)
        np.testing.assert_allclose(free[:, b], want, rtol=1e-10)


@pytest.mark.quick
def test_coins_fall_as_often_as_they_should():
    model, rows = OneToMany(GRU(4), O, input_size=2), 2000
    params = random_params(model)
    context = jnp.ones((rows, 2))
    targets = np.zeros((2, rows), int)
    step = fast_jit(model.stepper(params))
    state, first = step(model.start(params, context[:1]), np.array([-1]))
    own = int(first.argmax())
    targets[0] = (own + 1) % O
    candidates = [step(state, np.array([symbol]))[1] for symbol in (own, (own + 1) % O)]
    got = fast_jit(lambda key: model.apply(params, context, targets, sampling=0.3, key=key))(KEY)
    np.testing.assert_allclose(got[0], np.broadcast_to(first, (rows, O)), rtol=1e-5, atol=1e-6)
    near = [np.abs(np.asarray(got[1]) - candidate).max(-1) < 1e-5 for candidate in candidates]
    assert (near[0] ^ near[1]).all()
    assert abs(near[0].mean() - 0.3) < 0.05  # five standard deviations


@pytest.mark.parametrize("outputs", ["symbols", "numbers"])
def test_one_to_many_is_a_numpy_loop(x64, outputs):
    """Teacher forcing, on its own, and a loop over `step`, from a context that is a symbol."""
    numbers = outputs == "numbers"
    model = OneToMany(GRU(Q), O, vocab_size=V, embed_size=E, outputs=outputs)
    params = random_params(model, np.float64)
    arrays = jax.tree.map(np.asarray, params)
    context, targets = np.array([2, 0, 5]), RNG.normal(size=(S, B, O)) if numbers else TARGETS
    forced = np.asarray(fast_jit(model.apply)(params, context, targets))
    free = np.asarray(fast_jit(lambda: model.apply(params, context, steps=S))())
    step, walk = fast_jit(model.stepper(params)), []
    state, last = model.start(params, context), np.zeros((B, O)) if numbers else np.full(B, model.start_symbol)
    for _ in range(S):
        state, output = step(state, last)
        walk.append(output)
        last = output if numbers else output.argmax(-1)
    np.testing.assert_allclose(np.stack(walk), free, rtol=1e-10)
    for b in range(B):
        for own, got in ((False, forced), (True, free)):
            state, x = np.tanh(arrays.embedding[context[b]] @ arrays.start.w.h + arrays.start.b.h), np.zeros(O)
            for t in range(S):
                (state,), y = numpy_gru(arrays.decoder.cell, (state,), x)
                want = y @ arrays.decoder.head.w + arrays.decoder.head.b
                np.testing.assert_allclose(got[t, b], want, rtol=1e-10, atol=1e-12)
                new = want if own else targets[t, b]
                x = new if numbers else np.eye(O)[new.argmax() if own else new]


def test_fed_with_zeros_the_state_alone_moves_it(x64):
    model = OneToMany(GRU(Q), O, input_size=2, outputs="numbers", feed="zeros", activation=None)
    params, context = random_params(model, np.float64), jnp.asarray(RNG.normal(size=(B, 2)))
    state = rnnjax.topologies.bridge.ContextState(GRU(Q)).apply(params.start, context, jnp.float64)
    _, ys = rnnjax.unroll(GRU(Q), params.decoder.cell, state, jnp.zeros((S, B, 1)))
    want = ys @ params.decoder.head.w + params.decoder.head.b
    run = fast_jit(lambda lengths: model.apply(params, context, steps=S, lengths=lengths))
    got = run(TARGET_LENGTHS[:B])
    valid = np.arange(S)[:, None, None] < TARGET_LENGTHS[:, None]
    np.testing.assert_allclose(got, np.where(valid, want, 0), rtol=1e-12)
    state, step = model.start(params, context), fast_jit(model.stepper(params))
    for t in range(2):
        state, output = step(state, jnp.full((B, O), jnp.nan))  # it does not read what it wrote
        np.testing.assert_allclose(output, want[t], rtol=1e-12)


@pytest.mark.parametrize("attend", ["after", "feed"])
def test_nan_in_the_padding_reaches_nothing(x64, attend):
    """Of sources and of targets, in teacher forcing and mixed; the gradient is finite and that of differences."""
    model = EncoderDecoder(BOTH, GRU(4), 2, input_size=3, outputs="numbers", attention=Attention("additive", attend))
    params = random_params(model, np.float64)
    xs, targets = RNG.normal(size=(T, B, 3)), RNG.normal(size=(S, B, 2))
    steps, words = np.arange(T)[:, None, None] < LENGTHS[:, None], np.arange(S)[:, None, None] < TARGET_LENGTHS[:, None]
    sampling = 0.0 if attend == "after" else 0.5

    def loss(params, xs, targets):
        options = {"lengths": LENGTHS, "target_lengths": TARGET_LENGTHS, "sampling": sampling, "key": KEY}
        return mse_loss(model.apply(params, xs, targets, **options), targets, lengths=TARGET_LENGTHS)

    run = fast_jit(jax.value_and_grad(loss, (0, 1)))
    clean, dirty = (run(params, np.where(steps, xs, dirt), np.where(words, targets, dirt)) for dirt in (0.0, np.nan))
    for got, want in zip(jax.tree.leaves(dirty), jax.tree.leaves(clean), strict=True):
        np.testing.assert_array_equal(got, want)
    value, (slopes, slope) = clean
    assert np.isfinite(value) and all(np.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(slopes))
    assert not np.asarray(slope)[~np.broadcast_to(steps, xs.shape)].any()
    bump = np.zeros_like(xs)
    bump[1, 0, 2] = 1e-6
    above, below = (run(params, np.where(steps, xs + d, 0), np.where(words, targets, 0))[0] for d in (bump, -bump))
    np.testing.assert_allclose(slope[1, 0, 2], (above - below) / 2e-6, rtol=1e-5)


@pytest.mark.quick
def test_what_would_explode_past_the_end_of_a_row_stands_still():
    model = OneToMany(Elman(2, activation="relu"), 2, input_size=2, outputs="numbers", activation=None)
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 3.0), jax.eval_shape(model.init, KEY))

    def loss(params, steps):
        return model.apply(params, jnp.ones((1, 2)), steps=steps, lengths=np.array([2])).sum()

    long, short = (fast_jit(jax.grad(loss), static_argnums=1)(params, steps) for steps in (60, 2))
    for got, want in zip(jax.tree.leaves(long), jax.tree.leaves(short), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.quick
def test_dropout_keeps_the_mean_where_every_step_draws_its_own():
    """The steps run one by one; only what the linear head reads is thinned."""
    model = EncoderDecoder(GRU(3), GRU(3), O, vocab_size=V, attention=Attention("dot", "before"), dropout=0.5)
    params = random_params(model)
    want = fast_jit(model.apply)(params, SOURCE, TARGETS)
    run = fast_jit(jax.vmap(lambda key: model.apply(params, SOURCE, TARGETS, key=key)))
    many = np.asarray(run(jax.random.split(KEY, 4000)))
    np.testing.assert_allclose(many.mean(0), want, atol=0.05)
    assert many.std(0).min() > 0.02
    steps = many[:, :, 0].reshape(4000, -1)
    assert abs(np.corrcoef(steps[:, 0], steps[:, O])[0, 1]) < 0.1  # a mask of its own for each step


@pytest.mark.quick
def test_the_bridge_reads_what_is_free_of_every_layer():
    encoder = Bidirectional((LSTM(2), (GRU(3), SLSTM(4))))
    model = EncoderDecoder(encoder, LSTM(2), O, input_size=2)
    assert jax.eval_shape(model.init, KEY).bridge.w.c.shape == (2 * 2 * 2 + 3 + 4, 2)
    for decoder in (SLSTM(3), Stack((rnnjax.LearnedState(GRU(2)), LSTM(3)))):
        model = EncoderDecoder(BOTH, decoder, O, vocab_size=V, attention=Attention("general"))
        params = random_params(model)
        source = fast_jit(model.encode)(params, SOURCE)
        assert jax.tree.structure(source.state) == jax.tree.structure(decoder.initial_state((B,)))
        top = source.state.layers[-1] if isinstance(decoder, Stack) else source.state
        np.testing.assert_array_equal(model.start(params, source).carried, top.h)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: EncoderDecoder(GRU(3), BOTH, O, 2), TypeError, r"^EncoderDecoder: decoder must be a cell, got Bidir"),
        (lambda: EncoderDecoder(GRU(3), GRU(3), O), ValueError, r"^EncoderDecoder: exactly one of input_size"),
        (lambda: EncoderDecoder(GRU(3), LSTM(3), O, 2, bridge="copy"), ValueError, "take bridge='affine'"),
        (
            lambda: EncoderDecoder(GRU(3), GRU(3), O, 2, bridge="x"),
            ValueError,
            "bridge must be 'affine' or 'copy'",
        ),
        (lambda: EncoderDecoder(GRU(3), GRU(3), O, 2, attention="dot"), TypeError, "must be an Attention or None"),
        (
            lambda: EncoderDecoder(GRU(3), GRU(4), O, 2, attention=Attention("dot")),
            ValueError,
            "got 4 and 3; take score",
        ),
        (lambda: Attention("cosine"), ValueError, "^Attention: score must be 'additive', 'dot' or 'general', got"),
        (lambda: Attention("dot", size=3), ValueError, "^Attention: size is for score='additive', got 3 with 'dot'"),
        (
            lambda: OneToMany(ConvLSTM(2, spatial_shape=(3,)), O, 2),
            ValueError,
            "^OneToMany: cell must be a cell whose features are",
        ),
        (lambda: OneToMany(GRU(3), O, 2, outputs="words"), ValueError, "outputs must be 'symbols' or 'numbers'"),
        (
            lambda: OneToMany(GRU(3), O, 2, feed="zeros", output_embed_size=2),
            ValueError,
            "for symbols that are fed back",
        ),
    ],
)
def test_errors(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()


@pytest.mark.quick
def test_errors_of_calls():
    model = OneToMany(GRU(3), O, input_size=2)
    params, context = random_params(model), np.ones((B, 2), np.float32)
    for arguments, error, sentence in (
        ((), ValueError, r"^OneToMany: exactly one of targets .* and steps .* must be given, got neither\.$"),
        ((TARGETS[:, :2],), ValueError, r"^OneToMany: targets must have shape \[T, 3\], got i32\[4,2\]\.$"),
        ((TARGETS * np.float32(1),), TypeError, r"^OneToMany: targets must be integers, got f32\[4,3\]\.$"),
    ):
        with pytest.raises(error, match=sentence):
            model.apply(params, context, *arguments)
    for options, sentence in (
        ({"sampling": 0.5}, r"^OneToMany: sampling=0.5 throws coins, and needs key=\.$"),
        ({"sampling": 2.0}, r"^OneToMany: sampling must lie in \[0, 1\], got 2\.$"),
        ({"lengths": np.array([1])}, r"^OneToMany: lengths of the outputs must have shape \[3\], got i(32|64)\[1\]\.$"),
    ):
        with pytest.raises(ValueError, match=sentence):
            model.apply(params, context, TARGETS, **options)
    state = model.start(params, context)
    with pytest.raises(ValueError, match=r"^OneToMany.step: its input must have shape \[3\], .* got i(32|64)\[2\]\.$"):
        model.step(params, state, np.array([1, 2]))
    model = EncoderDecoder(GRU(3), GRU(3), O, vocab_size=V)
    with pytest.raises(ValueError, match=r"^EncoderDecoder.align: the model has no attention; make it with"):
        model.align(random_params(model), SOURCE, TARGETS)
    attention = Attention("dot")
    memory = attention.memory(attention.init(KEY, 2, 2), jnp.ones((T, B, 2)))
    with pytest.raises(ValueError, match=r"R a multiple of the 3 sources, got f32\[4,2\]\.$"):
        attention.read(attention.init(KEY, 2, 2), memory, jnp.ones((4, 2)))
