"""Masks of any pattern: padding on the left and gaps, in every implementation and through the masks of lengths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax.testing import assert_close, make_problem
from rnnjax.testing.problems import forward, with_gradients

T, B = 6, 3


@pytest.mark.parametrize("implementation", [None, "scan"])
def test_left_padding_is_a_shorter_sequence(implementation, x64):
    """With NaN in it: the row alone, without its padding, has the same outputs, final state and gradients."""
    cell, skipped = rnnjax.LSTM(4), 2
    problem = make_problem(cell, batch=(), seq_len=T)._replace(lengths=None, resets=None)
    xs = problem.xs.at[:skipped].set(jnp.nan)
    got = with_gradients(cell, implementation)(problem._replace(xs=xs, valid=jnp.arange(T) >= skipped))
    alone = problem._replace(xs=problem.xs[skipped:])

    def loss(params, state, xs):
        state, ys = rnnjax.unroll(cell, params, state, xs, implementation="scan")
        padded = jnp.concatenate([jnp.zeros((skipped, 4)), ys])
        leaves = [padded, *jax.tree.leaves(state)]  # the weights of `loss_of`
        return sum(jnp.sum(jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape) * leaf) for leaf in leaves)

    state, ys = forward(cell, "scan")(alone)
    assert_close((got.state, got.ys[skipped:]), (state, ys))
    assert not np.asarray(got.ys[:skipped]).any()
    want = jax.grad(loss, (0, 1, 2))(*alone[:3])
    assert_close(got.gradients[:2], want[:2])
    assert_close(got.gradients[2][skipped:], want[2])
    assert not np.asarray(got.gradients[2][:skipped]).any()


def test_lengths_are_a_special_case(x64):
    cell = rnnjax.Stack((rnnjax.GRU(4), rnnjax.MinGRU(4)))
    problem = make_problem(cell, seq_len=T)
    masked = problem._replace(lengths=None, valid=jnp.arange(T)[:, None] < problem.lengths)
    for reverse in (False, True):
        run = with_gradients(cell, None, reverse)
        assert_close(run(masked), run(problem), 1e-12)


@pytest.mark.parametrize(
    ("valid", "kind", "sentence"),
    [
        (np.ones((T, B)), TypeError, r"^unroll: valid must be bool, got f64\[6,3\]; compare with != 0 first\.$"),
        (np.ones((B, T), bool), ValueError, r"^unroll: valid must have shape \[6, 3\], as xs without features, got"),
    ],
)
def test_errors(valid, kind, sentence, x64):
    problem = make_problem(rnnjax.GRU(4), seq_len=T)
    with pytest.raises(kind, match=sentence):
        rnnjax.unroll(rnnjax.GRU(4), *problem[:3], valid=valid)


GAPS = np.array([[0, 1, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]], bool)


@pytest.mark.parametrize("pooling", ["last", "mean", "max", "attention"])
@pytest.mark.parametrize("merge", [None, "concat", "product"])
def test_models_answer_the_steps_that_count(pooling, merge, x64):
    """Each row alone, without the steps that do not count, has the same answer; NaN in them reaches no gradient."""
    network = rnnjax.GRU(4) if merge is None else rnnjax.Bidirectional((rnnjax.GRU(2),), merge=merge)
    model = rnnjax.topologies.ManyToOne(network, output_size=2, input_size=3, pooling=pooling)
    params, xs = model.init(jax.random.key(0), jnp.float64), np.random.default_rng(1).normal(size=(T, B, 3))
    xs[~GAPS] = np.nan
    lengths = np.array([T, T, 0])
    got = model.apply(params, xs, valid=GAPS, lengths=lengths)
    for row in range(B):
        alone = model.apply(params, xs[GAPS[:, row], row])
        np.testing.assert_allclose(got[row], alone, atol=1e-12)
    d_params = jax.grad(lambda p: model.apply(p, xs, valid=GAPS).sum())(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(d_params))


def test_tags_of_the_steps_that_count(x64):
    network = rnnjax.Bidirectional((rnnjax.GRU(2), rnnjax.Elman(3)))
    model = rnnjax.topologies.ManyToMany(network, output_size=2, vocab_size=5, embed_size=3)
    params, symbols = model.init(jax.random.key(0), jnp.float64), np.random.default_rng(1).integers(5, size=(T, B))
    symbols[~GAPS] = 99
    got = model.apply(params, symbols, valid=GAPS)
    for row in range(B):
        np.testing.assert_allclose(got[GAPS[:, row], row], model.apply(params, symbols[GAPS[:, row], row]), atol=1e-12)
    assert not np.asarray(got)[~GAPS].any()


def test_models_take_no_other_options():
    model = rnnjax.topologies.ManyToOne(rnnjax.GRU(4), output_size=2, input_size=3)
    params = model.init(jax.random.key(0))
    for option, end in (
        (("resets", np.zeros((T, B), bool)), r"bool\[6,3\]\."),
        (("remta", 2), r"; did you mean 'remat'\?"),
    ):
        with pytest.raises(TypeError, match=r"^ManyToOne.apply: options must be implementation or remat, got .*" + end):
            model.apply(params, np.ones((T, B, 3), np.float32), **dict([option]))
