"""Worker processes that make things ready side by side, and measure one at a time while nobody else works.

A task goes through steps, of which a worker does all of one task:

    prepare   what needs cores only: workers do it side by side
    tune      what needs the card for itself: one worker at a time, while others prepare
    load      what comes with a first call, mostly the driver's work: side by side, while nobody prepares or tunes
    measure   one worker at a time, while all others wait

Phases follow each other: for some seconds workers prepare and tune, then everything that is ready is loaded, then
measured. A worker that dies or takes too long loses the task that it had in hand; the others that it had made ready go
back into the queue, and a new worker takes its place. Nobody is waited for without a limit.

A worker gets a line of JSON for every step, ``{"step": .., "task": {..}}``, and answers with one: ``{"next": ..}`` with
the step that follows, or ``{"found": ..}`` as the last. It says ``{"next": null}`` once when it has started, and ends
where its input ends. With ``"last": true`` in an answer it can do nothing more, and gets nothing more.
"""

import collections
import dataclasses
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["LIMITS", "Crew", "Progress"]

# Seconds that a step may take; "start" is the import of everything and the first touch of the card.
LIMITS = {"start": 180.0, "prepare": 120.0, "tune": 120.0, "load": 60.0, "measure": 60.0}

Task = dict[str, Any]  # has a "name"


@dataclasses.dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    log: Any
    step: str | None = "start"
    task: Task | None = None
    since: float = 0.0
    buffer: bytes = b""
    waiting: list[tuple[str, Task]] = dataclasses.field(default_factory=list)  # its next steps


@dataclasses.dataclass(frozen=True)
class Progress:
    """What is known after a task.

    Attributes:
        task: the task.
        found: what its worker answered; None if it was lost.
        reason: why it was lost.
        done: tasks that are through.
        total: all of them.
        left: an estimate of the seconds that the rest takes.
    """

    task: Task
    found: Any
    reason: str | None
    done: int
    total: int
    left: float


