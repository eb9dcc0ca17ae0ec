"""What XLA compiled for one command is there for the next one, in the user's cache folder.

Off with ``rnnjax --no-compilation-cache``, or ``JAX_ENABLE_COMPILATION_CACHE=0`` for all commands;
``JAX_COMPILATION_CACHE_DIR`` names another folder. Both are JAX's own.
What is in the folder is executed, so it belongs to the user alone, and each kind of processor has one of its own: a
home folder may be shared by several machines. What nobody has read for 30 days goes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import time
import warnings
from typing import Any

import jax
import jaxlib

from rnnjax.engines.affine.native_build import BuildError, private_folder, processor

__all__ = ["compiled_folder", "keep_compiled"]

_SECONDS = 0.1  # of a compilation that is worth a file
_KEPT = 30 * 86400.0  # seconds


def compiled_folder() -> pathlib.Path:
    """Where the programs lie: ``rnnjax/compiled`` in ``XDG_CACHE_HOME`` or ``~/.cache``, a folder a processor."""
    base = os.environ.get("XDG_CACHE_HOME")
    name = hashlib.sha256(f"{processor()}\0{jaxlib.version.__version__}".encode()).hexdigest()[:16]
    return (pathlib.Path(base) if base else pathlib.Path.home() / ".cache") / "rnnjax" / "compiled" / name


def keep_compiled() -> None:
    """Tells JAX of the folder, unless the user has told it of another one, or wants none."""
    config: Any = jax.config
    if config.jax_compilation_cache_dir is not None or not config.jax_enable_compilation_cache:
        return
    try:
        folder = private_folder(compiled_folder())
    except (BuildError, RuntimeError):  # the latter where nobody has a home
        return
    _forget(folder.parent)
    config.update("jax_compilation_cache_dir", str(folder))
    # Another command may be writing the file just now: then the program is compiled once more, and nothing is wrong.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        config.update("jax_persistent_cache_min_compile_time_secs", _SECONDS)


def _forget(folders: pathlib.Path) -> None:
    """Removes the files of any processor and version of jaxlib that nobody has read for long."""
    root = folders.resolve()
    for path in root.glob("*/**/*"):  # what XLA has tried on a GPU lies in a folder of its own
        with contextlib.suppress(OSError):  # of another command that does the same, or of another user
            found = path.stat()
            ours = path.is_file() and path.resolve().is_relative_to(root)  # a link may lead to what is not
            if ours and max(found.st_atime, found.st_mtime) < time.time() - _KEPT:
                path.unlink()
