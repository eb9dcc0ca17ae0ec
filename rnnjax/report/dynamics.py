"""Gradient by lag and Lyapunov exponents of a language model along pieces of a text, for its page."""

from __future__ import annotations

from typing import Any

import numpy as np

from rnnjax.analysis.flat import state_size
from rnnjax.analysis.jacobians import kaplan_yorke_dimension
from rnnjax.analysis.recording import SymbolModel
from rnnjax.analysis.text_flow import symbol_gradient_flow, symbol_lyapunov, text_pieces

__all__ = ["gradient_data", "lyapunov_data"]

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
