"""Many series of numbers in one value: ragged, with gaps, covariates, categories and dates; and some that are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rnnjax.checks import describe, short
from rnnjax.forecast.dates import Clock

__all__ = ["MADE", "Series", "as_series", "made_series"]

_LARGEST = 1e18
_CATEGORIES = 2**20


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
    """N series, each of its own length; a value that is missing is NaN.

    Args:
        values: N arrays ``[T_n]``.
        known: N arrays ``[T_n + F_n, K]`` of covariates whose future is known, as holidays or prices: the last F_n rows
            lie behind the last value.
        observed: N arrays ``[T_n, O]`` of covariates that are known up to the origin of a forecast, as the weather.
        static: int ``[N, C]``, categories of the series, from 0 on.
        clock: where in the calendar each series begins, and how far apart its values lie; None where time is a number.
        names: of the series; None counts them.

    Raises:
        ValueError: for no series, shapes that do not belong together, a series without any value, infinities, or a
            known covariate that is missing.
        TypeError: for what holds no numbers.

    >>> import numpy as np
    >>> series = Series([np.arange(5.0), np.array([1.0, np.nan, 3.0])])
    >>> len(series), series.lengths.tolist(), series.names
    (2, [5, 3], ('0', '1'))
    """

    values: Sequence[Any]
    known: Sequence[Any] | None = None
    observed: Sequence[Any] | None = None
    static: Any = None
    clock: Sequence[Clock] | None = None
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        rows = tuple(_numbers(f"values[{n}]", one, 1) for n, one in enumerate(_several("values", self.values)))
        count = len(rows)
        if not count:
            raise ValueError("Series: there must be at least one series, got none.")
        for n, row in enumerate(rows):
            if not np.isfinite(row).any():
                raise ValueError(f"Series: every series must hold a value, got {len(row)} missing ones in values[{n}].")
            _check_size(f"values[{n}]", row)
            if np.isinf(row).any():
                raise ValueError(
                    f"Series: values must be finite or NaN (missing), got {row[np.isinf(row)][0]} at "
                    f"values[{n}][{np.flatnonzero(np.isinf(row))[0]}]."
                )
        put = object.__setattr__
        put(self, "values", rows)
        for name in ("known", "observed"):
            given = getattr(self, name)
            if given is not None:
                put(self, name, self._covariates(name, given))
        try:
            static = np.zeros((count, 0), np.int32) if self.static is None else np.asarray(self.static)
        except (TypeError, ValueError):
            raise TypeError(f"Series: static must be integers [{count}, C], got {short(self.static)}.") from None
        if (
            static.ndim != 2
            or len(static) != count
            or not np.issubdtype(static.dtype, np.integer)
            or (static < 0).any()
        ):
            raise ValueError(
                f"Series: static must be integers [{count}, C] from 0 on, got {describe(static)}; one row a series."
            )
        if static.size and static.max() >= _CATEGORIES:
            raise ValueError(
                f"Series: static must be below {_CATEGORIES:,}, a row of a table each, got {static.max():,}; count the "
                "categories from 0 on."
            )
        put(self, "static", static.astype(np.int32))
        names = map(str, range(count)) if self.names is None else self.names
        for what, given in (("names", names), ("clock", self.clock)):
            if given is None:
                continue
            if not isinstance(given, Iterable) or getattr(given, "ndim", 1) != 1:
                raise TypeError(f"Series: {what} must be one for each of the {count} series, got {short(given)}.")
            found = tuple(map(str, given)) if what == "names" else tuple(given)
            if len(found) != count:
                raise ValueError(f"Series: {what} must be one for each of the {count} series, got {len(found)}.")
            put(self, what, found)

    def _covariates(self, name: str, given: Any) -> tuple[np.ndarray, ...]:
        rows = tuple(_numbers(f"{name}[{n}]", one, 2) for n, one in enumerate(_several(name, given)))
        if len(rows) != len(self.values):
            raise ValueError(f"Series: {name} must be one array a series, {len(self.values)}, got {len(rows)}.")
        for n, (row, values) in enumerate(zip(rows, self.values, strict=True)):
            fits = len(row) >= len(values) if name == "known" else len(row) == len(values)
            if not fits or row.shape[1] != rows[0].shape[1]:
                least = "at least " if name == "known" else ""
                raise ValueError(
                    f"Series: {name}[{n}] must have {least}{len(values)} rows, one a value, of {rows[0].shape[1]} "
                    f"covariates, got {describe(row)}."
                )
            _check_size(f"{name}[{n}]", row)
            if np.isinf(row).any() or (name == "known" and np.isnan(row).any()):
                raise ValueError(f"Series: {name} must be finite, got another number in {name}[{n}]; fill it in.")
        return rows

    def __len__(self) -> int:
        return len(self.values)

    @property
    def lengths(self) -> np.ndarray:
        """Values of each series, int ``[N]``."""
        return np.array([len(row) for row in self.values])

    @property
    def future(self) -> int | None:
        """Steps behind the last value for which the known covariates are there in all series; None for any number."""
        if self.known is None or not self.known[0].shape[1]:
            return None
        return min(len(row) - len(values) for row, values in zip(self.known, self.values, strict=True))

    def select(self, rows: Sequence[int]) -> Series:
        """Some of the series."""

        def of(each: Any) -> Any:
            return None if each is None else [each[n] for n in rows]

        static = np.asarray(self.static)[np.asarray(rows)]
        return Series(of(self.values), of(self.known), of(self.observed), static, of(self.clock), of(self.names))

    def until(self, ends: Any) -> Series:
        """What was known at an origin: values and observed covariates before step ``ends[n]``; known ones stay.

        Raises:
            ValueError: if an end is none of its series.
        """
        ends = np.broadcast_to(np.asarray(ends), (len(self),))
        if (ends < 1).any() or (ends > self.lengths).any():
            raise ValueError("Series.until: ends must lie between 1 and the length of each series, got another one.")
        observed = self.observed
        return dataclasses.replace(
            self,
            values=[row[:end] for row, end in zip(self.values, ends, strict=True)],
            observed=None if observed is None else [row[:end] for row, end in zip(observed, ends, strict=True)],
        )


def as_series(where: str, series: Any) -> Series:
    """A `Series` of what stands for one: a list of arrays, or an array ``[N, T]`` or ``[T]``."""
    if isinstance(series, Series):
        return series
    if isinstance(series, Mapping) or hasattr(series, "columns"):
        raise TypeError(f"{where}: a table has to say which column is what; write rnnjax.forecast.from_table.")
    if hasattr(series, "ndim") and series.ndim == 1:
        series = [series]
    return Series(_several("values", series))


def _several(name: str, rows: Any) -> Sequence[Any]:
    if isinstance(rows, str | bytes | Mapping) or not hasattr(rows, "__len__") or getattr(rows, "ndim", 1) == 0:
        raise TypeError(f"Series: {name} must be a list of arrays, one a series, got {short(rows)}.")
    if len(rows) and all(np.ndim(one) == 0 for one in rows):
        raise TypeError(f"Series: {name} must be a list of arrays, one a series, got numbers; write [{name}].")
    return rows


def _check_size(name: str, row: np.ndarray) -> None:
    """Raises for finite numbers whose squares float32 does not hold."""
    large = np.flatnonzero(np.isfinite(row) & (np.abs(row) > _LARGEST))
    if len(large):
        raise ValueError(
            f"Series: numbers must lie within +-{_LARGEST:g}, got {row.flat[large[0]]:g} in {name}; divide the series."
        )


def _numbers(name: str, row: Any, axes: int) -> np.ndarray:
    try:
        array = np.asarray(row)
        array = np.asarray(None) if np.iscomplexobj(array) else array.astype(np.float64)
    except (TypeError, ValueError):
        array = np.asarray(None)
    if array.dtype != np.float64:
        raise TypeError(f"Series: {name} must hold numbers, got {short(row)}.")
    if array.ndim != axes:
        shape = "[T]" if axes == 1 else "[T, K]"
        raise ValueError(f"Series: {name} must have shape {shape}, got {describe(array)}.")
    return array


MADE = "three meters, made: a day, a week, warmth and noise, with two faults in the second (nothing here is measured)"
_FAULTS = ((1, 1150, 0.25), (1, 1300, 1.8))  # series, hour, factor


def made_series() -> Series:
    """Nine weeks of hours at three meters; the warmth is a known covariate, and its future is there for a week."""
    hours, future = 24 * 63, 168
    at = np.arange(hours + future)
    draw = np.random.default_rng(20240101)
    warmth = 12 + 6 * np.sin(2 * np.pi * (at - 9) / 24) + 4 * np.sin(2 * np.pi * at / (24 * 17))
    values = []
    for meter in range(3):
        day = 1.0 + 0.5 * np.sin(2 * np.pi * (at - 8 - 2 * meter) / 24) + 0.2 * np.sin(4 * np.pi * (at - 6) / 24)
        week = np.where(at // 24 % 7 < 5, 1.0, (0.6, 1.25, 0.85)[meter])
        level = (40.0, 8.0, 150.0)[meter] * (1 + 0.0001 * at)
        noise = 1 + 0.04 * draw.standard_normal(len(at))
        values.append(level * (day * week + 0.02 * (18 - warmth)) * noise)
    for meter, hour, factor in _FAULTS:
        values[meter][hour] *= factor
    return Series(
        [row[:hours] for row in values],
        known=[warmth[:, None]] * 3,
        clock=[Clock(np.datetime64("2024-01-01T00:00:00"), 3600)] * 3,
        names=["office", "home", "works"],
    )
