"""Series: two of science that statsmodels brings, and the hourly and weekly ones of the M4 competition."""

import csv
import gzip
import pathlib
from typing import NamedTuple

import numpy as np

from experiments.common import DataError
from rnnjax.forecast import Clock, Series
from rnnjax.forecast.series import made_series


class Case(NamedTuple):
    """A series, or several, and how it is forecast."""

    title: str
    series: Series
    horizon: int
    season: tuple[int, ...]
    unit: str


class Competition(NamedTuple):
    """One part of M4: what was given, what came, and what is published."""

    history: list[np.ndarray]
    future: np.ndarray  # [N, H]
    season: int  # of the scale of the MASE
    seasons: tuple[int, ...]  # that the model knows of
    published: dict[str, tuple[float, float]]  # sMAPE and MASE


# Makridakis et al. (2020), and "Evaluation and Ranks.xlsx" of the repository Mcompetitions/M4-methods.
PUBLISHED = {
    "hourly": {
        "seasonal naive": (13.912, 1.193),
        "the competition's RNN": (14.698, 3.048),
        "ES-RNN, the winner": (9.328, 0.893),
    },
    "weekly": {"Naive2": (9.161, 2.777), "ES-RNN, the winner": (7.817, 2.356)},
}
SEASONS = {"hourly": (24, (24, 168)), "weekly": (1, (52,))}


def embedded() -> list[Case]:
    """Sunspots and CO2 where statsmodels is installed; else the series that `rnnjax forecast` makes."""
    try:
        from statsmodels.datasets import co2, sunspots
    except ModuleNotFoundError:
        return [Case("made", made_series(), 48, (24, 168), "kW")]
    years = sunspots.load_pandas().data
    spots = Series(
        [years["SUNACTIVITY"].to_numpy(float)],
        clock=[Clock(int(years["YEAR"].iloc[0]), 1, "numbers")],
        names=["sunspots"],
    )
    weeks = co2.load_pandas().data
    start = np.datetime64(weeks.index[0].to_datetime64(), "s")
    carbon = Series([weeks["co2"].to_numpy(float)], clock=[Clock(start, 7 * 86400)], names=["CO2"])
    return [
        Case("Sunspots, yearly means", spots, 11, (11,), "sunspots"),
        Case("CO2 at Mauna Loa, weekly", carbon, 52, (52,), "ppm"),
    ]


def m4(folder: pathlib.Path, part: str) -> Competition:
    """One part of the competition, from its CSV files."""
    history = [row for _, row in _rows(folder / f"{part.title()}-train.csv.gz")]
    future = [row for _, row in _rows(folder / f"{part.title()}-test.csv.gz")]
    if len(history) != len(future):
        raise DataError(folder, None, f"needs as many series to test as to train, got {len(future)} of {len(history)}")
    season, seasons = SEASONS[part]
    return Competition(history, np.stack(future), season, seasons, PUBLISHED[part])


def _rows(path: pathlib.Path) -> list[tuple[str, np.ndarray]]:
    found = []
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        next(reader)
        for row in reader:
            try:
                found.append((row[0], np.array([float(value) for value in row[1:] if value])))
            except ValueError as error:
                raise DataError(path, reader.line_num, f"needs numbers, got another word ({error})") from error
    return found
