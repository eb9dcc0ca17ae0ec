"""The cells against code that shares nothing with them: literal NumPy loops, torch.nn and flax.linen."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import GRU, LSTM, Elman, Identity, Stack
from tests.cells_table import (
    CELLS,
    VARIANTS,
    Outcome,
    Problem,
    Row,
    assert_close,
    fast_jit,
    forward,
    loss_of,
    make_problem,
    plain,
    with_gradients,
)

# ---------------------------------------------------------------------------------------------------------------------
# NumPy, from the papers' equations, one unit of one example at a time
# ---------------------------------------------------------------------------------------------------------------------


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


def numpy_lstm(params, state, x):
    """Pitfall 2: gates i, f, g, o; the state is h, then c. Pitfall 4: nothing is added to f."""
    w_ih, w_hh, b = params
    h, c = state
    size = len(h)
    new_h, new_c = np.empty(size), np.empty(size)
    for k in range(size):
        i, f, g, o = (
            contribution(x, w_ih, gate * size + k) + b[gate * size + k] + contribution(h, w_hh, gate * size + k)
            for gate in range(4)
        )
        new_c[k] = sigmoid(f) * c[k] + sigmoid(i) * np.tanh(g)
        new_h[k] = sigmoid(o) * np.tanh(new_c[k])
    return (new_h, new_c), new_h


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


NUMPY_STEPS = {
    "elman": partial(numpy_elman, phi=np.tanh),
    "irnn": partial(numpy_elman, phi=lambda a: max(a, 0.0)),
    "lstm": numpy_lstm,
    "gru": numpy_gru,
    "stack": partial(numpy_stack, steps=(numpy_lstm, numpy_gru)),
}


def test_every_cell_has_a_numpy_loop():
    """A new row of the table needs an independent transcription of its equations here."""
    assert CELLS.keys() <= NUMPY_STEPS.keys()


@pytest.mark.quick
@pytest.mark.parametrize("name", NUMPY_STEPS)
def test_cell_is_its_numpy_loop(name, x64):
    row = (CELLS | VARIANTS)[name]
    problem = plain(make_problem(row))
    final, ys = forward(row.cell, "scan")(problem)
    params, state, xs = jax.tree.map(np.asarray, tuple(problem[:3]))
    for b in range(xs.shape[1]):
        single = jax.tree.map(lambda leaf, b=b: leaf[b], state)
        for t, x in enumerate(xs[:, b]):
            single, y = NUMPY_STEPS[name](params, single, x)
            np.testing.assert_allclose(ys[t, b], y, rtol=1e-12, atol=1e-12)
        for got, want in zip(jax.tree.leaves(final), jax.tree.leaves(single), strict=True):
            np.testing.assert_allclose(got[b], want, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# torch.nn: values, final states and all gradients
# ---------------------------------------------------------------------------------------------------------------------

TORCH = {  # our cell, the module's name and its options
    "rnn_tanh": (Elman(4), "RNN", {"nonlinearity": "tanh"}),
    "rnn_relu": (Elman(4, activation="relu", recurrent_init=Identity()), "RNN", {"nonlinearity": "relu"}),
    "lstm": (LSTM(4), "LSTM", {}),
    "gru": (GRU(4), "GRU", {}),
}
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch is not installed on this Python")


def params_type(cell):
    return type(jax.eval_shape(lambda: cell.init(jax.random.key(0), 1)))


def ours_from_torch(cell, numbers, layer, suffix=""):
    """Pitfall 3: the two biases of torch are one, but the GRU's candidate has one inside the reset."""
    w_ih, w_hh, b_ih, b_hh = (
        numbers[f"{field}_l{layer}{suffix}"] for field in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    params = {"w_ih": w_ih.T, "w_hh": w_hh.T, "b": b_ih + b_hh}
    if isinstance(cell, GRU):
        last = slice(2 * cell.hidden_size, None)
        params["b"] = np.concatenate([params["b"][: last.start], b_ih[last]])
        params["b_hn"] = b_hh[last]
    return jax.tree.map(jnp.asarray, params_type(cell)(**params))


def torch_gradient_of(cell, gradients, layer):
    """The gradient in our form: each of two summed biases has the gradient of the sum."""
    w_ih, w_hh, b_ih, b_hh = (
        gradients[f"{field}_l{layer}"] for field in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    grads = {"w_ih": w_ih.T, "w_hh": w_hh.T, "b": b_ih}
    if isinstance(cell, GRU):
        grads["b_hn"] = b_hh[2 * cell.hidden_size :]
    return grads


def torch_loss(torch, ys, states):
    """`loss_of`, in torch."""
    total = 0
    for leaf in [ys, *states]:
        total = total + (torch.cos(torch.arange(leaf.numel(), dtype=leaf.dtype)).reshape(leaf.shape) * leaf).sum()
    return total


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("name", TORCH)
def test_torch(torch, name, num_layers, dtype, x64):
    cell, module_name, options = TORCH[name]
    torch.manual_seed(0)
    module = getattr(torch.nn, module_name)(3, 4, num_layers, dtype=getattr(torch, dtype), **options)
    rng = np.random.default_rng(0)
    xs = torch.tensor(rng.normal(size=(8, 3, 3)).astype(dtype), requires_grad=True)
    parts = ("h", "c") if name == "lstm" else ("h",)
    initial = {part: torch.tensor(rng.normal(size=(num_layers, 3, 4)).astype(dtype)) for part in parts}
    for leaf in initial.values():
        leaf.requires_grad_()
    ys, final = module(xs, tuple(initial.values()) if name == "lstm" else initial["h"])
    final = final if name == "lstm" else (final,)
    layered = [leaf[layer] for layer in range(num_layers) for leaf in final]  # the order of our leaves
    torch_loss(torch, ys, layered).backward()

    numbers = {key: value.detach().numpy() for key, value in module.named_parameters()}
    gradients = {key: value.grad.numpy() for key, value in module.named_parameters()}
    layers = range(num_layers)
    state_type = type(cell.initial_state())
    params = [ours_from_torch(cell, numbers, layer) for layer in layers]
    states = [
        state_type(*(jnp.asarray(leaf[layer].detach().numpy()) for leaf in initial.values())) for layer in layers
    ]
    stack = Stack((cell,) * num_layers)
    if num_layers == 1:
        row, problem = Row(cell), (params[0], states[0])
    else:
        row = Row(stack)
        problem = params_type(stack)(tuple(params)), type(stack.initial_state())(tuple(states))
    for implementation in rnnjax.implementations(row.cell):
        run = with_gradients(row.cell, implementation)
        got = run(Problem(*problem, jnp.asarray(xs.detach().numpy()), None, None))
        assert got.ys.dtype == dtype
        check = partial(np.testing.assert_allclose, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        check(got.ys, ys.detach().numpy())
        for ours, theirs in zip(jax.tree.leaves(got.state), layered, strict=True):
            check(ours, theirs.detach().numpy())
        d_params, d_state, d_xs = got.gradients
        check(d_xs, xs.grad.numpy())
        d_layers = [d_params] if num_layers == 1 else d_params.layers
        for layer, d_layer in enumerate(d_layers):
            want = torch_gradient_of(cell, gradients, layer)
            assert d_layer._asdict().keys() == want.keys()
            for field, value in want.items():
                check(getattr(d_layer, field), value, err_msg=f"{field}, layer {layer}")
        torch_states = [leaf.grad[layer].numpy() for layer in layers for leaf in initial.values()]
        for ours, theirs in zip(jax.tree.leaves(d_state), torch_states, strict=True):
            check(ours, theirs)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_lengths_and_reverse_are_those_of_packed_sequences(torch, name, x64):
    """Pitfalls 6 and 7: both directions over a padded batch, as torch does it."""
    cell, module_name, options = TORCH[name]
    module = getattr(torch.nn, module_name)(3, 4, bidirectional=True, dtype=torch.float64, **options)
    xs = np.random.default_rng(0).normal(size=(8, 3, 3))
    lengths = np.array([8, 3, 5])
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.tensor(xs), lengths, enforce_sorted=False)
    with torch.no_grad():
        want, final = module(packed)
    want, _ = torch.nn.utils.rnn.pad_packed_sequence(want)
    numbers = {key: value.detach().numpy() for key, value in module.named_parameters()}
    for direction, suffix in enumerate(("", "_reverse")):
        params = ours_from_torch(cell, numbers, 0, suffix)
        state = cell.initial_state((3,), jnp.float64)
        problem = Problem(params, state, jnp.asarray(xs), jnp.asarray(lengths), None)
        for implementation in rnnjax.implementations(cell):
            got_state, ys = forward(cell, implementation, bool(direction))(problem)
            np.testing.assert_allclose(ys, want[..., 4 * direction : 4 * direction + 4], rtol=1e-10, atol=1e-10)
            for ours, theirs in zip(got_state, final if name == "lstm" else (final,), strict=True):
                np.testing.assert_allclose(ours, theirs[direction], rtol=1e-10, atol=1e-10)


# ---------------------------------------------------------------------------------------------------------------------
# flax.linen
# ---------------------------------------------------------------------------------------------------------------------

FLAX = {  # our cell; gates in our order: flax's name of the input's layer and of the state's
    "SimpleCell": (Elman(4), [("i", "h")]),
    "LSTMCell": (LSTM(4), [("ii", "hi"), ("if", "hf"), ("ig", "hg"), ("io", "ho")]),
    "OptimizedLSTMCell": (LSTM(4), [("ii", "hi"), ("if", "hf"), ("ig", "hg"), ("io", "ho")]),
    "GRUCell": (GRU(4), [("ir", "hr"), ("iz", "hz"), ("in", "hn")]),
}


def ours_from_flax(cell, tree, gates):
    """Linear, so that it maps gradients as well as parameters."""
    join = partial(jnp.concatenate, axis=-1)
    params = {
        "w_ih": join([tree[i]["kernel"] for i, _ in gates]),
        "w_hh": join([tree[h]["kernel"] for _, h in gates]),
        # Of the two layers one has the bias; the GRU's candidate has two.
        "b": join([tree[i]["bias"] if "bias" in tree[i] else tree[h]["bias"] for i, h in gates]),
    }
    if isinstance(cell, GRU):
        params["b_hn"] = tree["hn"]["bias"]
    return params_type(cell)(**params)


@pytest.mark.quick
@pytest.mark.parametrize("name", FLAX)
def test_flax(name, x64):
    linen = pytest.importorskip("flax.linen")
    cell, gates = FLAX[name]
    module = getattr(linen, name)(4, param_dtype=jnp.float64)
    rng = np.random.default_rng(0)
    carry = (jnp.zeros(4), jnp.zeros(4)) if isinstance(cell, LSTM) else jnp.zeros(4)
    shapes = jax.eval_shape(module.init, jax.random.key(0), carry, jnp.zeros(3))["params"]
    tree = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape)), shapes)
    problem = plain(make_problem(Row(cell)))._replace(params=ours_from_flax(cell, tree, gates))
    got = with_gradients(cell, "scan")(problem)

    def loss(differentiable):
        tree, state, xs = differentiable
        carry = (state.c, state.h) if isinstance(cell, LSTM) else state.h  # pitfall 2: flax has c first
        carry, ys = jax.lax.scan(lambda carry, x: module.apply({"params": tree}, carry, x), carry, xs)
        final = type(state)(carry[1], carry[0]) if isinstance(cell, LSTM) else type(state)(carry)
        return loss_of(final, ys), (final, ys)

    @fast_jit
    def theirs(*differentiable):
        (d_tree, d_state, d_xs), (final, ys) = jax.grad(loss, has_aux=True)(differentiable)
        return Outcome(final, ys, (ours_from_flax(cell, d_tree, gates), d_state, d_xs))

    assert_close(got, theirs(tree, problem.state, problem.xs))


@pytest.mark.quick
def test_forget_bias_is_applied_once():
    """Pitfall 4: in `b` from the start, and never added by a step."""
    cell = LSTM(2, forget_bias=3.0)
    params = cell.init(jax.random.key(0), 1)
    np.testing.assert_array_equal(params.b, [0, 0, 3, 3, 0, 0, 0, 0])
    silent = jax.tree.map(jnp.zeros_like, params)._replace(b=params.b)
    state = cell.initial_state()._replace(c=jnp.ones(2))
    state, _ = cell.step(silent, state, jnp.zeros(1))
    np.testing.assert_allclose(state.c, 1 / (1 + np.exp(-3.0)), rtol=1e-6)
