"""A run: its folder, what lies in it, and how to open one that was trained."""

from __future__ import annotations

import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from rnnjax.averaging import judged_prefix
from rnnjax.cells import cell_from_name
from rnnjax.files import CheckpointError, digest, read_json, write_json
from rnnjax.fit.checkpoint import Checkpoint, Stored, best, find_checkpoints, open_checkpoint
from rnnjax.fit.folder import Paths, aside_of, check_code
from rnnjax.lm.model import LanguageModel, LMParams
from rnnjax.lm.options import ModelOptions, RunConfig
from rnnjax.networks import Stack
from rnnjax.text.corpus import TextOptions
from rnnjax.text.vocabulary import Vocabulary

__all__ = [
    "Described",
    "Run",
    "RunPaths",
    "grown",
    "make_model",
    "open_run",
    "own_text",
    "read_config",
    "run_identity",
    "write_config",
]


class RunPaths(Paths):
    """Where a run of a language model keeps its files."""

    FILES = {  # noqa: RUF012
        "config": "config.json",  # options, provenance of the text, and what it ran on
        "vocabulary": "vocabulary.json",  # the symbols
        "metrics": "metrics.jsonl",  # one JSON object a line
        "samples": "samples.txt",  # what the model wrote at every evaluation
        "baselines": "baselines.json",  # losses of simple models on the same split
        "curve": "loss.png",  # picture of the losses
        "log": "train.log",  # what `rnnjax train` printed, with times
    }
    FOLDERS = {"checkpoints": "checkpoints", "tensorboard": "tensorboard"}  # noqa: RUF012


# Of the commands of these names.
PICTURES = ("gradflow.png", "lyapunov.png", "fixedpoints.png", "report.html")


class Described(NamedTuple):
    """What lies in the folder of a run beside its checkpoints."""

    paths: RunPaths
    config: RunConfig
    provenance: dict[str, Any]  # sha256 and description of the text, versions, device
    vocabulary: Vocabulary

    def check(self, stored: Stored, path: pathlib.Path) -> None:
        """Refuses a checkpoint of another training, before anything of it is made.

        Raises:
            CheckpointError: if it was written with other options, text or symbols beside it, or has other layers.
        """
        files = {"vocabulary": "vocabulary.json"}
        for key, value in run_identity(self.config, self.provenance, self.vocabulary).items():
            if stored.meta.get(key) != value:
                raise CheckpointError(
                    f"run: {self.paths.root / files.get(key, 'config.json')} and {path} do not belong together: the "
                    f"{key} are not those of the training; restore the file."
                )
        start, layers = "params.stack.layers[", self.config.model.layers
        found = {name.removeprefix(start).partition("]")[0] for name in stored.shapes if name.startswith(start)}
        if found and len(found) != layers:
            raise CheckpointError(f"run: {path} holds {len(found)} layers, where the options say {layers:,}.")


class Run(NamedTuple):
    """A trained run, opened."""

    paths: RunPaths
    config: RunConfig
    provenance: dict[str, Any]  # sha256 and description of the text, versions, device
    vocabulary: Vocabulary
    model: LanguageModel
    params: LMParams
    meta: dict[str, Any]  # of the checkpoint: step, val_loss, ...


def make_model(options: ModelOptions, vocab_size: int) -> LanguageModel:
    """The network that the options describe; a cell in a file of Python code is run.

    Raises:
        ValueError: for an unknown cell or sizes that do not fit.
    """
    cells = tuple(cell_from_name(options.cell, options.hidden) for _ in range(options.layers))
    embed = options.embed
    if embed == -1 and options.tie:
        embed = options.hidden
    elif embed == -1:
        embed = 128 if vocab_size <= 256 else 256
    alike = ("tie", "dropout", "dtype", "locked", "weight_dropout", "ar", "tar")
    fields: dict[str, Any] = {name: getattr(options, name) for name in alike}
    fields["embed_dropout"] = None if options.embed_dropout == -1 else options.embed_dropout
    return LanguageModel(vocab_size, Stack(cells), embed, **fields)


def grown(params: LMParams, fresh: LMParams) -> LMParams:
    """Trained parameters for more symbols, whose rows and columns come from ``fresh``; old symbols keep their ids."""

    def larger(old: jax.Array, new: jax.Array) -> jax.Array:
        return old if old.shape == new.shape else new.at[tuple(map(slice, old.shape))].set(old)

    return jax.tree.map(larger, params, fresh)


