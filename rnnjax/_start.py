"""The first thing that is imported: a command that is interrupted while it starts ends at once, with one line.

Imports take a second or two, and an exception in the middle of one of them is a traceback at best: it may as well come
back as another error, or be swallowed. `rnnjax.cli` puts the usual handler back before the command runs.
"""

import os
import signal
import sys
import threading
from types import FrameType

__all__ = ["INTERRUPTED", "leave", "leave_when_interrupted"]

INTERRUPTED = 130  # the exit code, as shells have it for SIGINT


def leave(number: int, frame: FrameType | None) -> None:
    """Handles SIGINT without an exception."""
    os.write(2, b"\nrnnjax: interrupted.\n")
    os._exit(INTERRUPTED)


def leave_when_interrupted() -> None:
    """From now on SIGINT ends the process, if nobody else handles it."""
    if threading.current_thread() is threading.main_thread():
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, leave)


def _is_the_command() -> bool:
    """Whether this process is the command `rnnjax`, or ``python -m rnnjax``, and no program that imports rnnjax."""
    if sys.argv[:1] == ["-m"]:  # while Python looks for the module to run
        words = sys.orig_argv
        return words[words.index("-m") + 1 :][:1] == ["rnnjax"] if "-m" in words else "-mrnnjax" in words
    return os.path.basename(sys.argv[0] if sys.argv else "").removesuffix(".exe") == "rnnjax"


if _is_the_command():
    leave_when_interrupted()
