"""The cells against torch.nn: values, final states and all gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnjax import GRU, LSTM, Elman, Stack
from rnnjax.initializers import Identity
from tests.cells_table import (
    Problem,
    Row,
    able,
    forward,
    params_type,
    with_gradients,
)

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
    states = [state_type(*(jnp.asarray(leaf[layer].detach().numpy()) for leaf in initial.values())) for layer in layers]
    stack = Stack((cell,) * num_layers)
    if num_layers == 1:
        row, problem = Row(cell), (params[0], states[0])
    else:
        row = Row(stack)
        problem = params_type(stack)(tuple(params)), type(stack.initial_state())(tuple(states))
    for implementation in able(row.cell):
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
        for implementation in able(cell):
            got_state, ys = forward(cell, implementation, bool(direction))(problem)
            np.testing.assert_allclose(ys, want[..., 4 * direction : 4 * direction + 4], rtol=1e-10, atol=1e-10)
            for ours, theirs in zip(got_state, final if name == "lstm" else (final,), strict=True):
                np.testing.assert_allclose(ours, theirs[direction], rtol=1e-10, atol=1e-10)
