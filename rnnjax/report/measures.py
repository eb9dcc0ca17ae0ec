"""What is measured of a language model along a text, for its page: what it expects, and how far gradients go."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.analysis.flat import state_size
from rnnjax.analysis.jacobians import kaplan_yorke_dimension
from rnnjax.analysis.recording import SymbolModel
from rnnjax.analysis.text_flow import symbol_gradient_flow, symbol_lyapunov, text_pieces
from rnnjax.lm.model import LanguageModel, LMParams
from rnnjax.networks.stack import StackState
from rnnjax.report.page import pack
from rnnjax.text.windows import windows

__all__ = ["EXPECTED", "gradient_data", "lyapunov_data", "predictions"]

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
