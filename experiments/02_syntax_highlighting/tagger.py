"""A tagger that reads letters: a network over each word's characters, and one over the sentence."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from rnnjax import fit, networks, topologies
from rnnjax.data import ShuffledBatches

from .conllu import TAGS, UNKNOWN, Encoder, Sentence

__all__ = ["Settings", "Tagger", "train"]


class Settings(NamedTuple):
    """What is trained, and how long."""

    word_size: int = 100
    character_size: int = 32
    spelling_units: int = 40  # of each direction over the characters
    spelling_size: int = 64  # of what the sentence's network gets of them
    hidden_size: int = 128  # of each direction over the words
    num_layers: int = 1
    dropout: float = 0.4
    unknown: float = 0.25  # a word with n occurrences is hidden with probability unknown / (unknown + n)
    learning_rate: float = 3e-3
    batch_size: int = 32
    num_buckets: int = 5
    epochs: int = 8
    evals: int = 8


class Params(NamedTuple):
    """Parameters of `Tagger`."""

    words: jax.Array  # [V, E]
    spelling: topologies.many_to_one.ManyToOneParams
    sentence: topologies.many_to_many.ManyToManyParams


class Tagger:
    """The model, and all word forms that it will meet, spelled.

        x_t   = words[w_t], spelling(characters of word t)
        tag_t = sentence(x)_t

    Args:
        settings: sizes.
        encoder: ids of words and characters.
        forms: every word form of all texts to tag; nothing but its spelling is used.
    """

    def __init__(self, settings: Settings, encoder: Encoder, forms: Sequence[str]) -> None:
        self.settings, self.encoder = settings, encoder
        self.forms = {form: i for i, form in enumerate(forms)}
        self._spelled = encoder.spell(forms)  # [N, C], [N]
        self.spelling = topologies.ManyToOne(
            rnnjax.Bidirectional((rnnjax.GRU(settings.spelling_units),)),
            output_size=settings.spelling_size,
            vocab_size=len(encoder.characters) + 1,
            embed_size=settings.character_size,
        )
        cells = tuple(rnnjax.LSTM(settings.hidden_size) for _ in range(settings.num_layers))
        self.sentence = topologies.ManyToMany(
            rnnjax.Bidirectional(cells),
            output_size=len(TAGS),
            input_size=settings.word_size + settings.spelling_size,
            dropout=settings.dropout,
        )
        self._guess = jax.jit(lambda params, batch: self.apply(params, batch).argmax(-1).T)

    def init(self, key: jax.Array) -> Params:
        """New parameters."""
        key_words, key_spelling, key_sentence = jax.random.split(key, 3)
        words = 0.1 * jax.random.normal(key_words, (len(self.encoder.counts), self.settings.word_size))
        return Params(words, self.spelling.init(key_spelling), self.sentence.init(key_sentence))

    def spell(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The batch with the characters of its words in the place of ``forms``; on the host, as the table is large."""
        characters, sizes = self._spelled
        forms = np.maximum(batch["forms"], 0)
        rest = {name: array for name, array in batch.items() if name != "forms"}
        return {**rest, "characters": characters[forms], "sizes": np.where(batch["forms"] >= 0, sizes[forms], 0)}

    def apply(self, params: Params, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None) -> jax.Array:
        """Logits ``[T, B, 17]`` of ``words [B, T]``, ``characters [B, T, C]``, ``sizes [B, T]`` and ``lengths [B]``."""
        ids = batch["words"].T
        if key is not None:
            key, key_hide, key_inputs = jax.random.split(key, 3)
            counts = jnp.asarray(self.encoder.counts)[jnp.maximum(ids, 0)]
            hidden = jax.random.bernoulli(key_hide, self.settings.unknown / (self.settings.unknown + counts))
            ids = jnp.where(hidden, UNKNOWN, ids)
        characters = batch["characters"].transpose(2, 1, 0)  # [C, T, B]: time-major in characters, words are the batch
        spelled = self.spelling.apply(params.spelling, characters, lengths=batch["sizes"].T)  # [T, B, spelling_size]
        xs = jnp.concatenate([params.words[jnp.maximum(ids, 0)], spelled], axis=-1)
        if key is not None:
            xs = networks.dropout(key_inputs, xs, self.settings.dropout)
        return self.sentence.apply(params.sentence, xs, lengths=batch["lengths"], key=key)

    def loss(self, params: Params, batch: Mapping[str, jax.Array], *, key: jax.Array) -> jax.Array:
        """Cross-entropy, the mean over words."""
        logits = self.apply(params, batch, key=key)
        return topologies.softmax_loss(logits, batch["tags"].T, lengths=batch["lengths"])

    def tag(self, params: Params, sentences: Sequence[Sentence], boundaries: Sequence[int]) -> list[np.ndarray]:
        """Places in TAGS of every word of every sentence; sentences are padded to one of the lengths given."""
        longest = max(len(sentence.words) for sentence in sentences)
        boundaries = [*boundaries, longest] if longest > boundaries[-1] else boundaries
        arrays = self.encoder.encode(sentences, self.forms, boundaries[-1])
        guessed: list[np.ndarray] = [np.zeros(0, int)] * len(sentences)
        batches = rnnjax.data.bucket_by_length(
            arrays["lengths"], self.settings.batch_size, boundaries=boundaries
        ).batches
        for rows, seq_len in batches:
            batch = trim({name: array[rows] for name, array in arrays.items()}, seq_len)
            batch = {name: array for name, array in self.spell(batch).items() if name != "tags"}
            for row, tags in zip(rows, np.asarray(self._guess(params, batch))):
                if row >= 0:
                    guessed[row] = tags[: arrays["lengths"][row]]
        return guessed


