"""Series from a long table: rows put on a grid of times, told apart by a column, and judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rnnjax.checks import describe, did_you_mean, short
from rnnjax.forecast.dates import Clock, clock_of, positions
from rnnjax.forecast.series import Series
from rnnjax.kinds import public

__all__ = ["MISSING", "Columns", "Ends", "as_dates", "from_table", "series_of_table"]

_SPARSE = 20  # grid points a row, above which a far-off time is an error and no gap


MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "-", "?"})


class Columns(NamedTuple):
    """Which column is what."""

    target: str
    time: str | None = None
    by: str | None = None
    known: tuple[str, ...] = ()
    observed: tuple[str, ...] = ()
    static: tuple[str, ...] = ()


class Ends(NamedTuple):
    """Where a series is in its table, by rows."""

    first: int
    last: int
    gap: int | None = None  # behind the first time that is left out
    missing: int = 0  # times that are left out, in all


def as_dates(times: Any) -> np.ndarray:
    """datetime64[s] of dates, int64 of whole numbers.

    Raises:
        ValueError: for anything else.
    """
    array = np.asarray(times)
    if np.issubdtype(array.dtype, np.datetime64):
        return array.astype("datetime64[s]")
    if np.issubdtype(array.dtype, np.number) and array.dtype != bool:
        if (array == np.round(array)).all():
            return array.astype(np.int64)
        raise ValueError("must be dates or whole numbers, got fractions")
    return np.array([np.datetime64(str(one).strip(), "s") for one in array], dtype="datetime64[s]")


@public(but=("table",))
def from_table(
    table: Mapping[str, Any],
    *,
    target: str,
    time: str | None = None,
    by: str | None = None,
    known: Sequence[str] = (),
    observed: Sequence[str] = (),
    static: Sequence[str] = (),
) -> Series:
    """The series of a long table: one row a value, in the order of time within each series.

    Rows behind the last value of the target bring the future of the known covariates. A time that is left out is a
    missing value. Words in a column of ``static`` are numbered in alphabetical order.

    Args:
        table: columns by name, of the same length; a data frame of pandas or polars is one.
        target: the column of the values.
        time: the column of dates (anything that ``numpy.datetime64`` reads) or of whole numbers; None where the rows
            follow each other without a gap.
        by: the column that tells series apart; None for one series.
        known: columns of covariates whose future is known.
        observed: columns of covariates that are known up to the origin.
        static: columns of categories, each the same all through a series.

    Raises:
        ValueError: for columns that are not there, times that come twice, do not rise or lie off the grid of the
            others, a category that changes, or as `Series` does.

    >>> table = {"day": ["2024-01-01", "2024-01-02", "2024-01-04"], "sold": [3, 4, 6]}
    >>> from_table(table, target="sold", time="day").values[0].tolist()
    [3.0, 4.0, nan, 6.0]
    """
    if not isinstance(table, Mapping) and not (hasattr(table, "columns") and hasattr(table, "__getitem__")):
        raise TypeError(f"from_table: table must be columns by name, or a data frame, got {describe(table)}.")
    for name, names in (("known", known), ("observed", observed), ("static", static)):
        if not all(isinstance(one, str) for one in names):
            raise TypeError(f"from_table: {name} must be names of columns, got {short(names)}.")
    return series_of_table(table, Columns(target, time, by, tuple(known), tuple(observed), tuple(static)))[0]


def series_of_table(
    table: Mapping[str, Any], columns: Columns, place: Callable[[int], str] = lambda row: f"row {row}"
) -> tuple[Series, list[Ends]]:
    """The series, and where each is; ``place`` says where a row is, for the errors."""
    get = {name: _column(table, name) for name in _names(columns)}
    values = _numbers(get[columns.target], columns.target, place)
    count = len(values)
    for name, column in get.items():
        if len(column) != count:
            raise ValueError(f"from_table: {name!r} must have {count} rows as {columns.target!r}, got {len(column)}.")
    if not count:
        raise ValueError("from_table: the table must hold a row, got none.")
    groups: dict[str, list[int]] = {}
    names: list[str] = ["0"] * count if columns.by is None else [str(one) for one in get[columns.by]]
    for row, name in enumerate(names):
        groups.setdefault(name, []).append(row)
    times = None
    if columns.time is not None:
        try:
            times = as_dates(get[columns.time])
        except ValueError as error:
            raise ValueError(f"from_table: {columns.time!r} {error}.") from error
    known, observed = (
        [_numbers(get[name], name, place) for name in wanted] for wanted in (columns.known, columns.observed)
    )
    clock = None if times is None else _clock(times, list(groups.values()), place, columns)
    found: dict[str, list[Any]] = {"values": [], "known": [], "observed": [], "static": [], "clock": []}
    ends = []
    for name, rows in groups.items():
        own = np.array(rows)
        at, length = np.arange(len(own)), len(own)
        if times is not None and clock is not None:
            first = clock._replace(start=times[own[0]] if clock.unit != "numbers" else int(times[own[0]]))
            at = grid_of(first, times[own], lambda k, own=own: place(int(own[k])), columns)  # type: ignore[misc]
            length = int(at[-1]) + 1
            found["clock"].append(first)
        put = _spread(at, length)
        row_values = put(values[own])
        there = np.flatnonzero(np.isfinite(row_values))
        if not len(there):
            raise ValueError(
                f"{place(int(own[0]))}: a series must hold a value of {columns.target!r}, got none"
                f"{'' if columns.by is None else f' for {columns.by} {name}'}."
            )
        end = int(there[-1]) + 1  # what follows is the future of the known covariates
        missing = np.setdiff1d(np.arange(end), at)
        gap = int(own[np.searchsorted(at, missing[0])]) if len(missing) else None
        ends.append(Ends(int(own[0]), int(own[-1]), gap, len(missing)))
        found["values"].append(row_values[:end])
        rest = np.stack([put(c[own]) for c in known], axis=1) if known else np.zeros((length, 0))
        if np.isnan(rest).any():
            bad, which = np.argwhere(np.isnan(rest))[0]
            row = int(own[min(int(np.searchsorted(at, bad)), len(own) - 1)])
            gap = bad not in at
            when = f"at a time that is left out before {times[row]}" if gap else "here"  # type: ignore[index]
            advice = "add a row with it, the target left empty, or name it as observed" if gap else "fill it in"
            raise ValueError(
                f"{place(row)}: known covariates must be there at every time, also where the target is missing, got no "
                f"{columns.known[which]!r} {when}; {advice}."
            )
        found["known"].append(rest)
        found["observed"].append(
            np.stack([put(c[own])[:end] for c in observed], axis=1) if observed else np.zeros((end, 0))
        )
        found["static"].append([_constant(get[column], own, column, place) for column in columns.static])
    static = None
    if columns.static:
        words = [sorted({str(row[c]) for row in found["static"]}) for c in range(len(columns.static))]
        static = np.array([[words[c].index(str(one)) for c, one in enumerate(row)] for row in found["static"]])
    return Series(
        found["values"],
        known=found["known"] if known else None,
        observed=found["observed"] if observed else None,
        static=static,
        clock=found["clock"] or None,
        names=list(groups),
    ), ends


def _clock(times: np.ndarray, groups: list[list[int]], place: Callable[[int], str], columns: Columns) -> Clock:
    """One for all series, of the longest; times must rise in each."""
    for rows in groups:
        step = np.diff(times[np.array(rows)]).astype(np.int64)
        if len(bad := np.flatnonzero(step <= 0)):
            row = rows[bad[0] + 1]
            before, now = times[rows[bad[0]]], times[row]
            if now == before:
                raise ValueError(
                    f"{place(row)}: times must come once in a series, got {now} twice; merge the rows, "
                    f"{'name the column that tells series apart, ' if columns.by is None else ''}"
                    "or write times in UTC if a clock was put back."
                )
            raise ValueError(
                f"{place(row)}: times must rise in a series, got {now} behind {before}; sort the rows"
                f"{', or name the column that tells series apart' if columns.by is None else ''}."
            )
    rows = max(groups, key=len)
    if len(rows) < 2:
        raise ValueError(f"{place(rows[0])}: a series must hold two times or more, got one.")
    return clock_of(times[np.array(rows)])


def grid_of(clock: Clock, times: np.ndarray, place: Callable[[int], str], columns: Columns) -> np.ndarray:
    """Steps of the clock, int ``[n]``.

    Raises:
        ValueError: for a time between two steps, or one that is far from all others.
    """
    at = positions(clock, times)
    if len(bad := np.flatnonzero(at < 0)):
        raise ValueError(
            f"{place(int(bad[0]))}: times must be whole steps of {_an(clock)} apart, got {times[bad[0]]}, which lies "
            f"between two of them; round {columns.time!r}, or take values at equal distances."
        )
    if at[-1] > _SPARSE * len(at) + 1000:
        row = int(np.argmax(np.diff(at))) + 1
        raise ValueError(
            f"{place(row)}: gaps must be short beside what is there, got {int(np.diff(at).max()):,} steps of "
            f"{_an(clock)} up to {times[row]}; cut the series there, or take values at larger distances."
        )
    return at


def _an(clock: Clock) -> str:
    text = str(clock)
    return text if text[0].isdigit() else f"one {text}"


def _spread(at: np.ndarray, length: int) -> Callable[[np.ndarray], np.ndarray]:
    def put(column: np.ndarray) -> np.ndarray:
        row = np.full(length, np.nan)
        row[at] = column
        return row

    return put


def _names(columns: Columns) -> list[str]:
    single = [name for name in (columns.target, columns.time, columns.by) if name is not None]
    names = [*single, *columns.known, *columns.observed, *columns.static]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"from_table: a column must be one thing, got {twice!r} as several; name each once.")
    return names


def _column(table: Mapping[str, Any], name: str) -> np.ndarray:
    known = [str(one) for one in (table.columns if hasattr(table, "columns") else table)]
    if name not in known:
        guess = did_you_mean(name, known) or f"; there are {', '.join(known[:12])}{' ...' if len(known) > 12 else ''}"
        raise ValueError(f"from_table: the table must have the column {name!r}, got none{guess}.")
    return np.asarray(table[name])


def _numbers(column: np.ndarray, name: str, place: Callable[[int], str]) -> np.ndarray:
    """float64, of numbers, and of None and empty text as NaN."""
    if np.issubdtype(column.dtype, np.number) or column.dtype == bool:
        return column.astype(np.float64)
    found = np.full(len(column), np.nan)
    for row, one in enumerate(column.tolist()):
        if one is None or (isinstance(one, str) and one.strip().lower() in MISSING):
            continue
        try:
            found[row] = float(one)
        except (TypeError, ValueError):
            raise ValueError(
                f"{place(row)}: {name!r} must hold numbers, got {short(one)}; leave it empty where a value is missing."
            ) from None
    if len(bad := np.flatnonzero(np.isinf(found))):
        raise ValueError(f"{place(int(bad[0]))}: {name!r} must hold finite numbers, got {found[bad[0]]}.")
    return found


def _constant(column: np.ndarray, rows: np.ndarray, name: str, place: Callable[[int], str]) -> Any:
    own = column[rows]
    if len(bad := np.flatnonzero(own != own[0])):
        raise ValueError(
            f"{place(int(rows[bad[0]]))}: {name!r} must stay the same all through a series, got {own[bad[0]]!r} behind "
            f"{own[0]!r}; make it a known or an observed covariate."
        )
    return own[0]
