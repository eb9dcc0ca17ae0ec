"""`fit` against loops written by hand, early stopping, explosions, and resume to the same bits."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax.data import ShuffledBatches
from rnnjax.fit import CheckpointError, TrainingFailedError, fit
from rnnjax.fit import checkpoint as checkpoints
from rnnjax.fit.loop import MAX_ROLLBACKS
from rnnjax.online import Cut, Immediate, Lookback, SnAp1

RNG = np.random.default_rng(0)
X = RNG.normal(size=(22, 3)).astype(np.float32)
DATA = {"x": X, "y": np.tanh(X @ np.array([1.0, -2.0, 0.5], np.float32))}
PARAMS = {"w": np.array([0.1, 0.2, -0.3], np.float32), "b": np.float32(0.5)}
ADAM = optax.adam(0.05)
KEY = jax.random.key(3)


def dropped_loss(params, batch, *, key):
    """Random, so that keys matter."""
    keep = jax.random.bernoulli(key, 0.8, batch["x"].shape)
    error = (batch["x"] * keep) @ params["w"] + params["b"] - batch["y"]
    return jnp.mean(error**2), {"bias": params["b"]}


def exact_loss(params, batch, *, key):
    return jnp.mean((batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2)


def batches_of(**options):
    return ShuffledBatches(DATA, **{"batch_size": 4, "key": jax.random.key(1), **options})


def by_hand(loss_fn, optimizer, batches, steps):
    """The loop that everybody writes."""

    @jax.jit
    def update(params, opt_state, batch, key):
        (loss, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch, key=key)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss, optax.tree.norm(grads)

    params, losses, norms = jax.tree.map(jnp.asarray, PARAMS), [], []
    opt_state = optimizer.init(params)
    for step in range(steps):
        params, opt_state, loss, norm = update(params, opt_state, batches(step), jax.random.fold_in(KEY, step))
        losses.append(float(loss))
        norms.append(float(norm))
    return params, losses, norms


def same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))


def rows_of(folder):
    """Metrics without clocks."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "steps_per_second")} for row in rows]


def test_fit_is_the_loop_written_by_hand():
    rows, batches = [], batches_of()
    outcome = fit(dropped_loss, PARAMS, ADAM, batches, epochs=4.4, key=KEY, log_every=5, evals=1, report=rows.append)
    params, losses, norms = by_hand(dropped_loss, ADAM, batches, 22)
    for name in params:
        np.testing.assert_allclose(outcome.params[name], params[name], rtol=1e-6)
    trained = [row for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in trained] == [5, 10, 15, 20, 22] and [row["epoch"] for row in trained] == [
        *(1, 2, 3, 4, 4)
    ]
    for row, low in zip(trained, (0, 5, 10, 15, 20), strict=True):
        assert row["loss"] == pytest.approx(np.mean(losses[low : row["step"]]), rel=1e-5)
        assert row["grad_norm_max"] == pytest.approx(max(norms[low : row["step"]]), rel=1e-5)
        assert row["progress"] == pytest.approx(row["step"] / 22, abs=1e-6) and row["lr"] is None
    assert trained[0]["bias"] != PARAMS["b"] and rows[-1]["kind"] == "done"
    assert outcome[1:5] == ("budget", 22, 22, {}) and outcome.history == [] and outcome.state is None
    assert PARAMS["b"] == np.float32(0.5)


def test_the_best_evaluation_decides_and_patience_stops():
    """A metric by script; the seventh evaluation would be the best of all, and is never reached."""
    script, seen, rows = [0.1, 0.5, 0.4, 0.5, 0.3, 0.2, 0.9], [], []

    def evaluate(params):
        seen.append(params)
        return {"score": script[len(seen) - 1], "other": math.nan}

    outcome = fit(
        *(dropped_loss, PARAMS, ADAM, batches_of()),
        steps=70,
        evals=14,
        log_every=3,
        evaluate=evaluate,
        monitor="score",
        mode="max",
        patience=4,
        key=KEY,
        report=rows.append,
    )
    assert outcome.reason == "patience" and outcome.step == 30 and outcome.best_step == 10
    assert outcome.metrics["score"] == 0.5 and [row["score"] for row in outcome.history] == script[:6]
    assert [row["best"] for row in outcome.history] == [True, True, False, False, False, False]
    assert [row["step"] for row in rows if row["kind"] == "eval"] == [5, 10, 15, 20, 25, 30]
    same(outcome.params, seen[1])
    straight = fit(dropped_loss, PARAMS, ADAM, batches_of(), steps=10, key=KEY)
    same(outcome.params, straight.params)