def write_config(paths: RunPaths, config: RunConfig, provenance: dict[str, Any]) -> None:
    """Writes the options and the provenance of a run."""
    write_json(paths.config, {"options": config.to_json(), "provenance": provenance})


def read_config(root: str | os.PathLike[str]) -> Described:
    """The options, the provenance and the symbols of a run.

    Raises:
        FileNotFoundError: if there is no such run.
        ValueError: if its files are damaged or edited, or links.
    """
    paths = RunPaths(pathlib.Path(root))
    paths.check("run", PICTURES)
    if not paths.config.is_file():
        raise FileNotFoundError(
            f"run: there is no run in {str(root)!r}, {paths.config.name} is missing; train one first{_aside(paths)}."
        )
    try:
        data = read_json(paths.config, "run")
        config = RunConfig.from_json(data["options"])
        provenance = dict(data["provenance"])
        for name, kind in {"sha256": str, "sources": str, "n_symbols": int, "device": str}.items():
            if not isinstance(provenance[name], kind):
                raise TypeError(f"{name} must be of kind {kind.__name__}, got {provenance[name]!r:.80}")
        vocabulary = Vocabulary.from_json(read_json(paths.vocabulary, "run"))
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise CheckpointError(f"run: the files of {str(root)!r} are damaged: {error}") from error
    return Described(paths, config, provenance, vocabulary)


def _aside(paths: RunPaths) -> str:
    aside = aside_of(pathlib.Path(os.path.realpath(paths.root)))
    return f", or move back the one that was to be replaced, {aside}" if aside.exists() else ""


def run_identity(config: RunConfig, provenance: dict[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    """What a checkpoint has in common with the files beside it: digests of options, text, symbols and code."""
    return {
        "options": digest(config.identity()),
        "text": provenance["sha256"],
        "vocabulary": digest(vocabulary.to_json()),
        "code": provenance.get("code"),
    }


def own_text(config: RunConfig, where: str) -> TextOptions:
    """The text of a run, to be read again.

    Raises:
        ValueError: if it came from where nothing stays: standard input, a pipe or a device.
    """
    for name in config.text.paths:
        path = pathlib.Path(name)
        if name == "-" or (path.exists() and not path.is_file() and not path.is_dir()):
            what = "standard input" if name == "-" else f"{name}, a pipe or device"
            raise ValueError(f"{where}: the text of this run came from {what}, and is gone; name a text.")
    return config.text


def open_run(root: str | os.PathLike[str], *, checkpoint: str = "best", trust_code: bool = False) -> Run:
    """Opens a trained run on whatever device is there.

    Nothing in the folder is executed, and options, symbols and checkpoint are compared by their digests.

    Args:
        root: the run's folder.
        checkpoint: ``"best"`` (lowest validation loss) or ``"last"``.
        trust_code: run the file of Python code that the run's cell is in, if it is of that kind; it must be the very
            file that the training used.

    Raises:
        FileNotFoundError: if there is no such run or it has no checkpoint yet.
        ValueError: if its files are damaged, edited or do not belong together, or its cell is code and not trusted.
    """
    if checkpoint not in ("best", "last"):
        raise ValueError(f"run: checkpoint must be 'best' or 'last', got {checkpoint!r}.")
    described = read_config(root)
    chosen = _choose(described.paths, checkpoint)
    try:
        return _open(described, chosen, trust_code)
    except CheckpointError:
        if chosen.path.exists():
            raise
        # A training that goes on has written a newer one and removed this meanwhile.
        return _open(described, _choose(described.paths, checkpoint), trust_code)


def _choose(paths: RunPaths, checkpoint: str) -> Checkpoint:
    found = find_checkpoints(paths.checkpoints)
    if not found:
        raise FileNotFoundError(
            f"run: {str(paths.root)!r} has no complete checkpoint yet; go on with its training{_aside(paths)}."
        )
    return found[-1] if checkpoint == "last" else best(found)


def _open(described: Described, chosen: Checkpoint, trust_code: bool) -> Run:
    paths, config, provenance, vocabulary = described
    with open_checkpoint(chosen.path) as stored:
        described.check(stored, chosen.path)
        check_code(config.model.cell, provenance.get("code"), paths.root, trust_code)
        model = make_model(config.model, len(vocabulary))
        params = stored.tree(jax.eval_shape(model.init, jax.random.key(0)), judged_prefix(stored.shapes))
        meta = stored.meta
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
        raise CheckpointError(f"run: the parameters in {chosen.path} are not finite; remove that file.")
    return Run(*described, model, jax.device_put(params), meta)
