"""Compiles C++ with the machine's compiler at first use, and keeps the libraries in the user's cache folder.

A library's name is a hash of its text, of the compiler and its version, of the flags, of the processor and of jaxlib,
so that whatever changes makes another file. The folder must belong to the user alone, since its files are executed. A
file ends with the hash of what stands before: one that was cut off, or spoilt otherwise, is made again. It is written
under another name and moved, so that two processes may do it at once.

Environment: ``RNNJAX_NATIVE=0`` switches the native engine off; ``CXX`` names the compiler (else the first of ``c++``,
``g++`` and ``clang++``); ``RNNJAX_NATIVE_FLAGS`` adds flags; ``RNNJAX_NATIVE_CACHE`` is the folder (else
``rnnjax/native`` in ``XDG_CACHE_HOME`` or ``~/.cache``).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import pathlib
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping

import jaxlib.version

__all__ = [
    "BuildError",
    "cache_folder",
    "compile_command",
    "find_compiler",
    "libraries",
    "private_folder",
    "processor",
    "switched_off",
]

_MARK = b"rnnjax"
_log = logging.getLogger("rnnjax")
_lock = threading.RLock()
_loaded: dict[str, ctypes.CDLL] = {}


class BuildError(Exception):
    """Why there is no library: the end of a sentence."""


def switched_off() -> bool:
    """Whether the environment says that nothing is to be compiled."""
    return os.environ.get("RNNJAX_NATIVE", "") == "0"


def find_compiler() -> list[str] | None:
    """The command that compiles C++ here, without flags; None where there is none."""
    named = os.environ.get("CXX")
    if named:
        words = shlex.split(named)
        return words if words and shutil.which(words[0]) else None
    found = next((path for path in map(shutil.which, ("c++", "g++", "clang++")) if path), None)
    return [found] if found else None


def cache_folder() -> pathlib.Path:
    """Where the libraries lie."""
    own = os.environ.get("RNNJAX_NATIVE_CACHE")
    if own:
        return pathlib.Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (pathlib.Path(base) if base else pathlib.Path.home() / ".cache") / "rnnjax" / "native"


def compile_command() -> list[str]:
    """The compiler with its flags."""
    compiler = find_compiler()
    if compiler is None:
        raise BuildError(
            "needs a C++ compiler, and none of CXX, c++, g++ and clang++ is a program here; install g++ or clang++"
        )
    target = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    flags = ["-std=c++17", "-O3", target, "-ffp-contract=fast", "-fno-math-errno", "-w", "-shared", "-fPIC"]
    return [*compiler, *flags, *shlex.split(os.environ.get("RNNJAX_NATIVE_FLAGS", ""))]


@functools.cache
def _version(compiler: tuple[str, ...]) -> str:
    try:
        result = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"needs a C++ compiler that works; {compiler[0]} --version failed: {error}") from None
    if result.returncode:
        raise BuildError(f"needs a C++ compiler that works; {compiler[0]} --version returned {result.returncode}")
    return result.stdout


@functools.cache
def processor() -> str:
    """What ``-march=native`` depends on: a home folder may be shared by several machines."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "cpu family", "model\t", "flags", "Features", "CPU part", "CPU implementer")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def private_folder(folder: pathlib.Path) -> pathlib.Path:
    """A folder for what is executed, made if it is not there, for the user alone."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise BuildError(f"needs a cache folder, and {folder} cannot be made: {error.strerror}") from None
    foreign = hasattr(os, "getuid") and found.st_uid != os.getuid()
    if foreign or (os.name == "posix" and stat.S_IMODE(found.st_mode) & 0o022):
        raise BuildError(
            f"needs a cache folder that nobody else can write to, and {folder} is not: libraries in it are executed"
        )
    return folder


def _read(path: pathlib.Path) -> bool:
    """Whether the file is there and whole."""
    try:
        content = path.read_bytes()
        mode = path.stat()
    except OSError:
        return False
    if hasattr(os, "getuid") and mode.st_uid != os.getuid():
        return False
    body, mark, digest = content[:-38], content[-38:-32], content[-32:]
    return mark == _MARK and hashlib.sha256(body).digest() == digest


def libraries(texts: Mapping[str, str]) -> dict[str, tuple[str, ctypes.CDLL]]:
    """Libraries of these texts; what is not in the cache is compiled, all at the same time.

    Args:
        texts: a name for people, and the C++ text.

    Returns:
        For every name, the hash that identifies the library, and the library.

    Raises:
        BuildError: if there is no compiler, no folder, or a text that the compiler does not take.
    """
    with _lock:
        command = compile_command()
        basis = "\0".join([*command, _version(tuple(find_compiler() or ())), processor(), jaxlib.version.__version__])
        keys = {name: hashlib.sha256(f"{basis}\0{text}".encode()).hexdigest()[:24] for name, text in texts.items()}
        missing = {name: text for name, text in texts.items() if keys[name] not in _loaded}
        if missing:
            folder = private_folder(cache_folder())
            paths = {name: folder / f"{name}-{keys[name]}.so" for name in missing}
            _build({name: text for name, text in missing.items() if not _read(paths[name])}, paths, command, folder)
            for name, path in paths.items():
                try:
                    _loaded[keys[name]] = ctypes.CDLL(str(path))
                except OSError as error:
                    raise BuildError(f"needs a library that can be loaded, and {path} cannot: {error}") from None
        return {name: (keys[name], _loaded[keys[name]]) for name in texts}


def _build(
    texts: Mapping[str, str], paths: Mapping[str, pathlib.Path], command: list[str], folder: pathlib.Path
) -> None:
    """Compiles all texts in processes side by side and moves the libraries to their places."""
    if not texts:
        return
    start = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as room:
            _compile(texts, paths, command, pathlib.Path(room))
    except OSError as error:
        why = f"{error.strerror or error}"
        raise BuildError(
            f"needs a cache folder that can be written to, and {folder} is not ({why}); RNNJAX_NATIVE_CACHE names one"
        ) from None
    _log.info("compiled %s in %.1f s into %s", ", ".join(texts), time.perf_counter() - start, folder)


def _compile(
    texts: Mapping[str, str], paths: Mapping[str, pathlib.Path], command: list[str], room: pathlib.Path
) -> None:
    running = {}
    try:
        for name, text in texts.items():
            source, target = room / f"{name}.cpp", room / f"{name}.so"
            source.write_text(text, encoding="utf-8")
            include = _include() if "xla/ffi" in text else []
            full = [*command, *include, str(source), "-o", str(target)]
            try:
                running[name] = subprocess.Popen(full, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            except OSError as error:
                raise BuildError(f"needs a C++ compiler that works, and {command[0]} did not start: {error}") from None
        for name, process in running.items():
            try:
                output, _ = process.communicate(timeout=300)
            except subprocess.TimeoutExpired:
                raise BuildError(f"needs a C++ compiler that works, and {command[0]} took over 300 s") from None
            if process.returncode:
                last = (output.strip().splitlines() or [f"it returned {process.returncode}"])[0]
                raise BuildError(f"needs a C++ compiler that works, and {command[0]} did not compile {name}: {last}")
    finally:
        for process in running.values():
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdout:
                process.stdout.close()
    for name in texts:
        target = room / f"{name}.so"
        body = target.read_bytes()
        with contextlib.suppress(OSError):
            target.chmod(0o700)
        with target.open("ab") as file:
            file.write(_MARK + hashlib.sha256(body).digest())
        os.replace(target, paths[name])


def _include() -> list[str]:
    import jax

    return ["-isystem", jax.ffi.include_dir()]


if sys.platform == "win32":  # no such flags there
    find_compiler = lambda: None  # noqa: E731
