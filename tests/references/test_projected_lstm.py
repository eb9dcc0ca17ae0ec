"""`ProjectedLSTM` against torch.nn.LSTM with `proj_size`: values, final states and all gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnjax import ProjectedLSTM, implementations
from rnnjax.testing import make_problem
from rnnjax.testing.problems import plain, with_gradients


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")  # of torch
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torch(dtype, x64):
    torch = pytest.importorskip("torch", reason="torch is not installed on this Python")
    cell = ProjectedLSTM(4, cell_size=5)
    problem = plain(make_problem(cell, 3, dtype=jnp.dtype(dtype)))
    params, state, xs = jax.tree.map(np.asarray, tuple(problem[:3]))

    def tensor(a):
        return torch.tensor(a, requires_grad=True)

    module = torch.nn.LSTM(3, 5, proj_size=4, dtype=getattr(torch, dtype))
    with torch.no_grad():
        for name, value in {
            "weight_ih_l0": params.w_ih.T,
            "weight_hh_l0": params.w_hh.T,
            "bias_ih_l0": params.b,
            "bias_hh_l0": np.zeros_like(params.b),  # pitfall 3: its two biases are one
            "weight_hr_l0": params.w_proj.T,
        }.items():
            getattr(module, name).copy_(torch.tensor(value))
    x, h, c = tensor(xs), tensor(state.h[None]), tensor(state.c[None])
    ys, (h_final, c_final) = module(x, (h, c))
    total = 0
    for leaf in (ys, h_final, c_final):  # `loss_of`
        total = total + (torch.cos(torch.arange(leaf.numel(), dtype=leaf.dtype)).reshape(leaf.shape) * leaf).sum()
    total.backward()
    got_weights = {name: parameter.grad.numpy() for name, parameter in module.named_parameters()}

    for implementation in implementations(cell):
        got = with_gradients(cell, implementation)(problem)
        d_params, d_state, d_xs = got.gradients
        pairs = {
            "ys": (got.ys, ys.detach()),
            "h": (got.state.h, h_final[0].detach()),
            "c": (got.state.c, c_final[0].detach()),
            "d_xs": (d_xs, x.grad),
            "d_h": (d_state.h, h.grad[0]),
            "d_c": (d_state.c, c.grad[0]),
            "d_w_ih": (d_params.w_ih, got_weights["weight_ih_l0"].T),
            "d_w_hh": (d_params.w_hh, got_weights["weight_hh_l0"].T),
            "d_b": (d_params.b, got_weights["bias_ih_l0"]),
            "d_w_proj": (d_params.w_proj, got_weights["weight_hr_l0"].T),
        }
        tolerance = 1e-5 if dtype == "float32" else 1e-10
        for name, (ours, theirs) in pairs.items():
            assert ours.dtype == dtype
            np.testing.assert_allclose(ours, np.asarray(theirs), rtol=tolerance, atol=tolerance, err_msg=name)