def halves(folder, first, second, **options):
    """The same training in two parts."""
    common = {
        "loss_fn": dropped_loss,
        "params": PARAMS,
        "optimizer": ADAM,
        "key": KEY,
        "folder": folder,
        "log_every": 2,
    }
    common |= {"evaluate": lambda params: float(jnp.sum(params["w"] ** 2)), "mode": "max", **options}
    before = fit(batches=batches_of(), **{**common, **first})
    return before, fit(batches=batches_of(), resume=True, **{**common, **second})


def test_five_steps_and_five_more_are_ten(tmp_path):
    _, left = halves(tmp_path / "a", {"steps": 5}, {"steps": 10})
    right = fit(dropped_loss, PARAMS, ADAM, batches_of(), steps=10, key=KEY, log_every=2)
    arrays, meta = checkpoints.load(checkpoints.find_checkpoints(tmp_path / "a" / "checkpoints")[-1].path)
    same({n: arrays[f"params['{n}']"] for n in PARAMS}, right.params)
    assert meta["step"] == left.step == 10


def test_a_training_that_was_stopped_leaves_the_same_run(tmp_path):
    """Bits of the parameters and the optimizer, metrics, best checkpoint and rate, of a stop in the middle."""
    asked = []
    options = {"steps": 12, "evals": 4, "optimizer": optax.inject_hyperparams(optax.adam)(learning_rate=0.0)}
    options["learning_rate"] = lambda place: 0.1 * (1 - place.progress) / (1 + place.plateaus)
    stopped, resumed = halves(
        tmp_path / "a", options | {"should_stop": lambda: asked.append(0) or len(asked) == 3}, options
    )
    assert stopped.reason == "stopped" and 0 < stopped.step < 12 and resumed.reason == "budget"
    twice, straight = halves(tmp_path / "b", options, options)
    assert straight.step == twice.step == 12
    for other in (straight, twice):
        same(resumed.params, other.params)
        assert resumed.best_step == other.best_step and resumed.metrics == other.metrics
        assert [row["loss"] for row in resumed.history] == [row["loss"] for row in other.history]
    assert rows_of(tmp_path / "a") == rows_of(tmp_path / "b")
    found = [checkpoints.find_checkpoints(tmp_path / name / "checkpoints") for name in "ab"]
    assert [c.path.name for c in found[0]] == [c.path.name for c in found[1]]
    for one, two in zip(*found, strict=True):
        same(checkpoints.load(one.path)[0], checkpoints.load(two.path)[0])
    best = rows_of(tmp_path / "a")[-1]
    assert (
        best["loss"]
        == max(row["loss"] for row in resumed.history)
        == pytest.approx(float(np.sum(np.float64(resumed.params["w"]) ** 2)), rel=1e-6)
    )


def test_the_best_is_kept_where_four_digits_do_not_tell(tmp_path):
    values = iter([3e-7, 1e-7, 2e-7, 4e-7])
    options = {"folder": tmp_path, "steps": 4, "log_every": 1, "evals": 4}
    outcome = fit(exact_loss, PARAMS, ADAM, batches_of(), evaluate=lambda params: next(values), **options)
    assert outcome.best_step == 2 and outcome.metrics == {"loss": 1e-7}
    same(outcome.params, fit(exact_loss, PARAMS, ADAM, batches_of(), steps=2).params)


def spike(params, batch, *, key):
    """Explodes at updates that are long enough: 2 for w = 1, and cosh has no bound."""
    return jnp.cosh(3 * params["w"]).sum() + 0 * batch["x"].sum()


