"""Dynamic evaluation against a loop in NumPy arrays, and against the static one where nothing moves."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax.lm.evaluate import Dynamic, evaluate, evaluate_dynamic
from rnnjax.lm.model import LanguageModel
from tests.lm.tiny_run import make_run, strong
from tests.lm.tiny_run import rnnjax as command

MODEL = LanguageModel(vocab_size=5, stack=rnnjax.Stack((rnnjax.GRU(4),)))
PARAMS = strong(MODEL.init(jax.random.key(0)))
IDS = np.random.default_rng(0).integers(0, 5, 23).astype(np.uint8)
STARTS = np.array([0, 9])


def by_hand(options):
    params, squares, state, total = PARAMS, None, MODEL.initial_state((1,)), 0.0

    @jax.jit
    def slope(params, state, symbols, targets, resets):
        def loss(params):
            new, logits = MODEL.logits(params, state, symbols[:, None], resets=resets[:, None])
            return optax.softmax_cross_entropy_with_integer_labels(logits[:, 0], targets).mean(), new

        return jax.value_and_grad(loss, has_aux=True)(params)

    for n, first in enumerate(range(0, 22, options.window), 1):
        at = np.arange(first, min(first + options.window, 22))
        symbols, targets = jnp.asarray(IDS[at], int), jnp.asarray(IDS[at + 1], int)
        (loss, state), g = slope(params, state, symbols, targets, jnp.asarray(np.isin(at, STARTS)))
        total += float(loss) * len(at)
        g = jax.tree.map(np.asarray, g)
        squares = jax.tree.map(lambda s, a: ((n - 1) * s + a * a) / n, squares or jax.tree.map(np.zeros_like, g), g)  # noqa: B023
        params = jax.tree.map(
            lambda p, a, s, p0: p - options.lr * a / (np.sqrt(s) + options.epsilon) + options.decay * (p0 - p),
            params, g, squares, PARAMS,
        )  # fmt: skip
    return total / 22


@pytest.mark.parametrize("options", [Dynamic(lr=0.05, decay=0.1, window=4), Dynamic(lr=0.3, decay=0.0, window=7)])
def test_parameters_follow_what_was_read(options):
    found = evaluate_dynamic(MODEL, PARAMS, IDS, options=options, starts=STARTS)
    assert found.count == 22 and found.loss == pytest.approx(by_hand(options), rel=1e-4)
    assert found.loss != pytest.approx(evaluate(MODEL, PARAMS, IDS, starts=STARTS).loss, rel=1e-3)


def test_a_step_of_zero_is_the_static_evaluation():
    found = evaluate_dynamic(MODEL, PARAMS, IDS, options=Dynamic(lr=0.0, window=4), starts=STARTS)
    assert found.loss == pytest.approx(evaluate(MODEL, PARAMS, IDS, starts=STARTS).loss, rel=1e-5)


def test_the_command_shows_it_beside_the_static_one(tmp_path, capsys):
    folder = make_run(tmp_path / "run")
    (tmp_path / "other.txt").write_text("abab" * 200)
    found = command(capsys, "eval", folder, tmp_path / "other.txt", "--dynamic", "--dynamic-lr", "0.02")
    losses = [float(line.split("dynamic")[1].split()[0]) for line in found.out.splitlines() if "dynamic" in line]
    static = [float(line.split("carried")[1].split()[0]) for line in found.out.splitlines() if "carried" in line]
    assert found.code == 0 and losses[0] < 0.7 * static[0]
    lost = command(capsys, "eval", folder, tmp_path / "other.txt", "--dynamic", "--dynamic-lr", "1e30", "--json")
    row = json.loads(lost.out, parse_constant=pytest.fail)["results"][-1]
    assert row["state"] == "dynamic" and (row["loss"] is None or row["loss"] > 9)
    assert "ran away from what was trained" in lost.err and lost.code == 0


def test_errors():
    with pytest.raises(ValueError, match=r"^Dynamic: lr must"):
        Dynamic(lr=-1.0)
    with pytest.raises(ValueError, match=r"^evaluate_dynamic: ids must hold at least two symbols, got 1"):
        evaluate_dynamic(MODEL, PARAMS, IDS[:1])
