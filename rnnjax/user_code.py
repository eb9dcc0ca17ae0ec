"""Python files of the user: run once for what they hold, run again when they change, and what they raise is told."""

from __future__ import annotations

import hashlib
import pathlib
import sys
import traceback
from types import ModuleType

__all__ = ["code_digest", "load_module", "user_line"]

PREFIX = "rnnjax_user_"  # of the names of their modules
_DIGEST = "__rnnjax_sha256__"


def code_digest(path: pathlib.Path) -> str:
    """The SHA-256 of a file.

    Raises:
        OSError: if it cannot be read.
    """
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load_module(filename: str, where: str) -> ModuleType:
    """Runs a file of Python code, unless it has been run with these contents already.

    The module is registered under a name of its own, so that its dataclasses resolve annotations and pickle, and is
    the same one as long as the file does not change, so that two cells of it are equal. What is run are the contents of
    the file, never a compiled copy beside it.

    Args:
        filename: of the file.
        where: opens the error message.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read or raises anything, with the line.
    """
    path = pathlib.Path(filename).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"{where}: there is no file {filename!r}.")
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{where}: {filename!r} cannot be read: {error.strerror}.") from error
    name = f"{PREFIX}{path.stem}_{hashlib.sha256(str(path).encode(errors='surrogatepass')).hexdigest()[:8]}"
    digest = hashlib.sha256(source).hexdigest()
    if getattr(sys.modules.get(name), _DIGEST, None) == digest:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(path)
    setattr(module, _DIGEST, digest)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:  # code that is not ours may raise anything
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
        line = f", line {place[1]}" if (place := user_line(error)) and place[0] == str(path) else ""
        if isinstance(error, SyntaxError) and error.lineno and error.filename == str(path):
            line = f", line {error.lineno}"
        what = f"{type(error).__name__}: {error}".strip().rstrip(".:")
        raise ValueError(f"{where}: {filename!r} cannot be run{line}: {what.splitlines()[0]:.300}.") from error
    return module


def user_line(error: BaseException) -> tuple[str, int] | None:
    """The file and the line of a user's file that raised the error, or that called what did; None without one."""
    found = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        if str(frame.f_globals.get("__name__", "")).startswith(PREFIX):
            found = frame.f_code.co_filename, line
    return found