def trim(batch: Mapping[str, np.ndarray], seq_len: int) -> dict[str, np.ndarray]:
    """Arrays ``[B, T]`` cut to the first steps; lengths stay."""
    return {name: array if name == "lengths" else array[:, :seq_len] for name, array in batch.items()}


def train(
    tagger: Tagger, train: Sequence[Sentence], dev: Sequence[Sentence], seed: int, say: Callable[[str], None]
) -> tuple[Callable[[Sequence[Sentence]], list[np.ndarray]], dict[str, Any]]:
    """Trains on one part; the best on the other. Returns a function from sentences to tags, and what is to be told."""
    settings = tagger.settings
    longest = max(len(sentence.words) for sentence in train)
    arrays = tagger.encoder.encode(train, tagger.forms, longest)
    key_init, key_order, key_train = jax.random.split(jax.random.key(seed), 3)
    batches = ShuffledBatches(
        arrays,
        settings.batch_size,
        key=key_order,
        lengths=arrays["lengths"],
        num_buckets=settings.num_buckets,
        trim=lambda batch, seq_len: tagger.spell(trim(batch, seq_len)),
    )
    steps = settings.epochs * batches.steps_per_epoch
    rate = optax.warmup_cosine_decay_schedule(0.0, settings.learning_rate, min(200, steps // 4), steps)
    truth = np.concatenate([[TAGS.index(tag) for tag in sentence.tags] for sentence in dev])

    def tag(params: Params, sentences: Sequence[Sentence]) -> list[np.ndarray]:
        return tagger.tag(params, sentences, batches.boundaries)

    def evaluate(params: Params) -> dict[str, float]:
        return {"accuracy": float(np.mean(np.concatenate(tag(params, dev)) == truth))}

    def report(row: Mapping[str, Any]) -> None:
        if row["kind"] == "eval":
            say(f"epoch {row['epoch']:2}: accuracy on dev {row['accuracy']:.4f}")

    outcome = fit.fit(
        tagger.loss,
        tagger.init(key_init),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)),
        batches,
        steps=steps,
        evaluate=evaluate,
        monitor="accuracy",
        mode="max",
        evals=settings.evals,
        log_every=50,
        key=key_train,
        report=report,
    )
    return lambda sentences: tag(outcome.params, sentences), {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(outcome.params)),
        "steps": steps,
        "best_step": outcome.best_step,
        "dev_accuracy": outcome.metrics["accuracy"],
        "curve": [(row["epoch"], row["accuracy"]) for row in outcome.history],
        "seconds": outcome.seconds,
    }
