r"""The folder of a run: one process owns it at a time, and it knows the names of what was written into it.

`own_folder` takes a lock of the operating system on ``run.lock`` in the folder. The system frees it when its holder
ends, in whatever way, so nothing is ever stale; the file says who holds it, for the sentence that the second one gets.

`remember` adds names to ``written.json``, the list of what rnnjax wrote there. `Replacement` moves a folder of such
files aside, puts it back if what was to replace it fails, and removes it only when told that the new one stands. A
folder that holds anything else is left alone. If the machine dies in between, the old run lies beside the new one, as
``.NAME.replaced``, and nothing is lost: the next replacement takes it up again, and moving it back by hand restores it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import re
import shutil
import socket
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from rnnjax.cells.registry import cell_file
from rnnjax.files import CheckpointError, FileWarning, check_kind, open_regular, read_json, write_json
from rnnjax.fit.checkpoint import find_checkpoints
from rnnjax.user_code import code_digest

__all__ = [
    "LOCK",
    "WRITTEN",
    "Paths",
    "Replacement",
    "aside_of",
    "check_code",
    "foreign",
    "own_folder",
    "remember",
    "written",
]

LOCK, WRITTEN = "run.lock", "written.json"
# What is written beside the names in the list: the two files of this module, and the events of TensorBoard, whose
# names hold a time.
_ALWAYS = re.compile(r"run\.lock|written\.json|tensorboard/events\.out\.tfevents\.[^/]+")
_CHECKPOINT = re.compile(r"checkpoints/step_[0-9]+[^/]*\.safetensors")
_HALF_WRITTEN = re.compile(r"((?:[^/]+/)?)\.([^/]+)\.[a-z0-9_]{8}")  # what a killed `write_atomic` leaves of a file
_held: dict[tuple[int, int], int] = {}  # by device and inode: the thread that holds it


@dataclasses.dataclass(frozen=True)
class Paths:
    """The files and folders of a run, by the names that its kind has for them in `FILES` and `FOLDERS`."""

    FILES: ClassVar[Mapping[str, str]] = {}
    FOLDERS: ClassVar[Mapping[str, str]] = {}

    root: pathlib.Path

    def __getattr__(self, name: str) -> pathlib.Path:
        kind = type(self)
        if name not in kind.FILES.keys() | kind.FOLDERS.keys():
            raise AttributeError(name)
        return self.root / (kind.FILES.get(name) or kind.FOLDERS[name])

    @property
    def names(self) -> list[str]:
        """Of the files."""
        return list(self.FILES.values())

    def check(self, where: str, more: Iterable[str] = ()) -> None:
        """Refuses links, pipes and devices where a run has its files, or ``more`` of them.

        Raises:
            CheckpointError: naming the first.
        """
        for name in self.FOLDERS.values():
            check_kind(self.root / name, where, "folder")
        for name in (*self.names, *more):
            check_kind(self.root / name, where)


@contextlib.contextmanager
def own_folder(folder: pathlib.Path, where: str) -> Iterator[None]:
    """Owns a folder as long as the context lasts; the thread that owns it may enter again within.

    Args:
        folder: made if it is not there.
        where: opens the error message.

    Raises:
        CheckpointError: if another process, or another thread of this one, owns it; nothing has been touched then.
        OSError: if the folder cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    status, thread = folder.stat(), threading.get_ident()
    name = (status.st_dev, status.st_ino)
    if _held.get(name) == thread:
        yield
        return
    with open_regular(folder / LOCK, where, os.O_RDWR | os.O_CREAT) as file:
        if not _lock(file.fileno()):
            raise CheckpointError(
                f"{where}: {folder} is in use by {_holder(file)}; wait until it ends, or take another folder."
            )
        _held[name] = thread
        try:
            _write_holder(file)
            yield
        finally:
            _held.pop(name, None)
            with contextlib.suppress(OSError):
                file.truncate(0)
                file.flush()
            _unlock(file.fileno())


def _holder(file: Any) -> str:
    try:
        file.seek(0)
        data = json.loads(file.read(4096))
        here = " on this machine" if data["host"] == socket.gethostname() else f" on {data['host']:.60}"
        return f"process {int(data['pid'])}{here} since {data['since']:.20}"
    except (ValueError, KeyError, TypeError, OSError):
        return "another process"


def _write_holder(file: Any) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    file.seek(0)
    file.truncate(0)
    file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}).encode())
    file.flush()


if os.name == "nt":
    import msvcrt

    _AT = 1 << 30  # the lock is on a byte beyond the contents, which stay readable

    def _lock(handle: int) -> bool:
        os.lseek(handle, _AT, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True

    def _unlock(handle: int) -> None:
        os.lseek(handle, _AT, os.SEEK_SET)
        with contextlib.suppress(OSError):
            msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined]

else:
    import fcntl

    def _lock(handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            warnings.warn(
                f"rnnjax: this file system has no locks ({error.strerror}); let no second process train in the folder.",
                FileWarning,
                stacklevel=4,
            )
        return True

    def _unlock(handle: int) -> None:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)


