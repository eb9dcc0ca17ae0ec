"""One input, many outputs: captions of pictures, and names of a language.

Without --data: pictures of two digits side by side, their number in words, in the language asked for. With --data
FOLDER/mnist: the same with the digits of MNIST. With --data FOLDER/names: surnames written from their language.

python -m experiments.04_captions.run [--quick] [--data FOLDER] [--out FOLDER]
"""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments import common
from rnnjax import fit

from . import captioner, data, names

HERE = pathlib.Path(__file__).resolve().parent
DIGITS = captioner.Setting()
MNIST = captioner.Setting(convolutions=(16, 32, 32), shift=2)
NAMES = names.Setting()


def run_captions(options: common.Options) -> tuple[dict[str, Any], dict[str, Any]]:
    """Digits, bundled or of MNIST."""
    setting = DIGITS if options.data is None else MNIST
    if options.quick:
        tiny = {"convolutions": (4, 4), "features": 8, "hidden_size": 8, "embed_size": 8, "steps": 2, "evals": 1}
        setting = dataclasses.replace(setting, batch_size=8, test_pictures=8, **tiny)
    images = data.bundled_digits() if options.data is None else data.mnist_digits(options.data)
    characters = data.Characters(text for row in data.captions() for text in row)
    train = data.Pictures(images["train"], characters, setting.batch_size, (options.seed, 0), setting.shift)
    valid, test = (
        data.Pictures(images[part], characters, setting.test_pictures, (options.seed, seed), unseen=part == "test")(0)
        for seed, part in enumerate(("valid", "test"), 1)
    )
    model = captioner.Captioner(setting, len(characters))
    outcome = captioner.train(
        model, train, valid, seed=options.seed, report=fit.Printer(quiet=options.quick, title="captions")
    )
    written = [characters.decode(row) for row in captioner.write(model, outcome.params, test.pictures, test.languages)]
    found = captioner.measure(written, test)
    result = {
        "question": "Can one state, set by a picture and a language, hold a caption of two digits?",
        "settings": dataclasses.asdict(setting),
        "images": {part: len(found.labels) for part, found in images.items()},
        "languages": list(data.LANGUAGES.values()),
        "seen_in_training": data.seen().mean(),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(outcome.params)),
        "minutes": outcome.seconds / 60,
        "best_update": outcome.best_step,
        "curve": [{"step": row["step"], "loss": row["loss"]} for row in outcome.history],
        **found,
    }
    if options.data is None:
        result["both_digits_by_svm"] = captioner.both_digits_by_svm(images["train"], images["test"])
    common.say(
        options,
        f"exact match {found['exact_match'] or 0:.2%} on {found['pictures']} held-out pictures, "
        f"{found['exact_match_unseen_in_language'] or 0:.2%} on {found['pictures_unseen_in_language']} of numbers "
        "never captioned in that language",
    )
    stem = "captions" if options.data is None else "mnist_captions"
    return result, {f"{stem}.png": picture(test, written)}


def picture(batch: data.Batch, written: Sequence[str], rows: int = 4, columns: int = 6) -> Any:
    """Held-out pictures with the captions written for them; the last row shows mistakes, where there are any."""
    from matplotlib.figure import Figure

    right = np.array(
        [text == data.captions()[of][number] for text, of, number in zip(written, batch.languages, batch.numbers)]
    )
    good, bad = np.flatnonzero(right), np.flatnonzero(~right)[:columns]
    first = [*good[: rows * columns - len(bad)], *bad]
    figure = Figure(figsize=(2.3 * columns, 1.5 * rows), layout="constrained")
    for axes in figure.subplots(rows, columns).ravel():
        axes.set_axis_off()
    for axes, at in zip(figure.axes, first):
        axes.imshow(batch.pictures[at], cmap="gray_r", vmin=0, vmax=1)
        language = list(data.LANGUAGES)[batch.languages[at]]
        truth = "" if right[at] else f"\nright: {data.captions()[batch.languages[at]][batch.numbers[at]]}"
        axes.set_title(f"{language}: {written[at]}{truth}", fontsize=8, color="black" if right[at] else "#D55E00")
    return figure