class Crew:
    """Workers, and the order in which they do what.

    Args:
        command: starts a worker.
        count: of workers.
        env: of the workers.
        budget: seconds after which no task begins; what is ready then is measured.
        quota: seconds of a phase in which workers prepare.
        held: tasks that a worker makes ready in one phase at most.
        limits: see `LIMITS`.
    """

    def __init__(
        self,
        command: list[str],
        count: int,
        *,
        env: dict[str, str] | None = None,
        budget: float,
        quota: float = 30.0,
        held: int = 8,
        limits: dict[str, float] | None = None,
    ):
        self.command, self.count, self.env = command, count, env
        self.budget, self.quota, self.held = budget, quota, held
        self.limits = LIMITS | (limits or {})
        self.workers: list[_Worker] = []
        self.selector = selectors.DefaultSelector()
        self.started = time.monotonic()
        self.measured: list[float] = []  # seconds that measuring took, a task
        self.lives = 3 * count + 2  # workers that may be started, in all

    def run(self, tasks: Iterable[Task], tell: Callable[[Progress], None]) -> None:
        """Does the tasks, in this order as far as it goes.

        Args:
            tasks: what to do.
            tell: hears of every task that is through, as soon as it is; not of those that the budget did not reach.

        Raises:
            RuntimeError: if no worker starts.
        """
        self.queue = collections.deque(tasks)
        self.order = {task["name"]: i for i, task in enumerate(self.queue)}
        self.total, self.done, self.tell = len(self.queue), 0, tell
        try:
            while self._unfinished() and self._seconds_left() > 0:
                while len(self.workers) < min(self.count, len(self.queue)) and self.lives > 0:
                    self._start()
                if not self.workers:
                    break
                self._make_ready()
                self._load()
                self._measure()
        finally:
            for worker in self.workers:
                _kill(worker)  # all of them before anybody is waited for
            for worker in self.workers:
                _stop(worker)
            self.selector.close()

    def _make_ready(self) -> None:
        """Workers prepare and tune; ends when all are idle."""
        end = None  # of the phase; it begins when the first worker has started
        while True:
            idle = [worker for worker in self.workers if worker.step is None]
            end = time.monotonic() + self.quota if idle and end is None else end
            if end is not None and time.monotonic() < end:
                if not any(worker.step == "tune" for worker in self.workers) and self._seconds_left() > 0:
                    self._give_next("tune", idle)
                for worker in idle:
                    ready = worker.step is None and len(worker.waiting) < self.held
                    if ready and self.queue and self._seconds_left() > 0:
                        self._give(worker, "prepare", self.queue.popleft())
            if not self._busy():
                return
            self._listen()

    def _load(self) -> None:
        """What is ready is called once, by all workers side by side."""
        while True:
            for worker in self.workers:
                if worker.step is None:
                    self._give_next("load", [worker])
            if not self._busy():
                return
            self._listen()

    def _measure(self) -> None:
        """What is ready, one after the other, the most telling first."""
        while True:
            begin = time.monotonic()
            if not self._give_next("measure", self.workers):
                return
            while self._busy():
                self._listen()
            self.measured.append(time.monotonic() - begin)

    def _give_next(self, step: str, workers: list[_Worker]) -> bool:
        """The most telling task that waits for this step at one of the workers."""
        waiting = [(task, worker) for worker in workers for wanted, task in worker.waiting if wanted == step]
        if waiting:
            task, worker = min(waiting, key=lambda pair: self.order[pair[0]["name"]])
            self._give(worker, step, task)
        return bool(waiting)

    def _give(self, worker: _Worker, step: str, task: Task) -> None:
        worker.waiting = [pair for pair in worker.waiting if pair[1] is not task]
        worker.step, worker.task, worker.since = step, task, time.monotonic()
        try:
            worker.process.stdin.write(json.dumps({"step": step, "task": task}).encode() + b"\n")
        except OSError:  # it has died, which `_listen` finds
            pass

    def _listen(self) -> None:
        """Waits until somebody answers, dies or has taken too long."""
        now = time.monotonic()
        ends = [w.since + self.limits[w.step] for w in self.workers if w.step is not None]
        for key, _ in self.selector.select(max(0.0, min(ends) - now)):
            worker: _Worker = key.data
            data = os.read(worker.process.stdout.fileno(), 1 << 20)
            if not data:
                self._lose(worker, None)
                continue
            *lines, worker.buffer = (worker.buffer + data).split(b"\n")
            for line in lines:
                self._answered(worker, json.loads(line))
        for worker in [w for w in self.workers if w.step is not None]:
            limit = self.limits[worker.step]
            if time.monotonic() - worker.since > limit:
                self._lose(worker, f"took longer than {limit:g} s to {worker.step}")

    def _answered(self, worker: _Worker, answer: dict[str, Any]) -> None:
        task, worker.step, worker.task = worker.task, None, None
        if task is None:
            return
        if answer.get("next"):
            worker.waiting.append((answer["next"], task))
        else:
            self._through(task, answer.get("found"), None)
        if answer.get("last"):
            self._lose(worker, "it could do nothing more")

    def _lose(self, worker: _Worker, reason: str | None) -> None:
        """Of a worker that has died, or is no longer wanted: its task is lost, what else it had goes back."""
        self.selector.unregister(worker.process.stdout)
        self.workers.remove(worker)
        how = _stop(worker, patience=5.0 if reason is None else 0.0)
        reason = reason or f"its process ended in {worker.step or 'idleness'} ({how})"
        self.queue.extendleft(sorted((task for _, task in worker.waiting), key=lambda t: -self.order[t["name"]]))
        if worker.task is not None:
            self._through(worker.task, None, reason)
        if worker.step == "start":
            if not self.workers and not self.done:
                raise RuntimeError(f"gpu: no worker starts; of the last one {reason}.")
        elif self.queue and self.lives > 0 and not any(w.step == "measure" for w in self.workers):
            self._start()  # else with the next phase: a start takes the cores and the card from whoever measures

    def _through(self, task: Task, found: Any, reason: str | None) -> None:
        self.done += 1
        pace = (time.monotonic() - self.started) / self.done
        left = max(0.0, min(self.budget - (time.monotonic() - self.started), pace * (self.total - self.done)))
        self.tell(Progress(task, found, reason, self.done, self.total, left))

    def _start(self) -> None:
        log = tempfile.TemporaryFile()
        process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=self.env, bufsize=0,
            start_new_session=True,  # Ctrl-C is for the one who waits for them
        )  # fmt: skip
        worker = _Worker(process, log, since=time.monotonic())
        self.workers.append(worker)
        self.selector.register(process.stdout, selectors.EVENT_READ, worker)
        self.lives -= 1

    def _busy(self) -> bool:
        return any(worker.step is not None for worker in self.workers)

    def _unfinished(self) -> bool:
        return bool(self.queue) or any(worker.waiting for worker in self.workers)

    def _seconds_left(self) -> float:
        """Of the budget, without what measuring will take of what is ready or about to be."""
        each = sum(self.measured) / len(self.measured) if self.measured else 1.0
        coming = sum(len(worker.waiting) + (worker.task is not None) for worker in self.workers)
        return self.budget - (time.monotonic() - self.started) - each * coming


def _kill(worker: _Worker) -> None:
    """Ends a process, with what it has started itself, an assembler say."""
    if worker.process.poll() is None:
        os.killpg(worker.process.pid, signal.SIGKILL)


def _stop(worker: _Worker, patience: float = 0.0) -> str:
    """Ends a process, after some seconds in which it may end by itself; how it ended, and its last words."""
    process = worker.process
    try:
        process.wait(timeout=patience)
    except subprocess.TimeoutExpired:
        _kill(worker)
    process.stdin.close()
    process.stdout.close()
    worker.log.seek(0)
    lines = worker.log.read().decode(errors="replace").strip().splitlines()
    worker.log.close()
    try:
        code = process.wait(timeout=10)
    except subprocess.TimeoutExpired:  # within the driver, where no signal reaches it
        return "it does not end"
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return how + (f": {lines[-1][:200]}" if lines else "")
