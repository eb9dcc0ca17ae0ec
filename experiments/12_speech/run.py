"""Who is speaking? Nine men say a diphthong; frames of twelve numbers, sequences of 7 to 29 frames.

The data are in the package sktime (pip install sktime); with --quick, made ones show that it runs.

python -m experiments.12_speech.run [--quick] [--out FOLDER] [--seed N]
"""

import importlib.util
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from experiments import common
from rnnjax.data import ShuffledBatches
from rnnjax.fit import fit
from rnnjax.topologies import ManyToOne, softmax_loss

HERE = pathlib.Path(__file__).resolve().parent
SPEAKERS, CHANNELS = 9, 12


class Part(NamedTuple):
    """Sequences, padded."""

    xs: np.ndarray  # float32 [N, T, CHANNELS]
    lengths: np.ndarray  # int32 [N]
    labels: np.ndarray  # int32 [N]


class Settings(NamedTuple):
    """How long everything takes."""

    hidden: int = 48
    epochs: int = 60
    batch_size: int = 30
    lr: float = 4e-3
    dropout: float = 0.4
    noise: float = 0.2  # added to every number in training, in deviations
    seeds: int = 5


QUICK = Settings(hidden=4, epochs=1, seeds=1)


def read_ts(path: pathlib.Path) -> Part:
    """A file of sktime's format: lines of channels between colons, numbers between commas, and the label at the end.

    Raises:
        DataError: with the line that holds something else.
    """
    sequences, labels, begun = [], [], False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not begun or not line.strip():
            begun = begun or line.strip().lower() == "@data"
            continue
        *channels, label = line.strip().split(":")
        try:
            rows = [[float(value) for value in channel.split(",")] for channel in channels]
            labels.append(int(label) - 1)
        except ValueError as error:
            raise common.DataError(path, number, f"needs numbers and a label, got {str(error)[:60]}") from error
        if len(rows) != CHANNELS or len({len(row) for row in rows}) != 1:
            raise common.DataError(path, number, f"needs {CHANNELS} channels of one length, got {len(rows)}")
        sequences.append(np.array(rows, np.float32).T)
    return padded(sequences, labels)


def padded(sequences: Sequence[np.ndarray], labels: Sequence[int]) -> Part:
    lengths = np.array([len(one) for one in sequences], np.int32)
    xs = np.zeros((len(sequences), int(lengths.max()), CHANNELS), np.float32)
    for row, one in zip(xs, sequences, strict=True):
        row[: len(one)] = one
    return Part(xs, lengths, np.array(labels, np.int32))


def bundled() -> tuple[Part, Part]:
    """The published training and test part, from the files of sktime; nothing of it is imported.

    Raises:
        ValueError: if it is not installed.
    """
    found = importlib.util.find_spec("sktime")
    for root in found.submodule_search_locations if found and found.submodule_search_locations else ():
        folder = pathlib.Path(root) / "datasets" / "data" / "JapaneseVowels"
        if folder.is_dir():
            return read_ts(folder / "JapaneseVowels_TRAIN.ts"), read_ts(folder / "JapaneseVowels_TEST.ts")
    raise ValueError(
        "12_speech: the recordings are in the package sktime, which is not installed; pip install sktime, or --quick."
    )


def made(count: int, seed: int) -> Part:
    """Speakers that are points, for a quick run."""
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(SPEAKERS, CHANNELS))
    labels = np.arange(count) % SPEAKERS
    return padded([centres[one] + 0.3 * draw.normal(size=(draw.integers(7, 30), CHANNELS)) for one in labels], labels)


def standardised(train: Part, test: Part) -> tuple[Part, Part]:
    """By mean and deviation of the frames of the training part; padding stays zero."""
    frames = np.concatenate([row[:length] for row, length in zip(train.xs, train.lengths, strict=True)])
    mean, deviation = frames.mean(0), frames.std(0)

    def scaled(part: Part) -> Part:
        there = np.arange(part.xs.shape[1]) < part.lengths[:, None]
        return part._replace(xs=np.where(there[..., None], (part.xs - mean) / deviation, 0).astype(np.float32))

    return scaled(train), scaled(test)


def summaries(part: Part) -> np.ndarray:
    """Mean and deviation of each channel: what is left without the order, ``[N, 2 * CHANNELS]``."""
    rows = [row[:length] for row, length in zip(part.xs, part.lengths, strict=True)]
    return np.array([np.concatenate([row.mean(0), row.std(0)]) for row in rows])


