"""What is in every frame, and where does it go? Labels for videos of moving digits, frame by frame.

A convolutional LSTM and an LSTM, each against the same network without memory, which sees every frame by itself: it can
tell which digits are there, but not which way they move.

python -m experiments.07_video.run [--quick] [--data FOLDER] [--out FOLDER] [--seed N]
"""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import rnnjax
from experiments import common

from . import clips
from .model import FrameTagger, judge, loss_of

HERE = pathlib.Path(__file__).resolve().parent
DATASETS = {"mnist": "the four idx files; its digits, averaged down to 8 x 8 pixels, in place of the bundled ones"}
MODELS = {
    "ConvLSTM": FrameTagger("conv_lstm", hidden_size=32),
    "LSTM": FrameTagger("lstm", hidden_size=96),
    "ConvLSTM, every frame alone": FrameTagger("conv_lstm", hidden_size=32, memory=False),
    "LSTM, every frame alone": FrameTagger("lstm", hidden_size=96, memory=False),
}
ARROWS = "←→↑↓"


class Settings(NamedTuple):
    """How long everything takes."""

    num_frames: int = 9
    batch_size: int = 16
    steps: int = 2000
    lr: float = 5e-3
    evals: int = 6
    eval_clips: int = 200
    test_clips: int = 1000
    models: tuple[str, ...] = tuple(MODELS)
    channels: int = 32


QUICK = Settings(
    num_frames=4, batch_size=2, steps=2, evals=1, eval_clips=4, test_clips=4, models=("ConvLSTM",), channels=2
)


def load(options: common.Options) -> dict[str, clips.Digits]:
    """Images for training, validation and test clips; no image is in two of them."""
    if options.data is None:
        return dict(zip(("train", "valid", "test"), clips.split(clips.bundled(), (0.7, 0.1))))
    train, valid = clips.split(clips.from_mnist(options.data, "train"), (0.9,))
    return {"train": train, "valid": valid, "test": clips.from_mnist(options.data, "test")}


def learn(
    model: FrameTagger, images: dict[str, clips.Digits], settings: Settings, seed: int
) -> tuple[Any, dict[str, Any]]:
    """Trains one network; the parameters with the best validation loss, and what they reach."""

    def loss_fn(params, batch, *, key=None):
        return loss_of(model.apply(params, batch.frames), batch.present, batch.moves)

    @jax.jit
    def score(params, batch):
        answer = model.apply(params, batch.frames)
        return judge(answer, batch.present, batch.moves) | {"loss": loss_of(answer, batch.present, batch.moves)}

    def measure(params: Any, part: str, count: int) -> dict[str, float]:
        """On ``count`` clips, the same for every network, a hundred at a time."""
        size = min(100, count)
        made = (
            clips.make_clips(np.random.default_rng((n, 1)), images[part], settings.num_frames, size)
            for n in range(count // size)
        )
        found = [score(params, batch) for batch in made]
        return {name: float(np.mean([row[name] for row in found])) for name in found[0]}

    rows: list[dict[str, Any]] = []
    params = model.init(jax.random.key(seed))
    schedule = optax.cosine_decay_schedule(settings.lr, settings.steps, alpha=0.02)
    outcome = rnnjax.fit.fit(
        loss_fn,
        params,
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule)),
        lambda step: clips.make_clips(
            np.random.default_rng((seed, 0, step)), images["train"], settings.num_frames, settings.batch_size
        ),
        steps=settings.steps,
        evaluate=lambda params: measure(params, "valid", settings.eval_clips),
        evals=settings.evals,
        report=rows.append,
    )
    return outcome.params, {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "test": measure(outcome.params, "test", settings.test_clips),
        "valid": outcome.metrics,
        "seconds": outcome.seconds,
        "curve": [(row["step"], row["loss"]) for row in rows if row["kind"] == "train"],
    }


def words(present: np.ndarray, moves: np.ndarray) -> str:
    """The labels of one frame, as ``3→ 7↑``; a digit that has just come has no arrow."""
    digits = np.flatnonzero(present)
    named = (f"{digit}{ARROWS[moves[digit]] if moves[digit] != clips.UNKNOWN else '·'}" for digit in digits)
    return " ".join(named) or "-"


