"""Heads, beside scipy's distributions and their own draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnjax.forecast import NegativeBinomial, Normal, Quantiles, StudentT

stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")

VALUE = np.array([-3.0, -0.4, 0.0, 2.0, 11.0], np.float32)


def distribution(head, shift=1.0, scale=4.0):
    raw = jax.random.normal(jax.random.key(0), (5, head.size))
    return head.distribution(raw, jnp.linspace(-1, 1, 5), jnp.full(5, shift), jnp.full(5, scale))


@pytest.mark.parametrize("head", [Normal(), StudentT()])
def test_continuous_heads_are_those_of_scipy(head) -> None:
    found = distribution(head)
    location, spread = np.asarray(found.location, float), np.asarray(found.spread, float)
    reference = stats.norm(location, spread)
    if isinstance(head, StudentT):
        reference = stats.t(np.asarray(found.freedom, float), location, spread)
    np.testing.assert_allclose(head.cdf(found, VALUE), reference.cdf(VALUE), rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(head.loss(found, VALUE, 4.0), -reference.logpdf(VALUE) - np.log(4), rtol=2e-5)


def test_counts_are_those_of_scipy() -> None:
    head, counts = NegativeBinomial(), np.array([0, 1, 3, 10, 40])
    found = distribution(head, shift=0.0)
    mean, r = np.asarray(found.mean, float), 1 / np.asarray(found.dispersion, float)
    reference = stats.nbinom(r, r / (r + mean))
    np.testing.assert_allclose(head.loss(found, counts, 4.0), -reference.logpmf(counts), rtol=1e-4)
    np.testing.assert_allclose(head.cdf(found, counts), reference.cdf(counts), rtol=1e-4)
    assert head.cdf(found, counts * 0.0 - 1).tolist() == [0.0] * 5
    # With nothing said, a location of one is the context's mean.
    start = head.distribution(jnp.zeros((1, 2)), jnp.ones(1), jnp.zeros(1), jnp.full(1, 7.0))
    np.testing.assert_allclose(start.mean, 7.0, rtol=1e-3)


@pytest.mark.parametrize("head", [Normal(), StudentT(), NegativeBinomial(), Quantiles()])
def test_draws_have_the_probabilities_of_the_head(head) -> None:
    found = distribution(head, shift=0.0)
    many = jax.tree.map(lambda a: jnp.broadcast_to(a, (4000, *a.shape)), found)
    drawn = np.asarray(head.draw(jax.random.key(1), many))
    for value in np.quantile(drawn, [0.01, 0.3, 0.5, 0.9, 0.995], axis=0).round(3):
        value = np.float32(value)
        np.testing.assert_allclose((drawn <= value).mean(0), head.cdf(found, value), atol=0.04)


def test_quantiles_rise_and_invert() -> None:
    head = Quantiles((0.1, 0.5, 0.8))
    found = distribution(head)
    assert (jnp.diff(found.values, axis=-1) > 0).all()
    for level in (0.001, 0.1, 0.3, 0.5, 0.62, 0.8, 0.99):
        value = head.quantile(found, jnp.full(5, level))
        np.testing.assert_allclose(head.cdf(found, value), level, rtol=1e-4)
    # The pinball loss, as it is written.
    want = []
    for b, y in enumerate(VALUE):
        terms = [2 * max(a * (y - q), (a - 1) * (y - q)) for a, q in zip(head.levels, found.values[b], strict=True)]
        want.append(sum(terms) / 3 / 4.0)
    np.testing.assert_allclose(head.loss(found, VALUE, 4.0), want, rtol=1e-5)


def test_pinball_loss_is_least_at_the_quantiles() -> None:
    head, draw = Quantiles((0.1, 0.5, 0.9)), np.random.default_rng(0).normal(size=4000).astype(np.float32)
    grid = np.linspace(-2, 2, 81, dtype=np.float32)

    def loss(q, k):
        values = jnp.zeros((4000, 3)).at[:, k].set(q)
        return jnp.mean(head.loss(distribution(head)._replace(values=values), draw, 1.0))

    for k, level in enumerate(head.levels):
        best = grid[int(jnp.argmin(jax.vmap(lambda q, k=k: loss(q, k))(jnp.asarray(grid))))]
        assert abs(best - stats.norm.ppf(level)) < 0.12


@pytest.mark.parametrize("levels", [(0.5,), (0.1, 0.5, 0.5), (0.9, 0.5, 0.1), (0.0, 0.5, 0.9)])
def test_levels_that_are_none_are_told(levels) -> None:
    with pytest.raises(ValueError, match="levels must be three or more, rising"):
        Quantiles(levels)
