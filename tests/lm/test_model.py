"""The language model against formulas written out here."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax.lm.model import LanguageModel
from rnnjax.text.corpus import Chunk

V, E, H, T, B = 7, 16, 5, 9, 4


class Greedy(rnnjax.LSTM):
    """A cell whose update reads ``w_ih`` as well: an embedding must not be multiplied into it."""

    def update(self, params, state, zx, zh):
        return super().update(params, state, (zx[0] + params.w_ih.sum(), *zx[1:]), zh)


def chunk_of():
    symbols = np.random.default_rng(0).integers(0, V, (T + 1, B)).astype(np.int32)
    return Chunk(symbols[:-1], symbols[1:], np.random.default_rng(1).random((T, B)) < 0.2)


def written_out(model, params, state, chunk, xs):
    """The loss from what the layers see."""
    _, ys = rnnjax.unroll(model.stack, params.stack, state, xs, resets=chunk.resets, implementation="scan")
    logits = ys @ (params.embedding.T if model.tie else params.w_out) + params.b_out
    return optax.softmax_cross_entropy_with_integer_labels(logits, chunk.targets).mean()


def close(found, wanted):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=5e-6 * float(jnp.abs(b).max()) + 1e-9)


@pytest.mark.parametrize(
    "cell",
    [rnnjax.LSTM(H), rnnjax.GRU(H), rnnjax.cells.IndRNN(H), rnnjax.cells.MinGRU(H), Greedy(H)],
    ids=lambda c: type(c).__name__,
)
def test_an_embedding_is_multiplied_into_the_first_layer_where_that_is_less_work(cell):
    model, chunk = LanguageModel(V, rnnjax.Stack((cell, rnnjax.GRU(H))), E), chunk_of()
    params, state = model.init(jax.random.key(0)), model.initial_state((B,))
    assert model._folds(T * B) == (type(cell) in (rnnjax.LSTM, rnnjax.GRU, rnnjax.cells.IndRNN))
    assert not model._folds(B)  # a step of a sample: V E alone is more than B E
    ours, theirs = (
        jax.value_and_grad(function)(params)
        for function in (
            lambda p: model.loss(p, state, chunk)[0],
            lambda p: written_out(model, p, state, chunk, p.embedding[chunk.inputs]),
        )
    )
    close(ours, theirs)


def test_an_embedding_that_is_also_the_output_has_both_gradients():
    model, chunk = LanguageModel(V, rnnjax.Stack((rnnjax.LSTM(E),)), E, tie=True), chunk_of()
    params, state = model.init(jax.random.key(0)), model.initial_state((B,))
    assert model._folds(T * B)
    ours = jax.grad(lambda p: model.loss(p, state, chunk)[0])(params)
    close(ours, jax.grad(lambda p: written_out(model, p, state, chunk, p.embedding[chunk.inputs]))(params))


def test_dropout_on_the_embedding_is_not_lost():
    model, chunk = LanguageModel(V, rnnjax.Stack((rnnjax.LSTM(H),)), E, embed_dropout=0.5), chunk_of()
    params, state, key = model.init(jax.random.key(0)), model.initial_state((B,)), jax.random.key(1)

    def dropped(p):
        xs = rnnjax.networks.dropout(jax.random.split(key, 4)[0], p.embedding[chunk.inputs], 0.5)
        return written_out(model, p, state, chunk, xs)

    close(
        jax.value_and_grad(lambda p: model.loss(p, state, chunk, key=key)[0])(params),
        jax.value_and_grad(dropped)(params),
    )


def test_in_bfloat16_nothing_is_rounded_once_more():
    model = LanguageModel(V, rnnjax.Stack((rnnjax.LSTM(H),)), E, dtype="bfloat16")
    assert not model._folds(T * B)
