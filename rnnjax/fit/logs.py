"""Logs of a training, line by line: cut off where a checkpoint was written, and never silently shorter than that."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import warnings
from typing import Any

from rnnjax.files import FileWarning, check_kind, open_regular, read_regular, write_atomic

__all__ = ["Log", "read_rows"]


class Log:
    """A file that grows, and the digest of what was written so far.

    Args:
        path: of the file.
        where: opens messages.
    """

    def __init__(self, path: pathlib.Path, where: str) -> None:
        self.path, self.where = path, where
        self._length, self._hash = 0, hashlib.sha256()

    @property
    def mark(self) -> dict[str, Any]:
        """How long it is and what it holds, for a checkpoint."""
        return {"bytes": self._length, "sha256": self._hash.hexdigest()}

    def cut(self, mark: Any) -> None:
        """Cuts off what came after the mark, as it will come again, at the end of a line.

        Warns where the file is shorter than the mark remembers, or holds something else.
        """
        data = read_regular(self.path, self.where) if check_kind(self.path, self.where) else b""
        kept = data[: mark["bytes"]]
        if hashlib.sha256(kept).hexdigest() != mark["sha256"]:
            kept = kept[: kept.rfind(b"\n") + 1]
            what = "was shortened or removed" if len(data) < mark["bytes"] else "was edited or damaged"
            warnings.warn(
                f"{self.where}: {self.path} {what} since the checkpoint was written, of {mark['bytes']:,} bytes then; "
                f"the training goes on, and keeps the {len(kept):,} bytes that are left in whole lines.",
                FileWarning,
                stacklevel=2,
            )
        # A file that has a second name is not ours alone: it stays as it is under that one.
        if len(kept) != len(data) or not self.path.exists() or self.path.stat().st_nlink > 1:
            write_atomic(self.path, kept)
        self._length, self._hash = len(kept), hashlib.sha256(kept)

    def append(self, text: str) -> None:
        """Writes at the end."""
        data = text.encode("utf-8", errors="replace")
        with open_regular(self.path, self.where, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as file:
            file.write(data)
        self._length += len(data)
        self._hash.update(data)

    def rows(self) -> list[dict[str, Any]]:
        """The JSON objects of the lines; what is none is passed over, which `cut` has warned of."""
        return read_rows(self.path)


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The JSON objects that are the lines of a file; other lines are passed over.

    A line that a killed run left half-written is one of those.

    Raises:
        OSError: if the file cannot be read.
    """
    rows = []
    for line in pathlib.Path(path).read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
