"""Windows of series, as the model reads them: a context, and the steps behind it, padded and masked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rnnjax.forecast.dates import calendar
from rnnjax.forecast.series import Series

__all__ = ["Batches", "Frames", "Window"]


class Window(NamedTuple):
    """B windows: P steps of values, of which the last Q are read as inputs one by one and predicted."""

    values: np.ndarray  # float32 [P, B], zero where missing
    mask: np.ndarray  # bool [P, B], False where missing, before the start and behind the end
    features: np.ndarray  # float32 [Q, B, K], of the steps that are predicted: calendar, age, then known covariates
    observed: np.ndarray  # float32 [Q, B, 2 * O]: observed covariates of the step before, and whether they are there
    static: np.ndarray  # int32 [B, C]
    start: np.ndarray  # bool [Q, B]: the first step of its series


class Frames:
    """Series in the form that windows are cut from.

    Args:
        series: what is cut.
        seasons: whose phases are features.
        horizon: steps behind the end for which there are features.
    """

    def __init__(self, series: Series, seasons: tuple[int, ...], horizon: int) -> None:
        for n, row in enumerate(series.values):
            _check_steps(n, row)
        self.series, self.seasons, self.horizon = series, seasons, horizon
        self.mask = [np.isfinite(row) for row in series.values]
        self.filled = [np.nan_to_num(row).astype(np.float32) for row in series.values]
        self.features = [self._features(n) for n in range(len(series))]
        observed = series.observed or [np.zeros((len(row), 0)) for row in series.values]
        self.observed = [
            np.concatenate([np.nan_to_num(row), np.isfinite(row)], axis=1).astype(np.float32) for row in observed
        ]

    def _features(self, n: int) -> np.ndarray:
        """``[T_n + horizon, K]``."""
        count = len(self.series.values[n]) + self.horizon
        at = np.arange(count)
        parts = [np.log1p(at)[:, None] / 5 - 1]  # age
        if self.series.clock is not None:
            parts.append(calendar(self.series.clock[n], count))
        for season in self.seasons:
            angle = 2 * np.pi * (at % season) / season
            parts += [np.sin(angle)[:, None], np.cos(angle)[:, None]]
        if self.series.known is not None:
            known = self.series.known[n][:count]
            # What is not there stays unknown; who forecasts has checked that it is not asked for.
            parts.append(np.pad(known, ((0, count - len(known)), (0, 0))))
        return np.concatenate(parts, axis=1).astype(np.float32)

    @property
    def sizes(self) -> dict[str, Any]:
        """What parameters depend on: numbers of features, of observed covariates, and of categories."""
        static = self.series.static
        return {
            "features": self.features[0].shape[1],
            "observed": self.observed[0].shape[1],
            "categories": tuple(int(column.max()) + 1 for column in static.T),
        }

    def cut(self, rows: Sequence[int], origins: Sequence[int], before: int, context: int, ahead: int) -> Window:
        """Windows around origins: ``context`` steps before, ``ahead`` behind, and ``before`` more values for the lags.

        Observed covariates from the origin on are hidden; values from there on are targets.
        """
        P, Q, B = before + context + ahead, context + ahead, len(rows)
        values, mask = np.zeros((P, B), np.float32), np.zeros((P, B), bool)
        start = np.zeros((Q, B), bool)
        features = np.zeros((Q, B, self.features[0].shape[1]), np.float32)
        observed = np.zeros((Q, B, self.observed[0].shape[1]), np.float32)
        for b, (n, origin) in enumerate(zip(rows, origins, strict=True)):
            first = origin - before - context
            _copy(values[:, b], self.filled[n], first, origin + ahead)
            _copy(mask[:, b], self.mask[n], first, origin + ahead)
            _copy(features[:, b], self.features[n], origin - context, origin + ahead)
            seen = self.observed[n][:origin]
            _copy(observed[:, b], seen, origin - context - 1, origin + ahead - 1)
            if context >= origin:
                start[context - origin, b] = True
        return Window(values, mask, features, observed, self.series.static[np.asarray(rows)], start)


def _check_steps(n: int, row: np.ndarray) -> None:
    """Raises for values that change by less than float32 tells apart at their size, as a large counter does."""
    there = row[np.isfinite(row)]
    steps = np.abs(np.diff(there))
    steps = steps[steps > 0]
    largest = np.float32(np.abs(there).max())
    if len(steps) and float(np.median(steps)) < 2 * float(np.spacing(largest)):
        raise ValueError(
            f"Series: values must change by more than float32 can tell apart, got changes of {np.median(steps):.3g} at "
            f"{largest:.9g} in values[{n}]; subtract a constant, or take differences."
        )


def _copy(into: np.ndarray, row: np.ndarray, first: int, last: int) -> None:
    """``row[first:last]``, where it is there."""
    low, high = max(first, 0), min(last, len(row))
    if high > low:
        into[low - first : high - first] = row[low:high]


@dataclasses.dataclass(frozen=True, eq=False)
class Batches:
    """Windows of random series at random origins, as a function of the step alone.

    Every series is as likely as every other one, whatever its length; so is every origin in it.

    Args:
        frames: where they are from.
        ends: int ``[N]``, values of each series that may be trained on.
        before: values before the context, for the lags.
        context: steps of it.
        ahead: steps behind it.
        batch_size: windows.
        key: for the draws.
        identity: what a training that goes on must have in common with the one that it goes on with.
    """

    frames: Frames
    ends: np.ndarray
    before: int
    context: int
    ahead: int
    batch_size: int
    key: jax.Array
    identity: str = ""

    def __call__(self, step: int) -> Window:
        """The windows of this step."""
        words = np.asarray(jax.random.key_data(self.key)).ravel().tolist()
        draw = np.random.default_rng([*words, step])
        usable = np.flatnonzero(self.ends > 1)
        rows = usable[draw.integers(len(usable), size=self.batch_size)]
        last = np.maximum(self.ends[rows] - self.ahead, 1)
        first = np.minimum(np.minimum(self.context, last), self.ends[rows] - 1)
        origins = draw.integers(first, np.maximum(last, first) + 1)
        window = self.frames.cut(rows.tolist(), origins.tolist(), self.before, self.context, self.ahead)
        at = origins - self.before - self.context + np.arange(len(window.mask))[:, None]
        seen = at < self.ends[rows]  # what is held out is no target
        return window._replace(mask=window.mask & seen, values=np.where(seen, window.values, 0))
