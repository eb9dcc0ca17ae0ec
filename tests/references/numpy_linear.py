"""Literal NumPy loops of the linear cells: the papers' equations, one unit of one example at a time."""

from functools import partial

import numpy as np

from tests.references.numpy_core import contribution, sigmoid


def candidate_linear(a):
    return a


def candidate_g(a):
    return a + 0.5 if a >= 0 else sigmoid(a)


def numpy_min_gru(params, state, x, g):
    """Feng et al. (2024), section 3.1; z selects the candidate."""
    w_ih, b = params
    (h,) = state
    size = len(h)
    new = np.empty(size)
    for k in range(size):
        z, n = (contribution(x, w_ih, gate * size + k) + b[gate * size + k] for gate in range(2))
        new[k] = (1 - sigmoid(z)) * h[k] + sigmoid(z) * g(n)
    return (new,), new


def numpy_min_lstm(params, state, x, g):
    """Feng et al. (2024), section 3.2, with the normalised gates."""
    w_ih, b = params
    (h,) = state
    size = len(h)
    new = np.empty(size)
    for k in range(size):
        i, f, n = (contribution(x, w_ih, gate * size + k) + b[gate * size + k] for gate in range(3))
        total = sigmoid(f) + sigmoid(i)
        new[k] = sigmoid(f) / total * h[k] + sigmoid(i) / total * g(n)
    return (new,), new


def numpy_lru(params, state, x):
    """Orvieto et al. (2023), section 3, with complex numbers."""
    nu_log, theta_log, gamma_log, w_ih, w_hy, w_skip = params
    s = state[0] + 1j * state[1]
    num, size = len(s), w_skip.shape[1]
    new = np.empty(num, complex)
    for k in range(num):
        eigenvalue = np.exp(-np.exp(nu_log[k]) + 1j * np.exp(theta_log[k]))
        drive = contribution(x, w_ih, k) + 1j * contribution(x, w_ih, num + k)
        new[k] = eigenvalue * s[k] + np.exp(gamma_log[k]) * drive
    y = np.empty(size)
    for k in range(size):
        y[k] = sum((new[j] * (w_hy[j, k] + 1j * w_hy[num + j, k])).real for j in range(num)) + contribution(
            x, w_skip, k
        )
    return (new.real, new.imag), y


def numpy_sru(params, state, x):
    """Lei et al. (2017), the first version: no gate reads c; of the three maps only the gates have biases."""
    w_ih, b, w_skip = params
    (c,) = state
    size = len(c)
    new, y = np.empty(size), np.empty(size)
    for k in range(size):
        n = contribution(x, w_ih, k)
        f = sigmoid(contribution(x, w_ih, size + k) + b[k])
        r = sigmoid(contribution(x, w_ih, 2 * size + k) + b[size + k])
        new[k] = f * c[k] + (1 - f) * n
        y[k] = r * np.tanh(new[k]) + (1 - r) * (x[k] if w_skip is None else contribution(x, w_skip, k))
    return (new,), y


STEPS = {
    "min_gru": partial(numpy_min_gru, g=candidate_linear),
    "min_gru_positive": partial(numpy_min_gru, g=candidate_g),
    "min_lstm": partial(numpy_min_lstm, g=candidate_linear),
    "min_lstm_positive": partial(numpy_min_lstm, g=candidate_g),
    "lru": numpy_lru,
    "sru": numpy_sru,
    "sru_square": numpy_sru,
}
