"""An encoder of pictures, and a cell that writes what it says in the language asked for."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.svm import SVC

import rnnjax
from rnnjax import decoding, fit, topologies
from rnnjax.fit.progress import Outcome

from . import data

__all__ = ["Captioner", "Setting", "both_digits_by_svm", "measure", "train", "write"]


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sizes of the model and of its training."""

    convolutions: tuple[int, ...] = (16, 32)
    features: int = 128
    hidden_size: int = 192
    embed_size: int = 32
    dropout: float = 0.2
    batch_size: int = 128
    lr: float = 2e-3
    steps: int = 8_000
    evals: int = 8
    shift: int = 1
    test_pictures: int = 4_000


class Encoder(nn.Module):
    """Strided convolutions and an affine layer: ``[B, S, 2 S]`` to ``[B, F]``."""

    convolutions: tuple[int, ...]
    features: int
    dropout: float

    @nn.compact
    def __call__(self, pictures: jax.Array, train: bool) -> jax.Array:
        """Features of every picture."""
        x = pictures[..., None] - 0.5
        for channels in self.convolutions:
            x = nn.relu(nn.Conv(channels, (3, 3), strides=2)(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x.reshape(len(x), -1))
        return nn.relu(nn.Dense(self.features)(x))


class Params(NamedTuple):
    """Of both."""

    encoder: Any
    writer: topologies.one_to_many.OneToManyParams


@dataclasses.dataclass(frozen=True)
class Captioner:
    """The features of a picture and the language are the context that the writer starts from."""

    setting: Setting
    vocab_size: int

    @property
    def encoder(self) -> Encoder:
        """What looks."""
        return Encoder(self.setting.convolutions, self.setting.features, self.setting.dropout)

    @property
    def writer(self) -> topologies.OneToMany:
        """What writes."""
        return topologies.OneToMany(
            rnnjax.GRU(self.setting.hidden_size),
            self.vocab_size,
            input_size=self.setting.features + len(data.LANGUAGES),
            output_embed_size=self.setting.embed_size,
            dropout=self.setting.dropout,
        )

    def init(self, key: jax.Array, pictures: jax.Array) -> Params:
        """New parameters, for pictures of this size."""
        key_encoder, key_writer = jax.random.split(key)
        return Params(self.encoder.init(key_encoder, pictures, False), self.writer.init(key_writer))

    def context(
        self, params: Params, pictures: jax.Array, languages: jax.Array, *, key: jax.Array | None = None
    ) -> jax.Array:
        """What the writer is told."""
        dropout = {} if key is None else {"dropout": key}
        features = self.encoder.apply(params.encoder, pictures, key is not None, rngs=dropout)
        return jnp.concatenate([features, jax.nn.one_hot(languages, len(data.LANGUAGES))], axis=-1)

    def loss(self, params: Params, batch: data.Batch, *, key: jax.Array | None) -> jax.Array:
        """Nats a character, the right ones before it given."""
        keys = (None, None) if key is None else jax.random.split(key)
        context = self.context(params, batch.pictures, batch.languages, key=keys[0])
        targets = batch.symbols.T
        logits = self.writer.apply(params.writer, context, targets, lengths=batch.lengths, key=keys[1])
        return topologies.softmax_loss(logits, targets, lengths=batch.lengths)


def train(
    model: Captioner,
    batches: Callable[[int], data.Batch],
    valid: data.Batch,
    *,
    seed: int,
    report: Callable[[dict[str, Any]], None],
) -> Outcome:
    """Fits the pictures; the parameters of the evaluation with the lowest loss on ``valid``."""
    key_init, key_fit = jax.random.split(jax.random.key(seed))
    options = fit.OptimizerOptions("adamw", lr=model.setting.lr)
    loss = jax.jit(functools.partial(model.loss, key=None))
    return fit.fit(
        model.loss,
        jax.jit(model.init)(key_init, batches(0).pictures),
        options.make_optimizer(),
        batches,
        steps=model.setting.steps,
        evaluate=lambda params: {"loss": float(loss(params, valid))},
        evals=model.setting.evals,
        key=key_fit,
        learning_rate=options.learning_rate,
        report=report,
    )


def write(model: Captioner, params: Params, pictures: np.ndarray, languages: np.ndarray) -> np.ndarray:
    """The likeliest characters, one after the other, of every picture: symbols ``[B, T]``."""
    context = _context(model, params, pictures, languages)
    writer, longest = model.writer, 1 + max(len(text) for row in data.captions() for text in row)
    step, state = writer.stepper(params.writer), writer.start(params.writer, context)
    found = decoding.greedy(step, state, writer.start_symbol, max_len=longest, stop=data.STOP, banned=data.UNKNOWN)
    return np.asarray(found.tokens)


@functools.partial(jax.jit, static_argnums=0)
def _context(model: Captioner, params: Params, pictures: jax.Array, languages: jax.Array) -> jax.Array:
    return model.context(params, pictures, languages)


def measure(written: list[str], batch: data.Batch) -> dict[str, Any]:
    """Shares of captions: right, of numbers shown in training in this language and not; and the kinds of mistakes."""
    captions = data.captions()
    right = np.array([t == captions[lang][n] for t, lang, n in zip(written, batch.languages, batch.numbers)])
    words = np.array([text in captions[language] for text, language in zip(written, batch.languages)])
    shown = data.seen()[batch.languages, batch.numbers]
    by_language = {
        name: right[shown & (batch.languages == i)].mean() if (shown & (batch.languages == i)).any() else None
        for i, name in enumerate(data.LANGUAGES.values())
    }
    return {
        "exact_match": right[shown].mean() if shown.any() else None,
        "exact_match_unseen_in_language": right[~shown].mean() if (~shown).any() else None,
        "pictures": int(shown.sum()),
        "pictures_unseen_in_language": int((~shown).sum()),
        "another_number": (words & ~right)[shown].mean() if shown.any() else None,
        "no_number": (~words)[shown].mean() if shown.any() else None,
        "no_number_unseen_in_language": (~words)[~shown].mean() if (~shown).any() else None,
        "by_language": by_language,
    }


def both_digits_by_svm(train: data.Images, test: data.Images) -> float:
    """How often a support vector machine that only has to say which digit it is gets two of them right."""
    machine = SVC(gamma="scale").fit(train.pixels.reshape(len(train.pixels), -1), train.labels)
    return float(machine.score(test.pixels.reshape(len(test.pixels), -1), test.labels)) ** 2
