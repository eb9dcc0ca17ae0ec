r"""What the processes of `jax.distributed` that train together tell each other.

Each of them runs the same program on its rows of the batch, and every decision has to be the same everywhere, or one
waits for the others for ever. So whatever looks at a clock, a file or a random number of the machine is done by process
0, the lead, and the others are told (`Crew.by_lead`); what each must do for itself either works on all of them or fails
on all of them (`Crew.together`). With one process nothing is sent.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import numpy as np

__all__ = ["ALONE", "Clock", "Crew", "OtherProcessError", "crew", "on_host"]

_BLOCK = 256  # bytes that are sent at once
_T = TypeVar("_T")


class OtherProcessError(RuntimeError):
    """What went wrong on another process; the message names it."""


@dataclasses.dataclass(frozen=True)
class Crew:
    """The processes that train together.

    Attributes:
        count: of them; one is alone, and tells nobody anything.
        index: of this one; 0 is the lead, which decides, writes and speaks.
    """

    count: int = 1
    index: int = 0

    @property
    def is_lead(self) -> bool:
        """Whether this is process 0."""
        return self.index == 0

    def gather(self, value: Any) -> list[Any]:
        """What every process has to say, in their order; every process calls it at the same place.

        Args:
            value: what JSON can hold.
        """
        if self.count == 1:
            return [value]
        data = json.dumps(value).encode()
        found = _all(data, _BLOCK)
        sizes = [int.from_bytes(row[:4].tobytes(), "big") for row in found]
        if max(sizes) + 4 > _BLOCK:
            found = _all(data, 1 << (max(sizes) + 3).bit_length())
        return [json.loads(row[4 : 4 + size].tobytes()) for row, size in zip(found, sizes, strict=True)]

    def by_lead(self, work: Callable[[], _T]) -> _T:
        """What process 0 finds out, on every process; what goes wrong there is raised everywhere.

        Args:
            work: returns what JSON can hold; where there are several processes, a tuple comes as a list.

        Raises:
            OtherProcessError: on the others, where ``work`` raises.
        """
        if self.count == 1:
            return work()
        return cast(_T, self._work(lambda: work() if self.is_lead else None)[1][0][0])

    def together(self, work: Callable[[], _T]) -> _T:
        """What this process does, once it has worked on all of them.

        Args:
            work: the same on every process.

        Raises:
            OtherProcessError: if it failed on another process, which is named.
        """
        if self.count == 1:
            return work()
        found: list[_T] = []
        self._work(lambda: found.append(work()))
        return found[0]

    def _work(self, work: Callable[[], Any]) -> tuple[Any, list[Any]]:
        found, error = None, None
        try:
            found = work()
        except Exception as raised:  # whatever it is: the others wait
            error = raised
        said = self.gather([found, None if error is None else str(error) or type(error).__name__])
        if error is not None:
            raise error
        for process, (_, problem) in enumerate(said):
            if problem is not None:
                raise OtherProcessError(f"process {process}: {problem}")
        return found, said

    def compare(self, where: str, values: dict[str, Any], advice: str) -> None:
        """Raises unless every process has the same.

        Args:
            where: opens the message.
            values: by the names that the message has for them; what JSON can hold.
            advice: ends the message.

        Raises:
            ValueError: naming the first process that differs from process 0, and in what.
        """
        first, *others = self.gather(values)
        for process, other in enumerate(others, 1):
            for name in sorted(first.keys() | other.keys()):
                ours, theirs = first.get(name), other.get(name)
                if ours != theirs:
                    raise ValueError(
                        f"{where}: all processes must have the same {name}, got {ours} on process 0 and {theirs} on "
                        f"process {process}; {advice}."
                    )


ALONE = Crew()


def crew() -> Crew:
    """All processes of `jax.distributed`; where it was not started, JAX's devices stay unasked for."""
    if not jax.distributed.is_initialized():
        return ALONE
    return Crew(jax.process_count(), jax.process_index())


def _all(data: bytes, block: int) -> np.ndarray:
    """The first bytes of every process, behind their number, ``[processes, block]``."""
    from jax.experimental import multihost_utils

    row = (len(data).to_bytes(4, "big") + data)[:block].ljust(block, b"\0")
    return np.asarray(multihost_utils.process_allgather(np.frombuffer(row, np.uint8)))


def on_host(tree: Any) -> Any:
    """The arrays that lie on several processes as whole ones, on each of them; the others as they are."""

    def whole(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        if leaf.is_fully_replicated:
            return np.asarray(leaf.addressable_data(0))
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(whole, tree)


class Clock:
    """The time by which a training decides, the same on every process.

    With one process it is the clock of the machine. Several take the time of process 0 once an interval, and until the
    next one they count so many seconds an update as the last interval took.

    Attributes:
        updates: that this process has made, those that were taken back included.
    """

    def __init__(self, crew: Crew = ALONE) -> None:
        self.updates = 0
        self._crew, self._several = crew, crew.count > 1
        self._preemptible = self._several and bool(getattr(jax.config, "jax_enable_preemption_service", False))
        self._base, self._at, self._pace = 0.0, 0, 0.0

    def seconds(self, real: float) -> float:
        """Since the start; ``real`` by the clock of this machine."""
        return self._base + (self.updates - self._at) * self._pace if self._several else real

    def agree(self, real: float, stop: bool = False) -> bool:
        """Takes the time of process 0; returns whether any process has been asked to stop."""
        if not self._several:
            return stop
        pace = self._pace
        if self.updates > max(self._at, 1):  # the first update is compiled, and says nothing of the next
            pace = (real - self._base) / (self.updates - self._at)
        said = self._crew.gather([real, pace, stop])
        self._base, self._pace = said[0][:2]
        self._at = self.updates
        return any(asked for *_, asked in said)

    def counted(self, real: float) -> bool:
        """Counts an update; returns whether the machine of a process is about to be taken away: the same on all."""
        self.updates += 1
        if self._several and self.updates <= 2:  # until one is known to take some time
            self.agree(real)
        if not self._preemptible:
            return False
        from jax.experimental import multihost_utils

        return bool(multihost_utils.reached_preemption_sync_point(self.updates))
