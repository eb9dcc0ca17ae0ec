"""`fit` on two processes is `fit` on one process with two devices, to the bit."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = r"""
import pathlib, sys
import jax, jax.numpy as jnp, numpy as np, optax
address, count, index, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), pathlib.Path(sys.argv[4])
if count > 1:
    jax.distributed.initialize(address, count, index)
import rnnjax
from rnnjax.fit import fit

mesh = jax.make_mesh((jax.device_count(),), ("batch",))
cell, optimizer, measured = rnnjax.GRU(4), optax.adam(1e-2), []
stream = np.random.default_rng(0).normal(size=(20, 6, 3)).astype(np.float32)

def loss_fn(params, state, batch, *, key):
    state, ys = rnnjax.unroll(cell, params, state, batch, implementation="scan")
    return jnp.mean((ys[..., :3] - batch) ** 2), state, {"size": jnp.mean(ys**2)}

def evaluate(params):
    measured.append(float(jnp.mean(params.w_hh**2)))
    return measured[-1]

options = dict(state=cell.initial_state((6,)), evaluate=evaluate, evals=2, log_every=2, mesh=mesh,
               batch_spec=jax.sharding.PartitionSpec(None, "batch"), folder=folder)
train = lambda **more: fit(loss_fn, cell.init(jax.random.key(0), 3), optimizer,
                           lambda step: stream[step % 4 * 5:][:5], **options, **more)
train(steps=4)
outcome = train(steps=8, resume=True)
assert (len(measured) > 0) == (index == 0), measured
assert outcome.step == 8 and len(outcome.history) == 3
try:
    train(steps=9)
except Exception as error:
    assert "holds the metrics of another training; resume, or" in str(error), error
else:
    raise AssertionError
if index == 0:
    np.savez(folder / "found.npz", *map(np.asarray, jax.tree.leaves(outcome.params)), outcome.metrics["loss"])
print("done", index)
"""


def train(folder, count, devices):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    words = [sys.executable, "-c", PROGRAM, address, str(count)]
    children = [
        subprocess.Popen([*words, str(index), str(folder)], env=environment, cwd=Path(__file__).parents[2],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for index in range(count)
    ]  # fmt: skip
    try:
        for index, child in enumerate(children):
            said, errors = child.communicate(timeout=300)
            assert said.endswith(f"done {index}\n"), said + errors
    finally:
        for child in children:
            child.kill()
    return (folder / "found.npz").read_bytes(), (folder / "metrics.jsonl").read_text()


@pytest.mark.thorough
def test_two_processes_fit_what_two_devices_fit(tmp_path):
    one, two = train(tmp_path / "one", 1, 2), train(tmp_path / "two", 2, 1)
    assert one[0] == two[0]
    assert one[1].count("\n") == two[1].count("\n")
