"""Settings of all tests. The environment is set before jax is imported, and subprocesses inherit it."""

import functools
import gc
import itertools
import os
import sys
import threading
import zlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import hypothesis
import pytest

_CACHE = Path(__file__).resolve().parent.parent / ".cache" / "jax"


def _ask_for_gpu(arguments: list[str]) -> bool:
    """Whether the command line says ``-m gpu``."""
    words = " ".join(arguments).replace("-m=", "-m ").replace("-mgpu", "-m gpu").split()
    return ("-m", "gpu") in itertools.pairwise(words)


# Tests run on the CPU, but for those marked gpu: asked for, they take what JAX finds. Processes of xdist inherit it.
ON_GPU = bool(os.environ.setdefault("RNNJAX_TEST_GPU", "1" if _ask_for_gpu(sys.argv) else ""))
if ON_GPU:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")  # laws hold for float32, not for TF32
else:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Test processes share what they compile, and so do runs: with the cache filled, the laws need 40 % less time. Without a
# size limit of jax's, which would look at every file for each new one; `prune` keeps the folder small instead. Then
# nothing locks it, and an entry that another process has half written is compiled again, with the warning that
# pyproject.toml ignores.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# No stack frames in what XLA is given: nobody reads them there, and they cost a tenth of the lowering.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# So do libraries of the native engine, which are compiled faster than they run: they are run a few times.
os.environ.setdefault("RNNJAX_NATIVE_CACHE", str(_CACHE.parent / "native"))
os.environ.setdefault("RNNJAX_NATIVE_FLAGS", "-O1")
os.environ.setdefault("RNNJAX_TEXT_CACHE", str(_CACHE.parent / "texts"))
# One thread for torch: the tests already run one process a core, and torch reads this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The tests compile thousands of small functions and run each a few times, so what counts is how fast XLA compiles:
# without LLVM's optimisation, a module in one piece, and without the new emitters where XLA has others (not on 0.12).
# XLA ends the process at a flag that it does not know, hence the version. A flag that is set already stays.
_FLAGS = {"--xla_backend_optimization_level": "0", "--xla_cpu_parallel_codegen_split_count": "1"}
if tuple(int(part) for part in version("jaxlib").split(".")[:2]) < (0, 11):
    _FLAGS["--xla_cpu_use_fusion_emitters"] = "false"
_GIVEN = os.environ.get("XLA_FLAGS", "")
if not ON_GPU:  # there the speed of what is compiled counts
    os.environ["XLA_FLAGS"] = " ".join([*(f"{k}={v}" for k, v in _FLAGS.items() if k not in _GIVEN), _GIVEN]).strip()

import jax  # noqa: E402
from jax._src import compilation_cache  # noqa: E402
from jax._src.interpreters import mlir  # noqa: E402

from rnnjax.testing import problems  # noqa: E402

# JAX loads all dialects of MLIR into a new context for every program, a twentieth of what the tests compute; here a
# thread keeps its context. What is lowered is the same.
if hasattr(mlir, "make_ir_context"):
    _make, _kept = mlir.make_ir_context, threading.local()

    def _context() -> object:
        """The context of this thread, a new one after some hundred programs, as it keeps what it has seen.

        And one of its own for a program within another: what a pass clones would land in the outer one.
        """
        if mlir.ir.Context.current is not None:
            return _make()
        _kept.count = getattr(_kept, "count", -1) + 1
        if _kept.count % 300 == 0:
            _kept.context = _make()
        return _kept.context

    mlir.make_ir_context = _context

# A first run compresses 0.5 GB of programs for the cache: so in 40 % of the time, with 18 % more on disk. Where
# there is zstd, JAX takes that, which is fast enough.
if not getattr(compilation_cache, "zstd", True) and not getattr(compilation_cache, "zstandard", True):
    compilation_cache.compress_executable = functools.partial(zlib.compress, level=1)

# Tracing makes millions of small objects, nearly none of them in cycles: looking for those costs a tenth of the time.
gc.set_threshold(100_000, 50, 50)

# Compilation makes the first example slow, which is no failure; the same examples come in every run.
hypothesis.settings.register_profile("rnnjax", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("rnnjax")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first, so that no worker is left with one at the end; no tests of a GPU where there is none."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and jax.default_backend() != "gpu":
        reason = "JAX finds no GPU" if ON_GPU else "tests run on the CPU unless called with -m gpu"
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))


def prune(folder: Path, most: int) -> None:
    """Deletes the oldest files of a folder that holds more than ``most`` bytes."""
    files = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in folder.glob("*-cache"))
    total = sum(size for _, size, _ in files)
    for _, size, path in files:
        if total <= most:
            return
        path.unlink(missing_ok=True)
        total -= size


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # before there are other processes
        prune(_CACHE, 2**30)


@pytest.fixture
def x64() -> Iterator[None]:
    """Arrays made within the test may be float64."""
    with jax.enable_x64(True):
        yield


def release() -> None:
    """Forgets what was compiled, before executables fill the 65530 pieces of memory that a process may map on Linux."""
    maps = Path("/proc/self/maps")
    if maps.exists():
        with maps.open("rb") as lines:
            if sum(1 for _ in lines) < 50_000:
                return
    for cache in (problems._forward, problems._with_gradients, problems._compiled_step):
        cache.cache_clear()
    jax.clear_caches()


_tests = itertools.count(1)


@pytest.fixture(autouse=True)
def release_in_time() -> Iterator[None]:
    """Looks every now and then, as counting takes some milliseconds."""
    yield
    if next(_tests) % 20 == 0:
        release()
