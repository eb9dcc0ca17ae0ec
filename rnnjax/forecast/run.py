"""A forecast of the command line: its options, which check themselves, its folder, and what makes it this one."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any

from rnnjax.cells import cell_from_name
from rnnjax.checks import check_choice, check_real, check_size
from rnnjax.files import CheckpointError, read_json, write_json
from rnnjax.fit.folder import Paths
from rnnjax.forecast.heads import Head, NegativeBinomial, Normal, Quantiles, StudentT
from rnnjax.forecast.model import Forecaster
from rnnjax.forecast.tables import Columns
from rnnjax.kinds import check_fields
from rnnjax.networks import Stack
from rnnjax.options import MAX_LAYERS, MAX_SIZE, check_most, option

__all__ = ["HEADS", "KIND", "ForecastConfig", "ForecastOptions", "ForecastPaths", "is_forecast_run", "make_forecaster"]

HEADS: dict[str, Head] = {
    "quantiles": Quantiles(),
    "student": StudentT(),
    "normal": Normal(),
    "counts": NegativeBinomial(),
}


@dataclasses.dataclass(frozen=True)
class ForecastOptions:
    """The model of a forecast and its training; every field says what it is.

    Raises:
        ValueError: for a number out of range or an unknown name.
    """

    cell: str = option("lstm", "Cell by name, or file.py:Class.", "CELL")
    hidden: int = option(32, "Units of a layer.", "UNITS")
    layers: int = option(1, "Layers of cells.", "NUMBER")
    head: str = option("quantiles", "What a value is said to be distributed like.", "|".join(HEADS))
    recursive: bool = option(False, "Step by step, fed with what it has drawn, in place of all steps at once.")
    context: int = option(0, "Steps of history that are read; 0: two of the longest season.", "STEPS")
    scale: str = option("mean_std", "What values are divided by.", "mean_abs|mean_std")
    dropout: float = option(0.0, "Rate, between layers and before the head.", "RATE")
    steps: int = option(800, "Updates of the training.", "UPDATES")
    batch_size: int = option(32, "Windows of an update.", "WINDOWS")
    lr: float = option(5e-3, "Peak learning rate.", "RATE")
    samples: int = option(200, "Paths that are drawn, where the model draws.", "PATHS")
    windows: int = option(5, "Windows of the backtest, none of which is trained on.", "NUMBER")
    seed: int = option(0, "Of everything random.", "NUMBER")

    def __post_init__(self) -> None:
        where = "ForecastOptions"
        check_fields(self, least={"context": 0, "seed": 0}, rates=("dropout",))
        check_most(self, hidden=MAX_SIZE, layers=MAX_LAYERS)
        check_choice(where, "head", self.head, tuple(HEADS))
        check_choice(where, "scale", self.scale, ("mean_abs", "mean_std"))
        check_real(where, "lr", self.lr, above=0.0)


def make_forecaster(options: ForecastOptions, season: tuple[int, ...]) -> Forecaster:
    """The model that the options describe.

    Raises:
        ValueError: for an unknown cell.
    """
    cells = tuple(cell_from_name(options.cell, options.hidden) for _ in range(options.layers))
    network: Any = cells[0] if len(cells) == 1 else Stack(cells)
    return Forecaster(
        network,
        HEADS[options.head],
        season or (1,),
        direct=not options.recursive,
        context=options.context,
        scale="mean_abs" if options.head == "counts" else options.scale,  # type: ignore[arg-type]
        dropout=options.dropout,
    )


KIND = "forecast"


class ForecastPaths(Paths):
    """Where a forecast keeps its files."""

    FILES = {  # noqa: RUF012
        "config": "config.json",
        "metrics": "metrics.jsonl",
        "log": "train.log",
        "forecast": "forecast.csv",
        "surprise": "surprise.csv",
        "picture": "forecast.png",
        "surprise_picture": "surprise.png",
        "result": "result.json",
        "report": "report.html",
    }
    FOLDERS = {"checkpoints": "checkpoints"}  # noqa: RUF012


@dataclasses.dataclass(frozen=True)
class ForecastConfig:
    """What a folder was begun with.

    Attributes:
        options: of model and training.
        columns: of the file; empty ones of a made series.
        horizon: steps ahead.
        season: found or given, () for none.
        path: of the file; empty for the made series.
        file: SHA-256 of the file's bytes.
        about: what it ran on, and when.
    """

    options: ForecastOptions
    columns: Columns
    horizon: int
    season: tuple[int, ...]
    path: str
    file: str
    about: dict[str, str]

    def write(self, path: pathlib.Path) -> None:
        """As JSON with a digest."""
        data = dataclasses.asdict(self) | {"kind": KIND, "columns": self.columns._asdict()}
        write_json(path, json.loads(json.dumps(data)))

    @classmethod
    def read(cls, root: str | os.PathLike[str]) -> ForecastConfig:
        """The config of a folder.

        Raises:
            FileNotFoundError: if there is no run.
            ValueError: if it is another kind of run, or the file is damaged.
        """
        path = ForecastPaths(pathlib.Path(root)).config
        if not path.is_file():
            raise FileNotFoundError(
                f"forecast: {os.fspath(root)!r} is no folder of a run; name one that has config.json."
            )
        data = read_json(path, "forecast")
        if data.get("kind") != KIND:
            raise ValueError(f"forecast: {os.fspath(root)} is a run of another command, not of rnnjax forecast.")
        try:
            columns: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in data["columns"].items()}
            found = cls(
                options=ForecastOptions(**data["options"]),
                columns=Columns(**columns),
                horizon=check_size("config", "horizon", data["horizon"]),
                season=tuple(check_size("config", "season", one) for one in data["season"]),
                path=data["path"],
                file=data["file"],
                about=dict(data["about"]),
            )
            words = (found.path, found.file, found.columns.target, *found.about.values())
            if not all(isinstance(word, str) for word in words):
                raise TypeError("a word is none")
            return found
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"forecast: {path} does not hold the options of a forecast ({error}).") from error


def is_forecast_run(root: str | os.PathLike[str]) -> bool:
    """Whether a folder is one of ``rnnjax forecast``."""
    try:
        path = ForecastPaths(pathlib.Path(root)).config
        return path.is_file() and read_json(path, "forecast").get("kind") == KIND
    except (OSError, ValueError):
        return False
