"""The network: symbols in, a recurrent network in both directions over them, one class out."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from rnnjax import fit, topologies
from rnnjax.data import ShuffledBatches, bucket_by_length

from .baselines import scores
from .data import UNKNOWN, Examples, encode, vocabulary

__all__ = ["Classifier", "Settings", "train"]


class Settings(NamedTuple):
    """What is trained, and how long."""

    hidden_size: int = 128  # of each direction
    embed_size: int = 32
    embed_scale: float = 1.0  # deviation of the embedding at the start; rare words change little, so theirs is small
    num_layers: int = 1
    pooling: str = "max"
    dropout: float = 0.3
    unknown_rate: float = 0.0  # of symbols that training hides, so that the network learns what unknown means
    min_count: int = 1  # a symbol that is rarer in training is unknown
    learning_rate: float = 2e-3
    batch_size: int = 64
    epochs: int = 20
    evals: int = 20
    num_buckets: int = 4  # lengths that batches are padded to
    members: int = 1  # networks that differ in their seed, whose probabilities are averaged


class Classifier:
    """A model, its vocabulary, and probabilities for any texts."""

    def __init__(self, settings: Settings, examples: Examples) -> None:
        self.examples, self.settings = examples, settings
        self.known = vocabulary(examples, settings.min_count)
        lengths = [len(examples.symbols(text)) for text in examples.texts]
        buckets = bucket_by_length(lengths, settings.batch_size, num_buckets=settings.num_buckets)
        self.boundaries = buckets.boundaries
        cells = tuple(rnnjax.LSTM(settings.hidden_size) for _ in range(settings.num_layers))
        self.model = topologies.ManyToOne(
            rnnjax.Bidirectional(cells),
            output_size=len(examples.classes),
            vocab_size=len(self.known) + 1,
            embed_size=settings.embed_size,
            pooling=settings.pooling,
            dropout=settings.dropout,
        )
        self._logits = jax.jit(lambda params, ids, lengths: self.model.apply(params, ids.T, lengths=lengths))

    def loss(self, params: Any, batch: Mapping[str, jax.Array], *, key: jax.Array) -> tuple[jax.Array, dict]:
        """Cross-entropy of a batch ``ids [B, T], lengths [B], labels [B]``."""
        key_dropout, key_hide = jax.random.split(key)
        ids = batch["ids"]
        if self.settings.unknown_rate:
            hidden = jax.random.bernoulli(key_hide, self.settings.unknown_rate, ids.shape)
            ids = jnp.where(hidden & (ids >= 0), UNKNOWN, ids)
        logits = self.model.apply(params, ids.T, lengths=batch["lengths"], key=key_dropout)
        return topologies.softmax_loss(logits, batch["labels"]), {
            "accuracy": topologies.accuracy(logits, batch["labels"])
        }

    def predictor(self, texts: list[str], batch_size: int = 256) -> Callable[[Any], np.ndarray]:
        """A function of the parameters: probabilities ``[N, classes]`` of these texts, encoded once."""
        ids, lengths = encode(self.examples, texts, self.known, self.boundaries[-1])
        buckets = bucket_by_length(lengths, batch_size, boundaries=self.boundaries)

        def predict(params: Any) -> np.ndarray:
            probabilities = np.zeros((len(texts), len(self.examples.classes)))
            for indices, seq_len in buckets.batches:
                valid = indices >= 0
                logits = self._logits(params, ids[indices, :seq_len], np.where(valid, lengths[indices], 0))
                probabilities[indices[valid]] = jax.nn.softmax(logits)[valid]
            return probabilities

        return predict


def train(
    settings: Settings, examples: Examples, seed: int, say: Callable[[str], None] = lambda line: None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Trains the members; best on the validation part.

    Returns:
        Probabilities of the test part ``[N, classes]``, averaged over the members, and what is to be told.
    """
    classifier = Classifier(settings, examples)
    texts, labels = examples.of("train")
    ids, lengths = encode(examples, texts, classifier.known, classifier.boundaries[-1])
    valid, valid_labels = examples.of("valid")
    predict_valid, predict_test = classifier.predictor(valid), classifier.predictor(examples.of("test")[0])
    steps = settings.epochs * (len(texts) // settings.batch_size)
    rate = optax.warmup_cosine_decay_schedule(0.0, settings.learning_rate, min(100, steps // 10), steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    classes = len(examples.classes)

    def evaluate(params: Any) -> dict[str, float]:
        p = predict_valid(params)
        loss = -np.mean(np.log(np.maximum(p[np.arange(len(p)), valid_labels], 1e-9)))
        return {"loss": float(loss), "accuracy": scores(valid_labels, p.argmax(1), classes)["accuracy"]}

    def report(row: Mapping[str, Any]) -> None:
        if row["kind"] == "eval":
            say(f"epoch {row['epoch']:2}: validation loss {row['loss']:.3f}, accuracy {row['accuracy']:.4f}")

    probabilities, told = [], []
    for member in range(settings.members):
        key_init, key_order, key_train = jax.random.split(jax.random.fold_in(jax.random.key(seed), member), 3)
        batches = ShuffledBatches(
            {"ids": ids, "lengths": lengths, "labels": labels},
            settings.batch_size,
            key=key_order,
            lengths=lengths,
            num_buckets=settings.num_buckets,
            trim=lambda batch, seq_len: {**batch, "ids": batch["ids"][:, :seq_len]},
        )
        params = classifier.model.init(key_init)
        outcome = fit.fit(
            classifier.loss,
            params._replace(embedding=settings.embed_scale * params.embedding),
            optimizer,
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
        probabilities.append(predict_test(outcome.params))
        told.append(
            {
                "best_step": outcome.best_step,
                "valid": outcome.metrics,
                "test_accuracy": scores(examples.of("test")[1], probabilities[-1].argmax(1), classes)["accuracy"],
                "curve": [row["accuracy"] for row in outcome.history],
                "seconds": outcome.seconds,
            }
        )
    size = sum(leaf.size for leaf in jax.tree.leaves(outcome.params))
    return np.mean(probabilities, axis=0), {"steps": steps, "parameters": size, "members": told}
