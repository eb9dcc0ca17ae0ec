"""Dates on a grid: where a series begins, how far apart its values lie, and what the calendar says of each."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

__all__ = ["Clock", "calendar", "clock_of", "positions"]

# What a calendar tells, each as a place on a circle: how many places go around, and of how many seconds one is.
_AROUND = np.array([60, 24, 7, 31, 366])  # minute of the hour, hour of the day, day of week, month and year
_PLACE = np.array([60, 3600, 86400, 86400, 86400])
_NUMBERS = "numbers"


class Clock(NamedTuple):
    """Values at ``start``, ``start + every``, ``start + 2 every``, ..., in seconds, months or plain numbers.

    >>> Clock(np.datetime64("2024-01-31"), 1, "months").at(np.arange(3)).astype("datetime64[D]").astype(str).tolist()
    ['2024-01-31', '2024-02-29', '2024-03-31']
    >>> str(Clock(np.datetime64("2024-01-01"), 3600)), str(Clock(1700, 1, "numbers"))
    ('hour', '1')
    """

    start: Any  # datetime64, or an int of plain numbers
    every: int
    unit: str = "seconds"  # or "months" or "numbers"

    def at(self, steps: Any) -> np.ndarray:
        """datetime64[s], or plain numbers, of steps counted from the start; months that are too short end early."""
        steps = np.asarray(steps, np.int64) * self.every
        if self.unit == _NUMBERS:
            return self.start + steps
        start = self.start.astype("datetime64[s]")
        if self.unit == "seconds":
            return start + steps.astype("timedelta64[s]")
        day = start.astype("datetime64[D]")
        months = start.astype("datetime64[M]") + steps.astype("timedelta64[M]")
        following = (months + np.timedelta64(1, "M")).astype("datetime64[D]")
        last = (following - months.astype("datetime64[D]")).astype(np.int64) - 1
        number = int((day - start.astype("datetime64[M]").astype("datetime64[D]")).astype(np.int64))
        if (day + np.timedelta64(1, "D")).astype("datetime64[M]") != start.astype("datetime64[M]") and number >= 27:
            number = 31  # month ends stay month ends
        days = months.astype("datetime64[D]") + np.minimum(number, last).astype("timedelta64[D]")
        return days.astype("datetime64[s]") + (start - day.astype("datetime64[s]"))

    def __str__(self) -> str:
        """``hour``, ``7 days``, ``month``; of plain numbers the number."""
        if self.unit == _NUMBERS:
            return str(self.every)
        names = [("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1)]
        if self.unit == "months":
            names = [("year", 12), ("month", 1)]
        name, size = next((n, s) for n, s in names if self.every % s == 0)
        return name if self.every == size else f"{self.every // size} {name}s"


def clock_of(times: np.ndarray) -> Clock:
    """The clock of rising times, by the commonest gap between them: of months, if that is what they are.

    Args:
        times: datetime64[s] or int ``[n]``, n at least 2.
    """
    gaps = np.diff(times).astype(np.int64)
    numbers, counts = np.unique(gaps, return_counts=True)
    every = int(numbers[np.argmax(counts)])
    if not np.issubdtype(times.dtype, np.datetime64):
        return Clock(int(times[0]), every, _NUMBERS)
    if every >= 28 * 86400:
        months = np.diff(times.astype("datetime64[M]").astype(np.int64))
        numbers, counts = np.unique(months, return_counts=True)
        clock = Clock(times[0], int(numbers[np.argmax(counts)]), "months")
        if clock.every > 0 and (positions(clock, times) >= 0).mean() > 0.5:
            return clock
    return Clock(times[0], every)


def positions(clock: Clock, times: np.ndarray) -> np.ndarray:
    """Steps ``[n]`` from the start of the clock to times that do not lie before it; -1 for one off its grid."""
    if clock.unit == "months":
        start = clock.start.astype("datetime64[M]").astype(np.int64)
        steps = (times.astype("datetime64[M]").astype(np.int64) - start) // clock.every
    else:
        steps = (times - clock.start).astype(np.int64) // clock.every
    return np.where(clock.at(steps) == times, steps, -1)


def calendar(clock: Clock, count: int) -> np.ndarray:
    """float32 ``[count, 2 * C]``: sines and cosines of the places in the calendar that change on this grid."""
    if clock.unit == _NUMBERS:
        return np.zeros((count, 0), np.float32)
    dates = clock.at(np.arange(count))
    days = dates.astype("datetime64[D]")
    second = (dates - days).astype(np.int64)
    month, year = (days.astype(f"datetime64[{unit}]").astype("datetime64[D]") for unit in "MY")
    # 1970 began on a Thursday; Monday is 0.
    weekday = (days.astype(np.int64) + 3) % 7
    parts = [second / 60 % 60, second / 3600, weekday, (days - month).astype(int), (days - year).astype(int)]
    every = clock.every * (1 if clock.unit == "seconds" else 30 * 86400)
    turn = _AROUND * _PLACE
    changing = (every % turn != 0) & (every * 2 <= turn)
    if clock.unit == "months":
        changing[:4] = False
    angle = 2 * np.pi * (np.stack(parts, axis=1) / _AROUND)[:, changing]
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)