def run_names(options: common.Options) -> tuple[dict[str, Any], dict[str, Any]]:
    """Surnames."""
    setting = NAMES
    if options.quick:
        tiny = {"hidden_size": 8, "embed_size": 8, "epochs": None, "steps": 2, "evals": 1, "samples": 8}
        setting = dataclasses.replace(setting, orders=(1, 2), **tiny)
    lists = data.read_names(options.data)
    parts = data.split_names(lists, options.seed)
    characters = data.Characters(name for found in parts["train"].values() for name in found)
    arrays = {part: names.encoded(found, characters) for part, found in parts.items()}
    count = len(lists)
    model = names.make_model(setting, count, len(characters))
    outcome = names.train(
        model,
        setting,
        arrays["train"],
        arrays["valid"],
        seed=options.seed,
        report=fit.Printer(quiet=options.quick, title="names"),
    )
    nats, symbols = names.nll_by_language(model, outcome.params, arrays["test"], count)
    lines = names.ngrams(arrays, count, len(characters), setting.orders)
    samples, new, anywhere = {}, [], []
    everything = {name for found in parts["train"].values() for name in found}
    for number, language in enumerate(lists):
        key = jax.random.fold_in(jax.random.key(options.seed + 1), number)
        drawn = names.sample(model, outcome.params, number, setting.samples, key)
        samples[language] = [characters.decode(row) for row in drawn]
        known = set(parts["train"][language])
        new.append(np.mean([name not in known for name in samples[language]]))
        anywhere.append(np.mean([name not in everything for name in samples[language]]))
    result = {
        "question": "Names from their language alone: better than counting characters?",
        "settings": dataclasses.asdict(setting),
        "different_names": {part: sum(map(len, found.values())) for part, found in parts.items()},
        "characters": len(characters),
        "unknown_share": float(np.mean(arrays["test"]["symbols"][arrays["test"]["symbols"] >= 0] == data.UNKNOWN)),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(outcome.params)),
        "minutes": outcome.seconds / 60,
        "best_update": outcome.best_step,
        "curve": [{"step": row["step"], "loss": row["loss"]} for row in outcome.history],
        "test_perplexity": {
            "network": math.exp(nats.sum() / symbols.sum()),
            **{name: math.exp(line["nats"].sum() / symbols.sum()) for name, line in lines.items()},
        },
        "orders": {name: line["order"] for name, line in lines.items()},
        "by_language": {
            language: {
                "train_names": len(parts["train"][language]),
                "network": math.exp(nats[i] / symbols[i]),
                **{name: math.exp(line["nats"][i] / symbols[i]) for name, line in lines.items()},
                "new": new[i],
            }
            for i, language in enumerate(lists)
        },
        "samples_new_in_their_language": np.mean(new),
        "samples_new_in_all": np.mean(anywhere),
        "samples": {language: found[:10] for language, found in samples.items()},
    }
    told = ", ".join(f"{name} {value:.2f}" for name, value in result["test_perplexity"].items())
    common.say(options, f"perplexity a character on held-out names: {told}; {np.mean(new):.0%} of samples are new")
    return result, {"names.png": names_picture(result["by_language"])}


def names_picture(by_language: dict[str, dict[str, float]]) -> Any:
    """Perplexity of every language, network and n-grams."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    ordered = sorted(by_language, key=lambda language: -by_language[language]["train_names"])
    looks = {"network": ("#0072B2", "o"), "one a language": ("#D55E00", "s"), "one for all": ("#999999", "x")}
    for name, (color, marker) in looks.items():
        label = name if name == "network" else f"n-grams, {name}"
        axes.plot([by_language[one][name] for one in ordered], marker, color=color, label=label, ms=5)
    axes.set_xticks(
        range(len(ordered)), [f"{one}\n{by_language[one]['train_names']}" for one in ordered], fontsize=7, rotation=45
    )
    axes.set(ylabel="perplexity a character, held-out names", title="languages by the number of their training names")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#eeeeee", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    datasets = {"names": "surnames, English.txt and so on", "mnist": "digits in gzip files of the idx format"}
    options = common.parse(argv, here=HERE, doc=__doc__, datasets=datasets)
    result, drawn = run_names(options) if options.dataset == "names" else run_captions(options)
    common.finish(options, result, drawn)


if __name__ == "__main__":
    common.run(main)
