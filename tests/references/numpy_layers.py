"""Literal NumPy loops of the cells that are made of cells, one feature and one layer at a time."""

from functools import partial

import numpy as np

from tests.references.numpy_core import numpy_elman, numpy_gru, numpy_lstm


def numpy_norm(norm, params, x):
    scale, bias = params
    size = len(x)
    mean = sum(x) / size if norm == "layer" else 0.0
    power = sum((value - mean) ** 2 for value in x) / size
    y = np.empty(size)
    for k in range(size):
        y[k] = (x[k] - mean) / np.sqrt(power + 1e-5) * scale[k]
        if norm == "layer":
            y[k] += bias[k]
    return y


def numpy_norm_stack(params, state, x, steps, norm, residual):
    """The first layer sees the input as it is; every other sees the normalised sum of all below it."""
    layers, norms = params
    new = []
    for depth, step in enumerate(steps):
        if depth == 0:
            s, y = step(layers[0], state[0][0], x)
        else:
            s, out = step(layers[depth], state[0][depth], numpy_norm(norm, norms[depth], y))
            y = y + out if residual else out
        new.append(s)
    return (tuple(new),), y


def numpy_learned(params, state, x, step):
    """What is learned is where it starts; a step knows nothing of it."""
    return step(params[0], state, x)


STEPS = {
    "residual_stack": partial(numpy_norm_stack, steps=(numpy_gru, numpy_lstm), norm="layer", residual=True),
    "norm_stack": partial(numpy_norm_stack, steps=(numpy_lstm, numpy_gru), norm="rms", residual=False),
    "learned_state": partial(numpy_learned, step=numpy_gru),
    "deep_stack": partial(numpy_norm_stack, steps=(partial(numpy_elman, phi=np.tanh),) * 3, norm="rms", residual=True),
}