def picture(result: dict[str, Any], shown: clips.Clips, answers: dict[str, Any]):
    """Two clips with the labels of all frames, true and predicted, and what the networks reach."""
    from matplotlib.figure import Figure

    num_frames, num_clips = shown.frames.shape[:2]
    figure = Figure(figsize=(13, 3 * num_clips + 3.2), layout="constrained")
    parts = figure.subfigures(num_clips + 1, 1, height_ratios=[3] * num_clips + [3.2])
    colors = dict(zip(answers, ("#0072B2", "#009E73", "#D55E00", "#E69F00")))
    for clip, part in enumerate(parts[:-1]):
        for t, axes in enumerate(part.subplots(1, num_frames)):
            axes.imshow(shown.frames[t, clip], cmap="gray_r", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            true = words(shown.present[t, clip], shown.moves[t, clip])
            axes.set_title(f"{'true: ' if t == 0 else ''}{true}", fontsize=9)
            for line, (name, (present, moves)) in enumerate(answers.items()):
                given = np.where(shown.moves[t, clip] == clips.UNKNOWN, clips.UNKNOWN, moves[t, clip])
                # A digit that is not there moves nowhere; of one named wrongly the arrow is shown nevertheless.
                given = np.where(present[t, clip] & ~shown.present[t, clip], moves[t, clip], given)
                text = words(present[t, clip], given)
                weight = "bold" if text == true else "normal"
                where = {"x": 0.5, "y": -0.12 - 0.16 * line, "transform": axes.transAxes}
                axes.text(s=text, ha="center", va="top", color=colors[name], weight=weight, fontsize=9, **where)
    bars, curves = parts[-1].subplots(1, 2)
    metrics = {"digits": "the right digits", "moves": "the right moves", "frames": "both, whole frame"}
    for at, (name, found) in enumerate(result["models"].items()):
        places = np.arange(len(metrics)) + 0.2 * (at - 1.5)
        values = [found["test"][metric] for metric in metrics]
        bars.bar(places, values, 0.18, color=colors[name], label=name)
        for place, value in zip(places, values):
            bars.text(place, value, f"{value:.0%}", ha="center", va="bottom", fontsize=8)
        curves.plot(*zip(*found["curve"]), color=colors[name], label=name)
    bars.set_xticks(range(len(metrics)), metrics.values())
    bars.set(ylim=(0, 1.08), title="test clips, share of frames and moves (dotted: a guessed move)")
    bars.axhline(0.25, color="#555555", linestyle=":", linewidth=1)
    curves.set(xlabel="update", ylabel="training loss, nats", title="labels above: bold where they are right")
    curves.legend(fontsize=8, frameon=False)
    for axes in (bars, curves):
        axes.grid(color="#eeeeee", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    options = common.parse(argv, here=HERE, doc=__doc__, datasets=DATASETS)
    settings = QUICK if options.quick else Settings()
    images = load(options)
    made = clips.make_clips(np.random.default_rng(7), images["test"], settings.num_frames, 200)
    inked = np.argsort((made.frames > 0).sum(axis=(0, 2, 3)))[-2:]  # two digits, which seldom hide each other
    shown = clips.Clips(*(part[:, inked] for part in made))
    found, answers = {}, {}
    for name in settings.models:
        model = MODELS[name]
        if options.quick:
            model = FrameTagger(model.network, settings.channels, 4, model.memory)
        params, found[name] = learn(model, images, settings, options.seed)
        answer = jax.jit(model.apply)(params, shown.frames)
        answers[name] = (np.asarray(answer.present) > 0, np.asarray(answer.moves).argmax(axis=-1))
        test = found[name]["test"]
        common.say(
            options,
            f"{name:28} {found[name]['parameters']} parameters: digits {test['digits']:.1%}, "
            f"moves {test['moves']:.1%}, whole frames {test['frames']:.1%}, {found[name]['seconds']:.0f} s",
        )
    result = {
        "question": "What is in every frame of a video, and which way does it move?",
        "settings": settings._asdict(),
        "images": {part: len(digits.labels) for part, digits in images.items()},
        "models": found,
    }
    suffix = "" if options.data is None else f"_{options.dataset}"
    common.finish(options, result, {f"video{suffix}.png": picture(result, shown, answers)})


if __name__ == "__main__":
    common.run(main)
