"""Part-of-speech tagging of a treebank in CoNLL-U."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import common

from .baselines import most_frequent_tag, scores
from .conllu import TAGS, Encoder, Sentence, read_treebank
from .tagger import Settings, Tagger, train

__all__ = ["QUICK", "run", "seen_and_new"]

QUICK = Settings(
    *(4, 4, 4, 4, 4),
    batch_size=8,
    num_buckets=1,
    epochs=1,
    evals=1,
)
# Sentences of our own, to look at: words of two classes, and words that do not exist.
SHOWN = (
    "The old man the boats .",
    "They refuse to permit us to obtain the refuse permit .",
    "Time flies like an arrow , fruit flies like a banana .",
    "Can you can a can as a canner can ?",
    "The vorpish plonder quizzled blithely into Snarkton .",
)


def seen_and_new(words: Sequence[str], known: set[str], right: np.ndarray) -> dict[str, dict[str, Any]]:
    """How many words stand in training, as they are written, and how many do not; and the share right of each."""
    seen = np.array([word in known for word in words])
    return {
        name: {"words": int(rows.sum()), "accuracy": float(right[rows].mean()) if rows.any() else None}
        for name, rows in (("seen", seen), ("unseen", ~seen))
    }


def run(options: common.Options) -> None:
    """Baseline, network, and what it does with words that it has never seen."""
    settings = QUICK if options.quick else Settings()
    parts = read_treebank(options.data)
    if options.quick:
        parts = {name: sentences[:40] for name, sentences in parts.items()}
    sizes = {
        name: {"sentences": len(sentences), "words": sum(len(one.words) for one in sentences)}
        for name, sentences in parts.items()
    }
    common.say(options, f"{sizes}")
    shown = [Sentence(tuple(text.split()), ("X",) * len(text.split())) for text in SHOWN]
    everything = [one for sentences in (*parts.values(), shown) for one in sentences]
    known = {word for sentence in parts["train"] for word in sentence.words}
    test_words = [word for sentence in parts["test"] for word in sentence.words]
    truth = np.array([TAGS.index(tag) for sentence in parts["test"] for tag in sentence.tags])

    def measure(guessed: np.ndarray) -> dict[str, Any]:
        right = guessed == truth
        rows = np.split(right, np.cumsum([len(one.words) for one in parts["test"]])[:-1])
        whole = float(np.mean([row.all() for row in rows]))
        return {**scores(truth, guessed, TAGS), **seen_and_new(test_words, known, right), "whole_sentences": whole}

    of_word, other = most_frequent_tag([list(zip(*sentence)) for sentence in parts["train"]])
    found = {"most frequent tag": measure(np.array([TAGS.index(of_word.get(word, other)) for word in test_words]))}
    common.say(options, f"most frequent tag: {_told(found['most frequent tag'])}")
    forms = sorted({word for sentence in everything for word in sentence.words})
    tagger = Tagger(settings, Encoder(parts["train"]), forms)
    tag, told = train(tagger, parts["train"], parts["dev"], options.seed, lambda text: common.say(options, text))
    found["network"] = measure(np.concatenate(tag(parts["test"])))
    common.say(options, f"network: {_told(found['network'])}")
    tagged = [
        [(word, TAGS[place]) for word, place in zip(sentence.words, places)]
        for sentence, places in zip(shown, tag(shown))
    ]
    result = {
        "settings": settings._asdict(),
        "tags": TAGS,
        "sizes": sizes,
        "test": found,
        "training": told,
        "our_own_sentences": [" ".join(f"{word}/{tag}" for word, tag in sentence) for sentence in tagged],
    }
    common.finish(options, result, {"ud_ewt.png": picture(result, tagged)})


def _told(found: dict[str, Any]) -> str:
    parts = ", ".join(f"{name} {found[name]['accuracy'] or 0:.4f}" for name in ("seen", "unseen"))
    return f"{found['accuracy']:.4f} on test ({parts} words)"


def picture(result: dict[str, Any], tagged: Sequence[Sequence[tuple[str, str]]]) -> Any:
    """Confusions, accuracy on seen and unseen words, and our own sentences."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6.6), layout="constrained")
    matrix, right = figure.subfigures(1, 2, width_ratios=(1.15, 1))
    axes = matrix.subplots()
    counts = np.array(result["test"]["network"]["confusion"])
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(share >= 0.005)):
        color = "white" if share[row, column] > 0.55 else "#333333"
        axes.text(column, row, f"{100 * share[row, column]:.0f}", ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(TAGS)), TAGS, fontsize=8, rotation=90)
    axes.set_yticks(range(len(TAGS)), [f"{tag} ({count})" for tag, count in zip(TAGS, counts.sum(1))], fontsize=8)
    axes.set(title="share of each tag, in per cent", ylabel="true tag (words of the test part)", xlabel="network")
    bars, text = right.subplots(2, 1, height_ratios=(1, 1.1))
    found = result["test"]
    kinds = ("all", "seen", "unseen")
    for place, (name, color) in enumerate((("most frequent tag", "#999999"), ("network", "#0072B2"))):
        values = [found[name]["accuracy"], *(found[name][kind]["accuracy"] or 0.0 for kind in kinds[1:])]
        drawn = bars.bar(np.arange(3) + 0.38 * (place - 0.5), values, width=0.36, color=color, label=name)
        bars.bar_label(drawn, labels=[f"{100 * value:.1f}" for value in values], fontsize=9)
    counts = [sum(found["network"][kind]["words"] for kind in kinds[1:])]
    counts += [found["network"][kind]["words"] for kind in kinds[1:]]
    bars.set_xticks(range(3), [f"{kind} words\n({count})" for kind, count in zip(kinds, counts)])
    bars.set(ylim=(0, 1.25), yticks=np.linspace(0, 1, 6), title="accuracy on the test part, in per cent")
    bars.legend(frameon=False, fontsize=9, ncols=2, loc="upper left")
    bars.spines[["top", "right"]].set_visible(False)
    text.set(xlim=(0, 64), ylim=(len(tagged) * 2, 0), title="sentences of our own")
    text.axis("off")
    colors = {tag: colormaps["tab20"](place / len(TAGS)) for place, tag in enumerate(TAGS)}
    colors = {tag: tuple(0.7 * part for part in color[:3]) for tag, color in colors.items()}  # readable on white
    for row, sentence in enumerate(tagged):
        column = 0.0
        for word, tag in sentence:
            text.text(column, 2 * row + 0.6, word, fontsize=9, parse_math=False)
            text.text(column, 2 * row + 1.25, tag, fontsize=6.5, color=colors[tag], weight="bold")
            column += max(len(word), 0.8 * len(tag)) + 1.2
    return figure
