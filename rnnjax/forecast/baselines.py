r"""What a forecast has to beat: functions ``(history [T], horizon, season) -> [horizon]``.

Values that are missing (NaN) are passed over.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from rnnjax.checks import check_size, short
from rnnjax.forecast.metrics import as_floats

__all__ = ["BASELINES", "drift", "find_season", "naive", "naive2", "seasonal_naive"]


def naive(history: Any, horizon: int, season: int = 1) -> np.ndarray:
    """The last value, again and again.

    >>> naive([1.0, 2.0, 3.0, float("nan")], 2).tolist()
    [3.0, 3.0]
    """
    del season
    return np.full(check_size("naive", "horizon", horizon), _there("naive", history)[1][-1])


def seasonal_naive(history: Any, horizon: int, season: int = 1) -> np.ndarray:
    """The value of one season ago; where that is missing, of an earlier one, else the last value.

    >>> seasonal_naive([1.0, 2.0, 3.0, 4.0], 3, season=2).tolist()
    [3.0, 4.0, 3.0]
    """
    where = "seasonal_naive"
    past, season = as_floats(where, "history", history, 1), check_size(where, "season", season)
    found = np.full(check_size(where, "horizon", horizon), _there(where, past)[1][-1])
    for k in range(min(season, horizon)):
        own = past[(len(past) + k) % season :: season]
        own = own[np.isfinite(own)]
        if len(own):
            found[k::season] = own[-1]
    return found


def drift(history: Any, horizon: int, season: int = 1) -> np.ndarray:
    """The straight line from the first value through the last.

    >>> drift([1.0, 2.0, 3.0], 2).tolist()
    [4.0, 5.0]
    """
    del season
    at, past = _there("drift", history)
    horizon = check_size("drift", "horizon", horizon)
    slope = (past[-1] - past[0]) / (at[-1] - at[0]) if len(at) > 1 else 0.0
    return past[-1] + slope * (np.arange(1, horizon + 1) + len(np.asarray(history)) - 1 - at[-1])


def naive2(history: Any, horizon: int, season: int = 1) -> np.ndarray:
    """The last value without its season, times the season, where there is one: Naive2 of the M competitions.

    Whether there is a season is a test at 90 % of the autocorrelation at its length; it is taken off by classical
    multiplicative decomposition (Makridakis et al., 2020).
    """
    past, season = _filled("naive2", history), check_size("naive2", "season", season)
    horizon = check_size("naive2", "horizon", horizon)
    if season == 1 or not _is_seasonal(past, season):
        return naive(past, horizon)
    trend = np.full(len(past), np.nan)
    half = season // 2
    weights = np.ones(season) if season % 2 else np.concatenate([[0.5], np.ones(season - 1), [0.5]])
    middle = np.convolve(past, weights / season, mode="valid")
    trend[half : half + len(middle)] = middle
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = past / trend
    figure = np.array([np.nanmean(ratio[k::season]) for k in range(season)])
    figure /= figure.mean()
    ahead = figure[(len(past) + np.arange(horizon)) % season]
    return past[-1] / figure[(len(past) - 1) % season] * ahead


BASELINES: dict[str, Callable[..., np.ndarray]] = {
    "naive": naive,
    "seasonal naive": seasonal_naive,
    "drift": drift,
}


def find_season(rows: Any, longest: int = 1000) -> tuple[int, ...]:
    """The season that the autocorrelation shows, and a longer one where that holds much better; () for none.

    The series are made free of trend by a line. A season is the first peak of the mean autocorrelation that is nearly
    as high as the highest; a multiple of it that is higher still, as a week over days, is the second.

    Args:
        rows: series, a list of arrays ``[T_n]``.
        longest: the longest season that is looked for; at most a third of a series.

    >>> find_season([np.sin(2 * np.pi * np.arange(200) / 12)])
    (12,)
    """
    longest = check_size("find_season", "longest", longest)
    single = isinstance(rows, str | bytes) or not hasattr(rows, "__len__") or getattr(rows, "ndim", 1) == 0
    if single or not len(rows):
        raise TypeError(f"find_season: rows must be a list of arrays, one a series, got {short(rows)}.")
    rows = [_filled("find_season", row, "every one of rows")[-10 * longest :] for row in itertools.islice(rows, 100)]
    reach = min(longest, max(len(row) for row in rows) // 3)
    if reach < 2:
        return ()
    total, count = np.zeros(reach + 1), np.zeros(reach + 1)
    for row in rows:
        own = min(reach, len(row) // 3)
        if own >= 2 and np.ptp(row) > 0:
            total[: own + 1] += _autocorrelation(_without_trend(row), own)
            count[: own + 1] += 1
    correlation = np.where(count > 0, total / np.maximum(count, 1), -1)
    inner = correlation[1:-1]
    peaks = 1 + np.flatnonzero((inner > correlation[:-2]) & (inner >= correlation[2:]) & (count[1:-1] > 0))
    # What white noise reaches by chance, with some distance.
    bound = max(0.25, 3 / math.sqrt(max(len(row) for row in rows)))
    peaks = peaks[(peaks > 1) & (correlation[peaks] > bound)]
    if not len(peaks):
        return ()
    highest = correlation[peaks].max()
    first = int(peaks[correlation[peaks] >= 0.8 * highest][0])
    longer = [int(p) for p in peaks if p > 1.5 * first and correlation[p] > correlation[first] + 0.05]
    longer = [p for p in longer if p % first == 0]
    return (first, longer[0]) if longer else (first,)


def _without_trend(row: np.ndarray) -> np.ndarray:
    at = np.arange(len(row)) - (len(row) - 1) / 2
    return row - row.mean() - at * (at @ row) / (at @ at)


def _autocorrelation(row: np.ndarray, reach: int) -> np.ndarray:
    size = 2 ** math.ceil(math.log2(2 * len(row)))
    spectrum = np.abs(np.fft.rfft(row - row.mean(), size)) ** 2
    found = np.fft.irfft(spectrum)[: reach + 1]
    # Longer lags have fewer pairs.
    return found / max(found[0], 1e-300) * len(row) / (len(row) - np.arange(reach + 1))


def _is_seasonal(past: np.ndarray, season: int) -> bool:
    if len(past) < 3 * season or np.ptp(past) == 0:
        return False
    around = past - past.mean()
    r = np.array([around[k:] @ around[: len(past) - k] for k in range(1, season + 1)]) / (around @ around)
    limit = 1.645 / math.sqrt(len(past)) * math.sqrt(1 + 2 * float((r[:-1] ** 2).sum()))
    return bool(abs(r[-1]) > limit)


def _there(where: str, history: Any, name: str = "history") -> tuple[np.ndarray, np.ndarray]:
    past = as_floats(where, name, history, 1)
    at = np.flatnonzero(np.isfinite(past))
    if not len(at):
        raise ValueError(f"{where}: {name} must hold a value, got none.")
    return at, past[at]


def _filled(where: str, history: Any, name: str = "history") -> np.ndarray:
    """With straight lines over gaps."""
    at, past = _there(where, history, name)
    return np.interp(np.arange(len(np.asarray(history))), at, past)
