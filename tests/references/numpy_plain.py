"""Literal NumPy loops of the cells that are not affine: the papers' equations, one unit of one example at a time."""

import itertools
from functools import partial

import numpy as np

from tests.references.numpy_core import contribution, lstm_memory, numpy_stack, sigmoid


def numpy_gru_reset_before(params, state, x):
    """Pitfall 1: the reset multiplies the state before the product; z keeps the old state."""
    w_ih, w_hh, b = params
    (h,) = state
    size = len(h)
    r, z, new = np.empty(size), np.empty(size), np.empty(size)
    for k in range(size):
        r[k] = sigmoid(contribution(x, w_ih, k) + b[k] + contribution(h, w_hh, k))
        z[k] = sigmoid(contribution(x, w_ih, size + k) + b[size + k] + contribution(h, w_hh, size + k))
    for k in range(size):
        column = 2 * size + k
        n = np.tanh(contribution(x, w_ih, column) + b[column] + contribution(r * h, w_hh, column))
        new[k] = z[k] * h[k] + (1 - z[k]) * n
    return (new,), new


def numpy_projected_lstm(params, state, x):
    *gates, w_proj = params
    new_c, m = lstm_memory(gates, state, x)
    new_h = np.array([contribution(m, w_proj, k) for k in range(w_proj.shape[1])])
    return (new_h, new_c), new_h


def numpy_highway(params, state, x):
    w_ih, w_hh, b = params
    (s,) = state
    size = len(s)
    for layer in range(len(w_hh)):
        new = np.empty(size)
        for k in range(size):
            n = contribution(s, w_hh[layer], k) + b[layer, k]
            t = contribution(s, w_hh[layer], size + k) + b[layer, size + k]
            if layer == 0:
                n += contribution(x, w_ih, k)
                t += contribution(x, w_ih, size + k)
            transform = sigmoid(t)
            carry = 1 - transform
            new[k] = np.tanh(n) * transform + s[k] * carry
        s = new
    return (s,), s


def correlation(image, kernel, place, column):
    """What stands under the kernel with its middle at `place`, zero outside the image, for one output channel."""
    total = 0.0
    for offset in itertools.product(*(range(size) for size in kernel.shape[:-2])):
        at = tuple(p + o - size // 2 for p, o, size in zip(place, offset, kernel.shape))
        if all(0 <= a < size for a, size in zip(at, image.shape)):
            total += contribution(image[at], kernel[offset], column)
    return total


def numpy_conv_lstm(params, state, x):
    w_ih, w_hh, b = params
    h, c = state
    new_h, new_c = np.empty(h.shape), np.empty(c.shape)
    size = h.shape[-1]
    for *place, k in np.ndindex(h.shape):
        i, f, g, o = (
            correlation(x, w_ih, place, gate * size + k)
            + b[gate * size + k]
            + correlation(h, w_hh, place, gate * size + k)
            for gate in range(4)
        )
        new_c[*place, k] = sigmoid(f) * c[*place, k] + sigmoid(i) * np.tanh(g)
        new_h[*place, k] = sigmoid(o) * np.tanh(new_c[*place, k])
    return (new_h, new_c), new_h


STEPS = {
    "gru_reset_before": numpy_gru_reset_before,
    "projected_lstm": numpy_projected_lstm,
    "highway": numpy_highway,
    "conv_lstm": numpy_conv_lstm,
    "conv_lstm_2d": numpy_conv_lstm,
    "conv_lstm_3d": numpy_conv_lstm,
    "stack_of_conv_lstms": partial(numpy_stack, steps=(numpy_conv_lstm, numpy_conv_lstm)),
}
