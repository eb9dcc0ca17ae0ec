"""``rnnjax train --init-from``: a run that begins with the parameters of another."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

import jax

from rnnjax.cli.display import nats
from rnnjax.cli.presets import preset_options
from rnnjax.lm.model import LMParams
from rnnjax.lm.options import ModelOptions
from rnnjax.lm.run import Run, grown, make_model, open_run, own_text
from rnnjax.text.corpus import Corpus, TextOptions
from rnnjax.text.shown import shown

__all__ = ["begin_with", "describe_origin", "take_up"]

_SHAPE = ("cell", "layers", "hidden", "embed", "tie")  # of the parameters
_NAMED = 10  # symbols


def take_up(values: dict[str, Any], given: set[str]) -> Run:
    """Opens the run, and makes its options those of the new one wherever the command line leaves them open.

    Args:
        values: of all options; changed.
        given: names of those on the command line.

    Raises:
        ValueError: for a run that is damaged, or options that contradict it.
        FileNotFoundError: if there is none.
    """
    root = values["init_from"]
    if values["out"] and os.path.realpath(values["out"]) == os.path.realpath(root):
        raise ValueError(f"--init-from: {root} is the folder of the new run, too; give --out another one.")
    run = open_run(root, trust_code=values["trust_code"])
    known = dataclasses.asdict(run.config.model) | {"embed": run.model.embed_size, "level": run.config.text.level}
    asked = {name: values[name] for name in given}
    if values["preset"] is not None:
        asked = preset_options(values["preset"]) | asked
    for name in (*_SHAPE, "level"):
        value = asked.get(name, known[name])
        if value != known[name] and (name, value) != ("embed", -1):
            where = "" if name in given else f" (of --preset {values['preset']})"
            raise ValueError(
                f"--init-from: {root} was trained with --{name} {known[name]}, got {value}{where}; leave it out, or "
                "train anew."
            )
    models = {field.name for field in dataclasses.fields(ModelOptions)}
    values |= {name: known[name] for name in models if name in _SHAPE or name not in asked} | {"level": known["level"]}
    if not values["text"]:  # that of the run
        text = own_text(run.config, "--init-from")
        options = {f.name: getattr(text, f.name) for f in dataclasses.fields(TextOptions)} | {"text": list(text.paths)}
        options["fractions"] = ",".join(map(str, text.fractions))
        values |= {name: value for name, value in options.items() if name in values and name not in given}
    return run


def begin_with(run: Run, options: ModelOptions, corpus: Corpus, seed: int) -> LMParams:
    """The parameters of the run, with new rows and columns for the symbols that it did not know."""
    model = make_model(options, len(corpus.vocabulary))
    return grown(run.params, model.init(jax.random.fold_in(jax.random.key(seed), 0)))


def describe_origin(run: Run, corpus: Corpus) -> tuple[dict[str, Any], str]:
    """What the folder of the new run keeps of it, and a line for the reader."""
    root, step, loss = str(pathlib.Path(run.paths.root).absolute()), run.meta.get("step"), run.meta.get("val_loss")
    new = corpus.vocabulary.symbols[len(run.vocabulary) :]
    kept = {"run": root, "step": step, "val_loss": loss, "text": run.provenance["sha256"], "new_symbols": len(new)}
    names = ", ".join(shown(repr(symbol)) for symbol in new[:_NAMED]) + (", ..." if len(new) > _NAMED else "")
    fresh = f"{len(new):,} are new and start afresh: {names}" if new else "none is new"
    return kept, (
        f"Begins with the parameters of {run.paths.root}, step {step}, validation {nats(loss)} a symbol on its text; "
        f"of {len(corpus.vocabulary):,} symbols {fresh}."
    )
