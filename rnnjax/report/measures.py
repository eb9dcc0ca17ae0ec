"""What the page of a run says besides its units: its training, what it expects of a text, how far gradients go."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.analysis.flat import state_size
from rnnjax.analysis.jacobians import kaplan_yorke_dimension
from rnnjax.analysis.recording import SymbolModel
from rnnjax.analysis.text_flow import symbol_gradient_flow, symbol_lyapunov, text_pieces
from rnnjax.lm.model import LanguageModel, LMParams
from rnnjax.lm.plots import read_metrics
from rnnjax.lm.run import Run
from rnnjax.networks.stack import StackState
from rnnjax.report.page import pack
from rnnjax.text.windows import windows

__all__ = [
    "EXPECTED",
    "facts",
    "gradient_data",
    "lyapunov_data",
    "predictions",
    "read_curves",
    "read_samples",
    "training_curves",
]

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


EXPECTED = 5  # symbols that are shown as the likeliest next ones
_WINDOW = 256


def predictions(
    model: LanguageModel, params: LMParams, ids: np.ndarray, starts: np.ndarray | None
) -> tuple[dict[str, Any], np.ndarray]:
    """Reads a text in one piece, from its start, with the state reset where a document starts.

    Args:
        model: the model.
        params: its parameters.
        ids: integers ``[n]``, at least two.
        starts: where documents start, or None.

    Returns:
        Packed arrays, and the ids ``[m]`` of the symbols that occur in them: ``ids`` ``[n]`` counts through those;
        ``surprise`` ``[n]`` is the nats of every symbol, given all before it (the first one's is 0 and means nothing);
        ``next`` ``[n, k]`` are the likeliest symbols after each and ``probs`` ``[n, k]`` their probabilities times
        65535. ``mean`` is the mean surprise of all but the first.
    """
    count, width = len(ids), min(EXPECTED, model.vocab_size)
    surprise = np.zeros(count, np.float32)
    likeliest, probs = np.zeros((count, width), np.int64), np.zeros((count, width))
    state = model.initial_state((1,))
    cut: dict[str, Any] = {"streams": 1, "window": _WINDOW, "warmup": 0, "starts": starts}
    for at, _, resets in windows(0, count, **cut, where="report"):
        first = int(at[0, 0])
        read, target = (ids[np.minimum(k, count - 1)].astype(np.int32) for k in (at, at + 1))
        state, *found = _expect(model, params, state, read, target, resets, width)
        loss, symbols, shares = (np.asarray(array)[: count - first, 0] for array in found)
        stop = first + len(loss)
        surprise[first + 1 : stop + 1] = loss[: count - 1 - first]
        likeliest[first:stop], probs[first:stop] = symbols, shares
    shown = np.unique(np.concatenate([ids.astype(np.int64), likeliest.ravel()]))
    kind = np.uint8 if len(shown) <= 1 << 8 else np.uint16 if len(shown) <= 1 << 16 else np.uint32
    return {
        "count": count,
        "ids": pack(np.searchsorted(shown, ids).astype(kind)),
        "surprise": pack(surprise),
        "mean": float(surprise[1:].mean(dtype=np.float64)),
        "width": width,
        "next": pack(np.searchsorted(shown, likeliest).astype(kind)),
        "probs": pack(np.rint(probs * 65535).astype(np.uint16)),
    }, shown


@functools.partial(jax.jit, static_argnames=("model", "width"))
def _expect(
    model: LanguageModel,
    params: LMParams,
    state: StackState,
    symbols: jax.Array,
    targets: jax.Array,
    resets: jax.Array,
    width: int,
) -> tuple[StackState, jax.Array, jax.Array, jax.Array]:
    def readout(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        logs = jax.nn.log_softmax(logits.astype(jnp.float32))  # [t, 1, V]
        loss = -jnp.take_along_axis(logs, targets[..., None], axis=-1)[..., 0]
        best, which = jax.lax.top_k(logs, width)
        return loss, which, jnp.exp(best)

    state, found = model.map_logits(params, state, symbols, readout, targets, resets=resets)
    return state, *found


# The defaults of `rnnjax gradflow` and `rnnjax lyapunov`.
_FLOW_LENGTH, _FLOW_PIECES, _MAX_LAG = 512, 4, 200
_LENGTH, _WARMUP, _PIECES, _EXPONENTS = 400, 100, 2, 16
_LEAST = 16  # symbols of a piece, below which neither says much


def gradient_data(model: SymbolModel, ids: np.ndarray, chunk_len: int) -> dict[str, Any] | None:
    """`rnnjax.analysis.gradient_flow` along a text; None for one that is too short."""
    length = min(_FLOW_LENGTH, len(ids) - 1)
    if length < _LEAST:
        return None
    pieces = text_pieces(ids, length + 1, _FLOW_PIECES)
    flow = symbol_gradient_flow(model, pieces, max_lag=min(_MAX_LAG, length // 2), chunk_len=chunk_len)
    return {
        "lags": flow.lags,
        "norm": flow.norm,
        "typical": flow.typical,
        "layers": flow.by_layer.T,
        "names": flow.names,
        "fields": flow.by_name.T,
        "chunk_len": flow.chunk_len,
        "lost": flow.lost,
        "length": length,
        "pieces": _FLOW_PIECES,
    }


def lyapunov_data(model: SymbolModel, ids: np.ndarray) -> dict[str, Any] | None:
    """`rnnjax.analysis.lyapunov_spectrum` along a text; None for one that is too short."""
    length = min(_LENGTH, len(ids))
    if length < _LEAST:
        return None
    warmup = min(_WARMUP, length // 4)
    pieces = text_pieces(ids, length, _PIECES)
    spectrum = symbol_lyapunov(model, pieces, count=_EXPONENTS, warmup=warmup)
    thin = slice(None, None, max(1, len(spectrum.running) // 100))
    return {
        "exponents": spectrum.exponents,
        "low": spectrum.by_example.min(axis=0),
        "high": spectrum.by_example.max(axis=0),
        "steps": np.arange(1, len(spectrum.running) + 1)[thin],
        "running": spectrum.running[thin, :3].T,
        "dimension": kaplan_yorke_dimension(spectrum.exponents),
        "size": state_size(model.cell),
        "length": length,
        "warmup": warmup,
        "pieces": _PIECES,
    }
