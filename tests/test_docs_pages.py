"""The pages in docs: their code runs and does what they say, and their table is made of measurements."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax import interop
from rnnjax.testing.problems import fast_jit
from tests.interop import agreement, table
from tests.pages import ROOT, blocks, run_fresh


def run(page):
    """All code of a page, block after block, and the names that it leaves."""
    given = {"__name__": "page"}
    jax.config.update("jax_disable_most_optimizations", True)  # compiles faster
    try:
        for code in blocks(f"docs/{page}"):
            exec(compile(code, page, "exec"), given)
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
    return given


@pytest.fixture(scope="module")
def optimizers():
    return run("optimizers.md")


def update(optimizer, params, gradient, steps=1):
    """The last of some updates with one gradient."""

    @fast_jit
    def updates(params, gradient):
        state = optimizer.init(params)
        for _ in range(steps):
            changes, state = optimizer.update(gradient, state, params)
        return changes

    return jax.tree.map(np.asarray, updates(params, gradient))


def ones(tree):
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), tree)


def by_path(page, tree):
    return dict(zip(jax.tree.leaves(page["paths"]), jax.tree.leaves(tree), strict=True))


def test_paths_are_what_the_page_says(optimizers):
    assert {"stack.layers.0.w_ih", "stack.layers.0.w_hh", "stack.layers.0.b", "stack.norms.1.scale", "out.w"} <= set(
        jax.tree.leaves(optimizers["paths"])
    )


def test_no_decay_on_biases(optimizers):
    """Without a gradient AdamW only decays: by rate times decay, and only what the mask names."""
    params = ones(optimizers["params"])
    changes = update(optimizers["no_decay_on_biases"], params, jax.tree.map(np.zeros_like, params))
    for path, change in by_path(optimizers, changes).items():
        is_matrix = path.split(".")[-1] in ("w_ih", "w_hh", "w")
        np.testing.assert_allclose(change, -1e-4 if is_matrix else 0.0, rtol=1e-6, err_msg=path)


def test_a_smaller_rate_for_the_recurrent_weights(optimizers):
    """The first step of Adam is its rate; the schedule stands at zero then, so the second is measured."""
    changes = update(optimizers["slow_recurrence"], optimizers["params"], ones(optimizers["params"]), steps=2)
    rate = float(optimizers["schedule"](1))
    for path, change in by_path(optimizers, changes).items():
        np.testing.assert_allclose(change, -rate * (0.1 if path.endswith("w_hh") else 1), rtol=1e-3, err_msg=path)


def test_a_frozen_layer_stands_still(optimizers):
    for name in ("first_layer_frozen", "optimizer"):
        changes = update(optimizers[name], optimizers["params"], ones(optimizers["params"]))
        for path, change in by_path(optimizers, changes).items():
            assert (change == 0).all() == path.startswith("stack.layers.0."), (name, path)


def test_all_settings_together_train(optimizers):
    before, after = optimizers["params"], optimizers["trained"]
    for a, b in zip(before["stack"].layers[0], after["stack"].layers[0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert optimizers["losses"][-1] < optimizers["losses"][0]


@pytest.fixture(scope="module")
def agent():
    return run("reinforcement.md")


def test_memory_beats_no_memory(agent):
    """Nothing that sees the present alone answers right more often than every second time."""
    keys = [jax.random.key(seed) for seed in range(1, 9)]  # eight times the episodes of the page: 0.01 deviation
    measure = agent["rewards_per_episode"]
    kept, cleared = (np.mean([measure(agent["params"], key, forget) for key in keys]) for forget in (False, True))
    assert agent["with_memory"] > 0.95 and kept > 0.95
    assert abs(cleared - 0.5) < 0.05


def test_replay_is_what_the_actor_saw(agent):
    """With the stored state the same network has the same values, behind the burn-in and before it; not without it."""
    act, replay, params = agent["act"], agent["replay"], agent["params"]

    @fast_jit
    def measure(params, key):
        actor, _ = act(params, agent["start"](key), key, steps=11)  # ends in the midst of episodes
        _, sequence = act(params, actor, key)
        zero = sequence._replace(state=jax.tree.map(jnp.zeros_like, sequence.state))
        return sequence, replay(params, sequence), replay(params, sequence, 0), replay(params, zero, 0)

    sequence, q, q_all, q_zero = measure(params, jax.random.key(2))
    np.testing.assert_allclose(q, sequence.values[agent["BURN_IN"] :], atol=1e-5)
    np.testing.assert_allclose(q_all, sequence.values, atol=1e-5)
    assert np.abs(np.asarray(q_zero - sequence.values)).max() > 0.1
    # A row agrees again from its first reset on.
    since = np.maximum.accumulate(np.asarray(sequence.resets), axis=0)
    np.testing.assert_allclose(np.asarray(q_zero)[since], np.asarray(sequence.values)[since], atol=1e-5)
    # The flags: after every answer, and nowhere else.
    due = np.asarray(sequence.observations)[..., 2] == 1
    np.testing.assert_array_equal(np.asarray(sequence.resets)[1:], due[:-1])


def test_burn_in_refreshes_a_stored_state(agent):
    """R2D2's point: a stored state is of older parameters, and steps under the new ones bring it nearer to them."""
    act, cell, new = agent["act"], agent["cell"], agent["params"]

    @fast_jit
    def measure(old, new, key):
        end, before = act(old, agent["start"](key), key, steps=30)
        _, sequence = act(old, end, key, steps=10)

        def run(state, part, resets):
            return rnnjax.unroll(cell, new["cell"], state, part.observations, resets=resets)

        true, _ = run(before.state, before, before.resets)  # all of the past under the new ones
        never = jnp.zeros_like(sequence.resets)  # which would make both the same at once
        (_, stale), (_, fresh) = (run(state, sequence, never) for state in (sequence.state, true))
        first = jnp.abs(sequence.state.h - true.h).mean()
        return first, jnp.abs(stale - fresh).mean((1, 2))  # y is h

    old = jax.tree.map(lambda leaf: leaf * 0.8, new)
    first, gaps = measure(old, new, jax.random.key(3))
    assert first > 0.01
    assert gaps[agent["BURN_IN"]] < first and gaps[-1] < 0.5 * first


