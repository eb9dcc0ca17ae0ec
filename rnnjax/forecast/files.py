"""Series from a file: text in columns, whose delimiter, decimal sign and dates are found."""

from __future__ import annotations

import collections
import csv
import datetime
import functools
import gzip
import hashlib
import io
import itertools
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rnnjax.checks import did_you_mean, short
from rnnjax.files import read_regular
from rnnjax.forecast.series import Series
from rnnjax.forecast.tables import MISSING, Columns, Ends, series_of_table
from rnnjax.text.wide import wide_encoding

__all__ = ["Source", "read_series"]

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_DAYS = ("%d.%m.%Y", "%Y/%m/%d", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y%m%d", "%Y-%m", "%Y.%m.%d")
_FORMATS = tuple(day + time for day in _DAYS for time in ("", " %H:%M", " %H:%M:%S", "T%H:%M", " %I:%M %p"))
_COMMA = re.compile(r"[-+]?\d+,\d+")
_UNIX = (10**8, 5 * 10**9)  # seconds since 1970, of the years 1973 to 2128


class Source(NamedTuple):
    """What was found in a file."""

    series: Series
    ends: list[Ends]
    columns: Columns
    path: str
    rows: int
    delimiter: str  # its name
    dates: str  # how they are written
    sha256: str
    notes: tuple[str, ...]

    def place(self, line: int) -> str:
        """Where a line of the file is."""
        return f"{self.path}, line {line}"


class _Text(NamedTuple):
    """Rows of a file, and the lines on which they are."""

    header: list[str]
    rows: list[list[str]]
    lines: list[int]
    delimiter: str


def read_series(path: str | os.PathLike[str], columns: Columns) -> Source:
    """Reads a file of comma-separated values or the like, also gzipped; the first line names the columns.

    The columns of ``target`` and ``time`` are guessed where their names are empty: the first that holds dates, and the
    only one left that holds numbers.

    Raises:
        ValueError: for what is wrong, with file and line.
        OSError: if the file cannot be read.
    """
    where = os.fspath(path)
    if not os.path.exists(where):
        raise FileNotFoundError(
            f"forecast: there is no file {where!r}; name a text file in columns, or leave it out for series that are "
            "made."
        )
    if os.path.isdir(where):
        raise IsADirectoryError(f"forecast: {where!r} must be a file, got a folder; name a text file in columns.")
    raw = read_regular(pathlib.Path(path), "forecast")
    text = _read(where, raw)
    names = {name: k for k, name in enumerate(text.header)}

    def place(row: int) -> str:
        return f"{where}, line {text.lines[row]}"

    def column(name: str) -> list[str]:
        if name not in names:
            guess = did_you_mean(name, names) or f"; there are {', '.join(text.header[:12])}"
            raise ValueError(f"{where}, line 1: there must be a column {name!r}, got none{guess}.")
        return [row[names[name]].strip() for row in text.rows]

    columns = _guessed(where, text, columns)
    given = [columns.target, columns.time, columns.by, *columns.known, *columns.observed, *columns.static]
    table: dict[str, object] = {name: column(name) for name in given if name}
    notes: list[str] = []
    for name in (columns.target, *columns.known, *columns.observed):
        own = table[name]
        if text.delimiter != "," and any(_COMMA.fullmatch(one) for one in own):  # type: ignore[attr-defined]
            table[name] = [one.replace(".", "").replace(",", ".") for one in own]  # type: ignore[attr-defined]
            notes.append(f"{name} is written with decimal commas")
    dates = ""
    if columns.time:
        table[columns.time], dates, more = parse_dates(table[columns.time], place)  # type: ignore[arg-type]
        notes += more
    series, ends = series_of_table({k: np.asarray(v) for k, v in table.items()}, columns, place)
    lines = text.lines
    gaps = [None if end.gap is None else lines[end.gap] for end in ends]
    ends = [Ends(lines[end.first], lines[end.last], gap, end.missing) for end, gap in zip(ends, gaps, strict=True)]
    digest = hashlib.sha256(raw).hexdigest()
    found = series, ends, columns, where, len(text.rows), _DELIMITERS[text.delimiter], dates, digest, tuple(notes)
    return Source(*found)


def _read(where: str, raw: bytes) -> _Text:
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{where}: the gzip file must be whole, got {error}; copy it again.") from error
    try:
        content = raw.decode(wide_encoding(raw) or "utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(f"{where}, line {line}: the text must be UTF-8, got other bytes; save it as UTF-8.") from error
    head = [line for line in content.splitlines()[:30] if line.strip()]
    if len(head) < 2:
        raise ValueError(f"{where}: there must be a line that names the columns and one of values, got {len(head)}.")
    delimiter = max(_DELIMITERS, key=lambda one: (min(line.count(one) for line in head), head[0].count(one)))
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    rows, lines = [], []
    try:
        header = [name.strip() for name in next(row for row in reader if row)]
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(header):
                raise ValueError(
                    f"{where}, line {reader.line_num}: there must be {len(header)} fields between "
                    f"{_DELIMITERS[delimiter]} as on line 1, got {len(row)}."
                )
            rows.append(row)
            lines.append(reader.line_num)
    except csv.Error as error:
        raise ValueError(f"{where}, line {reader.line_num}: the fields cannot be told apart ({error}).") from error
    if all(_is_number(name) for name in header):
        raise ValueError(f"{where}, line 1: the first line must name the columns, got {short(', '.join(header))}.")
    counts = collections.Counter(header)
    if twice := [name for name in header if counts[name] > 1]:
        raise ValueError(f"{where}, line 1: columns must have different names, got {twice[0]!r} twice; rename one.")
    return _Text(header, rows, lines, delimiter)


def _guessed(where: str, text: _Text, columns: Columns) -> Columns:
    """With the columns of time and target, where they are not named."""
    taken = {columns.target, columns.time, columns.by, *columns.known, *columns.observed, *columns.static}
    free = [name for name in text.header if name not in taken]

    place = {name: k for k, name in enumerate(text.header)}

    def cells(name: str) -> list[str]:
        k = place[name]
        return [row[k].strip() for row in text.rows[:50] if row[k].strip().lower() not in MISSING]

    if not columns.time:
        dated = [name for name in free if cells(name) and all(_is_date(one) for one in cells(name))]
        columns = columns._replace(time=dated[0] if dated else None)
        free = [name for name in free if name != columns.time]
    if not columns.target:
        numbers = [name for name in free if cells(name) and all(_is_number(one) for one in cells(name))]
        if len(numbers) != 1:
            raise ValueError(
                f"{where}, line 1: target must name the column to forecast, got none and "
                f"{len(numbers)} columns of numbers; there are {', '.join(text.header[:12])}."
            )
        columns = columns._replace(target=numbers[0])
    return columns


def _parsed(parse: Callable[..., Any], *given: str) -> Any:
    """What a parser makes of a text; None where it cannot."""
    try:
        return parse(*given)
    except ValueError:
        return None


def _is_number(text: str) -> bool:
    return _parsed(float, text.replace(",", ".")) is not None


_iso = functools.partial(_parsed, datetime.datetime.fromisoformat)
_strptime = functools.partial(_parsed, datetime.datetime.strptime)


def _is_date(text: str) -> bool:
    return not _is_number(text) and (_iso(text) is not None or any(_strptime(text, one) for one in _FORMATS))


def parse_dates(texts: Sequence[str], place: Callable[[int], str]) -> tuple[np.ndarray, str, list[str]]:
    """datetime64[s], or int64 of plain numbers; how they are written; and what is to be said of it.

    Raises:
        ValueError: for what is no date, or is written in another way than those before it.
    """
    if all(re.fullmatch(r"[-+]?\d{1,12}", one) for one in texts):
        numbers = np.array([int(one) for one in texts], np.int64)
        if all(len(one) == 8 and _strptime(one, "%Y%m%d") for one in (texts[0], texts[-1])):
            return _by_format(texts, "%Y%m%d", place), "YYYYMMDD", []
        if len(numbers) and _UNIX[0] <= numbers.min() and numbers.max() <= _UNIX[1]:
            return numbers.astype("datetime64[s]"), "seconds since 1970 (UTC)", []
        return numbers, "numbers", []
    if _iso(texts[0]) is not None:
        return _by_iso(texts, place)
    fitting = [form for form in _FORMATS if _strptime(texts[0], form)]
    if not fitting:
        raise ValueError(
            f"{place(0)}: times must be dates as 2024-12-31 23:00, or whole numbers, got {short(texts[0])}; rewrite "
            "them."
        )
    whole = [form for form in fitting if all(_strptime(one, form) for one in texts)]
    if not whole:
        return _by_format(texts, fitting[0], place), "", []
    rising = [form for form in whole if _even(_by_format(texts, form, place))]
    if len(whole) > 1 and len(rising) != 1:
        raise ValueError(
            f"{place(0)}: dates must tell day from month, got {short(texts[0])}, which could be either; write "
            "them as 2024-12-31."
        )
    form = rising[0] if rising else whole[0]
    names = {"%d": "DD", "%m": "MM", "%Y": "YYYY", "%H": "HH", "%M": "MM", "%S": "SS", "%I": "HH", "%p": "AM/PM"}
    return _by_format(texts, form, place), re.sub("%.", lambda m: names[m[0]], form), []


def _even(times: np.ndarray) -> bool:
    """Whether times look as those of a series do: most gaps are equal, as far as they rise."""
    gaps = np.diff(times).astype(np.int64)
    gaps = gaps[gaps > 0]
    return bool(len(gaps)) and float(np.unique(gaps, return_counts=True)[1].max()) > 0.6 * (len(times) - 1)


def _all(
    texts: Sequence[str], parse: Callable[[str], datetime.datetime | None], wanted: str, place: Callable[[int], str]
) -> list[datetime.datetime]:
    found = []
    for row, text in enumerate(texts):
        if (date := parse(text)) is None:
            raise ValueError(f"{place(row)}: times must be {wanted}, got {short(text)}; mend the line.")
        found.append(date)
    return found


def _by_format(texts: Sequence[str], form: str, place: Callable[[int], str]) -> np.ndarray:
    found = _all(texts, lambda text: _strptime(text, form), "written as on the lines before", place)
    return np.array(found, dtype="datetime64[s]")


def _by_iso(texts: Sequence[str], place: Callable[[int], str]) -> tuple[np.ndarray, str, list[str]]:
    found = _all(texts, _iso, f"dates as {short(texts[0])}", place)
    offsets = [date.utcoffset() for date in found]
    for row, (before, now) in enumerate(itertools.pairwise(offsets), 1):
        if (before is None) != (now is None):
            raise ValueError(
                f"{place(row)}: all times or none must have a time zone, got {short(texts[row])} behind "
                f"{short(texts[row - 1])}; write all in UTC."
            )
    notes: list[str] = []
    if offsets[0] is not None:
        if len(set(offsets)) > 1:
            row = next(k for k, one in enumerate(offsets) if one != offsets[0])
            notes.append(f"times are taken in UTC, as their zone changes at {place(row)}")
            found = [date.astimezone(datetime.UTC) for date in found]
        else:
            notes.append(f"times are those of the zone {texts[0][-6:] if texts[0][-1] != 'Z' else 'UTC'}")
        found = [date.replace(tzinfo=None) for date in found]
    return np.array(found, dtype="datetime64[s]"), "ISO 8601", notes
