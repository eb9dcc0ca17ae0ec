"""Measures of forecasts, as pure functions of arrays whose last axis is the horizon.

Values that are missing (NaN in ``actual``) do not count. The scale of `mase`, `rmsse` and `msis` is the error of the
seasonal naive forecast within the history: the mean of abs(y_t - y_{t-season}), or of its square.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from rnnjax.checks import check_real, check_size, describe, short

__all__ = ["as_floats", "coverage", "crps", "mase", "msis", "owa", "rmsse", "smape", "wql"]


def smape(actual: Any, forecast: Any) -> np.ndarray:
    r"""Symmetric mean absolute percentage error, as the M4 competition has it: from 0 to 200.

        mean of 200 * abs(y - f) / (abs(y) + abs(f)), where 0 / 0 is 0

    Args:
        actual: ``[..., H]``.
        forecast: ``[..., H]``.

    Returns:
        ``[...]``, in percent.

    >>> round(float(smape([100.0, 100.0], [100.0, 50.0])), 2)
    33.33
    """
    y, f = _pair("smape", actual, forecast)
    size = np.abs(y) + np.abs(f)
    return _mean(np.where(size == 0, 0.0, 200 * np.abs(y - f) / np.where(size == 0, 1.0, size)))


def mase(actual: Any, forecast: Any, history: Any, season: int = 1) -> np.ndarray:
    """Mean absolute scaled error (Hyndman and Koehler, 2006): below 1 is better than seasonal naive in the history.

    Args:
        actual: ``[..., H]``.
        forecast: ``[..., H]``.
        history: ``[..., T]``, before the forecast.
        season: of the scale.

    Returns:
        ``[...]``; inf or nan where the history never changes from season to season.
    """
    y, f = _pair("mase", actual, forecast)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _mean(np.abs(y - f)) / _scale("mase", history, season, 1)


def rmsse(actual: Any, forecast: Any, history: Any, season: int = 1) -> np.ndarray:
    """Root mean squared scaled error, as the M5 competition has it (with ``season=1``)."""
    y, f = _pair("rmsse", actual, forecast)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt(_mean((y - f) ** 2) / _scale("rmsse", history, season, 2))


def wql(actual: Any, forecast: Any, levels: Sequence[float]) -> np.ndarray:
    r"""Weighted quantile loss: the pinball loss of each level, twice, over the sum of abs(y), mean over the levels.

    Args:
        actual: ``[..., H]``.
        forecast: quantiles ``[..., L, H]``.
        levels: L numbers within (0, 1).

    Returns:
        ``[...]``; for a single level 0.5 it is the mean absolute error over the mean absolute value.
    """
    y, q = as_floats("wql", "actual", actual), as_floats("wql", "forecast", forecast)
    level = as_floats("wql", "levels", levels, 1)[:, None]
    if not ((level > 0) & (level < 1)).all():
        raise ValueError(f"wql: levels must lie within (0, 1), got {short(levels)}.")
    if q.shape != (*y.shape[:-1], len(level), y.shape[-1]):
        raise ValueError(
            f"wql: forecast must have shape [..., {len(level)}, {y.shape[-1]}] of {describe(y)}, got {describe(q)}."
        )
    gap = y[..., None, :] - q
    loss = np.nansum(np.maximum(level * gap, (level - 1) * gap), -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (2 * loss / np.nansum(np.abs(y), -1)[..., None]).mean(-1)


def crps(actual: Any, samples: Any) -> np.ndarray:
    r"""Continuous ranked probability score of drawn paths: mean abs(X - y) - mean abs(X - X') / 2, in units of y.

    Args:
        actual: ``[..., H]``.
        samples: ``[..., S, H]``.

    Returns:
        ``[...]``, mean over the horizon; the mean absolute error where all samples are equal.
    """
    y, x = as_floats("crps", "actual", actual), as_floats("crps", "samples", samples)
    if x.ndim != y.ndim + 1 or x.shape[:-2] + x.shape[-1:] != y.shape:
        raise ValueError(f"crps: samples must have shape [..., S, H] of {describe(y)}, got {describe(x)}.")
    x, S = np.sort(x, axis=-2), x.shape[-2]
    # Of sorted samples: the sum of abs(X - X') over all pairs.
    weight = (2 * np.arange(S) - S + 1)[:, None]
    apart = 2 * (weight * x).sum(-2) / S**2
    return _mean(np.abs(x - y[..., None, :]).mean(-2) - apart / 2)


def msis(actual: Any, lower: Any, upper: Any, history: Any, season: int = 1, level: float = 0.95) -> np.ndarray:
    r"""Mean scaled interval score (Gneiting and Raftery, 2007), as the M4 competition has it.

    mean of (u - l) + 2 / a * max(l - y, 0) + 2 / a * max(y - u, 0), over the scale of `mase`; a = 1 - level
    """
    level = check_real("msis", "level", level, above=0.0, below=1.0)
    y, low = _pair("msis", actual, lower, "lower")
    _, high = _pair("msis", actual, upper, "upper")
    out = np.maximum(low - y, 0) + np.maximum(y - high, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _mean(high - low + 2 / (1 - level) * out + 0 * y) / _scale("msis", history, season, 1)


def coverage(actual: Any, lower: Any, upper: Any) -> np.ndarray:
    """The share of values that lie in their interval, ``[...]``."""
    y, low = _pair("coverage", actual, lower, "lower")
    _, high = _pair("coverage", actual, upper, "upper")
    return _mean(np.where(np.isnan(y), np.nan, (low <= y) & (y <= high)))


def owa(smape: Any, mase: Any, naive2_smape: Any, naive2_mase: Any) -> Any:
    """Overall weighted average of the M4 competition: the mean of both errors over those of Naive2."""
    given = {"smape": smape, "mase": mase, "naive2_smape": naive2_smape, "naive2_mase": naive2_mase}
    errors = [as_floats("owa", name, error, axes=-1) for name, error in given.items()]
    if len({error.shape for error in errors if error.ndim}) > 1:
        shapes = ", ".join(describe(error) for error in errors)
        raise ValueError(f"owa: all errors must be numbers or arrays of one shape, got {shapes}.")
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (errors[0] / errors[2] + errors[1] / errors[3]) / 2
    return found if found.ndim else float(found)


def _pair(where: str, actual: Any, forecast: Any, name: str = "forecast") -> tuple[np.ndarray, np.ndarray]:
    y, f = as_floats(where, "actual", actual), as_floats(where, name, forecast)
    if y.shape != f.shape:
        raise ValueError(f"{where}: {name} must have the shape of actual, {describe(y)}, got {describe(f)}.")
    return y, f


def _scale(where: str, history: Any, season: int, power: int) -> np.ndarray:
    past, season = as_floats(where, "history", history), check_size(where, "season", season)
    if past.shape[-1] <= season:
        return np.full(past.shape[:-1], np.nan)
    return _mean(np.abs(past[..., season:] - past[..., :-season]) ** power)


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the last axis, of what is there; nan where nothing is."""
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(there, values, 0).sum(-1) / there.sum(-1)


def as_floats(where: str, name: str, value: Any, axes: int | None = None) -> np.ndarray:
    """Numbers of any kind as float64, on the host.

    Raises:
        TypeError: for what holds no real numbers.
        ValueError: if the number of axes is not ``axes``, or is 0 where that is None; with -1 any will do.
    """
    try:
        array = np.asarray(value)
        known = array.dtype.kind in "biuf" or not array.size or jnp.issubdtype(array.dtype, jnp.floating)
        array = array.astype(np.float64) if known else array.astype(object)
    except (TypeError, ValueError):
        array = np.zeros(1, object)
    if array.dtype != np.float64:
        raise TypeError(f"{where}: {name} must be an array of numbers, got {short(value)}.")
    if axes == -1:
        return array
    if array.ndim < 1 or (axes is not None and array.ndim != axes):
        wanted = "axes" if axes is None else f"{axes} of them" if axes > 1 else "one axis"
        raise ValueError(f"{where}: {name} must have {wanted}, got {describe(array)}.")
    return array
