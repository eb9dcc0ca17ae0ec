"""The result file: JSON that is whole at every moment, and that knows which points it has."""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.grid import Point, Sizes
from benchmarks.provenance import ROW_FIELDS

__all__ = ["ResultFile", "load_rows", "read_json", "write_json"]


def write_json(path: pathlib.Path, value: Any) -> None:
    """Atomically: a reader, or whoever comes after a kill, sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """What a result file holds.

    Raises:
        ValueError: if there is no such file, or it is none of ours.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"results: there is no file {str(path)!r}; make it with python -m benchmarks.") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"results: {str(path)!r} is no JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"results: {str(path)!r} holds no results; it must come from python -m benchmarks.")
    return content


def load_rows(paths: Iterable[pathlib.Path]) -> list[dict[str, Any]]:
    """The rows of result files, one after the other."""
    rows: list[dict[str, Any]] = []
    for path in paths:
        content = read_json(path)
        if "rows" not in content:
            raise ValueError(f"results: {str(path)!r} has no rows; it must come from python -m benchmarks run.")
        rows += content["rows"]
    return rows


def comparable(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two rows or provenances are of one machine, one Python, one jax and one commit."""
    return all(one[field] == other[field] for field in ROW_FIELDS)


def point_of(row: dict[str, Any]) -> Point:
    """The point that a row belongs to."""
    return Point(row["cell"], Sizes(row["T"], row["B"], row["I"], row["H"]), row["dtype"], row["mode"])


class ResultFile:
    """Rows in memory, and in a file after every point.

    Args:
        path: None keeps them in memory only.
        header: everything but the rows; it replaces that of an older file, whose peaks it takes over if they are of
            the same machine.
        resume: whether the rows of an existing file are kept. Otherwise the file must not exist.
    """

    def __init__(self, path: pathlib.Path | None, header: dict[str, Any], *, resume: bool):
        self.path, self.header, self.rows = path, header, []
        if path is not None and path.exists():
            if not resume:
                raise ValueError(f"run: {str(path)!r} exists; take another --out, or --resume to go on with it.")
            self.rows = load_rows([path])
            old = json.loads(path.read_text(encoding="utf-8"))
            if comparable(old["provenance"], header["provenance"]):
                for key in ("matmul_peak", "skipped"):
                    header[key].update(old[key])

    def has(self, point: Point, contestants: Mapping[str, str | None], rounds: int) -> bool:
        """Whether all contestants, by name and version, were measured here, in at least so many rounds."""
        found = {
            row["contestant"]: row["version"]
            for row in self.rows
            if point_of(row) == point and row["rounds"] >= rounds and comparable(row, self.header["provenance"])
        }
        return contestants.items() <= found.items()

    def add(self, point: Point, rows: list[dict[str, Any]]) -> None:
        """Replaces what was known about the point, and writes the file."""
        self.rows = [row for row in self.rows if point_of(row) != point] + rows
        self.write()

    def write(self) -> None:
        """Writes the file, if there is one."""
        if self.path is not None:
            write_json(self.path, {**self.header, "rows": self.rows})
