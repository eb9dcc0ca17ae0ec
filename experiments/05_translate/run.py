"""One sequence to another: what does attention change?

Without --data: dates in words to ISO form, and sums in words to digits or words. With --data FOLDER/multi30k: German
captions to English.

python -m experiments.05_translate.run [--quick] [--data FOLDER] [--out FOLDER]
"""

import argparse
import collections
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments import common
from rnnjax import fit
from rnnjax.fit.progress import Outcome

from . import model as models
from . import multi30k, pictures, tasks, text
from .model import Setting

HERE = pathlib.Path(__file__).resolve().parent
MODELS = {"without attention": False, "with attention": True}
WORDS = Setting(
    hidden_size=128,
    embed_size=64,
    score="additive",
    attend="before",
    dropout=0.0,
    batch_size=128,
    lr=3e-3,
    epochs=None,
    steps=16_000,
)
CAPTIONS = Setting()
LARGE = Setting(cell="lstm", layers=2, hidden_size=512, dropout=0.5, batch_size=128, epochs=16, lr=1e-3, evals=16)
TINY = {"hidden_size": 8, "embed_size": 8, "steps": 2, "epochs": None, "num_buckets": 1, "evals": 1, "eval_round": 50}
SIZES = {"train": (40_000, 260_000), "valid": (300, 1_200), "test": (2_000, 2_000)}  # dates, sums
KINDS_SHOWN = (tasks.DATE_FORMS[5], tasks.DATE_FORMS[9], *tasks.KINDS[1:])
BEAM, PENALTIES = 5, (0.0, 0.6, 1.0)


def trained(
    name: str, options: common.Options, setting: Setting, parts: Mapping[str, text.Pairs], sizes: tuple[int, int]
) -> tuple[Any, Outcome]:
    """A model and how its training ended."""
    model = models.make_model(setting, *sizes, MODELS[name])
    keep = options.extra["keep"]
    outcome = models.train(
        model,
        setting,
        parts["train"],
        parts["valid"],
        seed=options.seed,
        report=fit.Printer(quiet=options.quick, title=name),
        folder=keep / name.replace(" ", "_") if keep else None,
    )
    return model, outcome


def told(outcome: Outcome, setting: Setting, params: Any) -> dict[str, Any]:
    """What any training has to say."""
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "updates": outcome.step,
        "best_update": outcome.best_step,
        "minutes": outcome.seconds / 60,
        "valid_perplexity": outcome.metrics["perplexity"],
        "curve": [{"step": row["step"], "perplexity": row["perplexity"]} for row in outcome.history],
    }


