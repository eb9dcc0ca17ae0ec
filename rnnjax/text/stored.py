r"""Ids of a text in a file of the user's cache folder, mapped into memory: written once, checked, made again if wrong.

A text is known by its contents: `NAME.ids` holds the ids, and `NAME.json` what they are and the SHA-256 of the file,
where `NAME` is a hash of the SHA-256 of the text, its symbols and how it was read. What has been read once need not be
read again to know that: `KEY.seen.json` has the name, where `KEY` is a hash of path, size, times and inode of every
file of the text, and of how it is to be read. A file that was changed within two seconds of when it was read is read
again, as its times say too little.

Both are written in one move, by any number of processes at once, and all may be removed at any time. A file of ids is
read through again, and compared with its digest, whenever its size, times or inode are not those of when that was last
done. What nobody has used for thirty days goes when something is written.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from typing import IO, Any, NamedTuple

import numpy as np

from rnnjax.files import CheckpointError, digest, open_regular, read_json, sync_folder, write_json
from rnnjax.text.encoding import ALIGN, Sink, opened

__all__ = ["IDS_VERSION", "Stored", "TextCache", "cache_folder", "text_name"]

IDS_VERSION = 1  # of the files, and of the rules by which a text is read
_IN_DOUBT = 2_000_000_000  # nanoseconds: a change so soon before the reading may not show in the times
_UNUSED = 30 * 86400.0  # seconds after which files go
_BLOCK = 1 << 20
_DTYPES = ("|u1", "<u2", "<i4")
_NAME = "[0-9a-f]{40}"
# What this module writes, and what of it a process that was killed leaves. All else in the folder is somebody else's.
_HEADER, _IDS = re.compile(rf"({_NAME})(\.seen)?\.json"), re.compile(rf"{_NAME}\.ids")
_HALF = re.compile(rf"\.ids-\w+|\.{_NAME}(\.seen)?\.json\.\w+")


class Stored(NamedTuple):
    """Ids `[n]` of a text, where its documents begin (None for one whole), and what else is known of it."""

    ids: np.ndarray
    starts: np.ndarray | None
    facts: dict[str, Any]


def cache_folder() -> pathlib.Path:
    """Where ids of texts lie: `RNNJAX_TEXT_CACHE`, or `rnnjax/texts` in `XDG_CACHE_HOME` or `~/.cache`."""
    if own := os.environ.get("RNNJAX_TEXT_CACHE"):
        return pathlib.Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (pathlib.Path(base) if base else pathlib.Path.home() / ".cache") / "rnnjax" / "texts"


class TextCache:
    """The files of a folder.

    Args:
        folder: made, for its owner alone, when something is written.
        progress: is told of bytes that are read to check a file: what is done, and all.

    Attributes:
        damaged: whether a file was found that is not what was written.
    """

    def __init__(self, folder: pathlib.Path, progress: Callable[[int, int], None]) -> None:
        self.folder, self._progress = folder, progress
        self.damaged = False

    def seen(self, key: str, changed: int) -> str | None:
        """The name for a key, if the files of the text were not changed shortly before they were read.

        Args:
            key: of the files and how to read them.
            changed: when the last of them was, in nanoseconds.
        """
        with contextlib.suppress(CheckpointError, OSError, KeyError, TypeError):
            data = read_json(self.folder / f"{key}.seen.json", "text")
            if changed + _IN_DOUBT < data["read"]:
                os.utime(self.folder / f"{key}.seen.json")  # used
                return str(data["name"])
        return None

    def remember(self, key: str, name: str, read: int) -> None:
        """The name for a key; `read` is when the reading began, in nanoseconds."""
        write_json(self.folder / f"{key}.seen.json", {"name": name, "read": read}, private=True)

    def open(self, name: str, understand: Callable[[dict[str, Any]], Any]) -> Stored | None:
        """What lies under a name; None if there is nothing, or nothing whole.

        Args:
            name: of the file.
            understand: raises a KeyError, TypeError or ValueError for facts that it cannot read.
        """
        if not name.isalnum():
            return None
        path, header = self.folder / f"{name}.ids", self.folder / f"{name}.json"
        try:
            facts = read_json(header, "text")
        except FileNotFoundError:
            return None
        except (CheckpointError, OSError):
            self.damaged = True
            return None
        try:
            if facts["version"] != IDS_VERSION:
                return None
            dtype, count, starts = facts["dtype"], int(facts["count"]), facts["starts"]
            if dtype not in _DTYPES or count < 1 or not (starts is None or int(starts) >= 0):
                raise CheckpointError("text: the header is none of ours.")
            understand(facts)
            with open_regular(path, "text") as file:
                self._check(file, facts, header)
                ids, found = opened(file, count, np.dtype(dtype), starts)
        except (CheckpointError, OSError, KeyError, TypeError, ValueError):
            self.damaged = True
            return None
        with contextlib.suppress(OSError):
            os.utime(header)  # used
        return Stored(ids, found, facts)

    def _check(self, file: IO[bytes], facts: dict[str, Any], header: pathlib.Path) -> None:
        """Raises the CheckpointError of a file that is not what was written."""
        if _size(facts) != os.fstat(file.fileno()).st_size:
            raise CheckpointError("text: the file is too short or too long.")
        if facts["checked"] == _stamp(file):
            return
        if self._digest(file) != facts["digest"]:
            raise CheckpointError("text: the file does not match its digest.")
        with contextlib.suppress(OSError):  # of somebody who may only read
            write_json(header, {**facts, "checked": _stamp(file)}, private=True)

    def _digest(self, file: IO[bytes]) -> str:
        found, done, size = hashlib.sha256(), 0, os.fstat(file.fileno()).st_size
        file.seek(0)
        while block := file.read(_BLOCK):
            found.update(block)
            done += len(block)
            self._progress(done, size)
        return found.hexdigest()

    def write(
        self, name: str, count: int, dtype: np.dtype, fill: Callable[[Sink], dict[str, Any]], documents: bool
    ) -> Stored:
        """Makes a file under a name.

        Args:
            name: of the file.
            count: of ids.
            dtype: of them.
            fill: writes ids and document starts; returns facts that JSON can hold.
            documents: whether there are document starts.

        Raises:
            OSError: if the folder cannot be written, or has no room.
        """
        self._prepare(count * dtype.itemsize)
        handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=".ids-")
        path = self.folder / f"{name}.ids"
        try:
            with os.fdopen(handle, "w+b") as file:
                sink = Sink(file, count, dtype)
                found = fill(sink)
                sink.finish()
                os.fsync(file.fileno())
                facts: dict[str, Any] = {
                    **found,
                    "version": IDS_VERSION,
                    "dtype": dtype.newbyteorder("<").str,  # all integers are little-endian
                    "count": count,
                    "starts": sink.num_starts if documents else None,
                    "digest": self._digest(file),
                }
            os.replace(temporary, path)
        except BaseException:
            pathlib.Path(temporary).unlink(missing_ok=True)
            raise
        sync_folder(self.folder)
        with open_regular(path, "text") as file:  # another process may have put the same there
            facts["checked"] = _stamp(file)
            ids, starts = opened(file, count, dtype, facts["starts"])
        write_json(self.folder / f"{name}.json", facts, private=True)
        return Stored(ids, starts, facts)

    def _prepare(self, size: int) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = self.folder.stat()
        if os.name == "posix" and (status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o022):
            raise PermissionError(0, "others can write to it", str(self.folder))
        self._clean()
        free = shutil.disk_usage(self.folder).free
        if free < size + (64 << 20):
            raise OSError(
                f"load_corpus: the ids of this text need {size / 1e9:.2f} GB, and {self.folder} has {free / 1e9:.2f} "
                "GB of room; make some, or name another folder in RNNJAX_TEXT_CACHE."
            )

    def _clean(self) -> None:
        """Removes what has not been used for long, and what processes that were killed have left."""
        now = time.time()
        for path in list(self.folder.iterdir()):
            with contextlib.suppress(OSError):
                age = now - path.stat().st_mtime
                if _HALF.fullmatch(path.name) and age > 86400.0:
                    path.unlink()
                elif (header := _HEADER.fullmatch(path.name)) and age > _UNUSED:
                    path.unlink()
                    path.with_name(f"{header[1]}.ids").unlink(missing_ok=True)
                elif _IDS.fullmatch(path.name) and age > 86400.0 and not path.with_suffix(".json").exists():
                    path.unlink()


def _size(facts: dict[str, Any]) -> int:
    size = int(facts["count"]) * np.dtype(facts["dtype"]).itemsize
    return -(-size // ALIGN) * ALIGN + 8 * int(facts["starts"] or 0)


def _stamp(file: IO[bytes]) -> list[int]:
    status = os.fstat(file.fileno())
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def text_name(facts: dict[str, Any]) -> str:
    """The name of what these facts say."""
    return digest({"version": IDS_VERSION, **facts})[:40]
