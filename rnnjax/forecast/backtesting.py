"""Backtests: forecasts from earlier origins, beside the baselines; bands that hold what they say; and surprises."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.checks import check_kind, check_size, short
from rnnjax.forecast import metrics
from rnnjax.forecast.baselines import BASELINES
from rnnjax.forecast.model import Forecaster, ForecasterParams
from rnnjax.forecast.sampling import check_features, check_levels, quantiles
from rnnjax.forecast.series import as_series
from rnnjax.forecast.windows import Frames
from rnnjax.kinds import public

__all__ = ["LEVELS", "Backtest", "Calibration", "backtest", "calibration_of", "surprise"]

_MOST = 10.0  # times the width of before


class Calibration(NamedTuple):
    r"""How far each quantile has to stand from the median, in units of where the model puts it.

        q'_l = median + stretch_l * (q_l - median)

    with ``stretch_l`` such that a share ``l`` of known values lay below ``q'_l``: split conformal prediction (Vovk,
    Gammerman and Shafer, 2005; Romano, Patterson and Candes, 2019, for quantiles), one number a level for all steps and
    series, between a tenth and ten. It holds as far as what comes is like what it was made from.
    """

    levels: tuple[float, ...]
    stretch: np.ndarray  # float64 [L]

    def apply(self, quantiles: Any) -> np.ndarray:
        """Quantiles ``[..., L, horizon]`` at these levels, stretched; they still rise.

        Raises:
            ValueError: for another number of levels, or without the median among them.

        >>> found = np.array([[0.0], [10.0], [14.0]])
        >>> Calibration((0.1, 0.5, 0.9), np.array([1.0, 1.0, 2.0])).apply(found).ravel().tolist()
        [0.0, 10.0, 18.0]
        """
        quantiles = np.asarray(quantiles)
        if quantiles.ndim < 2 or quantiles.shape[-2] != len(self.levels):
            raise ValueError(
                f"Calibration.apply: quantiles must have shape [..., {len(self.levels)}, horizon], a row for each of "
                f"its levels {short(self.levels)}, got {quantiles.shape}."
            )
        if 0.5 not in self.levels:
            raise ValueError(f"Calibration.apply: 0.5 must be among the levels, got {short(self.levels)}.")
        middle = _middle(quantiles, self.levels)
        moved = middle + self.stretch[:, None] * (quantiles - middle)
        half = self.levels.index(0.5)
        above = np.maximum.accumulate(moved[..., half:, :], axis=-2)
        below = np.minimum.accumulate(moved[..., half::-1, :], axis=-2)[..., ::-1, :]
        return np.concatenate([below[..., :-1, :], above], axis=-2).astype(np.result_type(quantiles, np.float32))


def calibration_of(actual: Any, quantiles: Any, levels: tuple[float, ...]) -> Calibration:
    """The stretch that known values ask for.

    Args:
        actual: ``[..., horizon]``; NaN where a value is missing.
        quantiles: ``[..., L, horizon]``, NaN where nothing was said.
        levels: L, with 0.5 among them.
    """
    actual, quantiles = np.asarray(actual, float), np.asarray(quantiles, float)
    gaps = quantiles - _middle(quantiles, levels)
    misses = actual[..., None, :] - _middle(quantiles, levels)
    stretch = np.ones(len(levels))
    for n, level in enumerate(levels):
        gap, miss = gaps[..., n, :].ravel(), np.broadcast_to(misses, gaps.shape)[..., n, :].ravel()
        usable = np.isfinite(gap) & np.isfinite(miss) & (np.abs(gap) > 1e-12)
        if level == 0.5 or not usable.any():
            continue
        ratios = np.sort(miss[usable] / gap[usable])  # 1: the value lay at the quantile itself
        share = level if level > 0.5 else 1 - level
        rank = min(math.ceil((len(ratios) + 1) * share), len(ratios))
        stretch[n] = np.clip(ratios[rank - 1], 1 / _MOST, _MOST)
    return Calibration(tuple(levels), stretch)


def _middle(quantiles: np.ndarray, levels: tuple[float, ...]) -> np.ndarray:
    at = levels.index(0.5)
    return quantiles[..., at : at + 1, :]


LEVELS = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)
_POINT = ("smape", "mase", "rmsse", "wql")
_ALL = (*_POINT, "msis", "cover80", "cover95")
MOST_BITS = 20.0  # of a surprise: float32 knows no smaller tails


class Backtest(NamedTuple):
    """Errors of the model and of the baselines, means over windows and series."""

    scores: dict[str, dict[str, float]]  # "model", then the baselines -> metric -> mean; nan where it is none
    windows: list[dict[str, Any]]  # one row a window: origin (values before the end), series, model and baselines' MASE
    levels: tuple[float, ...]
    forecasts: np.ndarray  # float32 [windows, N, L, horizon], nan where a series is too short
    verdict: str  # one sentence
    calibration: Calibration | None = None  # of all windows together, where it was asked for

    def __str__(self) -> str:
        """A table with one line for the model and each baseline, and the verdict."""
        names = [name for name in _ALL if any(math.isfinite(row[name]) for row in self.scores.values())]
        lines = ["".join([f"{'':16}", *(f"{name:>10}" for name in names)])]
        for who, row in self.scores.items():
            cells = [f"{row[name]:10.3f}" if math.isfinite(row[name]) else f"{'-':>10}" for name in names]
            lines.append("".join([f"{who:16}", *cells]))
        return "\n".join([*lines, self.verdict])


@public
def backtest(
    model: Forecaster,
    params: Any,
    series: Any,
    *,
    horizon: int,
    windows: int = 5,
    levels: Sequence[float] = LEVELS,
    num_samples: int = 200,
    calibrated: bool = False,
    key: jax.Array | None = None,
) -> Backtest:
    """Forecasts from ``windows`` origins, one horizon apart up to the end, each from what was known there alone.

    Behind an origin, values and observed covariates are cut off before the model sees anything; known covariates stay,
    as they are known. The parameters are those that were given: `fit` keeps the ends that it does not train on, and the
    verdict says so where a window lies before them.

    Args:
        model: what was trained.
        params: from `fit`.
        series: as for `fit`.
        horizon: steps ahead.
        windows: origins; a series takes part in those that leave it two values or more.
        levels: of the quantiles; the outermost make the interval of ``msis``.
        num_samples: paths, where the model draws.
        calibrated: whether the bands of each window are stretched by what the other windows missed, see `Calibration`;
            the median stays. What all windows together ask for is in the result, for forecasts of what comes. One
            window has no others, and stays as it is.
        key: of the draws; None is ``jax.random.key(0)``.

    Returns:
        `Backtest`; printed, it is a table.

    Raises:
        ValueError: if no series is long enough, or as `sample` does.
    """
    check_kind("backtest", "params", params, ForecasterParams, "the params of fit's result")
    series = as_series("backtest", series)
    horizon, windows = check_size("backtest", "horizon", horizon), check_size("backtest", "windows", windows)
    levels = tuple(sorted({*check_levels("backtest", levels), 0.5}))
    key = jax.random.key(0) if key is None else key
    season = model.seasons[0]
    rows: list[dict[str, Any]] = []
    forecasts = np.full((windows, len(series), len(levels), horizon), np.nan, np.float32)
    tested: list[tuple[int, int, int]] = []  # window, series, origin
    for k in range(windows):
        origins = series.lengths - (windows - k) * horizon
        own = [n for n in np.flatnonzero(origins > 1) if np.isfinite(series.values[n][: origins[n]]).any()]
        if not own:
            continue
        past = series.select(own).until(origins[own])
        found = quantiles(
            model, params, past, horizon=horizon, levels=levels, num_samples=num_samples, key=jax.random.fold_in(key, k)
        )
        forecasts[k, own] = found
        tested += [(k, int(n), int(origins[n])) for n in own]
    calibration = None
    if calibrated:
        forecasts, calibration = _calibrated(series, forecasts, levels)
    for k, n, origin in tested:
        actual, history = series.values[n][origin : origin + horizon], series.values[n][:origin]
        rows.append({"window": k, "series": series.names[n], "origin": origin})
        rows[-1]["model"] = _scores(actual, forecasts[k, n], levels, history, season)
        for name, baseline in BASELINES.items():
            rows[-1][name] = _point(actual, baseline(history, horizon, season), history, season)
    if not rows:
        raise ValueError(
            f"backtest: a series must be longer than {windows} windows of {horizon} and one value, got at most "
            f"{int(series.lengths.max())}; take fewer windows or a shorter horizon."
        )
    scores = {who: {name: _average(rows, who, name) for name in _ALL} for who in ("model", *BASELINES)}
    verdict = _verdict(scores, float(params.holdout), windows * horizon, horizon)
    return Backtest(scores, rows, levels, forecasts, verdict, calibration)


def _calibrated(series: Any, found: np.ndarray, levels: tuple[float, ...]) -> tuple[np.ndarray, Calibration]:
    """``[windows, N, L, horizon]``, each window by the others; and what all of them ask for."""
    windows, horizon = len(found), found.shape[-1]
    actual = np.full((windows, found.shape[1], horizon), np.nan)
    for n, values in enumerate(series.values):
        tail = values[max(0, len(values) - windows * horizon) :]
        actual[:, n].flat[windows * horizon - len(tail) :] = tail
    own = np.array(found)
    for k in range(windows if windows > 1 else 0):
        others = np.arange(windows) != k
        own[k] = calibration_of(actual[others], found[others], levels).apply(found[k])
    return own, calibration_of(actual, found, levels)


def _scores(
    actual: np.ndarray, found: np.ndarray, levels: tuple[float, ...], history: np.ndarray, season: int
) -> dict[str, float]:
    middle, found = found[levels.index(0.5)], found.astype(float)
    row = _point(actual, middle, history, season)
    row["wql"] = float(metrics.wql(actual, found, levels))
    if len(levels) > 1:
        row["msis"] = float(metrics.msis(actual, found[0], found[-1], history, season, level=levels[-1] - levels[0]))
    for name, low, high in (("cover80", 0.1, 0.9), ("cover95", 0.025, 0.975)):
        if low in levels and high in levels:
            row[name] = float(metrics.coverage(actual, found[levels.index(low)], found[levels.index(high)]))
    return row


def _point(actual: np.ndarray, forecast: np.ndarray, history: np.ndarray, season: int) -> dict[str, float]:
    return {
        "smape": float(metrics.smape(actual, forecast)),
        "mase": float(metrics.mase(actual, forecast, history, season)),
        "rmsse": float(metrics.rmsse(actual, forecast, history, season)),
        "wql": float(metrics.wql(actual, forecast[None], (0.5,))),  # all quantiles are the point
    }


def _average(rows: list[dict[str, Any]], who: str, name: str) -> float:
    """Over windows and series; those whose scale is zero or missing do not count."""
    values = np.array([row[who].get(name, np.nan) for row in rows])
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else math.nan


def _verdict(scores: dict[str, dict[str, float]], holdout: float, needed: int, horizon: int) -> str:
    metric = "mase" if math.isfinite(scores["model"]["mase"]) else "smape"
    best = min(BASELINES, key=lambda name: scores[name][metric])
    own, other = scores["model"][metric], scores[best][metric]
    if own < other:
        text = f"The model is better than {best}, the best baseline: {metric} {own:.3f} against {other:.3f}."
    else:
        text = f"{best.capitalize()} is better here: {metric} {other:.3f} against {own:.3f} of the model."
    if holdout < needed:
        text += (
            f" The model was trained on all but the last {holdout:.0f} values, so windows before them are no test of "
            f"it; train with holdout={needed}, or take {max(int(holdout) // horizon, 1)} windows."
        )
    return text


@public
def surprise(model: Forecaster, params: Any, series: Any) -> list[np.ndarray]:
    r"""How much each value surprised the model that knew all values before it, in bits.

        -log2(2 * min(P(Y <= y), P(Y >= y)))

    10 bits is a value so far out that one in a thousand would be; 20 is the most that is told.

    Args:
        model: what was trained.
        params: from `fit`.
        series: as for `fit`.

    Returns:
        N arrays float32 ``[T_n]``; NaN where a value is missing, and before the model has seen a season.
    """
    check_kind("surprise", "params", params, ForecasterParams, "the params of fit's result")
    series = as_series("surprise", series)
    horizon = len(params.anchors) if model.direct else 1
    ahead = max(16, model.seasons[-1])
    frames = Frames(series, model.seasons, ahead + horizon)
    check_features("surprise", params, frames)
    found = [np.full(length, np.nan, np.float32) for length in series.lengths]
    places = []
    for n, length in enumerate(series.lengths):
        first = int(np.clip(model.seasons[-1], 2, max(2, length // 2)))
        places += [(n, origin) for origin in range(first, int(length), ahead)]
    size = max(1, min(64, len(places)))
    for at in range(0, len(places), size):
        own = places[at : at + size]
        padded = own + own[-1:] * (size - len(own))
        rows, origins = zip(*padded, strict=True)
        window = frames.cut(rows, origins, model.reach, model.context_used, ahead + horizon - 1)
        bits = np.asarray(_bits(model, params, window))
        for b, (n, origin) in enumerate(own):
            stop = min(origin + ahead, len(found[n]))
            found[n][origin:stop] = bits[: stop - origin, b]
    return found


@functools.partial(jax.jit, static_argnums=0)
def _bits(model: Forecaster, params: Any, window: Any) -> jax.Array:
    """``[steps, B]``."""
    found, _, _, at = model.distributions(params, window)
    if model.direct:
        found, at = jax.tree.map(lambda a: a[:, 0], found), at[:, 0]
    value = jnp.asarray(window.values)[at]
    low = model.head.cdf(found, value)
    # Of counts, those above are one step away.
    high = 1 - model.head.cdf(found, value - 1) if getattr(model.head, "counts", False) else 1 - low
    tail = jnp.clip(2 * jnp.minimum(low, high), 2.0**-MOST_BITS, 1.0)
    return jnp.where(jnp.asarray(window.mask)[at], -jnp.log2(tail), jnp.nan)
