"""The folder of a forecast: what lies in it, and the options that make it this one and no other."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any

from rnnjax.checks import check_size
from rnnjax.files import CheckpointError, read_json, write_json
from rnnjax.fit.folder import Paths
from rnnjax.forecast.options import ForecastOptions
from rnnjax.forecast.tables import Columns

__all__ = ["KIND", "ForecastConfig", "ForecastPaths", "is_forecast_run"]

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