def run_tasks(options: common.Options) -> tuple[dict[str, Any], dict[str, Any]]:
    """The embedded tasks."""
    setting = dataclasses.replace(WORDS, **TINY) if options.quick else WORDS
    examples = {}
    for number, (part, (dates, sums)) in enumerate(SIZES.items()):
        share = 1_000 if options.quick else 1
        rng = np.random.default_rng([options.seed, number])
        examples[part] = tasks.make_examples(rng, part, max(64, dates // share), max(64, sums // share))
    sides = {
        part: ([tasks.tokens_of(e.source) for e in found], [tasks.tokens_of(e.target) for e in found])
        for part, found in examples.items()
    }
    of_source, of_target = (text.Vocabulary.of(side) for side in sides["train"])
    parts = {part: text.make_pairs(*side, of_source, of_target) for part, side in sides.items()}
    result: dict[str, Any] = {
        "question": "Dates and sums in words: are pairs right that were never seen, and what does attention change?",
        "settings": dataclasses.asdict(setting),
        "examples": {part: len(found) for part, found in examples.items()},
        "vocabularies": [len(of_source), len(of_target)],
        "models": {},
    }
    panels = []
    for name in list(MODELS)[-1:] if options.quick else MODELS:
        model, outcome = trained(name, options, setting, parts, (len(of_source), len(of_target)))
        written = models.translate(model, outcome.params, parts["test"], setting, max_len=16)
        right: dict[str, list[bool]] = collections.defaultdict(list)
        wrong = []
        for example, target, symbols in zip(examples["test"], sides["test"][1], written):
            good = of_target.decode(symbols) == target
            for group in ("all", example.kind, f"{example.kind}: {example.form}"):
                right[group].append(good)
            if not good:
                got = (" " if "words" in example.kind else "").join(of_target.decode(symbols)).replace(" - ", "-")
                wrong.append({**example._asdict(), "got": got.replace(" ,", ",")})
        result["models"][name] = {
            **told(outcome, setting, outcome.params),
            "exact_match": {group: np.mean(right[group]) for group in sorted(right)},
            "wrong": wrong[:10],
        }
        matches = ", ".join(f"{kind} {np.mean(right[kind]):.2%}" for kind in ("all", *tasks.KINDS))
        common.say(options, f"{name}: exact match on {len(written)} held-out examples: {matches}")
        if MODELS[name]:
            for kind in KINDS_SHOWN[: 1 if options.quick else None]:
                at = next(i for i, e in enumerate(examples["test"]) if kind in (e.form, e.kind))
                source, symbols = sides["test"][0][at], [*written[at], text.STOP]
                weights = models.attended(model, outcome.params, of_source.encode(source), symbols)
                tokens = [of_target.tokens[symbol] for symbol in symbols]
                panels.append((examples["test"][at].kind, [*source, "<stop>"], tokens, weights))
    result["examples_shown"] = [
        {"source": e.source, "target": e.target} for e in examples["test"][:: len(written) // 8]
    ]
    return result, {"attention.png": pictures.attention_picture(panels)}


def run_captions(options: common.Options) -> tuple[dict[str, Any], dict[str, Any]]:
    """Multi30k."""
    import sacrebleu

    setting = LARGE if options.extra["large"] else CAPTIONS
    setting = dataclasses.replace(setting, **TINY) if options.quick else setting
    read = {part: multi30k.read_pairs(options.data, part) for part in multi30k.PARTS}
    if options.quick:
        read = {part: pairs[:200] for part, pairs in read.items()}
    sides = {part: [[text.tokenize(line) for line in side] for side in zip(*pairs)] for part, pairs in read.items()}
    of_source, of_target = (text.Vocabulary.of(side, min_count=2) for side in sides["train"])
    parts = {part: text.make_pairs(*side, of_source, of_target) for part, side in sides.items()}
    bleu = sacrebleu.BLEU(lowercase=True, tokenize="13a")
    result: dict[str, Any] = {
        "question": "German captions to English: perplexity and BLEU, without and with attention.",
        "settings": dataclasses.asdict(setting),
        "pairs": {part: len(pairs) for part, pairs in read.items()},
        "min_count": 2,
        "vocabularies": [len(of_source), len(of_target)],
        "perplexity_counts": "of_all: every token and the stop, an unknown word is one symbol; of_known: without the "
        "unknown words; of_spelled: an unknown word has an even share of its symbol's probability",
        "beam_size": BEAM,
        "models": {},
    }
    references = {part: [english for _, english in read[part]] for part in read}
    panels, curves, shown = [], {}, {}
    for name in list(MODELS)[-1:] if options.quick else MODELS:
        model, outcome = trained(name, options, setting, parts, (len(of_source), len(of_target)))
        params = outcome.params

        def lines(part: str, beam_size: int, penalty: float = 0.0, model: Any = model, params: Any = params) -> Any:
            search = {"beam_size": beam_size, "length_penalty": penalty}
            found = models.translate(model, params, parts[part], setting, **search)
            return [_plain(of_target, symbols) for symbols in found], found

        by_penalty = {
            penalty: bleu.corpus_score(lines("valid", BEAM, penalty)[0], [references["valid"]]).score
            for penalty in (PENALTIES[:1] if options.quick else PENALTIES)
        }
        penalty = max(by_penalty, key=by_penalty.__getitem__)
        greedy, _ = lines("test", 1)
        beam, found = lines("test", BEAM, penalty)
        scores = {
            way: bleu.corpus_score(texts, [references["test"]]).score
            for way, texts in (("greedy", greedy), ("beam", beam))
        }
        measured = models.perplexity(model, params, parts["test"], setting, of_target.folded)
        result["models"][name] = {
            **told(outcome, setting, params),
            "test_perplexity": measured._asdict(),
            "test_bleu": scores,
            "valid_bleu_by_length_penalty": by_penalty,
            "length_penalty": penalty,
        }
        curves[name] = result["models"][name]["curve"]
        shown[name] = beam
        common.say(
            options,
            f"{name}: test perplexity {measured.of_all:.1f}, BLEU {scores['greedy']:.1f} greedy, {scores['beam']:.1f} "
            f"beam of {BEAM}",
        )
        if MODELS[name]:
            lengths = parts["test"].longest
            for at in np.flatnonzero((lengths > 9) & (lengths < 15))[: 1 if options.quick else 4]:
                symbols = [*found[at], text.STOP]
                weights = models.attended(model, params, of_source.encode(sides["test"][0][at]), symbols)
                source = [token if token in of_source.ids else f"({token})" for token in sides["test"][0][at]]
                panels.append(("", [*source, "<stop>"], [of_target.tokens[symbol] for symbol in symbols], weights))
    result["bleu_signature"] = str(bleu.get_signature())
    picks = range(0, len(read["test"]), max(1, len(read["test"]) // 8))
    result["translations"] = [
        {"source": read["test"][at][0], "reference": read["test"][at][1], **{name: shown[name][at] for name in shown}}
        for at in picks
    ]
    drawn = {"multi30k_curves.png": pictures.curves_picture(curves, "perplexity", "perplexity on the validation part")}
    if panels:
        drawn["multi30k_attention.png"] = pictures.attention_picture(panels)
    return result, drawn


def _plain(vocabulary: text.Vocabulary, symbols: Sequence[int]) -> str:
    return text.join(vocabulary.decode(symbols))


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--large", action="store_true", help="multi30k: 2 layers of 512, for a GPU")
    parser.add_argument("--keep", type=pathlib.Path, help="folder of checkpoints: a run that was stopped goes on there")


def main(argv: Sequence[str] | None = None) -> None:
    datasets = {"multi30k": "captions, train.de.gz and so on"}
    options = common.parse(argv, here=HERE, doc=__doc__, datasets=datasets, add=_add)
    result, drawn = run_tasks(options) if options.data is None else run_captions(options)
    common.finish(options, result, drawn)


if __name__ == "__main__":
    common.run(main)
