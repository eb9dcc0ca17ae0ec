"""``rnnjax train --distributed``: the processes meet, and none of them is left waiting when one ends."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import NoReturn

import jax

import rnnjax
from rnnjax.cli.rendezvous import Group, join
from rnnjax.cli.verdicts import Verdict, complain, speak_as, verdict
from rnnjax.cpu import devices_are_set
from rnnjax.fit.processes import crew

__all__ = ["DETECTED", "processes"]

DETECTED = "detected"  # what --distributed without an address stands for
MOST = 10_000  # processes
# Seconds after which JAX takes a silent process for dead, and ends the others with a trace: where processes have met
# (`rnnjax.cli.rendezvous`), they end before that, with a sentence.
HEARTBEAT = 100
_BROKEN = ("gloo", "nccl", "connection closed", "connection reset", "coordination", "heartbeat")


@contextlib.contextmanager
def processes(address: str | None, count: int | None, index: int | None, wait: float, devices: int) -> Iterator[None]:
    """Inside, this process is one of several, if it was asked for; before anything uses JAX.

    Args:
        address: ``HOST:PORT`` of process 0, `DETECTED`, or None for a single process.
        count: of the processes.
        index: of this one.
        wait: seconds for all to come.
        devices: that all have together, 0 for what there is; on a CPU one each.

    Raises:
        ValueError: for options that do not go together, or processes that do not meet.
    """
    if address is None:
        if given := [name for name, value in (("--processes", count), ("--process", index)) if value is not None]:
            raise ValueError(f"{given[0]}: goes together with --distributed HOST:PORT; add it, or leave it out.")
        yield
        return
    group = None
    if address == DETECTED and count is None and index is None:
        _detect(wait)
    else:
        group = _meet(address, count, index, wait, devices)
    with _told(group):
        yield
        crew().by_lead(lambda: None)  # nobody leaves before the last has done its part
        if group is not None:
            group.close()


def _meet(address: str, count: int | None, index: int | None, wait: float, devices: int) -> Group:
    if address == DETECTED or count is None or index is None:
        raise ValueError(
            "--distributed: needs HOST:PORT of process 0, --processes and --process, or none of the three on a cluster "
            "that JAX detects; give all three."
        )
    if count < 1 or not 0 <= index < count:
        raise ValueError(f"--process: must be from 0 to --processes - 1 = {count - 1}, got {index}; count from 0.")
    if count > MOST:
        raise ValueError(f"--processes: must be at most {MOST:,}, got {count:,}.")
    if not 0 < wait <= 86400:
        raise ValueError(f"--wait: must be from 0 to 86,400 seconds, got {wait:g}.")
    if devices % count:
        raise ValueError(f"--devices: must be a multiple of --processes {count}, got {devices}; leave it out.")
    speak_as(f"process {index}")
    versions = {"rnnjax": rnnjax.__version__, "jax": jax.__version__}
    group = join(address, count, index, wait, versions)
    if devices and not devices_are_set():
        jax.config.update("jax_num_cpu_devices", devices // count)
    group.watch(_end)
    with _told(group):
        jax.distributed.initialize(
            address, count, index, initialization_timeout=max(1, round(wait)), heartbeat_timeout_seconds=HEARTBEAT
        )
        jax.devices()
    return group


def _detect(wait: float) -> None:
    try:
        jax.distributed.initialize(initialization_timeout=max(1, round(wait)), heartbeat_timeout_seconds=HEARTBEAT)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"--distributed: JAX detects no cluster here (SLURM, Open MPI, Kubernetes, Cloud TPU): {error!s:.200}; "
            "give HOST:PORT, --processes and --process."
        ) from error
    speak_as(f"process {jax.process_index()}")


@contextlib.contextmanager
def _told(group: Group | None) -> Iterator[None]:
    """The others are told why this process ends, and it ends without waiting for them."""
    try:
        yield
    except BaseException as error:
        _fall(error, group)


def _fall(error: BaseException, group: Group | None) -> NoReturn:
    found = verdict(error)
    words = str(error).lower()
    if any(word in words for word in _BROKEN) and not isinstance(error, OSError):
        if group is not None:
            threading.Event().wait(2.0)  # the connection to the one that ended tells who it was, and ends this process
        found = Verdict(1, "another process has ended, or is out of reach; the last checkpoint is whole, --resume it")
    if found is None:
        traceback.print_exception(error)
        found = Verdict(1, f"{type(error).__name__}: {error!s:.300}")
    if group is not None:
        group.leave(found.sentence, found.code)
    _end(found.sentence, found.code)


def _end(sentence: str, code: int) -> NoReturn:
    complain(sentence)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)  # the usual way out waits for all processes
