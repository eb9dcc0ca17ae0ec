"""NVRTC, the compiler of CUDA C++ that is a library: called through ctypes, no toolkit and no header needed.

The wheel ``nvidia-cuda-nvrtc`` holds it, which ``jax[cuda]`` installs anyway. It needs no GPU.
"""

from __future__ import annotations

import ctypes
import functools
import glob
import hashlib
import importlib.util
import os
import re
from pathlib import Path

__all__ = ["CompileError", "compile_ptx", "driver_version", "needed_driver", "version"]

# The version of PTX that knows a GPU and all that the kernels use (st.async is of 8.1), and the CUDA that brought it
# (PTX ISA, release notes). The last that is not above a compute capability counts.
_PTX = {
    80: ((7, 8), (11, 8)),
    90: ((8, 1), (12, 1)),
    100: ((8, 6), (12, 7)),
    103: ((8, 8), (12, 9)),
    110: ((9, 0), (13, 0)),
    120: ((8, 7), (12, 8)),
    121: ((8, 8), (12, 9)),
}


class CompileError(RuntimeError):
    """The compiler refused a kernel. The message names a file with its log."""


def _search() -> list[str]:
    """Libraries of the wheels, the newest first, then the name that the system knows."""
    spec = importlib.util.find_spec("nvidia")
    roots = list(spec.submodule_search_locations or ()) if spec else []
    found = [hit for root in roots for hit in glob.glob(os.path.join(root, "*", "lib", "libnvrtc.so.*"))]
    found = [hit for hit in found if ".alt." not in hit]
    found.sort(key=lambda hit: int(re.findall(r"\d+", os.path.basename(hit))[0]), reverse=True)
    return [*found, "libnvrtc.so.13", "libnvrtc.so.12"]


@functools.lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | None:
    for path in _search():
        try:
            # The compiler opens its builtins by name, and finds them only if they have been loaded before.
            for builtins in glob.glob(os.path.join(os.path.dirname(path), "libnvrtc-builtins.so*")):
                ctypes.CDLL(builtins, mode=ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(path)
        except OSError:
            continue
    return None


@functools.lru_cache(maxsize=1)
def version() -> tuple[int, int] | None:
    """The version of CUDA that the compiler belongs to; None if there is no compiler."""
    library = _library()
    if library is None:
        return None
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


@functools.lru_cache(maxsize=1)
def driver_version() -> tuple[int, int] | None:
    """The newest version of CUDA that the driver knows; None without a driver."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return None
    return number.value // 1000, number.value % 1000 // 10


def needed_driver(capability: int) -> tuple[int, int]:
    """The CUDA that a driver must know to load what `compile_ptx` makes."""
    return _PTX[max(known for known in _PTX if known <= max(capability, 80))][1]


@functools.lru_cache(maxsize=512)
def compile_ptx(source: str, capability: int) -> str:
    """PTX, the text that a driver makes machine code of.

    A compiler writes its own version into it, and a driver that is older refuses it, though nothing in it is new: the
    version is set down to the one that the kernels need.

    Args:
        source: CUDA C++.
        capability: compute capability of the GPU, 90 for 9.0.

    Raises:
        CompileError: if the compiler is missing or does not take the source.
    """
    text = _compile(source, (f"--gpu-architecture=compute_{capability}",), "PTX")[0].decode()
    needed = _PTX[max(known for known in _PTX if known <= max(capability, 80))][0]
    written = re.search(r"^\.version (\d+)\.(\d+)$", text, re.M)
    if written and (int(written[1]), int(written[2])) > needed:
        text = text.replace(written[0], ".version {}.{}".format(*needed), 1)
    return text


def compile_cubin(source: str, capability: int) -> tuple[bytes, str]:
    """Machine code and what the assembler says about registers and spills: for tests."""
    code, log = _compile(source, (f"--gpu-architecture=sm_{capability}", "--ptxas-options=-v"), "CUBIN")
    return code, log


def _compile(source: str, options: tuple[str, ...], kind: str) -> tuple[bytes, str]:
    library = _library()
    if library is None:
        raise CompileError("cuda: NVRTC is missing; pip install nvidia-cuda-nvrtc.")
    options = (*options, "-std=c++17", "--prec-div=false")
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    if library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"rnnjax.cu", 0, None, None) != 0:
        raise CompileError("cuda: NVRTC does not start.")
    try:
        given = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
        failed = library.nvrtcCompileProgram(program, len(options), given)
        library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(max(size.value, 1))
        library.nvrtcGetProgramLog(program, log)
        text = log.value.decode(errors="replace")
        if failed:
            raise CompileError(f"cuda: NVRTC refused a kernel; its log is in {_keep(source, text)}.")
        getattr(library, f"nvrtcGet{kind}Size")(program, ctypes.byref(size))
        code = ctypes.create_string_buffer(size.value)
        getattr(library, f"nvrtcGet{kind}")(program, code)
        return (code.raw if kind == "CUBIN" else code.value), text
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _keep(source: str, log: str) -> Path:
    """Writes source and log where they can be read."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(base) / "rnnjax"
    path = folder / f"nvrtc-{hashlib.sha256(source.encode()).hexdigest()[:16]}.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{log}\n\n{source}")
    except OSError:
        return Path("(not written: the cache folder cannot be written)")
    return path
