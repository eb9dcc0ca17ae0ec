"""Literal NumPy loops of the affine cells beyond LSTM and GRU: the papers' equations, one unit at a time."""

from functools import partial

import numpy as np

from tests.references.numpy_core import contribution, sigmoid


def relu(a):
    return max(a, 0.0)


def contributions(x, w_ih, h, w_hh, num_gates):
    """Of the input and of the state, without biases: two arrays [gate, unit]."""
    size = len(h)
    columns = [[gate * size + k for k in range(size)] for gate in range(num_gates)]
    from_x = np.array([[contribution(x, w_ih, column) for column in row] for row in columns])
    return from_x, np.array([[contribution(h, w_hh, column) for column in row] for row in columns])


def numpy_peephole_lstm(params, state, x):
    """Gers and Schmidhuber (2000); the output gate sees the new cell state."""
    w_ih, w_hh, b, p_i, p_f, p_o = params
    h, c = state
    size = len(h)
    from_x, from_h = contributions(x, w_ih, h, w_hh, 4)
    new_h, new_c = np.empty(size), np.empty(size)
    for k in range(size):
        i, f, g, o = (from_x[gate, k] + from_h[gate, k] + b[gate * size + k] for gate in range(4))
        new_c[k] = sigmoid(f + p_f[k] * c[k]) * c[k] + sigmoid(i + p_i[k] * c[k]) * np.tanh(g)
        new_h[k] = sigmoid(o + p_o[k] * new_c[k]) * np.tanh(new_c[k])
    return (new_h, new_c), new_h


def numpy_coupled_lstm(params, state, x):
    """CIFG of Greff et al. (2017): the input gate is one minus the forget gate."""
    w_ih, w_hh, b = params
    h, c = state
    size = len(h)
    from_x, from_h = contributions(x, w_ih, h, w_hh, 3)
    new_h, new_c = np.empty(size), np.empty(size)
    for k in range(size):
        f, g, o = (from_x[gate, k] + from_h[gate, k] + b[gate * size + k] for gate in range(3))
        new_c[k] = sigmoid(f) * c[k] + (1 - sigmoid(f)) * np.tanh(g)
        new_h[k] = sigmoid(o) * np.tanh(new_c[k])
    return (new_h, new_c), new_h


def layer_norm(a, epsilon):
    """Ba, Kiros and Hinton (2016), equation 3, with an epsilon."""
    return (a - np.mean(a)) / np.sqrt(np.var(a) + epsilon)


def numpy_layernorm_lstm(params, state, x, epsilon=1e-5):
    """Ba, Kiros and Hinton (2016), supplement: one norm over all four gates."""
    w_ih, w_hh, b, gain_x, gain_h, gain_c, b_c = params
    h, c = state
    size = len(h)
    from_x, from_h = contributions(x, w_ih, h, w_hh, 4)
    a = gain_x * layer_norm(from_x.ravel(), epsilon) + gain_h * layer_norm(from_h.ravel(), epsilon) + b
    new_c = np.empty(size)
    for k in range(size):
        i, f, g = a[k], a[size + k], a[2 * size + k]
        new_c[k] = sigmoid(f) * c[k] + sigmoid(i) * np.tanh(g)
    new_h = sigmoid(a[3 * size :]) * np.tanh(gain_c * layer_norm(new_c, epsilon) + b_c)
    return (new_h, new_c), new_h


def numpy_layernorm_gru(params, state, x, epsilon=1e-5):
    """Ba, Kiros and Hinton (2016), supplement: the gates in one norm, the candidate in another; z keeps."""
    w_ih, w_hh, b, b_hn, gain_x, gain_h = params
    (h,) = state
    size = len(h)
    gates, candidate = slice(0, 2 * size), slice(2 * size, None)
    from_x, from_h = (a.ravel() for a in contributions(x, w_ih, h, w_hh, 3))
    rz = gain_x[gates] * layer_norm(from_x[gates], epsilon) + gain_h[gates] * layer_norm(from_h[gates], epsilon)
    r, z = sigmoid(rz + b[gates]).reshape(2, size)
    from_x = gain_x[candidate] * layer_norm(from_x[candidate], epsilon) + b[candidate]
    from_h = gain_h[candidate] * layer_norm(from_h[candidate], epsilon) + b_hn
    new = (1 - z) * np.tanh(from_x + r * from_h) + z * h
    return (new,), new


def numpy_mgu(params, state, x):
    """The form of flax; b_hn is None without the reset."""
    w_ih, w_hh, b, b_hn = params
    (h,) = state
    size = len(h)
    from_x, from_h = contributions(x, w_ih, h, w_hh, 2)
    new = np.empty(size)
    for k in range(size):
        f = sigmoid(from_x[0, k] + b[k] + from_h[0, k])
        of_state = from_h[1, k] if b_hn is None else f * (from_h[1, k] + b_hn[k])
        new[k] = (1 - f) * np.tanh(from_x[1, k] + b[size + k] + of_state) + f * h[k]
    return (new,), new


def numpy_indrnn(params, state, x, phi):
    """Li et al. (2018): every unit sees itself."""
    w_ih, b, u = params
    (h,) = state
    new = np.empty(len(h))
    for k in range(len(h)):
        new[k] = phi(contribution(x, w_ih, k) + b[k] + u[k] * h[k])
    return (new,), new


def numpy_diagonal_gru(params, state, x):
    """A GRU whose units see of the state only themselves."""
    w_ih, b, u = params
    (h,) = state
    size = len(h)
    new = np.empty(size)
    for k in range(size):
        of_x = [contribution(x, w_ih, g * size + k) + b[g * size + k] for g in range(3)]
        r, z = (sigmoid(of_x[g] + u[g * size + k] * h[k]) for g in range(2))
        new[k] = (1 - z) * np.tanh(of_x[2] + r * u[2 * size + k] * h[k]) + z * h[k]
    return (new,), new


