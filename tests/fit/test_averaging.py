"""The mean of the parameters: its equation, and that it is what a training evaluates, keeps, resumes and returns."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rnnjax.data import ShuffledBatches
from rnnjax.fit import averaged, fit
from rnnjax.fit import checkpoint as checkpoints

DATA = {"x": np.linspace(-1, 1, 24, dtype=np.float32), "y": np.linspace(1, 3, 24, dtype=np.float32)}
START = {"a": np.float32(0.0), "b": np.float32(0.0)}
KEY = jax.random.key(1)


def loss_fn(params, batch, *, key):
    return jnp.mean((params["a"] * batch["x"] + params["b"] - batch["y"]) ** 2)


def trained(folder=None, optimizer=None, **options):
    batches = ShuffledBatches(DATA, batch_size=8, key=KEY)
    optimizer = averaged(optax.sgd(0.2), 0.8) if optimizer is None else optimizer
    options = {"steps": 12, "evals": 3, "log_every": 1, **options}
    return fit(loss_fn, START, optimizer, batches, evaluate=measure, folder=folder, **options)


def measure(params):
    return {"loss": loss_fn(params, DATA, key=None)}


def means(path, decay, begin=0):
    """Of the sequence, by its definition: nothing before it begins, then the two shares."""
    mean, n = path[0], 0
    for t, params in enumerate(path):
        n = n + 1 if t >= begin else 0
        mean = params if n <= 1 else mean + max(1 / n, 1 - decay) * (params - mean)
    return mean


@pytest.mark.parametrize("decay", [1.0, 0.7])
def test_the_mean_is_that_of_its_equation(decay):
    rng = np.random.default_rng(0)
    optimizer = averaged(optax.sgd(1.0), decay, begun=False)
    params = jnp.float32(1.0)
    state, path = optimizer.init(params), []
    for t, step in enumerate(rng.normal(size=9)):
        if t == 3:
            state = state._replace(averaging=jnp.ones((), bool))
        updates, state = optimizer.update(jnp.float32(step), state, params)
        params = optax.apply_updates(params, updates)
        path.append(float(params))
        np.testing.assert_allclose(state.averaged, means(path, decay, 3), rtol=1e-5)
    if decay == 1.0:
        np.testing.assert_allclose(state.averaged, np.mean(path[3:]), rtol=1e-5)
    assert float(params) == path[-1]


@pytest.mark.parametrize("kept", ["folder", "memory"])
def test_a_training_evaluates_and_returns_the_mean(tmp_path, kept):
    """Against the parameters of the same training without a mean, taken down update by update."""
    path = []
    for steps in range(1, 13):
        found = trained(None, optax.sgd(0.2), steps=steps, evals=1).params
        path.append(np.array([found["a"], found["b"]]))
    found = trained(tmp_path / "run" if kept == "folder" else None)
    want = means(path, 0.8)
    np.testing.assert_allclose([found.params["a"], found.params["b"]], want, rtol=1e-5)
    last = {"a": want[0], "b": want[1]}
    np.testing.assert_allclose(found.history[-1]["loss"], measure(last)["loss"], rtol=1e-4)
    assert abs(want - path[-1]).max() > 0.01


def test_a_stopped_training_goes_on_with_its_mean(tmp_path):
    asked = []
    trained(tmp_path / "run", should_stop=lambda: asked.append(0) or len(asked) == 5)
    resumed, straight = trained(tmp_path / "run", resume=True), trained(tmp_path / "straight")
    assert resumed.params == straight.params and resumed.metrics == straight.metrics
    arrays, _ = checkpoints.load(checkpoints.find_checkpoints(tmp_path / "run" / "checkpoints")[-1].path)
    assert arrays["opt_state.averaged['a']"] != arrays["params['a']"]


def test_the_mean_is_of_what_a_lower_rate_made(tmp_path):
    """After going back, updates are scaled behind the optimizer; the mean is of the parameters as they are."""
    outcome = trained(tmp_path / "run", averaged(optax.sgd(3.0), 1e-6), explosion=20.0)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any(row["kind"] == "rollback" for row in rows)
    arrays, _ = checkpoints.load(checkpoints.find_checkpoints(tmp_path / "run" / "checkpoints")[-1].path)
    assert outcome.step == 12
    for name in ("a", "b"):
        np.testing.assert_allclose(arrays[f"opt_state.averaged['{name}']"], arrays[f"params['{name}']"], rtol=1e-3)


def test_what_is_no_optimizer_or_no_decay_is_refused():
    with pytest.raises(TypeError, match=r"^averaged: optimizer must be an optax optimizer"):
        averaged(optax.sgd)
    with pytest.raises(ValueError, match=r"^averaged: decay must"):
        averaged(optax.sgd(0.1), 0.0)
    with pytest.raises(ValueError, match=r"^averaged: params must"):
        optimizer = averaged(optax.sgd(0.1))
        optimizer.update(jnp.ones(()), optimizer.init(jnp.ones(())))
