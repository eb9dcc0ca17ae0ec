"""The training loop, in this process: what must not change the trajectory, explosions, early stopping."""

import dataclasses
import json
import math

import jax
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax.fit import TrainingFailedError
from rnnjax.fit import checkpoint as checkpoints
from rnnjax.fit.loop import MAX_ROLLBACKS
from rnnjax.fit.optimizers import OPTIMIZERS, OptimizerOptions
from rnnjax.fit.progress import Place
from rnnjax.lm.model import LanguageModel
from rnnjax.lm.options import BudgetOptions, ModelOptions, RunConfig, TrainOptions
from rnnjax.lm.run import RunPaths, open_run
from rnnjax.lm.train import train
from rnnjax.online import SnAp1
from rnnjax.text.corpus import Chunk, TextOptions, load_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = np.random.default_rng(0).choice(["the", "cat", "sat", "on", "a", "mat", "and", "ran\n"], 900)
    path.write_text(" ".join(words))
    return load_corpus(TextOptions(paths=(str(path),), fractions=(0.8, 0.1, 0.1)))


def config_of(**changes):
    config = RunConfig(
        text=TextOptions(fractions=(0.8, 0.1, 0.1)),
        model=ModelOptions(cell="gru", hidden=12, dropout=0.1),
        optimizer=OptimizerOptions(lr=0.01),
        train=TrainOptions(batch_size=4, chunk_len=16, log_every=4, evals=4, sample_length=20),
        budget=BudgetOptions(steps=48),
    )
    for group in ("model", "optimizer", "train", "budget"):
        known = {field.name for field in dataclasses.fields(getattr(config, group))}
        part = {name: value for name, value in changes.items() if name in known}
        config = dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **part)})
    return config


def run(corpus, folder, **changes):
    rows = []
    paths = RunPaths(folder)
    folder.mkdir(exist_ok=True)
    outcome = train(config_of(**changes), paths, corpus, report=rows.append)
    return outcome, rows, paths


def final_arrays(paths):
    return checkpoints.load(checkpoints.find_checkpoints(paths.checkpoints)[-1].path)[0]