def test_the_page_of_frameworks_names_what_exists():
    text = (ROOT / "docs" / "interop.md").read_text(encoding="utf-8")
    names = set(re.findall(r"interop\.(\w+)\(", text)) | set(re.findall(r"`((?:to|from)_\w+)`", text))
    assert {"from_torch", "to_cudnn", "export_cell"} <= names
    assert not [name for name in names if not hasattr(interop, name)]
    assert text.count(table.BEGIN) == text.count(table.END) == 1
    measured = text[text.index(table.BEGIN) : text.index(table.END)]
    for framework in ("torch", "keras", "flax linen", "flax nnx", "haiku", "equinox", "cuDNN"):
        assert f"| {framework}" in measured


def test_the_table_is_made_of_what_was_recorded(tmp_path, monkeypatch, capsys):
    path, page = tmp_path / "agreement.jsonl", tmp_path / "page.md"
    monkeypatch.setenv("RNNJAX_AGREEMENT", str(path))
    agreement.record("torch", "LSTM", "from", "float32", 3e-8)
    agreement.record("torch", "LSTM", "in", np.float32, 1.6e-7)
    agreement.record("torch", "LSTM", "to", jnp.float64, 0.0)
    assert agreement.agree("flax", "GRUCell", "in", "float32", {"a": np.ones(2)}, {"a": np.ones(2) + 1e-3}, 1e-2) > 9e-4
    with pytest.raises(AssertionError, match="flax GRUCell in: differs by inf"):
        agreement.agree("flax", "GRUCell", "in", "float32", np.array([np.nan]), np.zeros(1), 1e-2)
    with pytest.raises(AssertionError, match="differs by 1, more than 1e-06"):
        agreement.agree("flax", "GRUCell", "in", "float32", np.ones(1), np.zeros(1), 1e-6)
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 4
    page.write_text(f"above\n{table.BEGIN}\nold\n{table.END}\nbelow\n")
    table.main([str(path), str(page)])
    assert capsys.readouterr().out.endswith("2 rows\n")
    rows = ["| flax | GRUCell | 1e-03 |  |  |  |", "| torch | LSTM | 2e-07 |  |  | 0 |"]
    assert page.read_text() == "\n".join(["above", table.BEGIN, table.HEADER + "\n".join(rows), table.END, "below\n"])
    with pytest.raises(ValueError, match="the page must hold the line"):
        table.replace("nothing", "")