def numpy_diagonal_lstm(params, state, x):
    """An LSTM whose units see of the state only themselves."""
    w_ih, b, u = params
    h, c = state
    size = len(h)
    new_h, new_c = np.empty(size), np.empty(size)
    for k in range(size):
        columns = [g * size + k for g in range(4)]
        i, f, g, o = (contribution(x, w_ih, column) + b[column] + u[column] * h[k] for column in columns)
        new_c[k] = sigmoid(f) * c[k] + sigmoid(i) * np.tanh(g)
        new_h[k] = sigmoid(o) * np.tanh(new_c[k])
    return (new_h, new_c), new_h


def numpy_leaky(params, state, x, phi=np.tanh, alpha=None):
    """A rate network; alpha is learned where none is given."""
    w_ih, w_hh, b, logit_alpha = params
    (h,) = state
    new = np.empty(len(h))
    for k in range(len(h)):
        share = sigmoid(logit_alpha[k]) if alpha is None else alpha
        drive = phi(contribution(x, w_ih, k) + b[k] + contribution(h, w_hh, k))
        new[k] = (1 - share) * h[k] + share * drive
    return (new,), new


def numpy_mi(params, x, h, num_gates):
    """Wu et al. (2016), equation 4, of which beta_1 is beta_h and beta_2 is beta_x."""
    w_ih, w_hh, b, alpha, beta_x, beta_h = params
    from_x, from_h = (a.ravel() for a in contributions(x, w_ih, h, w_hh, num_gates))
    return alpha * from_x * from_h + beta_h * from_h + beta_x * from_x + b


def numpy_mi_rnn(params, state, x):
    new = np.tanh(numpy_mi(params, x, state[0], 1))
    return (new,), new


def numpy_mi_lstm(params, state, x):
    h, c = state
    i, f, g, o = numpy_mi(params, x, h, 4).reshape(4, -1)
    new_c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    new_h = sigmoid(o) * np.tanh(new_c)
    return (new_h, new_c), new_h


def numpy_slstm(params, state, x, forget):
    """Beck et al. (2024), equations 8 to 17; gates i, f, z, o."""
    w_ih, w_hh, b = params
    h, c, n, m = state
    size = len(h)
    from_x, from_h = contributions(x, w_ih, h, w_hh, 4)
    new = np.empty((4, size))
    for k in range(size):
        i, f, z, o = (from_x[gate, k] + from_h[gate, k] + b[gate * size + k] for gate in range(4))
        new_m = max(np.log(forget(f)) + m[k], i)
        i_stable, f_stable = np.exp(i - new_m), np.exp(np.log(forget(f)) + m[k] - new_m)
        new_c = f_stable * c[k] + i_stable * np.tanh(z)
        new_n = f_stable * n[k] + i_stable
        new[:, k] = sigmoid(o) * (new_c / new_n), new_c, new_n, new_m
    return tuple(new), new[0]


def numpy_slstm_unstable(params, state, x, forget):
    """The same without a stabiliser, equations 8 to 14: state h, c, n."""
    w_ih, w_hh, b = params
    h, c, n = state
    from_x, from_h = contributions(x, w_ih, h, w_hh, 4)
    i, f, z, o = from_x + from_h + b.reshape(4, -1)
    c = forget(f) * c + np.exp(i) * np.tanh(z)
    n = forget(f) * n + np.exp(i)
    h = sigmoid(o) * (c / n)
    return (h, c, n), h


def numpy_minimal_rnn(params, state, x):
    """Chen (2017), equations 1 to 3."""
    w_ih, w_zh, w_hh, b_z, b_u = params
    (h,) = state
    size = len(h)
    z = np.array([np.tanh(contribution(x, w_ih, k) + b_z[k]) for k in range(size)])
    new = np.empty(size)
    for k in range(size):
        u = sigmoid(contribution(h, w_hh, k) + contribution(z, w_zh, k) + b_u[k])
        new[k] = u * h[k] + (1 - u) * z[k]
    return (new,), new


STEPS = {
    "peephole_lstm": numpy_peephole_lstm,
    "coupled_lstm": numpy_coupled_lstm,
    "layernorm_lstm": numpy_layernorm_lstm,
    "layernorm_lstm_coarse": partial(numpy_layernorm_lstm, epsilon=0.1),
    "layernorm_gru": numpy_layernorm_gru,
    "layernorm_gru_coarse": partial(numpy_layernorm_gru, epsilon=0.1),
    "mgu": numpy_mgu,
    "mgu_without_reset": numpy_mgu,
    "indrnn": partial(numpy_indrnn, phi=relu),
    "indrnn_tanh": partial(numpy_indrnn, phi=np.tanh),
    "diagonal_gru": numpy_diagonal_gru,
    "diagonal_gru_biased": numpy_diagonal_gru,
    "diagonal_lstm": numpy_diagonal_lstm,
    "diagonal_lstm_chrono": numpy_diagonal_lstm,
    "leaky": numpy_leaky,
    "leaky_fixed": partial(numpy_leaky, alpha=0.2),
    "leaky_relu": partial(numpy_leaky, phi=relu),
    "mi_rnn": numpy_mi_rnn,
    "mi_lstm": numpy_mi_lstm,
    "slstm": partial(numpy_slstm, forget=sigmoid),
    "slstm_exp": partial(numpy_slstm, forget=np.exp),
    "minimal_rnn": numpy_minimal_rnn,
}
