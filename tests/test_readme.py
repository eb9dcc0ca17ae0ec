"""The code in the README runs: the API on one screen, and the cell that a stranger adds."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
import rnnjax.interop
import rnnjax.testing
from rnnjax import cli

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)


def test_the_api_on_one_screen_runs():
    (code,) = [block for block in BLOCKS if "rnnjax.tbptt(" in block]  # the one screen
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
    main, loss = re.split(r"(?=^def loss_fn)", code, flags=re.M)
    exec(main, given)
    given |= {"params": params, "state": given["cell"].initial_state((32,))}  # of the network that is trained
    exec(loss, given)
    assert given["result"].info.loss.shape == (2,)


def test_topologies_decoding_and_training_in_the_readme_run():
    (code,) = [block for block in BLOCKS if "beam_search(" in block]
    arrays = {"x": np.ones((64, 3), np.float32), "y": np.ones((64, 1), np.float32)}
    main, fit = re.split(r"(?=^batches = )", code, flags=re.M)
    given = {
        "rnnjax": rnnjax,
        "optax": optax,
        "key": jax.random.key(0),
        "symbols": jnp.ones((4, 2), jnp.int32),
        "lengths": jnp.array([4, 2]),
    }
    exec(main, given)
    assert given["logits"].shape == (2, 18) and given["beams"].tokens.shape == (2, 5, 50)
    assert (np.diff(np.asarray(given["beams"].scores), axis=1) <= 0).all()  # best first
    given |= {
        "arrays": arrays,
        "params": jnp.zeros((3, 1)),
        "loss_fn": lambda params, batch, *, key: jnp.mean((batch["x"] @ params - batch["y"]) ** 2),
        "evaluate": lambda params: float(jnp.mean((arrays["x"] @ params - arrays["y"]) ** 2)),
    }
    exec(fit, given)
    assert given["outcome"].step == 10 and given["outcome"].metrics["loss"] < 1


def test_the_layers_in_the_readme_run():
    (code,) = [block for block in BLOCKS if "pack_documents(" in block]
    rng = np.random.default_rng(0)
    given = {
        "rnnjax": rnnjax,
        "key": jax.random.key(0),
        "xs": jnp.asarray(rng.normal(size=(4, 32, 65)), jnp.float32),
        "lengths": jnp.full(32, 3),
        "done": jnp.zeros((4, 32), bool),
        "documents": [rng.normal(size=(length, 65)).astype(np.float32) for length in (3, 300, 210)],
    }
    exec(code, given)
    lstm, params = given["lstm"], given["params"]
    for document, got in zip(given["documents"], given["outputs"], strict=True):
        _, want = rnnjax.unroll(lstm, params, lstm.initial_state(), document)
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_the_interchange_in_the_readme_runs(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="torch is not installed on this Python")
    (code,) = [block for block in BLOCKS if "from_torch(" in block]
    monkeypatch.chdir(tmp_path)
    module = torch.nn.LSTM(3, 4)
    given = {"rnnjax": rnnjax, "module": module}
    exec(code, given)
    xs = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    _, ys = rnnjax.unroll(given["cell"], given["params"], given["cell"].initial_state((2,)), xs)
    np.testing.assert_allclose(ys, module(torch.tensor(xs))[0].detach(), atol=1e-6)
    assert given["state_dict"].keys() == module.state_dict().keys()


@pytest.fixture
def janet(tmp_path, monkeypatch):
    """The folder of a stranger, with the README's cell in a file."""
    (code,) = [block for block in BLOCKS if "class Janet:" in block]
    assert len([line for line in code.splitlines() if line.strip()]) < 30
    (tmp_path / "janet.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    return rnnjax.cells.cell_from_name("janet.py:Janet", 5)


@pytest.mark.quick
def test_the_cell_in_the_readme(janet):
    """As the README says it: approved by both checks, taken by the fused engine, and equal to its equations."""
    (checks,) = [block for block in BLOCKS if "check_laws(Janet" in block]
    exec(checks, {"rnnjax": rnnjax, "Janet": type(janet)})
    assert rnnjax.implementations(janet) == ("scan", "fused")
    params, xs = janet.init(jax.random.key(0), 3), np.random.default_rng(0).normal(size=(6, 2, 3)).astype(np.float32)
    _, ys = rnnjax.unroll(janet, params, janet.initial_state((2,)), xs)
    w_ih, w_hh, b = (np.asarray(leaf, np.float64) for leaf in params)
    h = np.zeros((2, 5))
    for t in range(6):
        f, g = np.split(xs[t] @ w_ih + b + h @ w_hh, 2, axis=-1)
        f = 1 / (1 + np.exp(-f))
        h = f * h + (1 - f) * np.tanh(g)
        np.testing.assert_allclose(ys[t], h, atol=1e-5)


def test_the_cell_in_the_readme_trains(janet, capsys):
    """The command of the README, with a small text and few steps; the model then goes on from its own file."""
    Path("text.txt").write_text("the cat sat on the mat. " * 60)
    options = ["--hidden", "8", "--batch-size", "2", "--chunk-len", "8", "--steps", "3", "--sample-length", "0"]
    commands = re.findall(r"^rnnjax (train --cell .*)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    for command, more in ((commands[0], ["text.txt", *options, "--out", "run"]), ("sample run --length 20", [])):
        with pytest.raises(SystemExit) as caught:
            cli.main([*command.split(), *more])
        assert not caught.value.code
    assert len(capsys.readouterr().out.strip()) > 20


def test_the_cell_in_the_readme_is_measured(janet):
    """The benchmark command of the README, on one small shape."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^python -m (benchmarks --cells \S*janet\S*)", text, re.M)
    small = ["--sizes", "4,2,3,5", "--rounds", "1", "--compile-rounds", "1", "--rivals", "none", "--out", "rows.json"]
    subprocess.run(
        [sys.executable, "-m", *command.split(), *small],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=True,
    )  # fmt: skip
    rows = json.loads(Path("rows.json").read_text())["rows"]
    assert {row["cell"] for row in rows} == {"lstm", "janet.py:Janet"}