@pytest.mark.parametrize("rated", [False, True])
def test_an_explosion_goes_back_and_halves_the_rate(rated):
    """By hand: the rate that survives from the start is the first halving for which descent converges."""
    rows, start = [], {"w": np.ones(1, np.float32)}
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=1.0) if rated else optax.sgd(1.0)
    outcome = fit(
        *(spike, start, optimizer, batches_of()),
        steps=40,
        log_every=10,
        evals=1,
        learning_rate=(lambda place: 1.0) if rated else None,
        report=rows.append,
    )
    back = [row for row in rows if row["kind"] == "rollback"]
    assert [row["to_step"] for row in back] == [0] * len(back) and back[-1]["lr_scale"] == 0.5 ** len(back)
    survivors = []
    for halvings in range(8):
        w = 1.0
        with np.errstate(all="ignore"):
            for _ in range(10):
                w -= 0.5**halvings * 3 * np.sinh(3 * w)
        survivors.append(abs(w) < 1)
    assert len(back) == survivors.index(True) > 1
    w = np.float64(1.0)
    for _ in range(40):
        w -= back[-1]["lr_scale"] * 3 * np.sinh(3 * w)
    np.testing.assert_allclose(outcome.params["w"], [w], atol=1e-5)
    assert outcome.step == 40


def test_a_finite_explosion_is_seen_and_can_be_allowed():
    """A loss of a few hundred is finite: squares that grow by a factor of 1.44 each step."""

    def loss_fn(params, batch, *, key):
        return jnp.sum(params["w"] ** 2)

    rows, start = [], {"w": np.ones(2, np.float32)}
    options = {"steps": 20, "log_every": 5, "report": rows.append}
    outcome = fit(loss_fn, start, optax.sgd(1.1), batches_of(), **options)
    assert [row["kind"] for row in rows[:3]] == ["compiling", "compiled", "train"] and any(
        row["kind"] == "rollback" for row in rows
    )
    assert "above the limit of 8" in next(row["reason"] for row in rows if row["kind"] == "rollback")
    assert float(jnp.abs(outcome.params["w"]).max()) < 1
    outcome = fit(loss_fn, start, optax.sgd(1.1), batches_of(), explosion=math.inf, **options)
    np.testing.assert_allclose(outcome.params["w"], 1.2**20, rtol=1e-4)


def test_explosions_without_end_keep_the_last_good_state(tmp_path):
    def loss_fn(params, batch, *, key):
        return jnp.sqrt(0.0 * jnp.sum(params["w"]))  # 0, and its gradient is not finite

    message = rf"fit: .*not finite at step 1, for the {MAX_ROLLBACKS}th time in a row .*; lower the learning rate"
    with pytest.raises(TrainingFailedError, match=message) as caught:
        fit(loss_fn, PARAMS, ADAM, batches_of(), steps=9, log_every=2, evals=1, folder=tmp_path)
    assert str(tmp_path) in str(caught.value)
    (saved,) = checkpoints.find_checkpoints(tmp_path / "checkpoints")
    arrays, meta = checkpoints.load(saved.path)
    assert meta["progress"]["step"] == 0 and meta["progress"]["lr_scale"] == 0.5**MAX_ROLLBACKS
    same({name: arrays[f"params['{name}']"] for name in PARAMS}, PARAMS)


def test_data_that_are_not_finite_are_told_from_a_rate_that_is_too_high():
    spoiled = DATA | {"y": np.where(np.arange(22) > 2, DATA["y"], np.nan)}
    with pytest.raises(TrainingFailedError, match="loss of the first batch is nan before any update"):
        fit(exact_loss, PARAMS, ADAM, ShuffledBatches(spoiled, 22, key=KEY), steps=3)


def test_broken_parameters_are_never_evaluated():
    """Accuracies are finite whatever the parameters are: the parameters themselves are looked at."""
    seen = []

    def evaluate(params):
        seen.append(float(jnp.abs(params["w"]).max()))
        return 1.0

    with pytest.raises(TrainingFailedError, match="at step 1, for the 8th time"):
        fit(exact_loss, PARAMS, optax.sgd(1e38), batches_of(), steps=4, evals=4, log_every=1, evaluate=evaluate)
    assert seen == []


