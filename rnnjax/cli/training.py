"""What commands that train share: the folder of a new run, what it is written by, and Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import pathlib
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import jax

from rnnjax.fit.folder import Replacement, aside_of, own_folder, remember

__all__ = ["claim", "ran_on", "settle", "stop_on_signal"]


def claim(
    out: str | None, force: bool, command: str, stack: contextlib.ExitStack, texts: Iterable[str] = ()
) -> tuple[pathlib.Path, Replacement | None]:
    """The folder, and the old run that is in its place; nothing of it is touched yet, and nobody else may from now on.

    Args:
        out: as it was asked for; None for ``runs/`` and the time.
        force: whether an old run may be replaced.
        command: opens the sentence where another process is in the folder.
        stack: holds the folder as long as it lasts.
        texts: files that the new run reads, which must not go with the old one.

    Raises:
        ValueError: if the folder is taken, or holds what no run wrote.
    """
    root = pathlib.Path(out or time.strftime("runs/%Y-%m-%d_%H-%M-%S"))
    occupied = root.exists() and (not root.is_dir() or any(root.iterdir()))
    if occupied and not force:
        raise ValueError(
            f"--out: {root} exists already; take another folder, --resume {root}, or --force to replace it."
        )
    if occupied and not root.is_dir():
        raise ValueError(f"--force: {root} is a file, which no run wrote, so it is left alone; take another folder.")
    for name in texts if occupied else ():
        if pathlib.Path(name).is_relative_to(root.absolute()):
            raise ValueError(f"--force: the text {name} lies in {root}, which would be removed; copy it out first.")
    aside = aside_of(pathlib.Path(os.path.realpath(root)))
    if aside.exists() and not force:
        raise ValueError(
            f"--out: {aside} is the run that was in {root}, from a replacement that was cut short; move it back, or "
            "add --force to go on with the replacement."
        )
    if not occupied and not aside.exists():
        return root, None
    replaced = Replacement(root, "--force")
    stack.enter_context(own_folder(replaced.folder, command))
    return replaced.folder, replaced


def settle(
    root: pathlib.Path, replaced: Replacement | None, command: str, names: Iterable[str], stack: contextlib.ExitStack
) -> None:
    """Moves the old run aside, to be put back unless the new one gets as far as a checkpoint, and owns the folder."""
    if replaced is not None:
        stack.enter_context(replaced)
    stack.enter_context(own_folder(root, command))
    remember(root, names)


def ran_on() -> dict[str, str]:
    """Versions, the device, and when."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device": f"{device.device_kind} ({os.cpu_count()} cores)" if device.platform == "cpu" else device.device_kind,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C (or SIGTERM) asks the training to stop after the interval; the second ends it at once."""
    stop = threading.Event()

    def handle(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        os.write(2, b"\nstopping: saving at the end of this interval; once more to stop at once\n")

    # Where there are several processes, SIGTERM is JAX's: it tells all of them, and they stop at the same update.
    numbers = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGINT, signal.SIGTERM)
    old = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stop.is_set
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
