"""Integers of any width mean what they say, at every entrance; what is none, or lies outside, is one sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import decoding, topologies
from rnnjax.checks import check_ints, check_key, check_real, check_size
from tests.cells_table import fast_jit

pytestmark = pytest.mark.quick
WIDTHS = [np.int8, np.uint8, np.int16, np.uint16, np.int64, np.uint64]
KEY = jax.random.key(0)


@pytest.mark.parametrize("dtype", WIDTHS)
def test_lengths_of_any_width(dtype):
    """300 and -1 do not exist in a byte: arithmetic in the dtype of the input would wrap."""
    ys = jnp.arange(300.0).reshape(300, 1, 1)
    n = 100
    lengths = np.array([n], dtype)
    assert topologies.many_to_one.pool(ys, "last", lengths=lengths).item() == n - 1
    assert topologies.many_to_one.pool(ys, "mean", lengths=lengths).item() == (n - 1) / 2
    assert topologies.many_to_one.pool(ys, "max", lengths=lengths).item() == n - 1
    assert topologies.many_to_one.pool(ys, "last", lengths=np.array([0], dtype)).item() == 0
    np.testing.assert_array_equal(topologies.parts.length_mask(lengths, 300)[:, 0], np.arange(300) < n)
    assert topologies.masked_mean(ys, lengths=lengths).item() == (n - 1) / 2
    assert topologies.mse_loss(ys, jnp.zeros_like(ys), lengths=lengths) == np.mean(np.arange(n) ** 2.0)
    traced = fast_jit(lambda lengths: topologies.many_to_one.pool(ys, "last", lengths=lengths))
    assert traced(lengths).item() == n - 1


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("network", [rnnjax.GRU(3), rnnjax.Bidirectional((rnnjax.GRU(3),))], ids=["one", "both"])
def test_a_model_reads_narrow_lengths(network, dtype):
    model = topologies.ManyToOne(network, output_size=2, input_size=1)
    params = model.init(KEY)
    xs = jax.random.normal(KEY, (300, 3, 1))
    lengths = np.array([100, 127, 10])
    want = model.apply(params, xs, lengths=lengths)
    np.testing.assert_array_equal(model.apply(params, xs, lengths=lengths.astype(dtype)), want)


@pytest.mark.parametrize("size", [0, 8])
def test_bytes_are_symbols(size):
    model = topologies.ManyToMany(rnnjax.GRU(4), output_size=2, vocab_size=256, embed_size=size)
    params = model.init(KEY)
    symbols = np.frombuffer(b"hello\xff", np.uint8)[:, None]
    want = model.apply(params, symbols.astype(np.int32))
    assert np.isfinite(want).all()
    for given in (symbols, symbols.tolist(), symbols.astype(np.uint64)):
        np.testing.assert_array_equal(model.apply(params, given), want)
    np.testing.assert_allclose(jax.jit(model.apply)(params, symbols), want, rtol=1e-5, atol=1e-6)
    few = topologies.ManyToMany(rnnjax.GRU(4), output_size=2, vocab_size=200, embed_size=size)  # 200 is no int8
    params = few.init(KEY)
    want = few.apply(params, symbols[:5].astype(np.int32))
    np.testing.assert_array_equal(few.apply(params, symbols[:5].astype(np.int8)), want)


@pytest.mark.parametrize("dtype", WIDTHS)
def test_labels_and_targets_of_any_width(dtype):
    logits = jax.random.normal(KEY, (5, 2, 200))
    labels = np.array([[1, 2], [3, 4], [5, 6], [120, 8], [9, 100]])
    for function in (topologies.softmax_loss, topologies.accuracy, topologies.sequence_accuracy):
        assert function(logits, labels.astype(dtype)) == function(logits, labels)
        assert function(logits, labels.astype(dtype), ignore_label=120) == function(logits, labels, ignore_label=120)
    model = topologies.OneToMany(rnnjax.GRU(4), output_size=200, input_size=1)
    params, context = model.init(KEY), jnp.ones((2, 1))
    want = model.apply(params, context, labels)
    np.testing.assert_array_equal(model.apply(params, context, labels.astype(dtype)), want)


def step(state, symbols):
    """A chain that counts up: symbol k is followed by k + 1 of 4."""
    return state, 5.0 * jax.nn.one_hot((symbols + 1) % 4, 4)


@pytest.mark.parametrize("dtype", WIDTHS)
def test_decoders_start_from_any_width(dtype):
    start = np.array([2, 3], dtype)
    assert decoding.greedy(step, (), start, max_len=3).tokens.tolist() == [[3, 0, 1], [0, 1, 2]]
    assert decoding.sample(step, (), start, key=KEY, max_len=3, top_k=1).tokens.tolist() == [[3, 0, 1], [0, 1, 2]]
    beams = decoding.beam_search(step, (), start, max_len=3, beam_size=2)
    assert beams.tokens[:, 0].tolist() == [[3, 0, 1], [0, 1, 2]]


MODEL = topologies.ManyToOne(rnnjax.GRU(2), output_size=2, vocab_size=5)
PARAMS = MODEL.init(KEY)
LOGITS = jnp.zeros((3, 2, 4))
LABELS = np.zeros((3, 2), int)
GRU = rnnjax.GRU(2)
RUN = (GRU, GRU.init(KEY, 3), GRU.initial_state((2,)), jnp.ones((4, 2, 3)))


@pytest.mark.parametrize(
    ("call", "kind", "sentence"),
    [
        (
            lambda: MODEL.apply(PARAMS, np.full((3, 2), 5)),
            ValueError,
            "ManyToOne: symbols must lie between 0 and 4, or",
        ),
        (
            lambda: MODEL.apply(PARAMS, np.full((3, 2), -2)),
            ValueError,
            "ManyToOne: symbols must lie between 0 and 4, or",
        ),
        (
            lambda: MODEL.apply(PARAMS, np.full((3, 2), 0.5)),
            TypeError,
            "ManyToOne: symbols must be integers, got f32[3,2]",
        ),
        (
            lambda: MODEL.apply(PARAMS, np.ones((3, 2), bool)),
            TypeError,
            "ManyToOne: symbols must be integers, got bool[",
        ),
        (
            lambda: MODEL.apply(PARAMS, [[1], [2**40]]),
            ValueError,
            "ManyToOne.apply: xs must lie between -2147",
        ),
        (
            lambda: topologies.many_to_one.pool(LOGITS, "last", lengths=[2, 4]),
            ValueError,
            "pool: lengths must lie between 0 and 3, g",
        ),
        (
            lambda: topologies.many_to_one.pool(LOGITS, "last", lengths=[-1, 2]),
            ValueError,
            "pool: lengths must lie between 0 and 3, ",
        ),
        (
            lambda: topologies.many_to_one.pool(LOGITS, "last", lengths=[1.0, 2]),
            TypeError,
            "pool: lengths must be integers, got f32[2].",
        ),
        (
            lambda: topologies.many_to_one.pool(LOGITS, "last", lengths=[2**40, 1]),
            ValueError,
            "pool: lengths must lie between -2147",
        ),
        (
            lambda: topologies.softmax_loss(LOGITS, LABELS + 4),
            ValueError,
            "softmax_loss: labels must lie between 0 and 3",
        ),
        (
            lambda: topologies.accuracy(LOGITS, LABELS - 1),
            ValueError,
            "accuracy: labels must lie between 0 and 3, got -1.",
        ),
        (
            lambda: topologies.softmax_loss(LOGITS, LABELS > 0),
            TypeError,
            "softmax_loss: labels must be integers, got bo",
        ),
        (lambda: topologies.softmax_loss(LOGITS, "ab"), TypeError, "softmax_loss: labels must be an array, got 'ab'."),
        (
            lambda: topologies.binary_loss(LOGITS[..., 0], LABELS + 2),
            ValueError,
            "binary_loss: labels must lie between 0 and 1, ",
        ),
        (
            lambda: rnnjax.unroll(*RUN, lengths=[2**40, 1]),
            ValueError,
            "unroll: lengths must lie between",
        ),
        (lambda: decoding.greedy(step, (), [2**40], max_len=3), ValueError, "greedy: start symbols must lie between"),
        (
            lambda: decoding.greedy(step, (), [True], max_len=3),
            TypeError,
            "greedy: start symbols must be integers, got [",
        ),
        (
            lambda: decoding.greedy(step, (), [1], max_len=3, stop=True),
            TypeError,
            "greedy: stop must be a symbol's id,",
        ),
        (
            lambda: decoding.greedy(step, (), [1], max_len=3, banned=range(4)),
            ValueError,
            "greedy: a symbol must be left",
        ),
    ],
)
def test_sentence_about_integers(call, kind, sentence):
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value).startswith(sentence)


def test_padding_may_hold_anything():
    symbols = np.array([[1, 2], [3, 99]])
    want = MODEL.apply(PARAMS, np.array([[1, 2], [3, 0]]), lengths=[2, 1])
    np.testing.assert_array_equal(MODEL.apply(PARAMS, symbols, lengths=[2, 1]), want)
    labels = np.array([[1, 2], [3, -7]])
    want = topologies.softmax_loss(LOGITS[:2], np.abs(labels) % 4, lengths=[2, 1])
    assert topologies.softmax_loss(LOGITS[:2], labels, lengths=[2, 1]) == want
    assert topologies.softmax_loss(LOGITS[:2], labels, mask=labels >= 0) == want


def test_wide_traced_integers_do_not_wrap_into_the_range():
    with jax.enable_x64(True):
        found = jax.jit(lambda x: check_ints("f", "ids", x))(np.array([2**40, -(2**40), 7, 2**32 + 1]))
        assert found.dtype == jnp.int32 and found.tolist() == [2**31 - 1, -(2**31), 7, 2**31 - 1]
        found = jax.jit(lambda x: check_ints("f", "ids", x))(np.array([2**63, 7], np.uint64))
        assert found.tolist() == [2**31 - 1, 7]


def test_numbers_may_be_traced_and_mapped():
    """One program for all values, the same numbers as those known before."""
    rates, x = jnp.array([0.1, 0.3, 0.7]), jnp.linspace(-2.0, 2.0, 12).reshape(3, 4)
    logits, labels = jax.random.normal(KEY, (3, 4)), jnp.array([0, 3, 1])
    functions = {
        "temperature": lambda a: decoding.adjust_logits(logits, temperature=a),
        "top_p": lambda a: decoding.adjust_logits(logits, top_p=a),
        "delta": lambda a: topologies.huber_loss(x, jnp.zeros_like(x), delta=a),
        "smoothing": lambda a: topologies.softmax_loss(logits, labels, label_smoothing=a),
        "binary": lambda a: topologies.binary_loss(logits[:, 0], labels > 0, label_smoothing=a),
        "sample": lambda a: decoding.sample(step, (), [0, 1], key=KEY, max_len=6, temperature=10 * a).tokens,
    }
    for name, function in functions.items():
        want = jnp.stack([function(float(rate)) for rate in rates])
        np.testing.assert_allclose(jax.jit(jax.vmap(function))(rates), want, rtol=1e-5, atol=1e-6, err_msg=name)
    cold = jax.jit(lambda t: decoding.draw(jax.random.split(KEY, 3), logits, temperature=t))(0.0)
    assert cold.tolist() == logits.argmax(-1).tolist()
    for k in (1, 2, 0):
        want = decoding.adjust_logits(logits, top_k=k)
        np.testing.assert_array_equal(jax.jit(lambda k: decoding.adjust_logits(logits, top_k=k))(k), want)


NAN, LOW = float("nan"), -float("inf")


def test_nothing_is_drawn_from_nothing():
    keys = jax.random.split(KEY, 4)
    rows = np.array([[1, 0, NAN], [LOW, LOW, LOW], [0, LOW, 5], [3, LOW, LOW]])
    for options in ({}, {"temperature": 0.0}, {"top_k": 2}, {"top_p": 0.5}, {"temperature": 0.01}):
        drawn = jax.jit(lambda rows, o=options: decoding.draw(keys, rows, banned=0, **o))(rows)
        assert drawn.tolist() == [-1, -1, 2, -1], options
        with pytest.raises(ValueError, match=r"^draw: logits must hold no NaN or infinity"):
            decoding.draw(keys, rows, banned=0, **options)
        with pytest.raises(ValueError, match=r"^draw: a symbol must be left to draw, got all 3 of them banned"):
            decoding.draw(keys, rows, banned=(0, 1, 2), **options)


def test_a_row_without_a_symbol_ends():
    """Symbol 2 leads to NaN, 3 to minus infinity everywhere; the row beside goes on."""
    table = jnp.log(jnp.array([[0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1], [NAN] * 4, [0.0] * 4]))

    def chain(state, symbols):
        return state, table[symbols]

    for decoded in (
        decoding.greedy(chain, (), [0, 1, 3], max_len=4),
        decoding.sample(chain, (), [0, 1, 3], key=KEY, max_len=4, top_k=1),
    ):
        assert decoded.tokens.tolist() == [[1, 2, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0]]
        assert decoded.lengths.tolist() == [2, 1, 0]
        assert not decoded.finished.any() and np.isnan(decoded.log_probs).all()


@pytest.mark.parametrize(
    ("call", "kind", "sentence"),
    [
        (lambda: check_size("f", "n", 1.5), TypeError, "f: n must be an int, got 1.5."),
        (lambda: check_size("f", "n", True), TypeError, "f: n must be an int, got True."),
        (lambda: check_size("f", "n", 2**40), ValueError, "f: n must be at most 2147483647, got 1099511627776."),
        (lambda: check_real("f", "p", "0.5", least=0), TypeError, "f: p must be a number, got '0.5'."),
        (lambda: check_real("f", "p", NAN, least=0, below=1), ValueError, "f: p must lie in [0, 1), got nan."),
        (lambda: check_real("f", "p", 0, above=0), ValueError, "f: p must be a finite number above 0, got 0."),
        (lambda: jax.jit(lambda p: check_real("f", "p", p))(1.0), TypeError, "f: p must be a number that is known now"),
        (
            lambda: check_key("f", 0),
            TypeError,
            "f: key must be a key of jax.random, got 0; make it by jax.random.key(0)",
        ),
        (lambda: check_ints("f", "ids", None), TypeError, "f: ids must be integers, got None."),
        (lambda: check_ints("f", "ids", [[1], [2, 3]]), TypeError, "f: ids must be integers, got [[1], [2, 3]]."),
        (lambda: check_ints("f", "ids", [2**70]), TypeError, "f: ids must be integers, got [1180591620717411303424]."),
    ],
)
def test_sentences_of_the_checks(call, kind, sentence):
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value).startswith(sentence)
