"""The adjusted distribution against probabilities in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnjax.decoding import adjust_logits, draw
from tests.decoding.exact import exact_probs

SETTINGS = list(itertools.product([1.0, 0.3, 2.5, 0.0], [0, 1, 4, 50], [1.0, 0.9, 0.35, 1e-9], [None, 2, (2, 5)]))


def test_adjusted_logits_give_the_exact_probabilities() -> None:
    logits = 2 * np.random.default_rng(0).standard_normal((5, 12)).astype(np.float32)
    for temperature, top_k, top_p, banned in SETTINGS:
        found = adjust_logits(jnp.array(logits), temperature=temperature, top_k=top_k, top_p=top_p, banned=banned)
        expected = [exact_probs(row, temperature, top_k, top_p, banned) for row in logits]
        np.testing.assert_allclose(jax.nn.softmax(found), expected, rtol=2e-5, atol=1e-7)


def test_among_equal_logits_the_lower_id_is_kept() -> None:
    equal = jnp.zeros(6)
    assert (adjust_logits(equal, top_k=2) == 0).tolist() == [True, True, False, False, False, False]
    assert (adjust_logits(equal, temperature=0) == 0).tolist() == [True, False, False, False, False, False]


def test_low_temperature_does_not_overflow() -> None:
    probs = jax.nn.softmax(adjust_logits(jnp.array([3e38, 1.0, -3e38]), temperature=1e-6))
    np.testing.assert_array_equal(probs, [1, 0, 0])


def test_a_draw_is_the_rows_own() -> None:
    logits = jnp.array(np.random.default_rng(0).standard_normal((3, 7)), jnp.float32)
    keys = jax.random.split(jax.random.key(1), 3)
    for options in ({"top_k": 3, "temperature": 0.5}, {"banned": [1, 2]}):
        rows = [jax.random.categorical(key, adjust_logits(row, **options)) for key, row in zip(keys, logits)]
        assert draw(keys, logits, **options).tolist() == [int(symbol) for symbol in rows]
    assert draw(None, logits, temperature=0, banned=[0]).tolist() == (1 + np.argmax(logits[:, 1:], axis=1)).tolist()


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"temperature": 1e-9}, ValueError, "adjust_logits: temperature must be at least 1e-6, .* got 1e-09"),
        ({"top_k": -1}, ValueError, "adjust_logits: top_k must be at least 0"),
        ({"top_p": 0.0}, ValueError, "adjust_logits: top_p must lie in"),
        ({"banned": 4}, ValueError, "adjust_logits: banned must be ids from 0 to 3, got 4"),
        ({"banned": [1, -1]}, ValueError, "got -1"),
        ({"banned": 1.5}, TypeError, "banned must be a symbol's id, several of them or None, got 1.5"),
    ],
)
def test_errors(options: dict, kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        adjust_logits(jnp.zeros(4), **options)


def test_a_draw_without_keys() -> None:
    with pytest.raises(ValueError, match=r"draw: keys must be given at temperature 1\.0, got None"):
        draw(None, jnp.zeros((2, 4)))
