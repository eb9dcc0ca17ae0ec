"""`ConvLSTM` against flax.linen; test_haiku.py and test_keras.py have it too."""

import jax
import jax.numpy as jnp
import pytest

from rnnjax import ConvLSTM
from tests.references.jax_references import assert_same_outcome


@pytest.mark.quick
@pytest.mark.parametrize(
    "cell",
    [
        ConvLSTM(2, spatial_shape=(5,), kernel_shape=5),
        ConvLSTM(2, spatial_shape=(2, 3)),
        ConvLSTM(2, spatial_shape=(1, 2, 3), kernel_shape=(1, 3, 3)),
    ],
    ids=["1d", "2d", "3d"],
)
def test_flax(cell, x64):
    linen = pytest.importorskip("flax.linen")
    module = linen.ConvLSTMCell(2, kernel_size=cell.kernel_shape, param_dtype=jnp.float64)

    def igfo(w, bias=False):
        """Flax has the gates as i, g, f, o, and adds 1 to f in every step (pitfall 4)."""
        i, f, g, o = jnp.split(w, 4, axis=-1)
        return jnp.concatenate([i, g, f - 1 if bias else f, o], axis=-1)

    def theirs(params, state, xs):
        bias = igfo(params.b, bias=True)
        tree = {
            "ih": {"kernel": igfo(params.w_ih), "bias": 0.25 * bias},
            "hh": {"kernel": igfo(params.w_hh), "bias": 0.75 * bias},
        }
        carry = (state.c, state.h)  # pitfall 2: flax has c first
        (c, h), ys = jax.lax.scan(lambda carry, x: module.apply({"params": tree}, carry, x), carry, xs)
        return type(state)(h, c), ys

    assert_same_outcome(cell, theirs)
