r"""Files that anybody may have written: read with bounds and never through a link, signed, and written in one move.

What a file says of itself is compared with what it holds before anything is made of it: a JSON file that rnnjax wrote
holds the SHA-256 of its own contents, so one that was edited or damaged says so instead of being believed. This guards
against accidents and careless edits; whoever wants to deceive can sign anew, and gets no further than other data.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import pathlib
import stat
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

import numpy as np

__all__ = [
    "CheckpointError",
    "FileWarning",
    "check_kind",
    "digest",
    "first_line",
    "open_regular",
    "parse_json",
    "plain",
    "read_json",
    "read_regular",
    "save_figure",
    "sync_folder",
    "write_atomic",
    "write_json",
]

MAX_JSON = 1 << 28  # bytes of a JSON file that is read at all
_SIGNATURE = "sha256"  # the key of a JSON object that holds the digest of all others


class CheckpointError(ValueError):
    """What was saved cannot be written or read; the message says which and what to do."""


class FileWarning(UserWarning):
    """What was saved can be used, and is not all that it should be; the message says what is missing."""


def check_kind(path: pathlib.Path, where: str, kind: str = "file") -> bool:
    """Whether there is such a file (or folder) of its own; what else has this name is refused.

    Args:
        path: of the file; the folders above it may be links, it may not.
        where: opens the error message.
        kind: ``"file"`` or ``"folder"``.

    Raises:
        CheckpointError: if a link, a pipe, a device or whatever else is not the kind lies there.
    """
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    if not (stat.S_ISREG(mode) if kind == "file" else stat.S_ISDIR(mode)):
        names = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFREG: "a file"}
        what = names.get(stat.S_IFMT(mode), "a pipe or device")
        raise CheckpointError(f"{where}: {path} must be a {kind} of its own, got {what}; put a {kind} in its place.")
    return True


def open_regular(path: pathlib.Path, where: str, flags: int = os.O_RDONLY) -> BinaryIO:
    """Opens a regular file: never a link, and without waiting for the other end of a pipe.

    Args:
        path: of the file.
        where: opens the error message.
        flags: as `os.open` has them; binary in any case.

    Raises:
        CheckpointError: if it is something else than a file.
        OSError: if it cannot be opened.
    """
    check_kind(path, where)
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):  # changed since it was looked at
        os.close(handle)
        raise CheckpointError(f"{where}: {path} must be a file of its own, got something else.")
    writing = flags & (os.O_WRONLY | os.O_RDWR)
    return os.fdopen(handle, ("ab" if flags & os.O_APPEND else "r+b") if writing else "rb")


def read_regular(path: pathlib.Path, where: str, limit: int | None = None) -> bytes:
    """All of a regular file.

    Raises:
        CheckpointError: if it is something else than a file, or larger than the limit.
        OSError: if it cannot be read.
    """
    with open_regular(path, where) as file:
        if limit is not None and os.fstat(file.fileno()).st_size > limit:
            raise CheckpointError(f"{where}: {path} must have at most {limit:,} bytes, got more; it is no such file.")
        return file.read()


def parse_json(data: bytes, where: str) -> Any:
    """What JSON says, without the words for numbers that are none.

    Raises:
        CheckpointError: if it is no JSON in UTF-8, or nested more deeply than anything that rnnjax writes.
    """
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except RecursionError:
        raise CheckpointError(f"{where} is damaged: it is nested too deeply.") from None
    except ValueError as error:
        raise CheckpointError(f"{where} is truncated or damaged ({first_line(error)}).") from error


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is no number of JSON")


def digest(data: Any) -> str:
    """The SHA-256 of what JSON can hold, whatever the order of its keys.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    text = json.dumps(data, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def plain(value: Any, digits: int | None = None) -> Any:
    """For JSON: arrays and tuples become lists, and what is not finite becomes None.

    Args:
        value: what is made of dicts, lists, tuples, arrays, numbers and texts.
        digits: that floats keep; None for all.

    >>> plain({"a": np.array([1 / 3, np.nan]), "b": (np.int32(2), "c", True)}, 6)
    {'a': [0.333333, None], 'b': [2, 'c', True]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item, digits) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist(), digits)
    if isinstance(value, list | tuple):
        return [plain(item, digits) for item in value]
    if isinstance(value, float):
        return None if not math.isfinite(value) else value if digits is None else float(f"{value:.{digits}g}")
    return value


def write_json(path: pathlib.Path, data: Mapping[str, Any], *, private: bool = False) -> None:
    """Writes a JSON object in one move, with the digest of all its keys as the last one."""
    signed = {**data, _SIGNATURE: digest(data)}
    text = json.dumps(signed, indent=1, ensure_ascii=False).encode("utf-8", "surrogatepass")
    if len(text) > MAX_JSON:
        raise ValueError(
            f"{path}: must hold at most {MAX_JSON:,} bytes, as no more are read back, got {len(text):,}; of words take "
            "fewer (min_count)."
        )
    write_atomic(path, text, private=private)


def read_json(path: pathlib.Path, where: str) -> dict[str, Any]:
    """The object that `write_json` wrote, without its digest.

    Args:
        path: of the file.
        where: opens the error message.

    Raises:
        CheckpointError: if the file was edited or damaged, or is no JSON object.
        OSError: if it cannot be read.
    """
    data = parse_json(read_regular(path, where, MAX_JSON), f"{where}: {path}")
    if not isinstance(data, dict):
        raise CheckpointError(f"{where}: {path} is damaged: it holds no JSON object.")
    known = data.pop(_SIGNATURE, None)
    try:
        whole = known == digest(data)
    except (ValueError, RecursionError):  # what Python reads and does not write
        whole = False
    if not whole:
        what = "holds no checksum, as rnnjax writes it" if known is None else "does not match its checksum"
        raise CheckpointError(f"{where}: {path} {what}: it was edited or damaged; restore it.")
    return data


def write_atomic(path: pathlib.Path, data: bytes | Iterable[bytes | memoryview], *, private: bool = False) -> None:
    """Writes a file in one move, so that it is either the old one or the new one.

    Args:
        path: of the file; a link there is replaced, not followed; a device, as /dev/null, is written to.
        data: its bytes, in one piece or several.
        private: whether nobody but its owner may read it.

    Raises:
        OSError: if the folder is missing, or the file cannot be written.
    """
    if path.is_char_device() and not path.is_symlink():
        with path.open("wb") as device:
            device.writelines([data] if isinstance(data, bytes) else data)
        return
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            for piece in [data] if isinstance(data, bytes) else data:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        if not private:
            os.umask(mask := os.umask(0))  # the only way to read it; mkstemp keeps its files from everybody else
            os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def save_figure(figure: Any, path: pathlib.Path, **options: Any) -> None:
    """Writes a picture in one move, by the ending of its name; a link there is replaced, not followed.

    Args:
        figure: of matplotlib.
        path: of the file; without an ending it is a PNG.
        **options: of ``figure.savefig``.

    Raises:
        ValueError: for an ending that matplotlib does not know.
        OSError: if the file cannot be written.
    """
    data = io.BytesIO()
    figure.savefig(data, format=path.suffix.lstrip(".").lower() or "png", **options)
    write_atomic(path, data.getvalue())


def sync_folder(folder: pathlib.Path) -> None:
    """Brings the new name to the disk too, where the system can: else a power cut could take it back."""
    if os.name == "nt":
        return
    with contextlib.suppress(PermissionError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):
                raise
        finally:
            os.close(handle)


def first_line(error: BaseException) -> str:
    """What an error says, in at most one line of 200 characters."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