CARRIED = rnnjax.GRU(4)
BORDERS = [Cut(), Lookback(10), SnAp1(CARRIED), Immediate()]


@pytest.mark.parametrize("border", BORDERS, ids=lambda border: type(border).__name__)
def test_a_state_is_carried_as_by_tbptt(border, tmp_path):
    """An epoch of chunks, in one go and stopped after two, against `rnnjax.tbptt`, which carries it within one scan."""
    cell = CARRIED
    params, state = cell.init(jax.random.key(0), 2), cell.initial_state((3,))
    stream = np.random.default_rng(4).normal(size=(20, 3, 2)).astype(np.float32)

    def tbptt_loss(params, state, chunk):
        state, ys = rnnjax.unroll(cell, params, state, chunk)
        return jnp.mean((ys[..., :2] - chunk) ** 2), state

    def loss_fn(params, state, batch, *, key):
        return tbptt_loss(params, state, batch)

    wanted = rnnjax.tbptt(loss_fn=tbptt_loss, optimizer=ADAM, params=params, opt_state=ADAM.init(params), state=state,
                          stream=stream, chunk_len=5, border=border)  # fmt: skip

    def train(**options):
        chunk = lambda step: stream[5 * step : 5 * step + 5]  # noqa: E731
        return fit(loss_fn, params, ADAM, chunk, state=state, border=border, **options)

    outcome = train(steps=4)
    for left, right in ((outcome.params, wanted.params), (outcome.state, wanted.state)):
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
    train(steps=2, folder=tmp_path)
    resumed = train(steps=4, folder=tmp_path, resume=True)
    same(resumed.params, outcome.params)
    same(resumed.state, outcome.state)


def test_an_optimizer_may_ask_for_the_loss():
    """L-BFGS calls it along its line; nothing but the optimum of least squares is the answer."""
    target = {"x": X, "y": X @ np.array([1.0, -2.0, 0.5], np.float32) + 3}
    whole = ShuffledBatches(target, batch_size=22, key=KEY)
    outcome = fit(exact_loss, PARAMS, optax.lbfgs(), whole, steps=12)
    np.testing.assert_allclose(outcome.params["w"], [1.0, -2.0, 0.5], atol=1e-3)
    np.testing.assert_allclose(outcome.params["b"], 3.0, atol=1e-3)


def test_nothing_is_compiled_again_for_the_next_seed():
    traces = []

    def loss_fn(params, batch, *, key):
        traces.append(0)
        return exact_loss(params, batch, key=key)

    optimizer = optax.sgd(0.1)
    for seed in range(3):
        start = {"w": np.full(3, seed, np.float32), "b": jnp.asarray(0.5)}
        fit(loss_fn, start, optimizer, batches_of(), steps=3, key=jax.random.key(seed))
    assert len(traces) == 1


