"""Which surprises are worth a look: a limit that keeps false alarms few, and echoes that are none of their own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rnnjax.checks import check_real
from rnnjax.forecast.backtesting import MOST_BITS, surprise
from rnnjax.forecast.model import Forecaster
from rnnjax.forecast.series import as_series
from rnnjax.kinds import public

__all__ = ["Anomalies", "anomalies", "limit_of"]

_LEAST = 10.0  # bits: one in a thousand
_ROUNDS = 16
_BULK, _TOP = 0.9, 0.995  # between these shares of the values the tail is fitted; above may be faults


class Anomalies(NamedTuple):
    """What surprised, and from which limit on it is marked."""

    bits: list[np.ndarray]  # float32 [T_n], see `surprise`; after marked values, of the model that did not see them
    limit: float  # bits
    marked: list[np.ndarray]  # bool [T_n]


@public
def anomalies(model: Forecaster, params: Any, series: Any, *, alarms: float = 0.5) -> Anomalies:
    r"""Marks the values that surprised so much that a series without faults would have ``alarms`` of them.

    The bits of a model that is never too sure fall off by a half a bit; those of a real one by another factor, so
    their tail is fitted (exponential excesses over a threshold, Pickands, 1975) and the limit is where ``alarms`` of
    all values are expected. A fault also shifts the forecasts that come after it, hours or a season later. So the
    first marked value of a series is taken for missing, the rest is judged again without it, and so on; after sixteen
    rounds, all that still lies above the limit is marked at once.

    Args:
        model: what was trained.
        params: from `fit`.
        series: as for `fit`.
        alarms: how many values, of all series together, may be marked although nothing is wrong.

    Raises:
        ValueError: for a number of alarms that is not above 0.
    """
    alarms = check_real("anomalies", "alarms", alarms, above=0.0)
    series = as_series("anomalies", series)
    bits = surprise(model, params, series)
    limit = limit_of(bits, alarms)
    marked = [np.zeros(len(row), bool) for row in bits]
    found = bits
    for last in [False] * (_ROUNDS - 1) + [True]:
        fresh = [np.flatnonzero(~own & (np.nan_to_num(row) >= limit)) for row, own in zip(found, marked, strict=True)]
        if not any(map(len, fresh)):
            break
        for n, own in enumerate(fresh):
            at = own if last else own[:1]
            marked[n][at] = True
            bits[n][at] = found[n][at]
        rest = [np.where(own, np.nan, row) for row, own in zip(series.values, marked, strict=True)]
        if last or not all(np.isfinite(row).any() for row in rest):
            break
        found = surprise(model, params, dataclasses.replace(series, values=rest))
        bits = [np.where(own, row, other) for own, row, other in zip(marked, bits, found, strict=True)]
    return Anomalies(bits, limit, marked)


def limit_of(bits: Sequence[np.ndarray], alarms: float) -> float:
    """The bits from which on ``alarms`` values of all are expected, by the tail of most of them; at least 10.

    >>> draws = -np.log2(1 - (np.arange(4096) + 0.5) / 4096)           # of a model that is right: half a bit by bit
    >>> abs(limit_of([draws], 1.0) - 12) < 0.3                          # 4096 is 2^12
    True
    """
    values = np.concatenate([np.asarray(row, float)[np.isfinite(row)] for row in bits])
    if len(values) < 100:
        return _LEAST
    threshold, top = np.quantile(values, [_BULK, _TOP])
    excess = np.minimum(values[values > threshold], top) - threshold
    inside = max(1, int(np.sum(excess < top - threshold)))
    scale = float(excess.sum()) / inside  # the likeliest, where those at the top are only known to be beyond it
    limit = threshold + scale * math.log(max(len(values) * (1 - _BULK) / alarms, 1.0))
    return float(np.clip(limit, _LEAST, MOST_BITS))
