"""The code in the README runs: the API on one screen, and the cell that a stranger adds."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)


def test_the_api_on_one_screen_runs():
    (code,) = [block for block in BLOCKS if "rnnjax.tbptt(" in block]
    optimizer = optax.sgd(0.1)
    params = {"cell": rnnjax.LSTM(256).init(jax.random.key(0), 65), "out": jnp.zeros((256, 1))}
    given = {
        "x": jnp.ones((32, 65)),
        "xs": jnp.ones((4, 32, 65)),
        "lengths": jnp.full(32, 3),
        "done": jnp.zeros((4, 32), bool),
        "key": jax.random.key(1),
        "optimizer": optimizer,
        "opt_state": optimizer.init(params),
        "stream": {"x": jnp.ones((128, 32, 65)), "y": jnp.ones((128, 32, 1))},
    }
    # The screen reuses names; each part gets the parameters it is about.
    head, stack, loss = re.split(r"(?=^stack = |^def loss_fn)", code, flags=re.M)
    exec(head, given)
    exec(stack.replace("params, state, xs", "stack.init(key, 65), stack.initial_state((32,)), xs"), given)
    given |= {"params": params, "state": given["cell"].initial_state((32,))}
    exec(loss, given)
    assert given["result"].info.loss.shape == (2,)


@pytest.mark.quick
def test_the_cell_in_the_readme(tmp_path, monkeypatch):
    """As the README says it: in a file of its own, approved by check_cell, and equal to its equations."""
    (code,) = [block for block in BLOCKS if "class MGU:" in block]
    (tmp_path / "mgu.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    cell = rnnjax.cell_from_name("mgu.py:MGU", 5)
    rnnjax.check_cell(cell, input_size=3)
    assert rnnjax.implementations(cell) == ("scan", "fused")
    params, xs = cell.init(jax.random.key(0), 3), np.random.default_rng(0).normal(size=(6, 2, 3)).astype(np.float32)
    _, ys = rnnjax.unroll(cell, params, cell.initial_state((2,)), xs)
    w_ih, w_hh, b = (np.asarray(leaf, np.float64) for leaf in params)
    h = np.zeros((2, 5))
    for t in range(6):
        (fx, nx), (fh, nh) = np.split(xs[t] @ w_ih + b, 2, axis=-1), np.split(h @ w_hh, 2, axis=-1)
        f = 1 / (1 + np.exp(-(fx + fh)))
        h = (1 - f) * h + f * np.tanh(nx + f * nh)
        np.testing.assert_allclose(ys[t], h, atol=1e-5)
