"""Many-to-one: what kind of text is this? A class for a whole sequence.

python -m experiments.03_classify.run                              which package of Python a snippet is from
python -m experiments.03_classify.run --data path/to/names         which language a surname is from
python -m experiments.03_classify.run --data path/to/rt_polarity   whether a sentence praises a film or not
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments import common

from .baselines import majority, naive_bayes, scores
from .data import PACKAGES, Examples, read_library, read_names, read_polarity
from .model import Settings, train

HERE = pathlib.Path(__file__).resolve().parent
DATASETS = {
    "names": "surnames, a file Language.txt a language with a name a line",
    "rt_polarity": "sentences of film reviews, rt-polarity.neg and rt-polarity.pos",
}
WORDS = Settings(
    hidden_size=64, embed_size=64, embed_scale=0.1, dropout=0.5, unknown_rate=0.1, min_count=2, num_buckets=2
)
SETTINGS = {
    "default": WORDS._replace(batch_size=16, epochs=10, evals=10, members=3),
    "names": Settings(hidden_size=128, epochs=20, evals=20),
    "rt_polarity": WORDS._replace(epochs=6, evals=6, members=5),
}
QUICK = Settings(hidden_size=4, embed_size=4, batch_size=16, epochs=1, evals=1, num_buckets=1)
BAYES = {  # units and n-grams of naive Bayes
    "default": (("pieces", (1, 1)), ("pieces", (1, 2)), ("characters", (1, 4))),
    "names": (("characters", (1, 3)), ("characters", (1, 5))),
    "rt_polarity": (("words", (1, 1)), ("words", (1, 2))),
}
FOLDS = (0, 3, 6)  # of the ten of rt_polarity; 1, 4, 7 validate


def read(options: common.Options, fold: int) -> Examples:
    """The examples of the data set that the command line names."""
    if options.data is None:
        return read_library(options.seed, PACKAGES[:3], 30, 20) if options.quick else read_library(options.seed)
    if options.dataset == "names":
        return read_names(options.data, options.seed)
    return read_polarity(options.data, options.seed, fold)


def seen_and_new(examples: Examples, right: np.ndarray) -> dict[str, Any]:
    """Accuracy on the test texts that stand in the training part too (whatever their class there), and on others."""
    known = set(examples.of("train", "valid")[0])
    seen = np.array([text in known for text in examples.of("test")[0]])
    parts = {"seen in training": seen, "new": ~seen}
    return {
        name: {"count": int(rows.sum()), "accuracy": float(right[rows].mean()) if rows.any() else None}
        for name, rows in parts.items()
    }


def one_fold(options: common.Options, settings: Settings, fold: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Baselines and network on one split."""
    examples = read(options, fold)
    labels = examples.of("test")[1]
    sizes = ", ".join(f"{len(examples.of(part)[0])} {part}" for part in ("train", "valid", "test"))
    say(f"{len(examples.classes)} classes; {sizes}")
    lines = {"most frequent class": majority(examples)}
    chosen = []
    for unit, ngrams in BAYES[options.dataset][: 1 if options.quick else None]:
        found = naive_bayes(examples, unit, ngrams, *([(1.0,)] if options.quick else []))
        many = f"{ngrams[0]} to {ngrams[1]}" if ngrams != (1, 1) else "single"
        lines[f"naive Bayes, {many} {unit}"] = found["accuracy"]
        chosen.append(found)
    for name, accuracy in lines.items():
        say(f"{name}: {accuracy:.4f}")
    probabilities, told = train(settings, examples, options.seed, say)
    guessed = probabilities.argmax(1)
    found = scores(labels, guessed, len(examples.classes))
    say(f"network: {found['accuracy']:.4f} on test, single {[one['test_accuracy'] for one in told['members']]}")
    return {
        "classes": examples.classes,
        "sizes": {part: len(examples.of(part)[0]) for part in ("train", "valid", "test")},
        **found,
        "single_networks": [one["test_accuracy"] for one in told["members"]],
        "baselines": lines,
        "naive_bayes": chosen,
        "texts": seen_and_new(examples, guessed == labels),
        "training": told,
    }


def picture(result: dict[str, Any], title: str) -> Any:
    """Confusions, and accuracy beside the baselines."""
    from matplotlib.figure import Figure

    counts, classes = np.array(result["confusion"]), result["classes"]
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(11.5, 6.5), layout="constrained")
    matrix, bars = figure.subplots(1, 2, width_ratios=(1.7, 1))
    image = matrix.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    for row, column in zip(*np.nonzero(share >= 0.005)):
        value = share[row, column]
        matrix.text(
            *(column, row, f"{100 * value:.0f}"),
            ha="center",
            va="center",
            fontsize=7 if len(classes) > 8 else 11,
            color="white" if value > 0.55 else "#333333",
        )
    labels = [f"{name} ({count})" for name, count in zip(classes, counts.sum(1))]
    matrix.set_yticks(range(len(classes)), labels, fontsize=8)
    matrix.set_xticks(range(len(classes)), classes, fontsize=8, rotation=60, ha="right", rotation_mode="anchor")
    matrix.set(ylabel="true class (examples of the test part)", xlabel="answer of the network", title=title)
    matrix.spines[:].set_visible(False)
    figure.colorbar(image, ax=matrix, shrink=0.6, label="share of the true class; numbers in per cent")
    lines = {**result["baselines"], "one network (mean)": float(np.mean(result["single_networks"]))}
    if len(result["single_networks"]) > len(result.get("folds", [0])):
        lines[f"{len(result['training']['members'])} networks together"] = result["accuracy"]
    names = list(lines)[::-1]
    colors = ["#0072B2" if "network" in name else "#999999" for name in names]
    drawn = bars.barh(names, [lines[name] for name in names], color=colors, height=0.6)
    bars.bar_label(drawn, fmt="%.3f", padding=3, fontsize=9)
    bars.set(xlim=(0, 1.12), title="accuracy on the test part", box_aspect=0.6)
    bars.spines[["top", "right"]].set_visible(False)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    options = common.parse(argv, here=HERE, doc=__doc__, datasets=DATASETS)
    settings = QUICK if options.quick else SETTINGS[options.dataset]
    folds = FOLDS if options.dataset == "rt_polarity" and not options.quick else (0,)
    found = [one_fold(options, settings, fold, lambda text: common.say(options, text)) for fold in folds]
    result = found[0]
    if len(folds) > 1:
        result = {
            **result,
            "confusion": sum(one["confusion"] for one in found),
            "baselines": {
                name: float(np.mean([one["baselines"][name] for one in found])) for name in result["baselines"]
            },
            "single_networks": [accuracy for one in found for accuracy in one["single_networks"]],
            "folds": [
                {name: one[name] for name in ("accuracy", "single_networks", "baselines", "texts")} for one in found
            ],
            **{name: float(np.mean([one[name] for one in found])) for name in ("accuracy", "balanced_accuracy")},
        }
    result = {"settings": settings._asdict(), **result}
    title = {"default": "package of a snippet", "names": "language of a surname"}.get(options.dataset, "sentiment")
    common.finish(options, result, {f"{options.dataset}.png": picture(result, title)})


if __name__ == "__main__":
    common.run(main)