def test_training_learns_and_leaves_a_run_behind(corpus, tmp_path):
    outcome, rows, paths = run(corpus, tmp_path / "run", steps=120, lr=0.03)
    assert outcome.reason == "budget" and outcome.progress.step == 120
    first = next(row for row in rows if row["kind"] == "train")
    assert outcome.valid_loss < 0.7 * first["loss"] and math.isfinite(outcome.test_loss)
    written = [json.loads(line) for line in paths.metrics.read_text().splitlines()]
    assert written == [row for row in rows if row["kind"] not in ("sample", "checkpoint", "compiling", "compiled")]
    assert [row["step"] for row in written if row["kind"] == "eval"] == [32, 60, 92, 120]
    found = checkpoints.find_checkpoints(paths.checkpoints)
    assert 1 <= len(found) <= 2 and found[-1].step == 120
    assert paths.samples.read_text().count("--- step") == 4
    epoch_steps = (len(corpus.train) // 4 - 1) // 16
    assert written[-1]["kind"] == "done" and outcome.progress.epoch == 120 // epoch_steps


def test_loss_and_gradient_norm_are_those_of_the_model(corpus, tmp_path):
    """The first interval of one update against a gradient taken by hand from the same start."""
    _, rows, _ = run(corpus, tmp_path / "run", steps=1, log_every=1, dropout=0.0, evals=1)
    model = LanguageModel(len(corpus.vocabulary), rnnjax.Stack((rnnjax.GRU(12),)), embed_size=128)
    params = model.init(jax.random.fold_in(jax.random.key(0), 0))
    streams = corpus.train[: len(corpus.train) // 4 * 4].reshape(4, -1)
    chunk = Chunk(streams[:, :16].T.astype(int), streams[:, 1:17].T.astype(int))

    def loss(params):
        return model.loss(params, model.initial_state((4,)), chunk)[0]

    value, grads = jax.value_and_grad(loss)(params)
    trained = next(row for row in rows if row["kind"] == "train")
    assert trained["loss"] == pytest.approx(float(value), rel=1e-5)
    assert trained["grad_norm"] == pytest.approx(float(optax.tree.norm(grads)), rel=1e-5)


def test_looking_never_changes_the_trajectory(corpus, tmp_path):
    _, _, watched = run(corpus, tmp_path / "a", evals=8, log_every=4)
    _, _, alone = run(corpus, tmp_path / "b", evals=1, log_every=8, sample_length=0)
    left, right = final_arrays(watched), final_arrays(alone)
    assert left.keys() == right.keys()
    for name in left:
        assert np.array_equal(left[name], right[name]), name


def test_an_epoch_ends_with_a_fresh_state(corpus, tmp_path):
    """Pitfall 13: the start of the text does not follow from its end."""
    epoch = (len(corpus.train) // 4 - 1) // 16
    for steps, fresh in ((epoch, True), (epoch - 1, False)):
        _, _, paths = run(corpus, tmp_path / str(steps), steps=steps, evals=1, sample_length=0)
        arrays = final_arrays(paths)
        (state,) = (array for name, array in arrays.items() if array.shape == (4, 12))
        assert (state == 0).all() == fresh


def test_a_seed_is_a_trajectory(corpus, tmp_path):
    losses = {
        seed: run(corpus, tmp_path / str(i), seed=seed, steps=8, evals=1)[0].valid_loss for i, seed in enumerate((1, 2))
    }
    assert losses[1] != losses[2]
    assert run(corpus, tmp_path / "again", seed=1, steps=8, evals=1)[0].valid_loss == losses[1]


def test_an_explosion_rolls_back_with_a_lower_rate(corpus, tmp_path):
    outcome, rows, _ = run(
        corpus, tmp_path / "run", optimizer="sgd", lr=60.0, clip=0.0, warmup=0.0, schedule="constant", dropout=0.0
    )
    back = [row for row in rows if row["kind"] == "rollback"]
    assert back and back[0]["lr_scale"] == 0.5 and back[0]["to_step"] < back[0]["step"]
    assert outcome.reason == "budget" and outcome.progress.step == 48
    assert outcome.progress.lr_scale == 0.5 ** len(back)
    assert outcome.valid_loss < math.log(len(corpus.vocabulary))


def test_explosions_without_end_stop_the_run_and_keep_the_last_good_state(corpus, tmp_path):
    with pytest.raises(TrainingFailedError, match=f"{MAX_ROLLBACKS}th time in a row.*lower the learning rate"):
        run(corpus, tmp_path / "run", optimizer="sgd", lr=1e30, clip=0.0, warmup=0.0, schedule="constant")
    arrays = final_arrays(RunPaths(tmp_path / "run"))
    assert all(np.isfinite(array).all() for array in arrays.values() if array.dtype.kind == "f")


def test_a_broken_state_is_never_kept(corpus, tmp_path):
    """The loss is taken before its update: the evaluation is the first to see what the last update broke."""
    options = {"optimizer": "sgd", "lr": 1e30, "clip": 0.0, "warmup": 0.0, "schedule": "constant", "dropout": 0.0}
    with pytest.raises(TrainingFailedError):
        run(corpus, tmp_path / "run", log_every=1, evals=48, **options)
    saved = checkpoints.find_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    arrays, meta = checkpoints.load(saved.path)
    assert all(np.isfinite(array).all() for array in arrays.values() if array.dtype.kind == "f")
    assert meta["progress"]["step"] == 0
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_without_a_validation_text_the_newest_is_the_best(corpus, tmp_path):
    everything = corpus._replace(train=np.concatenate([corpus.train, corpus.valid, corpus.test]))
    everything = everything._replace(valid=corpus.valid[:0], test=corpus.test[:0])
    outcome, rows, paths = run(everything, tmp_path / "run")
    assert not any(row["kind"] == "eval" for row in rows)
    assert [c.step for c in checkpoints.find_checkpoints(paths.checkpoints)] == [48] and outcome.best_step == 48


def test_a_new_training_does_not_mix_with_an_old_one(corpus, tmp_path):
    run(corpus, tmp_path / "run", steps=4, evals=1)
    with pytest.raises(ValueError, match="holds checkpoints already"):
        run(corpus, tmp_path / "run", steps=4, evals=1)


def test_patience_stops_early(corpus, tmp_path):
    outcome, rows, _ = run(corpus, tmp_path / "run", lr=1e-20, warmup=0.0, dropout=0.0, patience=2, evals=12)
    losses = [row["val_loss"] for row in rows if row["kind"] == "eval"]
    assert outcome.reason == "patience" and len(losses) == 1 + losses.index(min(losses)) + 2 < 12


def test_stopping_saves_without_an_evaluation(corpus, tmp_path):
    paths = RunPaths(tmp_path / "run")
    paths.root.mkdir()
    outcome = train(config_of(), paths, corpus, should_stop=lambda: True)
    assert outcome.reason == "stopped" and outcome.progress.step == 4
    (saved,) = checkpoints.find_checkpoints(paths.checkpoints)
    assert saved.step == 4 and saved.val_loss == math.inf
    stopped = train(config_of(), paths, corpus, resume=True)
    straight, _, other = run(corpus, tmp_path / "straight")
    assert stopped.valid_loss == straight.valid_loss
    for name, array in final_arrays(paths).items():
        assert np.array_equal(array, final_arrays(other)[name]), name


@pytest.mark.parametrize("border", ["snap1", "lookback:32", "uoro"])
def test_a_border_s_trace_is_a_part_of_the_checkpoint(corpus, tmp_path, border):
    """Stopped in the first epoch and resumed: the same bits, which are not those of cutting, nor of a lost trace."""
    options = {"border": border, "steps": 12, "evals": 2, "sample_length": 0, "embed": 8}
    paths, asked = RunPaths(tmp_path / "stopped"), []
    paths.root.mkdir()
    train(config_of(**options), paths, corpus, should_stop=lambda: asked.append(0) or len(asked) == 2)
    half = final_arrays(paths)
    assert any(np.any(array) for name, array in half.items() if name.startswith("state.trace"))
    resumed = train(config_of(**options), paths, corpus, resume=True)
    straight, _, other = run(corpus, tmp_path / "straight", **options)
    assert resumed.valid_loss == straight.valid_loss
    for name, array in final_arrays(paths).items():
        assert np.array_equal(array, final_arrays(other)[name]), name
    assert run(corpus, tmp_path / "cut", **options | {"border": "cut"})[0].valid_loss != straight.valid_loss


def test_a_border_in_training_is_that_of_tbptt(corpus, tmp_path):
    """One epoch, its first update included, by plain gradient descent in one compiled program."""
    epoch = (len(corpus.train) // 4 - 1) // 16
    options = {"steps": epoch, "evals": 1, "log_every": epoch, "dropout": 0.0, "embed": 8, "sample_length": 0}
    config = config_of(**options, border="snap1", clip=0.0, warmup=0.0, schedule="constant")
    paths = RunPaths(tmp_path / "run")
    paths.root.mkdir()
    train(config, paths, corpus)
    model = LanguageModel(len(corpus.vocabulary), rnnjax.Stack((rnnjax.GRU(12),)), embed_size=8)
    params = model.init(jax.random.fold_in(jax.random.key(0), 0))
    streams = corpus.train[: len(corpus.train) // 4 * 4].reshape(4, -1).T.astype(np.int32)
    stream = Chunk(streams[: 16 * epoch], streams[1 : 16 * epoch + 1])
    optimizer = config.optimizer.make_optimizer()
    opt_state = optax.tree.set(optimizer.init(params), learning_rate=np.float32(config.optimizer.lr))
    result = rnnjax.tbptt(
        model.loss, optimizer, params, opt_state, model.initial_state((4,)), stream,
        chunk_len=16, border=SnAp1(model.stack, model.read),
    )  # fmt: skip
    found = final_arrays(paths)
    for path, leaf in jax.tree_util.tree_leaves_with_path(result.params):
        np.testing.assert_allclose(found["params" + jax.tree_util.keystr(path)], leaf, rtol=2e-4, atol=2e-5)


def test_a_budget_of_minutes_ends_in_time(corpus, tmp_path):
    outcome, rows, _ = run(corpus, tmp_path / "run", steps=None, minutes=0.05, evals=2)
    assert outcome.progress.step > 0 and outcome.progress.seconds >= 3.0
    rates = [row["lr"] for row in rows if row["kind"] == "train"]
    assert rates[-1] < 0.2 * max(rates)


@pytest.mark.parametrize("options", [{"layers": 2, "embed": 12, "tie": True}, {"cell": "lstm", "dtype": "bfloat16"}])
def test_other_models_train_too(corpus, tmp_path, options):
    outcome, rows, _ = run(corpus, tmp_path / "run", lr=0.03, steps=60, **options)
    assert outcome.valid_loss < 0.8 * next(row["loss"] for row in rows if row["kind"] == "train")


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@pytest.mark.parametrize("clip_by", ["norm", "value"])
def test_optimizers_follow_their_equations(name, clip_by):
    """Two steps in NumPy, with clipping, decay of matrices alone, and a rate set from outside."""
    options = OptimizerOptions(optimizer=name, lr=0.1, clip=0.5, clip_by=clip_by, weight_decay=0.01)
    optimizer = options.make_optimizer()
    params = {"w": np.array([[1.0, -2.0]]), "b": np.array([0.5])}
    moving = jax.tree.map(np.float32, params)
    state = optimizer.init(moving)
    grads = [{"w": np.array([[3.0, -0.1]]), "b": np.array([0.2])}, {"w": np.array([[-1.0, 0.4]]), "b": np.array([0.1])}]
    memory = {k: (np.zeros_like(v), np.zeros_like(v) + (0.1 if name == "adagrad" else 0.0)) for k, v in params.items()}
    for t, grad in enumerate(grads, start=1):
        rate = 0.1 / t
        state.hyperparams["learning_rate"] = np.float32(rate)
        updates, state = optimizer.update(jax.tree.map(np.float32, grad), state, moving)
        moving = optax.apply_updates(moving, updates)
        norm = math.sqrt(sum(float((g**2).sum()) for g in grad.values()))
        for k, g in grad.items():
            g = np.clip(g, -0.5, 0.5) if clip_by == "value" else g * min(1.0, 0.5 / norm)
            m, v = memory[k]
            if name in ("adam", "adamw"):
                b2 = {"adam": 0.999, "adamw": 0.99}[name]
                m, v = 0.9 * m + 0.1 * g, b2 * v + (1 - b2) * g**2
                step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - b2**t)) + 1e-8)
            elif name == "rmsprop":
                v = 0.95 * v + 0.05 * g**2
                step = g / np.sqrt(v + 1e-8)
            elif name == "adagrad":
                v = v + g**2
                step = g / np.sqrt(v + 1e-7)
            else:
                m = 0.9 * m + g
                step = g + 0.9 * m
            memory[k] = m, v
            params[k] = params[k] - rate * (step + (0.01 * params[k] if k == "w" else 0.0))
    for k in params:
        np.testing.assert_allclose(moving[k], params[k], rtol=2e-5)


def test_schedules():
    step = OptimizerOptions(lr=1.0, schedule="step", decay=0.5, decay_from=2, warmup=0.0)
    assert [step.learning_rate(Place(0.5, e, 0, 7)) for e in range(5)] == [1.0, 1.0, 0.5, 0.25, 0.125]
    plateau = OptimizerOptions(lr=1.0, schedule="plateau", decay=0.5, warmup=0.0)
    assert [plateau.learning_rate(Place(0.5, 9, n, 7)) for n in range(3)] == [1.0, 0.5, 0.25]
    constant = OptimizerOptions(lr=2.0, schedule="constant", warmup=0.5)
    assert [constant.learning_rate(Place(p, 0, 0, 7)) for p in (0.0, 0.25, 0.5, 1.0)] == [0.0, 1.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimizerOptions(optimizer="adamv"), "OptimizerOptions: optimizer must be 'adamw', 'adam', 'rmsprop'"),
        (lambda: OptimizerOptions(schedule="linear"), "schedule must be 'cosine'"),
        (lambda: OptimizerOptions(lr=0.0), "OptimizerOptions: lr must"),
        (lambda: OptimizerOptions(lr=math.nan), "OptimizerOptions: lr must"),
        (lambda: OptimizerOptions(warmup=1.5), r"warmup must lie in \[0, 1\], got 1\.5"),
        (lambda: ModelOptions(hidden=0), "ModelOptions: hidden must be at least 1, got 0"),
        (lambda: ModelOptions(dropout=1.0), r"ModelOptions: dropout must lie in \[0, 1\), got 1"),
        (lambda: ModelOptions(dtype="float16"), "dtype must be 'float32' or 'bfloat16'"),
        (lambda: TrainOptions(chunk_len=-3), "TrainOptions: chunk_len must be at least 1, got -3"),
        (lambda: TrainOptions(seed=-1), "seed must be at least 0, got -1"),
        (lambda: TrainOptions(seed=2**63), "seed must be at most 2147483647"),
        (lambda: BudgetOptions(epochs=math.inf), "BudgetOptions: epochs must be a finite number above 0, got inf"),
        (lambda: OptimizerOptions(lr=math.inf), "OptimizerOptions: lr must"),
        (lambda: TrainOptions(border="snap2"), "border must be one of cut, .* got 'snap2'; did you mean 'snap1'?"),
        (lambda: TrainOptions(border="lookback:100"), "a multiple of chunk_len = 64 .* take lookback:128"),
        (lambda: TrainOptions(border="lookback"), "border must be one of cut, immediate, lookback:K"),
        (lambda: TrainOptions(border="uoro", devices=2), "devices must be 1 with border 'uoro'"),
        (lambda: BudgetOptions(), "exactly one of steps, epochs and minutes must be given, got none"),
        (lambda: BudgetOptions(steps=3, minutes=1), "got steps and minutes"),
        (lambda: BudgetOptions(minutes=0), "minutes must be a finite number above 0, got 0"),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_best_checkpoint_opens(corpus, tmp_path):
    outcome, _, paths = run(corpus, tmp_path / "run")
    from rnnjax.files import write_json

    provenance = {"sha256": corpus.sha256, "sources": corpus.sources, "n_symbols": corpus.n_symbols, "device": "cpu"}
    write_json(paths.vocabulary, corpus.vocabulary.to_json())
    write_json(paths.config, {"options": config_of().to_json(), "provenance": provenance})
    opened = open_run(paths.root)
    assert opened.meta["step"] == outcome.best_step
    assert opened.config == config_of() and opened.vocabulary == corpus.vocabulary
