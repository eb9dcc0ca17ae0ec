"""The embedded data: every character of the standard library with its token class."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import common
from rnnjax.files import write_atomic

from .baselines import NgramTable, scores
from .model import Settings, build, train
from .pages import colored_html, colored_picture
from .source import CLASSES, Source, encode, label, read_library, vocabulary

__all__ = ["QUICK", "by_place_in_word", "run"]

QUICK = Settings(
    networks=("bidirectional",),
    both_size=4,
    num_layers=1,
    embed_size=4,
    window=32,
    margin=0,
    steps=2,
    evals=1,
    valid_windows=32,
)
WORDS = ("keyword", "builtin", "definition", "attribute", "name")
BEFORE = [(n, 0) for n in range(7)]  # the character and up to 6 before it
AROUND = [(0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (3, 2), (3, 3), (4, 3), (4, 4)]
PAGE = pathlib.Path(common.__file__)  # a file of this project, which nothing here has been trained on
PAGE_LINES = slice(27, 57)


def by_place_in_word(text: str, labels: np.ndarray, right: np.ndarray, most: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """How many characters of words are right, and how many there are, by their place in the word, ``[most]`` each.

    Words are keywords and names; the last entry holds all that is further in.
    """
    kinds = np.isin(labels, [CLASSES.index(name) for name in WORDS])
    starts = kinds & ~np.concatenate([[False], kinds[:-1]])
    at = np.arange(len(text))
    place = np.minimum(at - np.maximum.accumulate(np.where(starts, at, 0)), most - 1)[kinds]
    return np.bincount(place, weights=right[kinds], minlength=most), np.bincount(place, minlength=most)


def baselines(options: common.Options, parts: Mapping[str, Sequence[Source]], known: dict[str, int]) -> dict[str, Any]:
    """The classes that tables of neighbours give to the test files; their size is chosen on the validation files."""
    data = {name: [(encode(one.text, known), one.labels) for one in sources] for name, sources in parts.items()}
    found: dict[str, Any] = {}
    for name, contexts in (("before", BEFORE), ("around", AROUND)):
        contexts = contexts[: 3 if options.quick else None]
        tables = NgramTable(contexts, data["train"], len(known) + 1)
        accuracies = []
        for count in range(1, len(contexts) + 1):
            guessed = np.concatenate([tables.predict(ids, count) for ids, _ in data["valid"]])
            accuracies.append(float(np.mean(guessed == np.concatenate([told for _, told in data["valid"]]))))
        best = int(np.argmax(accuracies)) + 1
        for key, count in (("the character alone", 1), (f"n-grams {name}", best)):
            found[key] = [tables.predict(ids, count) for ids, _ in data["test"]]
        left, right = contexts[best - 1]
        common.say(options, f"n-grams {name}: best with {left} characters before and {right} behind")
    return found


def run(options: common.Options) -> None:
    """Baselines and both networks, and a page coloured by them."""
    settings = QUICK if options.quick else Settings()
    parts, left_out = read_library(60_000, 1_500) if options.quick else read_library()
    known = vocabulary(parts["train"])
    sizes = {name: {"files": len(one), "characters": sum(len(s.text) for s in one)} for name, one in parts.items()}
    common.say(options, f"{len(known)} characters; {sizes}")
    guesses = baselines(options, parts, known)
    told, page = {}, PAGE.read_text(encoding="utf-8")
    versions = {"truth (tokenize)": label(page)}
    for name, model in build(settings, len(known) + 1).items():
        classes_of, told[name] = train(
            *(model, settings, parts, known, options.seed),
            lambda text, name=name: common.say(options, f"{name}: {text}"),
        )
        guesses[name] = classes_of(parts["test"])
        versions[name] = classes_of([Source(PAGE.name, page, versions["truth (tokenize)"])])[0]
    labels = np.concatenate([source.labels for source in parts["test"]])
    space = labels == CLASSES.index("space")
    found = {}
    for name, guessed in guesses.items():
        flat = np.concatenate(guessed)
        places = [
            by_place_in_word(source.text, source.labels, one == source.labels)
            for source, one in zip(parts["test"], guessed)
        ]
        right, count = (np.sum(part, axis=0) for part in zip(*places))
        found[name] = {
            **scores(labels, flat, CLASSES),
            "accuracy_without_space": float((flat == labels)[~space].mean()),
            "accuracy_by_place_in_word": right / np.maximum(count, 1),
            "page": None if name not in versions else float(np.mean(versions[name] == versions["truth (tokenize)"])),
        }
        common.say(options, f"{name:20} accuracy on test files {found[name]['accuracy']:.4f}")
    options.out.mkdir(parents=True, exist_ok=True)
    versions = {name: versions[name] for name in ("truth (tokenize)", "bidirectional", "forward") if name in versions}
    write_atomic(options.out / "page.html", colored_html(PAGE.name, page, versions).encode())
    result = {
        "settings": settings._asdict(),
        "classes": CLASSES,
        "sizes": sizes,
        "files_left_out": left_out,
        "class_shares": np.bincount(labels, minlength=len(CLASSES)) / len(labels),
        "test": found,
        "training": told,
    }
    start, stop = (sum(map(len, page.splitlines(keepends=True)[:line])) for line in (PAGE_LINES.start, PAGE_LINES.stop))
    excerpt = {name: classes[start:stop] for name, classes in versions.items()}
    pictures = {"page.png": colored_picture(page[start:stop], excerpt), "classes.png": picture(result)}
    common.finish(options, result, pictures)


def picture(result: dict[str, Any]) -> Any:
    """Share found of each class, and accuracy by the place in a word."""
    from matplotlib.figure import Figure

    shown = {
        "the character alone": "#CCCCCC",
        "n-grams around": "#888888",
        "forward": "#E69F00",
        "bidirectional": "#0072B2",
    }
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    bars, words = figure.subplots(1, 2, width_ratios=(1.9, 1))
    for place, (name, color) in enumerate(shown.items()):
        if name not in result["test"]:
            continue
        found = result["test"][name]
        recall = [found["recall"][one] or 0.0 for one in CLASSES]
        at = np.arange(len(CLASSES)) + 0.2 * (place - 1.5)
        bars.bar(
            at, recall, width=0.19, color=color, label=f"{name}: {100 * found['accuracy']:.1f} % of all characters"
        )
        count = len(found["accuracy_by_place_in_word"])
        words.plot(range(1, count + 1), found["accuracy_by_place_in_word"], "o-", color=color, label=name)
    shares = [f"{name}\n{100 * share:.0f} %" for name, share in zip(CLASSES, result["class_shares"])]
    bars.set_xticks(range(len(CLASSES)), shares, fontsize=8)
    bars.set(ylim=(0, 1.28), title="share of each class that is found, in held-out files", yticks=np.linspace(0, 1, 6))
    bars.legend(fontsize=8, frameon=False, ncols=2, loc="upper left")
    words.set_xticks(range(1, count + 1), [*map(str, range(1, count)), f"{count}+"])
    words.set(ylim=(0, 1.02), xlabel="place of the character in its word", title="accuracy in keywords and names")
    words.legend(fontsize=8, frameon=False, loc="lower right")
    for axes in (bars, words):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#eeeeee")
        axes.set_axisbelow(True)
    return figure
