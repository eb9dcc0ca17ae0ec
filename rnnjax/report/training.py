"""What a run has written down about its training: curves, samples, and what it is."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rnnjax.lm.plots import read_metrics
from rnnjax.lm.run import Run

__all__ = ["facts", "read_curves", "read_samples", "training_curves"]

_POINTS = 600  # of a curve; more cannot be told apart on a screen
_HEADING = re.compile(r"^--- step (\d+) ---\n", re.MULTILINE)
_COLUMNS = ("step", "symbols", "seconds", "loss", "grad_norm", "clip_rate", "lr")


def training_curves(rows: Sequence[Mapping[str, Any]], points: int = _POINTS) -> dict[str, Any]:
    """Columns of the rows of a metrics file, by kind; of many rows neighbours are averaged.

    Args:
        rows: from `rnnjax.lm.plots.read_metrics`.
        points: at most so many of each curve; ``grad_norm_max`` keeps the largest of what is averaged, and ``step``,
            ``symbols`` and ``seconds`` the last.

    >>> rows = [{"kind": "train", "step": k, "loss": float(k), "grad_norm_max": float(k)} for k in range(4)]
    >>> curves = training_curves(rows, points=2)["train"]
    >>> curves["step"], curves["loss"], curves["grad_norm_max"]
    ([1.0, 3.0], [0.5, 2.5], [1.0, 3.0])
    """
    train = [row for row in rows if row["kind"] == "train"]
    pieces = [piece for piece in np.array_split(np.arange(len(train)), min(points, len(train)) or 1) if len(piece)]
    curves = {}
    for name in (*_COLUMNS, "grad_norm_max"):
        values = _column(train, name)
        if name in ("step", "symbols", "seconds"):
            curves[name] = [float(values[piece[-1]]) for piece in pieces]
        elif name == "grad_norm_max":
            curves[name] = [float(values[piece].max()) for piece in pieces]
        else:
            curves[name] = [float(values[piece].mean()) for piece in pieces]
    evals = [row for row in rows if row["kind"] == "eval"]
    return {
        "train": curves,
        "eval": {name: _column(evals, name).tolist() for name in ("step", "symbols", "seconds", "val_loss")},
        "rollbacks": [row["to_step"] for row in rows if row["kind"] == "rollback"],
        "done": next((dict(row) for row in reversed(rows) if row["kind"] == "done"), None),
    }


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    values = (row.get(name) for row in rows)
    return np.array([math.nan if value is None else value for value in values], np.float64)


def read_samples(text: str) -> list[dict[str, Any]]:
    r"""The pieces of a run's file of samples, with the step of each.

    >>> read_samples("--- step 20 ---\nab\nc\n\n--- step 40 ---\nd\n\n")
    [{'step': 20, 'text': 'ab\nc'}, {'step': 40, 'text': 'd'}]
    """
    parts = _HEADING.split(text)[1:]
    return [
        {"step": int(step), "text": body.removesuffix("\n\n")}
        for step, body in zip(parts[::2], parts[1::2], strict=True)
    ]


def facts(run: Run, curves: Mapping[str, Any]) -> dict[str, str]:
    """What the run is, in words: the head of the page and a row of the comparison."""
    options, provenance = run.config, run.provenance
    model, train, optimizer = options.model, options.train, options.optimizer
    count = sum(leaf.size for leaf in jax.tree.leaves(run.params))
    inputs = f"embedding {run.model.embed_size}{', tied' if model.tie else ''}" if run.model.embed_size else "one-hot"
    clip = f"gradient clipped at {optimizer.clip:g} by {optimizer.clip_by}" if optimizer.clip else "no clipping"
    known = {
        "network": f"{model.layers} x {model.hidden} {model.cell}, {inputs}"
        + (f", dropout {model.dropout:g}{' a chunk' if model.locked else ''}" if model.dropout else "")
        + (f", of the recurrent weights {model.weight_dropout:g}" if model.weight_dropout else "")
        + (f", {model.dtype}" if model.dtype != "float32" else ""),
        "parameters": f"{count:,}",
        "trained on": f"{provenance['sources']}, {provenance['n_symbols']:,} symbols, {len(run.vocabulary)} different "
        f"({run.vocabulary.level})",
        "training": f"{optimizer.optimizer}, learning rate {optimizer.lr:g} ({optimizer.schedule}), {clip}, "
        f"{train.batch_size} x {train.chunk_len} symbols an update"
        + (f", mean of the parameters ({optimizer.average:g})" if optimizer.average else "")
        + (f", begun with those of {provenance['init_from']['run']}" if "init_from" in provenance else ""),
        "checkpoint": f"step {run.meta['step']:,}" if "step" in run.meta else "",
        "ran on": ", ".join(
            f"{name} {provenance[name]}".removeprefix("device ")
            for name in ("device", "python", "jax")
            if provenance.get(name)
        ),
    }
    seconds = [*curves["train"]["seconds"], *curves["eval"]["seconds"]]
    if seconds and math.isfinite(max(seconds)):
        known["training"] += f", {max(seconds) / 60:.1f} minutes"
    return {name: value for name, value in known.items() if value}


def read_curves(run: Run) -> dict[str, Any]:
    """`training_curves` of the run's metrics; empty ones where it has none."""
    return training_curves(read_metrics(run.paths.metrics) if run.paths.metrics.is_file() else [])