def baselines(train: Part, test: Part) -> dict[str, float]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    known, asked = summaries(train), summaries(test)
    rivals = {"nearest neighbour": KNeighborsClassifier(1), "logistic regression": LogisticRegression(max_iter=2000)}
    return {name: float(one.fit(known, train.labels).score(asked, test.labels)) for name, one in rivals.items()}


def learn(train: Part, test: Part, settings: Settings, seed: int) -> tuple[np.ndarray, float]:
    """Log-probabilities of one network ``[N, SPEAKERS]``, and the seconds of its training."""
    network = rnnjax.Bidirectional((rnnjax.GRU(settings.hidden),))
    model = ManyToOne(network, SPEAKERS, input_size=CHANNELS, pooling="mean", dropout=settings.dropout)
    steps = max(1, settings.epochs * len(train.labels) // settings.batch_size)

    def loss_fn(params: Any, batch: Part, *, key: jax.Array) -> jax.Array:
        key_noise, key_drop = jax.random.split(key)
        xs = batch.xs.swapaxes(0, 1)
        xs = xs + settings.noise * jax.random.normal(key_noise, xs.shape)
        return softmax_loss(model.apply(params, xs, lengths=batch.lengths, key=key_drop), batch.labels)

    outcome = fit(
        loss_fn,
        model.init(jax.random.key(seed)),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(settings.lr, steps))),
        ShuffledBatches(train, settings.batch_size, key=jax.random.key(1000 + seed)),
        steps=steps,
        key=jax.random.key(2000 + seed),
        explosion=math.inf,
    )
    logits = jax.jit(lambda p, part: model.apply(p, part.xs.swapaxes(0, 1), lengths=part.lengths))
    return np.asarray(jax.nn.log_softmax(logits(outcome.params, jax.tree.map(jnp.asarray, test)))), outcome.seconds


def picture(test: Part, log_probs: np.ndarray, result: dict[str, Any]) -> Any:
    """Who is taken for whom, and the numbers side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4), layout="constrained")
    confused, bars = figure.subplots(1, 2, width_ratios=(1, 1.1))
    counts = np.zeros((SPEAKERS, SPEAKERS), int)
    np.add.at(counts, (test.labels, log_probs.argmax(-1)), 1)
    confused.imshow(np.log1p(counts), cmap="Blues")
    for i, j in np.argwhere(counts):
        confused.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=9,
                      color="white" if counts[i, j] > 8 else "#333333")  # fmt: skip
    ticks = range(SPEAKERS), [str(n + 1) for n in range(SPEAKERS)]
    confused.set_xticks(*ticks)
    confused.set_yticks(*ticks)
    confused.set(xlabel="said", ylabel="speaker", title="test utterances")
    rows = {**result["baselines"], "one GRU": result["single_mean"], "five together": result["together"]}
    places = np.arange(len(rows))[::-1]
    bars.barh(places, [100 * (1 - value) for value in rows.values()], color=["#AAAAAA"] * 2 + ["#0072B2"] * 2)
    bars.set_yticks(places, list(rows))
    for place, value in zip(places, rows.values()):
        bars.text(100 * (1 - value), place, f" {100 * (1 - value):.1f} %", va="center")
    bars.set(xlabel="wrong [%]", title="wrong speaker")
    bars.margins(x=0.15)
    for axes in (confused, bars):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    options = common.parse(argv, here=HERE, doc=__doc__)
    settings = QUICK if options.quick else Settings()
    train, test = standardised(*((made(60, 1), made(30, 2)) if options.quick else bundled()))
    result: dict[str, Any] = {
        "question": "Who is speaking?",
        "data": "made" if options.quick else "JapaneseVowels of sktime",
        "settings": settings._asdict(),
        "utterances": [len(train.labels), len(test.labels)],
        "baselines": baselines(train, test),
    }
    for name, value in result["baselines"].items():
        common.say(options, f"{name:20} {value:.1%}")
    found = []
    for seed in range(settings.seeds):
        log_probs, seconds = learn(train, test, settings, options.seed + seed)
        found.append(log_probs)
        right = float(np.mean(log_probs.argmax(-1) == test.labels))
        result.setdefault("single", []).append(right)
        common.say(options, f"GRU, seed {seed}           {right:.1%}, {seconds:.0f} s")
    together = np.logaddexp.reduce(found, axis=0)
    result["single_mean"] = float(np.mean(result["single"]))
    result["together"] = float(np.mean(together.argmax(-1) == test.labels))
    common.say(options, f"{settings.seeds} together          {result['together']:.1%}")
    common.finish(options, result, {"speech.png": picture(test, together, result)})


if __name__ == "__main__":
    common.run(main)