def remember(folder: pathlib.Path, names: Iterable[str]) -> None:
    """Adds files to the list of what rnnjax writes in a folder, and drops checkpoints that are no longer there.

    Args:
        folder: of the run.
        names: paths below it, with ``/``; they need not be there yet.

    Raises:
        OSError: if the list cannot be written.
    """
    known = written(folder)
    wanted = {name for name in known if "/" not in name or (folder / name).exists()} | set(names)
    if wanted != known:
        write_json(folder / WRITTEN, {"files": sorted(wanted)})


def written(folder: pathlib.Path) -> set[str]:
    """The names in the list; a list that is damaged or none holds none, so that nothing is taken for ours."""
    with contextlib.suppress(CheckpointError, OSError, KeyError, TypeError):
        files = read_json(folder / WRITTEN, "folder")["files"]
        return {name for name in files if isinstance(name, str)}
    return set()


def foreign(folder: pathlib.Path) -> list[str]:
    """What lies in a folder that rnnjax has not written there, or is no file; paths below it, at most a thousand."""
    known, found = written(folder), []
    for root, folders, files in os.walk(folder):
        for name in sorted(files) + sorted(f for f in folders if os.path.islink(os.path.join(root, f))):
            path = pathlib.Path(root, name)
            below = path.relative_to(folder).as_posix()
            if not _is_ours(below, known) or not path.is_file() or path.is_symlink():
                found.append(below)
        if pathlib.Path(root) != folder and not folders and not files:
            found.append(pathlib.Path(root).relative_to(folder).as_posix() + "/")
        if len(found) > 1000:
            break
    # Empty folders of ours are no loss.
    return [name for name in sorted(found) if name not in ("checkpoints/", "tensorboard/")]


def _is_ours(name: str, known: set[str]) -> bool:
    if half := _HALF_WRITTEN.fullmatch(name):
        name = half[1] + half[2]
        return name in known or bool(_ALWAYS.fullmatch(name) or _CHECKPOINT.fullmatch(name))
    return name in known or bool(_ALWAYS.fullmatch(name))


def aside_of(folder: pathlib.Path) -> pathlib.Path:
    """Where a run lies while another one replaces it."""
    return folder.parent / f".{folder.name}.replaced"


class Replacement:
    """A run that a new one replaces: moved aside at once, put back on failure, removed by `finish`.

    A context manager around the start of the new run, in which the caller makes the folder anew.

    Args:
        folder: of the run; a link to a folder stands for it.
        where: opens the error message.

    Raises:
        CheckpointError: if there is anything in the folder that rnnjax did not write.
    """

    def __init__(self, folder: pathlib.Path, where: str) -> None:
        self.folder = pathlib.Path(os.path.realpath(folder))
        self.aside, self.where = aside_of(self.folder), where
        self._open = False
        refuse_foreign(self.folder, where)
        if self.aside.exists():
            refuse_foreign(self.aside, where)

    def __enter__(self) -> Replacement:
        if self.aside.exists():  # a replacement before this one was killed
            if find_checkpoints(self.folder / "checkpoints"):
                shutil.rmtree(self.aside)
            else:
                shutil.rmtree(self.folder, ignore_errors=True)
        if not self.aside.exists():
            os.rename(self.folder, self.aside)
        self._open = True
        return self

    def finish(self) -> None:
        """The new run stands: the old one goes."""
        if self._open:
            self._open = False
            shutil.rmtree(self.aside, ignore_errors=True)

    def __exit__(self, *unused: object) -> None:
        if self._open:
            self._open = False
            shutil.rmtree(self.folder, ignore_errors=True)
            os.rename(self.aside, self.folder)


def refuse_foreign(folder: pathlib.Path, where: str) -> None:
    """Raises the CheckpointError of a folder that holds more than rnnjax wrote there."""
    if not check_kind(folder, where, "folder"):
        return
    if found := foreign(folder):
        more = f" and {len(found) - 1:,} more" if len(found) > 1 else ""
        raise CheckpointError(
            f"{where}: {folder} holds {found[0]}{more}, which no run wrote, so it is left alone; take another folder."
        )


def check_code(cell: str, known: str | None, root: object, trust_code: bool) -> None:
    """Refuses a cell that is Python code in a file, unless it is trusted and still what was trained with.

    Args:
        cell: by name, as `rnnjax.cells.cell_from_name` takes it.
        known: the digest of the file that was trained with, None for a cell that is none.
        root: the folder of the run.
        trust_code: whether the user has said so.

    Raises:
        CheckpointError: saying which file, and what to do.
        FileNotFoundError: if the file is gone.
    """
    path = cell_file(cell)
    if path is None:
        return
    if not trust_code:
        raise CheckpointError(
            f"run: the cell of {str(root)!r} is Python code in {path}, which a run folder alone does not start; if you "
            "trust that file, say so with trust_code=True."
        )
    if not path.is_file():
        raise FileNotFoundError(f"run: there is no file {str(path)!r}, which the cell of {str(root)!r} is in.")
    if code_digest(path) != known:
        raise CheckpointError(
            f"run: the code in {path} is not what {str(root)!r} was trained with; restore that file, or train anew."
        )