AFTER = """
import pathlib, tempfile, numpy as np
s = jax.nn.sigmoid
np.testing.assert_allclose(closed, s(params.nu) * values['n'].value, rtol=1e-6)
np.testing.assert_array_equal(y, values['h'].value)
# The network: values side by side, the laws that its three methods can break, and a file.
xs = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2, 3)), jnp.float32)
_, ys = rnnjax.unroll(net, net_params, None, xs)
for cell, part, columns in zip(net.cells, net_params.sides, (slice(4), slice(4, None)), strict=True):
    np.testing.assert_allclose(ys[..., columns], rnnjax.unroll(cell, part, None, xs)[1], rtol=1e-6)
try:
    rnnjax.unroll(FastGRNN(16), params, None, jnp.ones((513, 2, 3)), implementation="again")
except ValueError as error:
    assert "'again' needs 512 steps at the most, got 513" in str(error), error
rnnjax.testing.check_laws(net, 3, laws=("values", "loop", "valid", "dtypes"), implementations=("scan",))
plain = SideBySide((rnnjax.LSTM(4), rnnjax.GRU(2)))  # of cells that a file may name
with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, "net.safetensors")
    rnnjax.save(path, plain, plain.init(jax.random.key(0), 3))
    assert rnnjax.load(path)[0] == plain
"""


@pytest.mark.long
def test_the_page_of_extensions():
    """Whole cells, a network and two engines, as a stranger writes them; a held gate does what the equation says."""
    engines, *others = run_fresh("docs/extending.md", after=AFTER).splitlines()
    assert engines.startswith("('scan', 'fused'")  # and what else the machine offers
    assert others == ["['z', 'n', 'h'] (2, 16)", "(10, 2, 7) (7, 15)", "True False"]


@pytest.mark.long
def test_the_page_of_networks():
    """Packed documents give each what it would have had alone, and nothing is dropped without a key."""
    run_fresh(
        "docs/networks.md",
        after="weights = lstm.init(key, input_size=65)\n"
        "for document, got in zip(documents, outputs, strict=True):\n"
        "    want = rnnjax.unroll(lstm, weights, lstm.initial_state(), document)[1]\n"
        "    np.testing.assert_allclose(got, want, atol=1e-5)\n"
        "assert np.abs(np.asarray(trained - evaluated)).max() > 1e-3",
    )


@pytest.mark.long
def test_the_page_of_training():
    """The line is found, the beams are best first, and both ways of training a stream learn from it."""
    run_fresh(
        "docs/training.md",
        before={"from rnnjax.online": "looked_back = result"},
        after="assert logits.shape == (2, 18) and beams.tokens.shape == (2, 5, 50)\n"
        "assert (np.diff(np.asarray(beams.scores), axis=1) <= 0).all()\n"
        "np.testing.assert_allclose(np.ravel(outcome.params), [1, -2, 0.5], atol=0.05)\n"
        "assert looked_back.info.loss.shape == (8,) and result.info.loss.shape == (128,)\n"
        "assert result.info.loss[-16:].mean() < result.info.loss[:16].mean()",
    )


def test_optax_has_both_names():
    assert optax.multi_transform is optax.partition
