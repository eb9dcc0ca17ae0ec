"""The parts of the AWD-LSTM in the language model, each against a computation of its own, and its training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax.cli.options import preset_options
from rnnjax.fit import checkpoint as checkpoints
from rnnjax.fit.optimizers import OptimizerOptions
from rnnjax.lm.model import LanguageModel
from rnnjax.lm.options import BudgetOptions, ModelOptions, RunConfig, TrainOptions
from rnnjax.lm.run import RunPaths, make_model
from rnnjax.lm.train import train
from rnnjax.text.corpus import Chunk, Corpus, TextOptions
from rnnjax.text.vocabulary import Vocabulary
from tests.lm.tiny_run import log_softmax

V, H, T, B = 7, 6, 9, 3
RNG = np.random.default_rng(0)
CHUNK = Chunk(RNG.integers(0, V, (T, B)), RNG.integers(0, V, (T, B)), RNG.random((T, B)) < 0.2)
KEY = jax.random.key(3)


def model_of(**options):
    return LanguageModel(V, rnnjax.Stack((rnnjax.LSTM(H), rnnjax.LSTM(H))), embed_size=H, **options)


def params_of(model):
    return jax.tree.map(lambda leaf: 1.5 * leaf, model.init(jax.random.key(0)))


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def by_hand(params, chunk, *, x_mask, middle, y_mask, weights, ar, tar, tie):
    """Nats, loss and the final states, a step at a time in NumPy; masks already divided by what they keep."""
    layers = [(np.asarray(p.w_ih), np.asarray(p.w_hh) * m, np.asarray(p.b))
              for p, m in zip(params.stack.layers, weights, strict=True)]  # fmt: skip
    states = [(np.zeros((B, H)), np.zeros((B, H))) for _ in layers]
    embedding = np.asarray(params.embedding, np.float64)
    w_out = embedding.T if tie else np.asarray(params.w_out)
    raw, logits = [], []
    for t in range(T):
        y = embedding[chunk.inputs[t]] * x_mask[t]
        for n, (w_ih, w_hh, b) in enumerate(layers):
            h, c = (np.where(chunk.resets[t][:, None], 0, s) for s in states[n])
            i, f, g, o = np.split(y @ w_ih + h @ w_hh + b, 4, axis=1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            states[n], y = (h, c), h * (middle[t] if n == 0 else 1)
        raw.append(y)
        logits.append((y * y_mask[t]) @ w_out + np.asarray(params.b_out))
    raw = np.stack(raw)
    picked = np.take_along_axis(log_softmax(np.stack(logits)), chunk.targets[..., None], -1)
    pairs = ~chunk.resets[1:, :, None] & np.ones((1, 1, H), bool)
    moves = ((raw[1:] - raw[:-1]) ** 2)[pairs].mean()
    nats = -picked.mean()
    return nats, nats + ar * ((raw * y_mask) ** 2).mean() + tar * moves, states


def masks(model, params):
    """Which entries a key keeps, found by what multiplies ones: of inputs, between the layers, of outputs, of w_hh."""
    key_x, key_stack, key_y, key_w = jax.random.split(KEY, 4)
    ones, resets = jnp.ones((T, B, H)), jnp.asarray(CHUNK.resets)
    options = {"locked": True, "resets": resets} if model.locked else {}
    between = jax.random.split(key_stack, (2, 2))[0][1]
    rate = model.dropout if model.embed_dropout is None else model.embed_dropout
    x_mask, middle, y_mask = (
        np.asarray(rnnjax.networks.dropout(key, ones, rate, **options))
        for key, rate in ((key_x, rate), (between, model.dropout), (key_y, model.dropout))
    )
    whole = jax.tree.map(jnp.ones_like, params.stack)
    dropped = rnnjax.networks.drop_connect(key_w, whole, model.weight_dropout)
    return {
        "x_mask": x_mask,
        "middle": middle,
        "y_mask": y_mask,
        "weights": [np.asarray(p.w_hh) for p in dropped.layers],
    }


@pytest.mark.parametrize(
    "options",
    [
        {"dropout": 0.4},
        {"dropout": 0.4, "locked": True},
        {
            "dropout": 0.3,
            "embed_dropout": 0.1,
            "locked": True,
            "weight_dropout": 0.5,
            "ar": 2.0,
            "tar": 1.0,
            "tie": True,
        },
    ],
    ids=["every step", "locked", "all"],
)
def test_the_loss_with_a_key_is_that_of_a_loop(options):
    model = model_of(**options)
    params = params_of(model)
    state, chunk = model.initial_state((B,)), jax.tree.map(jnp.asarray, CHUNK)
    loss, final, metrics = model.loss(params, state, chunk, key=KEY)
    found = masks(model, params)
    nats, want, states = by_hand(params, CHUNK, **found, ar=model.ar, tar=model.tar, tie=model.tie)
    np.testing.assert_allclose([metrics["nats"], loss], [nats, want], rtol=2e-5)
    for (h, c), layer in zip(states, final.layers, strict=True):
        np.testing.assert_allclose(layer.h, h, atol=2e-5)
        np.testing.assert_allclose(layer.c, c, atol=2e-5)
    if model.locked:  # one mask until the row begins another text
        start = CHUNK.resets[1:, :, None]
        same = (found["y_mask"][1:] == found["y_mask"][:-1]).all(-1, keepdims=True)
        assert same[~start].all() and not same[start].all()
    if model.weight_dropout:
        kept = np.concatenate([mask.ravel() for mask in found["weights"]])
        assert set(np.unique(kept)) == {0.0, 2.0} and 0.3 < (kept == 0).mean() < 0.7


def test_without_a_key_nothing_is_dropped():
    plain, whole = model_of(), model_of(dropout=0.4, locked=True, weight_dropout=0.5)
    params = params_of(plain)
    state, chunk = plain.initial_state((B,)), jax.tree.map(jnp.asarray, CHUNK)
    assert plain.loss(params, state, chunk)[0] == whole.loss(params, state, chunk)[0]
    assert whole.random and model_of(weight_dropout=0.1).random and not model_of(ar=1.0, tar=1.0).random


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"weight_dropout": 1.0}, "LanguageModel: weight_dropout must"),
        ({"embed_dropout": -0.5}, "LanguageModel: embed_dropout must"),
        ({"ar": -1.0}, "LanguageModel: ar must"),
    ],
)
def test_options_out_of_range(options, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        model_of(**options)
    with pytest.raises(ValueError, match="embed_dropout must be -1 or lie in"):
        ModelOptions(embed_dropout=-0.5)


def test_weights_that_are_not_there_cannot_be_dropped():
    with pytest.raises(ValueError, match="must have an array 'w_hh', got "):
        LanguageModel(V, rnnjax.Stack((rnnjax.MinGRU(H),)), weight_dropout=0.5)


def run(folder, config, **options):
    ids = np.random.default_rng(1).integers(0, 4, 900).astype(np.uint8)
    corpus = Corpus(
        Vocabulary("char", tuple("abcd")), ids[:700], ids[700:], ids[:0], None, None, None, "", "", 900, 900
    )
    paths = RunPaths(folder)
    folder.mkdir(exist_ok=True)
    rows = []
    outcome = train(config, paths, corpus, report=rows.append, **options)
    return outcome, rows, checkpoints.load(checkpoints.find_checkpoints(paths.checkpoints)[-1].path)[0]


CONFIG = RunConfig(
    TextOptions(),
    ModelOptions(cell="lstm", hidden=6, embed=6, tie=True, dropout=0.2, locked=True, weight_dropout=0.3, ar=2, tar=1),
    OptimizerOptions(optimizer="sgd", lr=0.5, schedule="constant", warmup=0.0, average=1.0, average_after=1),
    TrainOptions(batch_size=4, chunk_len=8, log_every=2, evals=10, sample_length=5),
    BudgetOptions(steps=40),
)


def test_averaging_begins_after_evaluations_without_a_best_and_resumes_to_the_same_bits(tmp_path):
    """Text of random letters: no training can go on getting better on what it has not seen."""
    straight, rows, arrays = run(tmp_path / "straight", CONFIG)
    losses = [row["val_loss"] for row in rows if row["kind"] == "eval"]
    bad = [n for n in range(1, len(losses)) if losses[n] >= min(losses[:n])]
    assert bad and arrays["opt_state.averaging"] and arrays["opt_state.number"] == 4 * (len(losses) - 1 - bad[0])
    assert any(not np.array_equal(arrays[f"params{name}"], arrays[f"opt_state.averaged{name}"])
               for name in (".embedding", ".b_out"))  # fmt: skip
    asked = []
    run(tmp_path / "stopped", CONFIG, should_stop=lambda: asked.append(0) or len(asked) == 11)
    resumed, _, again = run(tmp_path / "stopped", CONFIG, resume=True)
    assert resumed.valid_loss == straight.valid_loss and arrays.keys() == again.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, again[name], err_msg=name)


def test_penalties_are_not_in_the_training_loss_that_is_shown(tmp_path):
    large = dataclasses.replace(CONFIG.model, ar=100.0)
    _, rows, _ = run(tmp_path / "run", dataclasses.replace(CONFIG, model=large, budget=BudgetOptions(steps=2)))
    assert next(row for row in rows if row["kind"] == "train")["loss"] < 2.0


def test_the_preset_makes_its_model():
    options = preset_options("awd")
    model = make_model(ModelOptions(**{k: v for k, v in options.items() if k in ModelOptions.__dataclass_fields__}), 50)
    assert model.tie and model.locked and model.weight_dropout and model.ar and model.tar and options["average"]
    assert options["level"] == "word"
