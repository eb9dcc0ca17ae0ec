"""Programs and commands in processes of their own, forked from one that has imported the library and not used JAX.

Such a process is there in a twentieth of a second, where a new interpreter imports for one and a half.
"""

from __future__ import annotations

import gc
import io
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, NamedTuple

__all__ = ["ROOT", "Ended", "Running", "context", "run_program"]

ROOT = Path(__file__).resolve().parent.parent
context = multiprocessing.get_context("forkserver")
# What commands and programs import, and the module of these functions.
context.set_forkserver_preload(
    ["optax", "flax.linen", "rnnjax.cli", "rnnjax.cli.train", "rnnjax.fit.checkpoint", __name__]
)


gc.set_threshold(100_000, 50, 50)  # as tests/conftest.py has it, and says why


class Ended(NamedTuple):
    returncode: int  # negative for a signal, as subprocess has it
    stdout: str
    stderr: str


def _main(folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    sys.stdout, sys.stderr = (io.TextIOWrapper(open(number, "wb", closefd=False)) for number in (1, 2))
    try:
        function(*arguments)
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


class Running:
    """A function that can be pickled, under way in a process; what it writes goes through files in ``folder``."""

    def __init__(self, folder: Path, function: Callable[..., Any], *arguments: Any) -> None:
        self.folder, self.arguments = folder, arguments
        self.process = context.Process(target=_main, args=(folder, function, arguments))
        self.process.start()

    def wait(self, timeout: float = 120) -> Ended:
        """How it ended; one that takes too long is killed."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            said = (self.folder / "stderr").read_text(encoding="utf-8")
            raise TimeoutError(f"it took more than {timeout} seconds: {self.arguments}: {said}")
        texts = [(self.folder / name).read_text(encoding="utf-8") for name in ("stdout", "stderr")]
        return Ended(self.process.exitcode, *texts)


def _run(
    code: list[tuple[str, str]], arguments: list[str], environment: dict[str, str], devices: int, cwd: str
) -> None:
    import jax

    os.chdir(cwd)
    os.environ.update(environment)
    if devices:
        jax.config.update("jax_num_cpu_devices", devices)
    # As if nothing but what others wrote had been imported.
    for name in [name for name in sys.modules if name.split(".")[0] in ("rnnjax", "tests")]:
        del sys.modules[name]
    sys.argv = ["-c", *arguments]
    sys.path[:0] = ["", str(ROOT)]
    sys.modules["__main__"] = program = ModuleType("__main__")  # where pickle looks for the classes of a program
    for where, text in code:
        exec(compile(text, where, "exec", dont_inherit=True), program.__dict__)


def run_program(
    code: str | list[tuple[str, str]],
    *arguments: object,
    devices: int = 0,
    environment: Mapping[str, str] = {},
    cwd: Path = ROOT,
    timeout: float = 300,
) -> str:
    """Runs a program in a process of its own and fails as it does; returns what it prints.

    Args:
        code: the program, or parts of it with a name each, which an error gives.
        arguments: ``sys.argv[1:]``.
        devices: how many CPU devices JAX is told to make; 0 leaves that to the program, as JAX learns it once.
        environment: what is added to that of the tests.
        cwd: where it runs.
        timeout: seconds.
    """
    parts = [("program", code)] if isinstance(code, str) else code
    with TemporaryDirectory() as folder:
        words = [str(argument) for argument in arguments]
        ended = Running(Path(folder), _run, parts, words, dict(environment), devices, str(cwd)).wait(timeout)
    assert not ended.returncode, f"ended with {ended.returncode}: {ended.stdout}{ended.stderr}"
    return ended.stdout
