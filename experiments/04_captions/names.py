"""Surnames written from their language alone."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rnnjax
from rnnjax import decoding, fit, topologies
from rnnjax.data import ShuffledBatches
from rnnjax.fit.progress import Outcome

from . import data
from .ngram import WittenBell

__all__ = ["Setting", "encoded", "make_model", "ngrams", "nll_by_language", "sample", "train"]


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sizes of the model and of its training."""

    hidden_size: int = 192
    embed_size: int = 32
    dropout: float = 0.3
    batch_size: int = 128
    lr: float = 3e-3
    epochs: float | None = 24
    steps: int | None = None
    evals: int = 12
    samples: int = 200  # of each language
    orders: tuple[int, ...] = (1, 2, 3, 4, 5)


def encoded(names: Mapping[str, Sequence[str]], characters: data.Characters) -> dict[str, np.ndarray]:
    """All names of a part: symbols ``[N, T]``, lengths ``[N]`` and languages ``[N]``."""
    symbols, lengths = characters.encode([name for found in names.values() for name in found])
    languages = np.repeat(np.arange(len(names), dtype=np.int32), [len(found) for found in names.values()])
    return {"symbols": symbols, "lengths": lengths, "languages": languages}


def make_model(setting: Setting, languages: int, vocab_size: int) -> topologies.OneToMany:
    """A cell that starts from the language."""
    return topologies.OneToMany(
        rnnjax.GRU(setting.hidden_size),
        vocab_size,
        vocab_size=languages,
        embed_size=setting.embed_size,
        output_embed_size=setting.embed_size,
        dropout=setting.dropout,
    )


def train(
    model: topologies.OneToMany,
    setting: Setting,
    train_part: Mapping[str, np.ndarray],
    valid: Mapping[str, np.ndarray],
    *,
    seed: int,
    report: Callable[[dict[str, Any]], None],
) -> Outcome:
    """Fits the names; the parameters of the evaluation with the lowest loss on ``valid``."""
    key_init, key_data, key_fit = jax.random.split(jax.random.key(seed), 3)

    def loss_fn(params: Any, batch: Mapping[str, jax.Array], *, key: jax.Array) -> jax.Array:
        targets = batch["symbols"].T
        logits = model.apply(params, batch["languages"], targets, lengths=batch["lengths"], key=key)
        return topologies.softmax_loss(logits, targets, lengths=batch["lengths"])

    def evaluate(params: Any) -> dict[str, float]:
        nll = np.asarray(_nll(model, params, valid["languages"], valid["symbols"]))
        return {"loss": float(nll.sum() / valid["lengths"].sum())}

    options = fit.OptimizerOptions("adamw", lr=setting.lr)
    return fit.fit(
        loss_fn,
        jax.jit(model.init)(key_init),
        options.make_optimizer(),
        ShuffledBatches(dict(train_part), setting.batch_size, key=key_data),
        steps=setting.steps,
        epochs=setting.epochs,
        evaluate=evaluate,
        evals=setting.evals,
        key=key_fit,
        learning_rate=options.learning_rate,
        report=report,
    )


@functools.partial(jax.jit, static_argnums=0)
def _nll(model: topologies.OneToMany, params: Any, languages: jax.Array, symbols: jax.Array) -> jax.Array:
    """Nats of every name ``[N]``."""
    targets = symbols.T
    log_p = jax.nn.log_softmax(model.apply(params, languages, targets))
    nll = -jnp.take_along_axis(log_p, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(targets == data.PADDING, 0, nll).sum(0)


def nll_by_language(
    model: topologies.OneToMany, params: Any, part: Mapping[str, np.ndarray], languages: int
) -> tuple[np.ndarray, np.ndarray]:
    """Nats and symbols of each language, the stop of every name counted: ``[L]`` twice."""
    nll = np.asarray(_nll(model, params, part["languages"], part["symbols"]), np.float64)
    sums = [np.bincount(part["languages"], weights=w, minlength=languages) for w in (nll, part["lengths"])]
    return sums[0], sums[1]


def ngrams(
    parts: Mapping[str, Mapping[str, np.ndarray]], languages: int, vocab_size: int, orders: Sequence[int]
) -> dict[str, Any]:
    """Nats of n-gram models on "test" by language, one a language or one for all, of the order best on "valid"."""
    rows = {
        part: [
            [row[:length].tolist() for row, length, of in zip(found["symbols"], found["lengths"], found["languages"])
             if of == language]
            for language in range(languages)
        ]
        for part, found in parts.items()
    }  # fmt: skip
    result: dict[str, Any] = {}
    for name in ("one a language", "one for all"):
        best, best_order = math.inf, 0
        for order in orders:
            if name == "one for all":
                models = [WittenBell([s for found in rows["train"] for s in found], vocab_size, order)] * languages
            else:
                models = [WittenBell(found, vocab_size, order) for found in rows["train"]]
            nats = {
                part: np.array([sum(map(model.nll, found)) for model, found in zip(models, rows[part])])
                for part in ("valid", "test")
            }
            if nats["valid"].sum() < best:
                best, best_order, test = nats["valid"].sum(), order, nats["test"]
        result[name] = {"order": best_order, "nats": test}
    return result


def sample(model: topologies.OneToMany, params: Any, language: int, count: int, key: jax.Array) -> np.ndarray:
    """Symbols of so many names, drawn as they are likely."""
    state = model.start(params, jnp.full(count, language))
    step = model.stepper(params)
    options = {"max_len": 30, "stop": data.STOP, "banned": data.UNKNOWN}
    return np.asarray(decoding.sample(step, state, model.start_symbol, key=key, **options).tokens)
