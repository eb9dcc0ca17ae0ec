"""A trained run in a folder without any training, for tests of what is done with runs."""

import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from rnnjax import cli
from rnnjax.cells.registry import cell_file
from rnnjax.files import write_json
from rnnjax.fit import checkpoint
from rnnjax.fit.optimizers import OptimizerOptions
from rnnjax.lm.options import BudgetOptions, ModelOptions, RunConfig, TrainOptions
from rnnjax.lm.run import RunPaths, make_model, run_identity, write_config
from rnnjax.text.corpus import TextOptions, load_corpus
from rnnjax.user_code import code_digest

TEXT = "".join(np.random.default_rng(0).choice(list("abcdefghijklmnopqrs\n"), 1000))


class Saved(NamedTuple):
    params: Any


def strong(params: Any, factor: float = 3.0) -> Any:
    """Parameters large enough that predictions differ and the past matters."""
    return jax.tree.map(lambda leaf: factor * leaf, params)


def make_run(folder: pathlib.Path, *, model: ModelOptions | None = None, **text: Any) -> pathlib.Path:
    folder.mkdir(parents=True)
    source = folder / "text.txt"
    source.write_text(TEXT, encoding="utf-8")
    model = ModelOptions(embed=0, hidden=8, layers=2) if model is None else model
    options = TextOptions(**{"paths": (str(source),), "fractions": (0.6, 0.2, 0.2), **text})
    config = RunConfig(options, model, OptimizerOptions(), TrainOptions(chunk_len=16), BudgetOptions(steps=3))
    paths, corpus = RunPaths(folder), load_corpus(options)
    write_json(paths.vocabulary, corpus.vocabulary.to_json())
    provenance = {key: getattr(corpus, key) for key in ("sha256", "sources", "n_symbols")} | {"device": "cpu"}
    if (file := cell_file(model.cell)) is not None:
        provenance["code"] = code_digest(file)
    write_config(paths, config, provenance)
    identity = run_identity(config, provenance, corpus.vocabulary)
    rows = [
        {"kind": "train", "step": 2, "epoch": 0, "symbols": 64, "loss": 2.5, "grad_norm": 0.5, "seconds": 1.0},
        {"kind": "eval", "step": 2, "epoch": 0, "symbols": 64, "val_loss": 2.25, "seconds": 60.0},
        {"kind": "eval", "step": 3, "epoch": 0, "symbols": 96, "val_loss": 2.75, "seconds": 75.0},
    ]
    paths.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    network = make_model(config.model, len(corpus.vocabulary))
    for step, loss in ((2, 2.25), (3, 2.75)):
        params = strong(network.init(jax.random.key(step)))
        checkpoint.save(paths.checkpoints, Saved(params), identity, step=step, val_loss=loss)
    return folder


@dataclasses.dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


def rnnjax(capsys: pytest.CaptureFixture[str], *arguments: Any) -> Result:
    """Runs the command line in this process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return Result(int(caught.value.code or 0), captured.out, captured.err)


def log_softmax(logits: Any) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
