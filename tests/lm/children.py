"""Commands in processes of their own; see `tests.processes`."""

from collections.abc import Callable
from pathlib import Path

from tests import processes
from tests.processes import Ended, context

__all__ = ["Running", "context", "run"]


def _command(arguments: list[str], prepare: Callable[[], None] | None) -> None:
    from rnnjax.cli import main

    if prepare is not None:
        prepare()
    main(arguments)


class Running(processes.Running):
    """A command that is under way, after a function that can be pickled."""

    def __init__(self, folder: Path, arguments: list[str], prepare: Callable[[], None] | None = None) -> None:
        super().__init__(folder, _command, [str(argument) for argument in arguments], prepare)


def run(folder: Path, arguments: list[str], prepare: Callable[[], None] | None = None, timeout: float = 120) -> Ended:
    """Runs a command in the same way, to its end."""
    return Running(folder, arguments, prepare).wait(timeout)
