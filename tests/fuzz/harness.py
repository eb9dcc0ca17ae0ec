"""What fuzzers of processes share: a command in a forked child, bounded in time and memory, and what it may answer.

The documented answers of a command: exit 0; exit 2 with one sentence on standard error that begins with ``rnnjax:``;
exit 1 with such a sentence where a training failed; 130 where it was interrupted. Besides, warnings in one line each.
Never a traceback, a signal, a hang, or a character that steers a terminal.
"""

from __future__ import annotations

import os
import re
import resource
import select
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

MEMORY = 12 << 30  # bytes of address space of a child; JAX alone maps several
SECONDS = 120  # of the processor, that a child may have; a busy machine takes nothing of them
STILL = 120.0  # seconds of the clock in which a child does nothing at all: it waits for what never comes
_STEERING = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\u202e]")


class Answer(NamedTuple):
    code: int | None  # None: it was ended, as its time was over or it stood still
    out: str
    err: str
    seconds: float
    peak: int  # bytes that were resident at most


def preload() -> None:
    """Imports what all commands need; JAX is not used yet, so that children may fork."""
    import importlib

    from rnnjax.cli import COMMANDS

    for command in COMMANDS.values():
        importlib.import_module(command.module)


def keep_programs(folder: Path) -> None:
    """Compiled programs go from one child to the next by JAX's own cache, as children may not share a running JAX.

    Most of what a small command takes is compiled by the one before it as well: nothing else changes.
    """
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def call(arguments: list[str], folder: Path, slot: str) -> Answer:
    """Runs a command in a child, in a folder; what it prints goes through files named after the slot."""
    names = [folder / f".{slot}.{stream}" for stream in ("out", "err")]
    started = time.monotonic()
    child = os.fork()
    if not child:
        _be_the_command(arguments, folder, names)
    code: int | None = None
    busy, since = 0.0, started
    ends = os.pidfd_open(child)
    while True:
        select.select([ends], [], [], 1.0)
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            code = None if code == -signal.SIGXCPU else code
            break
        if (now := _busy(child)) > busy:
            busy, since = now, time.monotonic()
        if time.monotonic() > since + STILL:
            os.kill(child, signal.SIGKILL)
            _, _, usage = os.wait4(child, 0)
            break
    os.close(ends)
    texts = [name.read_text(encoding="utf-8", errors="replace") for name in names]
    return Answer(code, *texts, time.monotonic() - started, usage.ru_maxrss * 1024)


def _busy(child: int) -> float:
    """Seconds of the processor that a child has had; ever more where nobody says."""
    try:
        fields = Path(f"/proc/{child}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return time.monotonic()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _be_the_command(arguments: list[str], folder: Path, names: list[Path]) -> None:
    code = 99
    try:
        os.chdir(folder)
        for number, name in zip((1, 2), names, strict=True):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (open(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
        from rnnjax.cli import main

        main(arguments)
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finding(answer: Answer, memory: int = 3 << 30) -> str:
    """What is wrong with an answer; empty for one of the documented kinds."""
    lines = [line for line in answer.err.splitlines() if not line.startswith("rnnjax: warning: ")]
    if answer.code is None:
        return f"no answer in {SECONDS} seconds of the processor, or {STILL:g} without work"
    if "Traceback" in answer.err or "Traceback" in answer.out:
        return "a traceback"
    if answer.code not in (0, 1, 2):
        return f"exit {answer.code}"
    if answer.code and (len(lines) != 1 or not lines[0].startswith("rnnjax: ")):
        return f"exit {answer.code} with {len(lines)} lines instead of one sentence"
    if answer.code and not lines[0].endswith((".", "?")):
        return "a sentence without an end"
    if _STEERING.search(answer.err):
        return "a character that steers the terminal"
    if answer.peak > memory:
        return f"{answer.peak >> 20} MB of memory"
    return ""
