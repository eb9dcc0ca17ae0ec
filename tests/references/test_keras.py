"""The cells against keras.layers on its JAX backend."""

import jax.numpy as jnp
import pytest

from rnnjax import GRU, LSTM, ConvLSTM, Elman
from rnnjax.cells import GRUResetBefore
from tests.references.jax_references import assert_same_outcome


@pytest.fixture(scope="module")
def keras(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:  # read, and a file written, when it is imported
        patch.setenv("KERAS_BACKEND", "jax")
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        return pytest.importorskip("keras", reason="keras is not installed on this Python")


def zrn(w):
    """Keras has the gates of a GRU as z, r, n."""
    r, z, n = jnp.split(w, 3, axis=-1)
    return jnp.concatenate([z, r, n], axis=-1)


def gru_weights(p):
    """Keras has a second bias for the recurrent part, of which only the candidate's is no duplicate."""
    b_hh = jnp.concatenate([jnp.zeros(2 * len(p.b_hn)), p.b_hn])
    return [zrn(p.w_ih), zrn(p.w_hh), jnp.stack([zrn(p.b), b_hh])]


# Our cell, the layer and its options, and our parameters as its weights.
KERAS = {
    "SimpleRNN": (Elman(4), "SimpleRNN", {}, list),
    "SimpleRNN_relu": (Elman(4, activation="relu"), "SimpleRNN", {"activation": "relu"}, list),
    "LSTM": (LSTM(4), "LSTM", {}, list),  # gates i, f, g, o and the state h, c, as ours
    "GRU_reset_after": (GRU(4), "GRU", {"reset_after": True}, gru_weights),
    "GRU_reset_before": (GRUResetBefore(4), "GRU", {"reset_after": False}, lambda p: [zrn(w) for w in p]),
    "ConvLSTM1D": (ConvLSTM(2, spatial_shape=(4,)), "ConvLSTM1D", {"kernel_size": 3, "padding": "same"}, list),
    "ConvLSTM2D": (
        ConvLSTM(2, spatial_shape=(3, 4), kernel_shape=(1, 3)),
        "ConvLSTM2D",
        {"kernel_size": (1, 3), "padding": "same"},
        list,
    ),
}


@pytest.mark.parametrize("name", KERAS)
def test_keras(keras, name):
    """In float32, since the activations of Keras return that on its JAX backend whatever they get."""
    cell, layer_name, options, weights = KERAS[name]
    layer = getattr(keras.layers, layer_name)(cell.hidden_size, return_sequences=True, return_state=True, **options)
    layer.build((3, 6, *getattr(cell, "spatial_shape", ()), 3))
    others = [variable.value for variable in layer.non_trainable_variables]

    def theirs(params, state, xs):
        assert [w.shape for w in weights(params)] == [w.shape for w in layer.trainable_variables]
        (ys, *final), _ = layer.stateless_call(
            weights(params), others, jnp.swapaxes(xs, 0, 1), initial_state=list(state)
        )
        return type(state)(*final), jnp.swapaxes(ys, 0, 1)

    assert_same_outcome(cell, theirs, tolerance=1e-5)
