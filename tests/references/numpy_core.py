"""Literal NumPy loops of Elman, LSTM, GRU and a stack: the papers' equations, one unit of one example at a time."""

from functools import partial

import numpy as np


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def contribution(vector, weights, column):
    return sum(vector[i] * weights[i, column] for i in range(len(vector)))


def numpy_elman(params, state, x, phi):
    w_ih, w_hh, b = params
    (h,) = state
    size = len(h)
    new = np.empty(size)
    for k in range(size):
        new[k] = phi(contribution(x, w_ih, k) + b[k] + contribution(h, w_hh, k))
    return (new,), new


def lstm_memory(params, state, x):
    """New c, and what its output gate lets through. Pitfall 2: gates i, f, g, o. Pitfall 4: nothing is added to f."""
    w_ih, w_hh, b = params
    h, c = state
    size = len(c)
    seen, new_c = np.empty(size), np.empty(size)
    for k in range(size):
        i, f, g, o = (
            contribution(x, w_ih, gate * size + k) + b[gate * size + k] + contribution(h, w_hh, gate * size + k)
            for gate in range(4)
        )
        new_c[k] = sigmoid(f) * c[k] + sigmoid(i) * np.tanh(g)
        seen[k] = sigmoid(o) * np.tanh(new_c[k])
    return new_c, seen


def numpy_lstm(params, state, x):
    """The state is h, then c."""
    c, h = lstm_memory(params, state, x)
    return (h, c), h


def numpy_gru(params, state, x):
    """Pitfall 1: the reset multiplies the product and b_hn; z keeps the old state."""
    w_ih, w_hh, b, b_hn = params
    (h,) = state
    size = len(h)
    new = np.empty(size)
    for k in range(size):
        from_x = [contribution(x, w_ih, gate * size + k) + b[gate * size + k] for gate in range(3)]
        from_h = [contribution(h, w_hh, gate * size + k) for gate in range(3)]
        r = sigmoid(from_x[0] + from_h[0])
        z = sigmoid(from_x[1] + from_h[1])
        n = np.tanh(from_x[2] + r * (from_h[2] + b_hn[k]))
        new[k] = (1 - z) * n + z * h[k]
    return (new,), new


def numpy_stack(params, state, x, steps):
    new = []
    for step, p, s in zip(steps, params[0], state[0]):
        s, x = step(p, s, x)
        new.append(s)
    return (tuple(new),), x


STEPS = {
    "elman": partial(numpy_elman, phi=np.tanh),
    "irnn": partial(numpy_elman, phi=lambda a: max(a, 0.0)),
    "lstm": numpy_lstm,
    "gru": numpy_gru,
    "stack": partial(numpy_stack, steps=(numpy_lstm, numpy_gru)),
}
