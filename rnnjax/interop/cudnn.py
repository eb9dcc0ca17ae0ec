r"""The flat vector of LSTM weights that cuDNN and `jax.experimental.rnn` take, both ways and exact.

For one layer and direction it is what `rnnjax.engines.cudnn.pack` makes. For more, the matrices of all of them
come first and then all biases:

    [w_ih_0.T | w_hh_0.T | w_ih_1.T | w_hh_1.T | ... | b_ih_0 | b_hh_0 | b_ih_1 | b_hh_1 | ...]

where the index runs over the directions of the first layer, then over those of the second. The two biases are one here:
their sum is ours, and on the way back the second is zero.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cell import check_size
from rnnjax.cells.lstm import LSTM
from rnnjax.engines.cudnn import pack, unpack
from rnnjax.interop._common import as_array, check_params, check_shape, join_layers, layers_of, refuse
from rnnjax.kinds import public

__all__ = ["from_cudnn", "to_cudnn"]


@public
def from_cudnn(
    flat: Any, input_size: int, hidden_size: int, *, num_layers: int = 1, bidirectional: bool = False
) -> tuple[Any, Any]:
    """An LSTM, or a network of them, with the weights of a flat vector.

    Args:
        flat: all weights, as ``jax.experimental.rnn.init_lstm_weight`` makes them.
        input_size: I.
        hidden_size: H.
        num_layers: L.
        bidirectional: whether every layer has two directions.

    Returns:
        ``(cell, params)``: `LSTM`; for more layers a `Stack` of them; with two directions a `Bidirectional` network.

    Raises:
        ValueError: if the vector has another length, or for a size below one.

    >>> net, params = from_cudnn(jnp.arange(160.0), 3, 2, num_layers=1, bidirectional=True)
    Traceback (most recent call last):
    ...
    ValueError: from_cudnn: flat must have shape [112] (from the sizes and numbers of layers), got f32[160].
    >>> net, params = from_cudnn(jnp.arange(112.0), 3, 2, num_layers=1, bidirectional=True)
    >>> params.layers[0].backward.w_ih[0, 0].item()  # behind 8 * 3 + 8 * 2 numbers of the forward direction
    40.0
    """
    where = "from_cudnn"
    for name, value in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
        check_size(where, name, value)
    directions, gates = 1 + bool(bidirectional), 4 * hidden_size
    inputs = [input_size] * directions + [directions * hidden_size] * (directions * (num_layers - 1))
    sizes = [gates * (size + hidden_size) for size in inputs]  # of the matrices
    flat = jnp.asarray(as_array(where, "flat", flat))
    expected = sum(sizes) + 2 * gates * len(inputs)
    check_shape(where, "flat", flat, (expected,), "from the sizes and numbers of layers")
    ends = [sum(sizes[: k + 1]) for k in range(len(sizes))]
    *matrices, biases = jnp.split(flat, ends)
    both = zip(inputs, matrices, jnp.split(biases, len(inputs)), strict=True)
    parts = [(LSTM(hidden_size), unpack(jnp.concatenate([w, b]), size, hidden_size)) for size, w, b in both]
    return join_layers([tuple(parts[k : k + directions]) for k in range(0, len(parts), directions)])


@public
def to_cudnn(cell: Any, params: Any) -> jax.Array:
    """The flat vector of an LSTM, or of a network of equally wide ones.

    Args:
        cell: an `LSTM`; a `Stack` or `Bidirectional` of them.
        params: its parameters.

    Raises:
        ValueError: for anything that cuDNN's LSTM is not.

    >>> import rnnjax
    >>> cell = rnnjax.LSTM(2)
    >>> to_cudnn(cell, cell.init(jax.random.key(0), input_size=3)).shape
    (56,)
    """
    where = "to_cudnn"
    check_params(where, cell, params)
    parts = [part for layer in layers_of(where, cell, params, concatenates="cuDNN") for part in layer]
    matrices, biases = [], []
    for inner, p in parts:
        if type(inner) is not LSTM:
            refuse(where, type(inner).__name__, "the vector is one of LSTMs")
        if inner.hidden_size != parts[0][0].hidden_size:
            refuse(where, repr(cell), "all layers of cuDNN are equally wide")
        vector, gates = pack(p), 4 * inner.hidden_size
        matrices.append(vector[: -2 * gates])
        biases.append(vector[-2 * gates :])
    return jnp.concatenate(matrices + biases)