def test_minutes_end_in_time():
    outcome = fit(exact_loss, PARAMS, ADAM, batches_of(), minutes=0.01, log_every=50)
    assert outcome.reason == "budget" and outcome.step > 0 and 0.6 <= outcome.seconds < 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of steps, epochs and minutes as the budget, got none"),
        ({"steps": 3, "minutes": 1.0}, "as the budget, got steps and minutes"),
        ({"steps": 0}, "steps must be a finite number above 0, got 0"),
        ({"epochs": 1, "batches": lambda step: DATA}, "epochs needs batches with steps_per_epoch"),
        ({"steps": 3, "patience": 2}, "counts evaluations, got 2 without evaluate"),
        ({"steps": 3, "resume": True}, "resume goes on with the run of a folder, got folder=None"),
        ({"steps": 3, "border": SnAp1(CARRIED)}, "needs a state that is carried, got state=None"),
        ({"steps": 3, "border": "snap1"}, r"border must be a value from rnnjax.online, as Cut\(\) .*, got 'snap1'"),
        ({"steps": 3, "mode": "best"}, "mode must be 'min' or 'max', got 'best'"),
        ({"steps": 3, "evals": 0}, "evals must be at least 1"),
        ({"steps": 3, "evaluate": lambda params: {"acc": 1}}, "must return the monitored metric 'loss', got acc"),
        ({"steps": 3, "evaluate": lambda params: {"loss": np.ones(2)}}, "'loss' of evaluate must be one number"),
        ({"steps": 3, "evaluate": lambda params: {"loss": 1, "step": 2}}, "must not call a metric 'step'"),
        ({"steps": 3, "learning_rate": lambda place: 0.1}, "needs an optimizer with that hyperparameter"),
        ({"steps": 3, "loss_fn": lambda params, batch, *, key: params["w"]}, r"one number as its loss, got f32\[3\]"),
        ({"steps": 3, "loss_fn": lambda params, batch: 0.0}, "must take a keyword argument key"),
        ({"steps": 3, "loss_fn": 1.0}, "loss_fn must be a function of"),
        ({"steps": 3, "loss_fn": lambda p, b, *, key: (jnp.sum(p["w"]), 1, 2)}, r"loss or \(loss, metrics\), got 3"),
        ({"steps": 3, "loss_fn": lambda p, b, *, key: (jnp.sum(p["w"]), 1.0)}, "a float for the dict of metrics"),
        ({"steps": 3, "evaluate": lambda params: None}, "evaluate must return a dict of numbers, or one number, got N"),
        ({"steps": 3, "evaluate": lambda params: {"loss": "low"}}, "'loss' of evaluate must be one number, got 'low'"),
        ({"steps": 3, "optimizer": optax.adam}, "an optax optimizer such as .* got the function adam; call it"),
        ({"steps": 3, "params": {"b": 0}}, r"params must be floating-point numbers.* got 0 at \['b'\]; make it one"),
        ({"steps": 3, "params": {"b": "0"}}, r"params must hold arrays of numbers, got '0' at \['b'\]"),
        ({"steps": 3, "key": 0}, "key must be a key of jax.random, got 0"),
        ({"steps": np.float32(3)}, "steps must be an int, got"),
        ({"steps": 3, "batches": DATA}, r"a function of the step or an iterable of batches, got .*f32\[22,3\]"),
        ({"steps": 3, "batches": (DATA["x"], DATA["y"])}, "a function of the step or an iterable of batches, got"),
        ({"steps": 3, "batches": 7}, "a function of the step or an iterable of batches, got 7"),
        ({"steps": 3, "batches": ShuffledBatches}, "must be an instance, got the class ShuffledBatches"),
        ({"steps": 3, "batches": []}, "batches must hold at least one, got an empty list"),
        ({"epochs": 3, "batches": iter([DATA])}, "epochs needs batches with steps_per_epoch"),
        ({"steps": 3, "batches": lambda step: DATA | {"name": np.array(["a"])}}, r"batch must hold .*U1 at \['name'\]"),
        (
            {"steps": 3, "state": np.ones(2), "loss_fn": lambda p, s, b, *, key: (jnp.sum(p["w"]), s[:1])},
            r"a state with the shapes and dtypes of the one it takes, f32\[2\], got f32\[1\]",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_sentence(options, message):
    arguments = {"loss_fn": exact_loss, "params": PARAMS, "optimizer": ADAM, "batches": batches_of(), **options}
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        fit(**arguments)
    assert str(caught.value).startswith("fit: ") and "\n" not in str(caught.value)


def test_any_iterable_feeds_a_training():
    """A list is read again and again, a generator once; both train as the function of the step that they stand for."""
    whole = [batches_of()(step) for step in range(5)]
    wanted = fit(exact_loss, PARAMS, ADAM, lambda step: whole[step % 5], steps=15)

    class Loader:
        def __len__(self):
            return len(whole)

        def __iter__(self):
            return iter(whole)

    for batches, budget in ((whole, {"steps": 15}), (Loader(), {"epochs": 3}), (iter(whole * 3), {"steps": 15})):
        found = fit(exact_loss, PARAMS, ADAM, batches, **budget)
        same(found.params, wanted.params)
        assert found.reason == "budget" and found.step == 15
    rows, seen = [], []
    ended = fit(
        *(exact_loss, PARAMS, ADAM, (batch for batch in whole * 3)), steps=100, evals=1, log_every=4,
        evaluate=lambda params: seen.append(params) or 1.0, report=rows.append,
    )  # fmt: skip
    assert ended.reason == "data" and ended.step == ended.best_step == 15 and len(seen) == 1
    same(ended.params, wanted.params)
    assert [row["step"] for row in rows if row["kind"] == "train"] == [4, 8, 12, 15]


def test_a_resumed_training_says_once_that_an_iterable_does_not_resume(tmp_path):
    rows, whole = [], [batches_of()(step) for step in range(5)]
    fit(exact_loss, PARAMS, ADAM, whole, steps=3, folder=tmp_path)
    outcome = fit(exact_loss, PARAMS, ADAM, whole, steps=6, folder=tmp_path, resume=True, report=rows.append)
    (note,) = [row["text"] for row in rows if row["kind"] == "note"]
    assert "batches of an iterable begin anew" in note and outcome.step == 6


@pytest.mark.parametrize(
    ("batches", "cause"),
    [
        (lambda step: DATA | {"x": np.where(step == 3, np.nan, X)}, r"holds nan at \['x'\]\[0, 0\]"),
        (lambda step: np.float32(np.inf if step == 3 else 1), "holds inf"),
    ],
)
def test_a_batch_that_is_not_finite_is_named(batches, cause):
    def loss_fn(params, batch, *, key):
        return jnp.sum(params["w"] ** 2) + sum(jnp.sum(leaf) for leaf in jax.tree.leaves(batch))

    what = rf"a loss that is not finite at step 4 \(its batch, batches\(3\), {cause}\)"
    rows = []
    with pytest.raises(
        TrainingFailedError, match=f"fit: {what}, for the 8th time in a row .*; mend that batch or mask"
    ):
        fit(loss_fn, PARAMS, optax.sgd(1e-3), batches, steps=20, log_every=5, evals=1, report=rows.append)
    assert "at step 4" in next(row["reason"] for row in rows if row["kind"] == "rollback")
    with pytest.raises(
        TrainingFailedError, match=r"the loss of the first batch is nan before any update.*batches\(0\)"
    ):
        fit(loss_fn, PARAMS, optax.sgd(1e-3), lambda step: np.float32(np.nan), steps=20)


def test_the_first_update_is_announced_before_it_is_compiled():
    rows, order = [], []

    def loss_fn(params, batch, *, key):
        order.append([row["kind"] for row in rows])
        return exact_loss(params, batch, key=key)

    lengths = np.arange(22) + 1
    batches = batches_of(lengths=lengths, trim=lambda batch, n: batch, num_buckets=3)
    fit(loss_fn, PARAMS, ADAM, batches, steps=2, report=rows.append)
    assert order[0] == ["compiling"] and rows[1]["kind"] == "compiled" and rows[1]["seconds"] > 0
    assert rows[0]["programs"] == len(batches.boundaries) == 3


def test_processes_that_share_a_training_leave_folders_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(ValueError, match=r"fit: a folder is written by one process, got one of 2 under"):
        fit(exact_loss, PARAMS, ADAM, batches_of(), steps=2, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert fit(exact_loss, PARAMS, ADAM, batches_of(), steps=2).step == 2


def test_a_folder_holds_one_run(tmp_path):
    options = {"steps": 2, "folder": tmp_path}
    fit(exact_loss, PARAMS, ADAM, batches_of(), **options)
    with pytest.raises(ValueError, match="holds the metrics of another training; resume, or"):
        fit(exact_loss, PARAMS, ADAM, batches_of(), **options)
    with pytest.raises(ValueError, match="holds another run, whose key is"):
        fit(exact_loss, PARAMS, ADAM, batches_of(), resume=True, key=KEY, **options)
    with pytest.raises(ValueError, match=r"holds another run, whose batches is .*batch_size=4.*got.*batch_size=5"):
        fit(exact_loss, PARAMS, ADAM, batches_of(batch_size=5), resume=True, **options)
    with pytest.raises(CheckpointError, match=r"leaf .*params.* is f32\[3\], but the model has f32\[2\]"):
        small = {"w": np.ones(2, np.float32), "b": np.float32(0)}
        fit(exact_loss, small, ADAM, batches_of(), resume=True, **options)
