"""Commands in processes of their own, forked from one that has imported the library and has not used JAX yet."""

import io
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# What a command imports, and the module of this function.
_PRELOAD = ["rnnjax.cli", "rnnjax.cli.train", "rnnjax.fit.checkpoint", __name__]
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(_PRELOAD)


class Ended(NamedTuple):
    returncode: int  # negative for a signal, as subprocess has it
    stdout: str
    stderr: str


def _main(folder: Path, arguments: list[str], prepare: Callable[[], None] | None) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    sys.stdout, sys.stderr = (io.TextIOWrapper(open(number, "wb", closefd=False)) for number in (1, 2))
    from rnnjax.cli import main

    try:
        if prepare is not None:
            prepare()
        main(arguments)
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


class Running:
    """A command that is under way, after a function that can be pickled; what it writes goes through files."""

    def __init__(self, folder: Path, arguments: list[str], prepare: Callable[[], None] | None = None) -> None:
        self.folder, self.arguments = folder, [str(argument) for argument in arguments]
        self.process = context.Process(target=_main, args=(folder, self.arguments, prepare))
        self.process.start()

    def wait(self, timeout: float = 120) -> Ended:
        """How it ended; one that takes too long is killed."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            said = (self.folder / "stderr").read_text(encoding="utf-8")
            raise TimeoutError(f"the command took more than {timeout} seconds: {self.arguments}: {said}")
        texts = [(self.folder / name).read_text(encoding="utf-8") for name in ("stdout", "stderr")]
        return Ended(self.process.exitcode, *texts)


def run(folder: Path, arguments: list[str], prepare: Callable[[], None] | None = None, timeout: float = 120) -> Ended:
    """Runs a command in the same way, to its end."""
    return Running(folder, arguments, prepare).wait(timeout)
