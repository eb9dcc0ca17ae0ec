"""The flat vector of cuDNN against the reference that comes with `jax.experimental.rnn`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnjax import GRU, LSTM, Bidirectional, Stack
from rnnjax.interop import from_cudnn, to_cudnn
from rnnjax.testing.problems import Outcome, fast_jit, loss_of
from tests.interop.agreement import TOLERANCE, difference, filled, outcome, parameters, record

rnn = pytest.importorskip("jax.experimental.rnn")
T, B, I, H = 4, 2, 3, 4
CASES = {  # layers, directions, dtype, and what they are here
    "LSTM": (1, False, "float32", LSTM(H)),
    "LSTM, 2 layers, bidirectional": (2, True, "float64", Bidirectional((LSTM(H), LSTM(H)))),
}


def reference(num_layers, bidirectional):
    """The reference as a function of the vector, our state and inputs, compiled; its outcome in our form."""
    lengths = jnp.full((B,), T, jnp.int32)

    def loss(flat, state, xs):
        h, c = (jnp.stack(leaves) for leaves in (jax.tree.leaves(state)[k::2] for k in (0, 1)))
        parts = rnn.unpack_lstm_weights(flat, I, H, num_layers, bidirectional)
        ys, h, c = rnn.lstm_ref(jnp.swapaxes(xs, 0, 1), h, c, *parts, lengths, I, H, num_layers, 0.0, bidirectional)
        final = jax.tree.unflatten(jax.tree.structure(state), [leaf[k] for k in range(len(h)) for leaf in (h, c)])
        return loss_of(final, jnp.swapaxes(ys, 0, 1)), (final, jnp.swapaxes(ys, 0, 1))

    def run(flat, state, xs):
        (d_flat, *others), (final, ys) = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(flat, state, xs)
        biases = 8 * H * num_layers * (1 + bidirectional)
        # Each of two summed biases has the gradient of the sum, so that one of them is enough.
        d_flat = d_flat.at[-biases:].multiply(0.5)
        d_params = from_cudnn(d_flat, I, H, num_layers=num_layers, bidirectional=bidirectional)[1]
        return Outcome(final, ys, (d_params, *others))

    return fast_jit(run)


@pytest.mark.parametrize("name", CASES)
def test_both_ways(name, x64):
    num_layers, bidirectional, dtype, cell = CASES[name]
    theirs = reference(num_layers, bidirectional)
    size = rnn.get_num_params_in_lstm(I, H, num_layers, bidirectional)
    state = filled(cell.initial_state((B,)), dtype)
    xs, flat = filled((jax.ShapeDtypeStruct((T, B, I), dtype), jax.ShapeDtypeStruct((size,), dtype)), seed=1)
    got_cell, params = from_cudnn(flat, I, H, num_layers=num_layers, bidirectional=bidirectional)
    assert got_cell == cell
    back = to_cudnn(cell, params)  # of two biases, their sum in place of the first
    ends = size - 8 * H * num_layers * (1 + bidirectional)
    np.testing.assert_array_equal(back[:ends], flat[:ends])
    got = outcome(cell)(params, state, xs)
    for direction, vector in (("from", flat), ("to", back)):
        found = difference(got, theirs(vector, state, xs))
        record("cuDNN (jax.experimental.rnn)", name, direction, dtype, found)
        assert found < TOLERANCE[dtype]


def test_what_does_not_fit():
    with pytest.raises(ValueError, match=r"^from_cudnn: flat must have shape \[144\] \(from .*, got f32\[100\]"):
        from_cudnn(jnp.zeros(100), I, H)
    with pytest.raises(ValueError, match=r"^from_cudnn: num_layers must be at least 1, got 0"):
        from_cudnn(jnp.zeros(100), I, H, num_layers=0)
    for cell, message in (
        (GRU(H), "GRU has no exact counterpart: the vector is one of LSTMs"),
        (Stack((LSTM(H), LSTM(2))), "all layers of cuDNN are equally wide"),
        (Bidirectional((LSTM(H),), merge="sum"), "cuDNN concatenates"),
    ):
        with pytest.raises(ValueError, match=rf"^to_cudnn: .*{message}"):
            to_cudnn(cell, parameters(cell))
