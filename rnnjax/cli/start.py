"""How a training begins: a new run, one in the place of another, or one that goes on; checked before it is touched."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import socket
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax

from rnnjax.cells import cell_from_name
from rnnjax.cells.registry import absolute_cell, cell_file
from rnnjax.cli.live import check_live, open_live
from rnnjax.cli.options import TRAIN, check_partners, preset_options
from rnnjax.cli.output import nats
from rnnjax.cli.reading import read_text
from rnnjax.cli.training import claim, ran_on, settle
from rnnjax.cpu import devices_are_set, reuse_memory
from rnnjax.engines.affine.native import compiles
from rnnjax.files import write_json
from rnnjax.fit.checkpoint import find_checkpoints, open_checkpoint
from rnnjax.fit.devices import choose_devices, prepare_devices, without_rows
from rnnjax.fit.folder import Replacement, check_code, own_folder
from rnnjax.fit.processes import crew
from rnnjax.fit.progress import Place
from rnnjax.lm.batches import Batches
from rnnjax.lm.model import LMParams
from rnnjax.lm.options import KINDS, RESUMABLE, BudgetOptions, ModelOptions, RunConfig
from rnnjax.lm.run import (
    Run,
    RunPaths,
    grown,
    make_model,
    open_run,
    own_text,
    read_config,
    write_config,
)
from rnnjax.network import leaves
from rnnjax.testing.contract import check_cell
from rnnjax.text import corpus as corpora
from rnnjax.text.corpus import Corpus, TextOptions
from rnnjax.text.shown import shown
from rnnjax.user_code import code_digest

__all__ = ["BUDGETS", "DEFAULT_MINUTES", "Started", "begin", "begin_with", "describe_origin", "go_on", "take_up"]

BUDGETS = {field.name for field in dataclasses.fields(BudgetOptions)}
DEFAULT_MINUTES = 5.0
SEEN = 10.0  # seconds until a file on a network file system is there for all machines


class Started(NamedTuple):
    """A run that is about to train; its folder belongs to this process."""

    paths: RunPaths
    config: RunConfig
    corpus: Corpus
    provenance: dict[str, Any]
    replaced: Replacement | None = None  # the run before it, until this one has its first checkpoint
    notes: tuple[str, ...] = ()  # to be said
    params: LMParams | None = None  # to begin with
    batches: Batches | None = None  # of a text that is read as it comes


def begin(values: dict[str, Any], given: set[str], stack: contextlib.ExitStack) -> Started:
    """A new run: everything is checked before anything of an old one is moved aside.

    Args:
        values: of all options.
        given: names of those on the command line.
        stack: holds the folder, and the old run, as long as it lasts.
    """
    if values["preset"] is not None:
        values |= {k: v for k, v in preset_options(values["preset"]).items() if k not in given}
    if given & BUDGETS:
        values |= dict.fromkeys(BUDGETS - given)
    elif all(values[name] is None for name in BUDGETS):
        values["minutes"] = DEFAULT_MINUTES
    values["cell"] = absolute_cell(values["cell"])
    origin = None if values["init_from"] is None else take_up(values, given)
    config = _with_devices(_config(values))
    check_partners(TRAIN, values, given)
    claimed: list[Replacement | None] = [None]  # of the lead alone

    def own() -> str:
        root, claimed[0] = claim(values["out"], values["force"], "train", stack, config.text.paths)
        return str(root)

    root = pathlib.Path(crew().by_lead(own))
    provenance: dict[str, Any] = {}
    if (file := cell_file(config.model.cell)) is not None:
        check_cell(cell_from_name(config.model.cell, config.model.hidden), max(config.model.embed, 3))
        provenance["code"] = code_digest(file)
    _compare(config, provenance.get("code"))
    batches: Batches | None = None
    if config.stream.stream:
        corpus, batches = open_live(config)
        make_model(config.model, len(corpus.vocabulary))
    else:
        corpus = crew().together(lambda: _text(config, origin, not values["no_cache"]))
    crew().compare("train", {"text (by its sha256)": corpus.sha256}, "give all of them the same files")
    paths = RunPaths(root)
    known = {name: getattr(corpus, name) for name in ("sha256", "sources", "n_symbols", "n_bytes")}
    provenance = known | ran_on() | provenance
    params: LMParams | None = None
    notes: tuple[str, ...] = ()
    if origin is not None:
        params = begin_with(origin, config.model, corpus, config.train.seed)
        provenance["init_from"], note = describe_origin(origin, corpus)
        notes = (note,)

    def write() -> None:
        settle(root, claimed[0], "train", paths.names, stack)
        write_json(paths.vocabulary, corpus.vocabulary.to_json())
        write_config(paths, config, provenance)

    crew().by_lead(write)
    _require_shared(paths)
    return Started(paths, config, corpus, provenance, claimed[0], notes, params, batches)


def _text(config: RunConfig, origin: Run | None, cache: bool) -> Corpus:
    """The text, if it is long enough and the model can be made for it; the symbols of the origin keep their ids."""
    known = origin and origin.vocabulary
    corpus = read_text(config.text, vocabulary=known, unknown="add", cache=cache, quiet=not crew().is_lead)
    corpora.require_length(len(corpus.train), config.train.batch_size, config.train.chunk_len)
    make_model(config.model, len(corpus.vocabulary))
    return corpus


def _compare(config: RunConfig, code: str | None) -> None:
    """Raises unless all processes were given the same; the names of the files may differ, what they hold may not."""
    options = {f"--{name.replace('_', '-')}": value for name, value in config.flat().items() if name != "paths"}
    crew().compare("train", {**options, "file of the cell (by its sha256)": code}, "give all of them the same options")


def _require_shared(paths: RunPaths) -> None:
    """Raises unless every process sees what process 0 has written."""

    def digest() -> str:
        return hashlib.sha256(paths.config.read_bytes()).hexdigest()

    def check() -> None:
        deadline = time.monotonic() + SEEN
        while True:
            with contextlib.suppress(OSError):
                if digest() == wanted:
                    return
            if time.monotonic() > deadline:
                raise ValueError(
                    f"train: the run folder {paths.root} must be one that all processes see, and what process 0 wrote "
                    f"there is not here on {socket.gethostname()}; put it on a file system that all machines share."
                )
            time.sleep(0.2)

    wanted = crew().by_lead(digest)
    crew().together(check)


def go_on(root: str, values: dict[str, Any], given: set[str], stack: contextlib.ExitStack) -> Started:
    """The options of the run, with those changes that leave it the same run.

    Args:
        root: the folder.
        values: of all options.
        given: names of those on the command line.
        stack: holds the folder as long as it lasts.
    """
    for name in sorted(given & {"out", "force", "preset", "init_from"}):
        flag = name.replace("_", "-")
        raise ValueError(f"--{flag}: does not go together with --resume, which stays in its folder; leave it out.")

    def own() -> None:
        read_config(root)  # before anything is written there, also the lock
        stack.enter_context(own_folder(pathlib.Path(root), "train"))

    crew().by_lead(own)
    _require_shared(RunPaths(pathlib.Path(root)))
    described = read_config(root)
    paths, old, provenance, vocabulary = described
    if saved := find_checkpoints(paths.checkpoints):
        with open_checkpoint(saved[-1].path) as checkpoint:
            described.check(checkpoint, saved[-1].path)
    elif "init_from" in provenance:
        raise ValueError(
            f"--resume: {root} was to begin with the parameters of another run, and ended before they were saved; "
            "start it again with --init-from and --force."
        )
    check_code(old.model.cell, provenance.get("code"), root, values["trust_code"])
    stored = old.flat()
    asked = {k: values[k] for k in given & stored.keys()}
    if "cell" in asked:
        asked["cell"] = absolute_cell(asked["cell"])
    if "fractions" in asked:
        asked["fractions"] = _fractions(values["fractions"])
    for name in sorted(asked.keys() - RESUMABLE):
        if asked[name] != stored[name]:
            raise ValueError(
                f"--resume: {root} was trained with --{name.replace('_', '-')} {stored[name]}, got {asked[name]}; "
                "leave it out to go on, or start a new run."
            )
    if asked.keys() & BUDGETS:
        asked = dict.fromkeys(BUDGETS) | asked
    config = _config(stored | {k: v for k, v in asked.items() if k in RESUMABLE})
    config = _with_devices(config, fixed="devices" in asked)
    if "text" in given:
        config = dataclasses.replace(config, text=dataclasses.replace(config.text, paths=_absolute(values["text"])))
    elif not config.stream.stream:
        own_text(config, f"--resume {root}")
    live = {"stream": config.stream.stream, "text": config.text.paths, "valid": config.stream.valid}
    check_live(values | live | {"eval_symbols": config.train.eval_symbols}, given)
    if config.stream.stream:
        corpus, batches = open_live(config, vocabulary)
        write_config(paths, config, provenance)
        note = "The stream goes on from where it is now; what came meanwhile is not seen."
        return Started(paths, config, corpus, provenance, notes=(note,), batches=batches)
    _compare(config, None)
    known = vocabulary if "init_from" in provenance else None
    more: dict[str, Any] = {"cache": not values["no_cache"], "quiet": not crew().is_lead}
    corpus = crew().together(lambda: read_text(config.text, vocabulary=known, unknown="add", **more))
    if corpus.sha256 != provenance["sha256"] or corpus.vocabulary != vocabulary:
        raise ValueError(
            f"--resume: the text has changed since {root} was started ({provenance['sources']}, "
            f"{provenance['n_symbols']:,} symbols then, {corpus.n_symbols:,} now); restore it or start a new run."
        )
    notes = _stretched(paths, old, config, corpus)
    crew().by_lead(lambda: write_config(paths, config, provenance))
    if (before := old.train.devices) != (now := config.train.devices):
        notes += (f"The batch was split over {before} device(s) and is now over {now}: sums are rounded differently.",)
    return Started(paths, config, corpus, provenance, notes=notes)


def _stretched(paths: RunPaths, old: RunConfig, new: RunConfig, corpus: Corpus) -> tuple[str, ...]:
    """What another budget does to the learning rate, which is a function of the share that is used up."""
    found = find_checkpoints(paths.checkpoints)
    if old.budget == new.budget or not found or (new.optimizer.schedule != "cosine" and not new.optimizer.warmup):
        return ()
    per_epoch = corpora.num_chunks(corpora.streams(corpus.train, new.train.batch_size), new.train.chunk_len)
    rates = []
    for config in (old, new):
        budget, step = config.budget, found[-1].step
        if budget.minutes is not None:
            return ("The budget has changed: the schedule of the learning rate is stretched over the new one.",)
        total = budget.updates(per_epoch) or 1
        rates.append(config.optimizer.learning_rate(Place(step / total, step // per_epoch, 0, step)))
    return (
        f"The budget has changed: the schedule is stretched over the new one, so the learning rate at step {step} is "
        f"{rates[1]:.2e}, where it was {rates[0]:.2e}.",
    )


def _with_devices(config: RunConfig, *, fixed: bool = True) -> RunConfig:
    """With the number of devices that the batch is split over in the place of 0, or of one that is not to be had here.

    Args:
        config: all options.
        fixed: whether that number, unless it is 0, must be taken as it is.
    """
    train = config.train
    reuse_memory()
    cells = [leaf.cell for leaf in leaves(make_model(config.model, 1).stack)]
    # The native loops use all cores of one device.
    alone = train.border != "cut" or (not devices_are_set() and all(map(compiles, cells)))
    asked = 1 if not train.devices and alone else train.devices
    prepare_devices(asked, train.batch_size)
    if crew().count > 1:  # they have agreed on the devices already
        if train.border == "uoro":
            raise ValueError(
                "TrainOptions: border must not be uoro where several processes share the batch, as its trace is one "
                "for all rows; start one, or take another."
            )
        asked = train.devices if fixed else 0
    elif not fixed and asked > jax.device_count():
        asked = 0
    count = choose_devices(asked, train.batch_size)
    if count > 1 and not train.devices and crew().count == 1:
        state = jax.eval_shape(lambda: make_model(config.model, 1).initial_state((train.batch_size,)))
        count = 1 if without_rows(state, train.batch_size) else count
    return dataclasses.replace(config, train=dataclasses.replace(train, devices=count))


def _config(values: dict[str, Any]) -> RunConfig:
    values = dict(values)
    if "text" in values:  # from the command line rather than from a config
        values |= {"paths": _absolute(values["text"] or ()), "rows": values["batch_size"]}
        values["fractions"] = _fractions(values["fractions"])
    values["cell"] = absolute_cell(values["cell"])
    if values["valid"] is not None:
        (values["valid"],) = _absolute([values["valid"]])
    groups = {name: kind(**{f.name: values[f.name] for f in dataclasses.fields(kind)}) for name, kind in KINDS.items()}
    return RunConfig(**groups)


def _absolute(names: Iterable[str]) -> tuple[str, ...]:
    """Paths that still hold when the run goes on from another folder."""
    return tuple(name if name == "-" else os.path.abspath(name) for name in names)


def _fractions(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"--fractions: must be three numbers like 0.9,0.05,0.05, got {text!r}.") from error


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
