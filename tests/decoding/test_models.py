"""Decoding of the package's own models, against their own log-probabilities of what was found."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import rnnjax
from rnnjax.decoding import beam_search, greedy
from rnnjax.lm import LanguageModel, generate
from rnnjax.topologies import Attention, EncoderDecoder

V = 5


def translator() -> EncoderDecoder:
    return EncoderDecoder(
        rnnjax.GRU(4), rnnjax.GRU(4), V, vocab_size=6, output_embed_size=3, attention=Attention(score="additive")
    )


def test_an_encoder_decoder_with_attention() -> None:
    model = translator()
    params = jax.tree.map(lambda w: 3 * w, model.init(jax.random.key(0)))
    xs = np.random.default_rng(0).integers(6, size=(7, 3))
    lengths = np.array([7, 2, 4])
    source = model.encode(params, xs, lengths=lengths)
    options = {"max_len": 6, "beam_size": 3, "stop": 0, "length_penalty": 0.6}
    start = model.start(params, source), model.start_symbol
    beams = beam_search(model.stepper(params, source), *start, **options)
    for k in range(3):
        tokens = beams.tokens[:, k].T  # [max_len, B]
        logits = model.apply(params, xs, tokens, lengths=lengths)
        gained = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]
        total = jnp.where(np.arange(6)[:, None] < beams.lengths[:, k], gained, 0).sum(axis=0)
        np.testing.assert_allclose(beams.log_probs[:, k], total, rtol=1e-5, atol=1e-6)
    assert (np.diff(beams.scores) <= 0).all() and len(np.unique(beams.tokens[:, 0], axis=0)) > 1
    # A row alone, with nothing behind its end, finds the same.
    alone = model.encode(params, xs[:2, 1:2])
    one = beam_search(model.stepper(params, alone), model.start(params, alone), model.start_symbol, **options)
    np.testing.assert_array_equal(one.tokens[0], beams.tokens[1])
    np.testing.assert_allclose(one.scores[0], beams.scores[1], rtol=1e-5)


def test_equal_models_share_a_program() -> None:
    calls: list[int] = []
    rounds = []

    class Counting(EncoderDecoder):
        def step(self, *args, **keywords):
            calls.append(1)
            return super().step(*args, **keywords)

    like = translator()
    for _ in range(2):
        fields = {name: getattr(like, name) for name in like.__dataclass_fields__}
        model = Counting(**fields)
        params = model.init(jax.random.key(0))
        source = model.encode(params, np.zeros((2, 1), int))
        greedy(model.stepper(params, source), model.start(params, source), model.start_symbol, max_len=3)
        rounds.append(len(calls))
    assert rounds[0] == rounds[1] > 0


def test_a_language_model() -> None:
    model = LanguageModel(V, rnnjax.Stack((rnnjax.LSTM(4),)))
    params = jax.tree.map(lambda w: 3 * w, model.init(jax.random.key(0)))

    def step(params, state, symbols):
        state, logits = model.logits(params, state, symbols[None])
        return state, logits[0]

    decoded = greedy(functools.partial(step, params), model.initial_state((1,)), 2, max_len=8)
    expected = next(generate(model, params, np.array([2]), key=jax.random.key(0), length=8, block=8, greedy=True))
    np.testing.assert_array_equal(decoded.tokens, expected)
