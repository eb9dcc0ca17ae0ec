"""The networks that label characters: one that has read everything up to the character, one that reads all around."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import rnnjax
from rnnjax import fit, topologies
from rnnjax.data import ShuffledBatches

from .source import CLASSES, Source, windows

__all__ = ["Settings", "build", "predict", "train"]


class Settings(NamedTuple):
    """What is trained, and how long."""

    networks: tuple[str, ...] = ("forward", "bidirectional")
    forward_size: int = 128  # units of each layer of the network that reads forward
    both_size: int = 80  # and of each direction of the one that reads both ways: about as many parameters
    num_layers: int = 2
    embed_size: int = 24
    dropout: float = 0.1
    window: int = 256  # characters of a training example
    margin: int = 192  # read, not labelled, at both ends of an evaluated window of 768
    learning_rate: float = 4e-3
    batch_size: int = 32
    steps: int = 600
    evals: int = 4
    valid_windows: int = 128


def build(settings: Settings, vocab_size: int) -> dict[str, topologies.ManyToMany]:
    """The models by name."""

    def layers(size: int) -> tuple[Any, ...]:
        return tuple(rnnjax.LSTM(size) for _ in range(settings.num_layers))

    networks = {
        "forward": rnnjax.Stack(layers(settings.forward_size)),
        "bidirectional": rnnjax.Bidirectional(layers(settings.both_size)),
    }
    return {
        name: topologies.ManyToMany(
            network, len(CLASSES), vocab_size=vocab_size, embed_size=settings.embed_size, dropout=settings.dropout
        )
        for name, network in networks.items()
        if name in settings.networks
    }


def predict(apply: Callable[[Any, Any], jax.Array], params: Any, ids: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """Classes ``[N, T]`` of the windows ``[N, T]``; ``apply`` is jitted, for one shape."""
    guessed = np.zeros(ids.shape, np.int64)
    for start in range(0, len(ids), batch_size):
        rows = ids[start : start + batch_size]
        full = np.pad(rows, ((0, batch_size - len(rows)), (0, 0)), constant_values=-1)
        guessed[start : start + len(rows)] = np.asarray(apply(params, full))[: len(rows)]
    return guessed


def train(
    model: topologies.ManyToMany,
    settings: Settings,
    parts: Mapping[str, Sequence[Source]],
    known: dict[str, int],
    seed: int,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Callable[[Sequence[Source]], list[np.ndarray]], dict[str, Any]]:
    """Trains a network; best on the validation files.

    Returns:
        A function from files to the class of every character, and what is to be told.
    """
    ids, labels = windows(parts["train"], known, settings.window)
    whole = settings.window + 2 * settings.margin if settings.margin else settings.window
    valid_ids, valid_labels = windows(parts["valid"], known, whole, settings.margin)
    chosen = np.random.default_rng(seed).permutation(len(valid_ids))[: settings.valid_windows]
    valid_ids, valid_labels = valid_ids[chosen], valid_labels[chosen]

    def loss(params: Any, batch: Mapping[str, jax.Array], *, key: jax.Array) -> jax.Array:
        logits = model.apply(params, batch["ids"].T, key=key)
        return topologies.softmax_loss(logits, batch["labels"].T, ignore_label=-1)

    @jax.jit
    def apply(params: Any, rows: jax.Array) -> jax.Array:
        return model.apply(params, rows.T).argmax(-1).T

    def evaluate(params: Any) -> dict[str, float]:
        right = predict(apply, params, valid_ids, settings.batch_size) == valid_labels
        return {"accuracy": float(right[valid_labels >= 0].mean())}

    def report(row: Mapping[str, Any]) -> None:
        if row["kind"] == "eval":
            say(f"step {row['step']:5}: accuracy on validation files {row['accuracy']:.4f}")

    key_init, key_order, key_train = jax.random.split(jax.random.key(seed), 3)
    rate = optax.warmup_cosine_decay_schedule(0.0, settings.learning_rate, settings.steps // 20, settings.steps)
    outcome = fit.fit(
        loss,
        model.init(key_init),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)),
        ShuffledBatches({"ids": ids, "labels": labels}, settings.batch_size, key=key_order),
        steps=settings.steps,
        evaluate=evaluate,
        monitor="accuracy",
        mode="max",
        evals=settings.evals,
        key=key_train,
        report=report,
    )

    def classes_of(sources: Sequence[Source]) -> list[np.ndarray]:
        rows, told = windows(sources, known, whole, settings.margin)
        # Windows follow one another, and each labels other characters: what is labelled is the files in a row.
        guessed = predict(apply, outcome.params, rows, settings.batch_size)[told >= 0]
        return np.split(guessed, np.cumsum([len(source.text) for source in sources])[:-1])

    size = sum(leaf.size for leaf in jax.tree.leaves(outcome.params))
    return classes_of, {
        "parameters": size,
        "best_step": outcome.best_step,
        "valid_accuracy": outcome.metrics["accuracy"],
        "curve": [(row["step"], row["accuracy"]) for row in outcome.history],
        "seconds": outcome.seconds,
    }
