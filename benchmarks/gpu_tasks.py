"""What a worker of ``benchmarks gpu`` does: see `benchmarks.crew` for the steps, `benchmarks.gpu` for the tasks."""

import dataclasses
import functools
import math
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rnnjax
from benchmarks import lm
from benchmarks.contestants import FAILURES, RIVALS, Problem, Skip, precision, why
from benchmarks.contestants.base import Prepared, array_dtype, loss_of
from benchmarks.contestants.ours import default_implementation, make
from benchmarks.grid import MODES, Point, Sizes
from benchmarks.timing import stats
from rnnjax.cell import param_shapes
from rnnjax.cells import cell_from_name

__all__ = ["LOOP_STEPS", "PROGRAMS", "UNTUNED", "UNTUNED_NOTE", "Tasks", "host_problem"]

# XLA tries the algorithms of a matmul on the card when it compiles; without, it takes one by rule and needs no card. Of
# Triton's that would be the first, if there is any (none for the gradient of a GRU's weights in float32), and compiling
# it takes 1 to 2 s of a core; cuBLAS has a rule of its own, and nothing to compile.
UNTUNED = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
UNTUNED_NOTE = "XLA's matmuls not tuned"
LOOP_STEPS = 256  # T of what loops in XLA, where a step takes 10 to 100 times as long

Task = dict[str, Any]
Found = dict[str, Any]


class Tasks:
    """Does steps of tasks, and keeps from step to step what the next one needs.

    Attributes:
        healthy: whether the card still answers.
    """

    def __init__(self) -> None:
        self.held: dict[str, Any] = {}
        self.healthy = True
        engine = default_implementation(host_problem(Point("elman", Sizes(2, 1, 1, 1), "float32", "")))
        if jax.default_backend() == "gpu" and engine != "cuda":  # it tries the kernels; the warning says what failed
            raise RuntimeError(f"gpu: the engine 'cuda' does not run here, {engine!r} would.")

    def do(self, step: str, task: Task) -> dict[str, Any]:
        """The answer: the step that comes next, or what was found.

        Raises:
            RuntimeError: if the card has broken in this step, which ends the process; what else it held can be saved.
        """
        if step == "prepare":
            self.held[task["name"]] = _KINDS[task["kind"]](task)
        work = self.held[task["name"]]
        if step != "measure":
            getattr(work, step)()
            if step != "prepare" and not _card_answers():  # else all that this process holds would fail, one by one
                raise RuntimeError("gpu: the card no longer answers this process.")
            after = {"prepare": "tune" if task["tuned"] else "load", "tune": "load", "load": "measure"}
            return {"next": after[step]}
        found = work.measure()
        del self.held[task["name"]], work
        if "torch" in sys.modules:
            sys.modules["torch"].cuda.empty_cache()
        self.healthy = _card_answers()
        return {"found": found} if self.healthy else {"found": found, "last": True}


class _Guarded:
    """Nobody ends a task for the others: who fails is written down with the reason."""

    def __init__(self, task: Task):
        self.task = task
        self.skipped: list[dict[str, Any]] = []

    def guarded(self, where: Any, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Skip as reason:
            self.skipped.append({"where": where, "reason": str(reason)})
        except FAILURES as error:
            self.skipped.append({"where": where, "reason": why(error)})
        return None


class _Point(_Guarded):
    """A cell, sizes and a dtype: contestants in both modes, which take turns."""

    def __init__(self, task: Task):
        super().__init__(task)
        self.point = Point(task["cell"], Sizes(*task["sizes"]), task["dtype"], "")
        self.runs: dict[tuple[str, str], tuple[Prepared, dict[str, Any]]] = {}

    def prepare(self) -> None:
        whole = self.guarded(self._where("rnnjax"), lambda: host_problem(self.point))
        if whole is None:
            return
        short = dataclasses.replace(whole, xs=whole.xs[:LOOP_STEPS])
        with precision(self.point.dtype):
            engine = self.guarded(self._where("rnnjax"), lambda: default_implementation(whole))
            makers: dict[str, Callable[[], Any]] = {}
            if engine is not None:
                problem = whole if engine == "cuda" else short
                makers["rnnjax"] = functools.partial(make, problem, engine)
            for name in self.task["rivals"]:
                makers[name] = functools.partial(RIVALS[name], whole if name == "torch" else short)
            for name, maker in makers.items():
                steps = maker.args[0].xs.shape[0]
                one = self.guarded(self._where(name), maker)
                for mode in MODES if one is not None else ():
                    row = self._where(name, mode) | {"T": steps, "detail": one.detail, "note": one.note}
                    if not self.task["tuned"] and name != "torch":
                        row["note"] = "; ".join(filter(None, (one.note, UNTUNED_NOTE)))
                    self.runs[name, mode] = one.prepare(mode), row
            self._each(lambda prepared: prepared.lower, [] if self.task["tuned"] else [UNTUNED])

    def tune(self) -> None:
        with precision(self.point.dtype):
            self._each(lambda prepared: None, [{}])

    def load(self) -> None:
        with precision(self.point.dtype):
            for key, (prepared, row) in list(self.runs.items()):
                begin = time.perf_counter()
                if self.guarded(self._where(*key), lambda p=prepared: (p.load or p.call)() or True) is None:
                    del self.runs[key]
                row["first_call_seconds"] = round(time.perf_counter() - begin, 2)

    def measure(self) -> Found:
        rounds = self.task["rounds"]
        warm, burst = (0.15, 0.02) if self.task["tuned"] else (0.05, 0.01)
        repeats: dict[tuple[str, str], int] = {}
        seconds: dict[tuple[str, str], list[float]] = {key: [] for key in self.runs}

        def turn(key: tuple[str, str]) -> bool:
            prepared, _ = self.runs[key]
            several = prepared.several or (lambda count: [prepared.call() for _ in range(count)])
            if key not in repeats:
                repeats[key] = max(1, round(burst / _warm(prepared.call, warm)))
                several(repeats[key])
            seconds[key].append(_seconds(lambda: several(repeats[key])) / repeats[key])
            return True

        with precision(self.point.dtype):
            for _ in range(rounds):
                for key in list(self.runs):
                    if self.guarded(self._where(*key), functools.partial(turn, key)) is None:
                        del self.runs[key]
            rows = []
            for key, (prepared, row) in self.runs.items():
                found = stats(seconds[key])
                row |= {"seconds": found, "us_per_step": _short(1e6 * found["median"] / row["T"])}
                if self.task["alone"] and key == ("rnnjax", "training"):
                    alone = self.guarded(
                        self._where(*key) | {"what": "loops alone"},
                        functools.partial(_kernels, prepared.call, row["T"]),
                    )
                    row["kernels_us"] = alone or {}
                rows.append(row | {"floor_us": _floor(self.point)[key[1]], "rounds": rounds})
        return {"gpu": rows, "skipped": self.skipped}

    def _each(self, first: Callable[[Prepared], Any], options: list[dict[str, Any]]) -> None:
        """Lowers, compiles with the options, or both; adds up the seconds."""
        for key, (prepared, row) in list(self.runs.items()):
            calls = [first(prepared)] + [functools.partial(prepared.compile, **o) for o in options if prepared.compile]

            def all_of(calls: list[Any] = calls) -> bool:
                for call in calls:
                    if call is not None:
                        call()
                return True

            begin = time.perf_counter()
            if self.guarded(self._where(*key), all_of) is None:
                del self.runs[key]
            spent = time.perf_counter() - begin + (row.get("compile_seconds") or 0)
            row["compile_seconds"] = round(spent, 2) if prepared.compile is not None else None

    def _where(self, contestant: str, mode: str | None = None) -> dict[str, Any]:
        where = {"cell": self.point.cell, **self.point.sizes._asdict(), "dtype": self.point.dtype}
        return where | {"contestant": contestant} | ({"mode": mode} if mode else {})


class _Extra(_Guarded):
    """Programs of ours that are compared with each other: see `PROGRAMS`."""

    def __init__(self, task: Task):
        super().__init__(task)
        self.ready: list[Any] = []

    def prepare(self) -> None:
        def all_of_them() -> None:
            for row, function, args, options in PROGRAMS[self.task["kind"]](self.task["steps"]):
                self.ready.append((row, jax.jit(function).lower(*args), args, options))

        self.guarded(self.task["kind"], all_of_them)

    def tune(self) -> None:
        ready, self.ready = self.ready, []
        for row, lowered, args, options in ready:
            begin = time.perf_counter()
            compiled = self.guarded(row, lambda l=lowered, o=options: l.compile(compiler_options=o or None))
            if compiled is not None:
                row = row | {"compile_seconds": round(time.perf_counter() - begin, 2)}
                self.ready.append((row, compiled, args))

    def load(self) -> None:
        ready, self.ready = self.ready, []
        for row, compiled, args in ready:
            if self.guarded(row, lambda c=compiled, a=args: jax.block_until_ready(c(*a)) is not None):
                self.ready.append((row, compiled, args))

    def measure(self) -> Found:
        steps, rows = self.task["steps"], []
        for row, compiled, args in self.ready:
            seconds = self.guarded(row, lambda c=compiled, a=args: _in_a_row(lambda: c(*a), 2 * self.task["rounds"]))
            if seconds is not None:
                rows.append(row | {"us_per_step": round(1e6 * seconds / steps, 3)})
        return {self.task["kind"]: rows, "skipped": self.skipped}


class _LanguageModel(_Guarded):
    """The language model's update, compiled where it is called first."""

    def prepare(self) -> None:
        self.ready: list[Any] = []

    def tune(self) -> None:
        def all_of_them() -> None:
            for name, sizes in lm.CONFIGURATIONS.items():
                _, _, batch, chunk = sizes
                symbols = np.random.default_rng(0).integers(0, lm.VOCAB, (chunk + 1, batch)).astype(np.int32)
                step, wait = lm.ours(*sizes, symbols)
                wait(step())
                self.ready.append((name, batch * chunk, step))

        self.guarded("language model", all_of_them)

    def load(self) -> None:
        """Has been called."""

    def measure(self) -> Found:
        rows = []
        for name, characters, step in self.ready:
            seconds = self.guarded("language model", lambda step=step: _in_a_row(step, self.task["rounds"]))
            if seconds is not None:
                speed = {"ms": round(1e3 * seconds, 3), "characters_per_second": round(characters / seconds)}
                rows.append({"configuration": name} | speed)
        return {"language_model": rows, "skipped": self.skipped}


def host_problem(point: Point, seed: int = 0) -> Problem:
    """Arrays in the memory of the host, of normal numbers of the size that initializers give.

    They are one small draw again and again, since drawing the largest would take seconds, and its size is a prime
    number, so that rows of a matrix differ.
    """
    cell = cell_from_name(point.cell, point.sizes.H)
    dtype = array_dtype(point.dtype)
    draw = np.random.default_rng(seed).standard_normal(262_139, np.float32)

    def numbers(shape: tuple[int, ...], scale: float) -> np.ndarray:
        return np.resize((scale * draw).astype(dtype), shape)

    steps, batch, size, hidden = point.sizes
    params = jax.tree.map(lambda a: numbers(a.shape, 1 / math.sqrt(hidden)), param_shapes(cell, size, dtype))
    state = jax.tree.map(
        lambda a: np.zeros(a.shape, a.dtype), jax.eval_shape(lambda: cell.initial_state((batch,), dtype))
    )
    return Problem(cell, params, state, numbers((steps, batch, size), 1.0), point.dtype)


def _floor(point: Point) -> dict[str, float]:
    """Microseconds a step below which no kernel of this kind comes: an exchange of h through the cache, and its matmul.

    An exchange takes 0.48 us on an H200 (`docs/engines.md`); the matmul of a step has to pass the tensor cores, 989
    TFLOP/s in 16 bits and half of that in TF32. A backward pass is another such pass and at least as long.
    """
    gates = cell_from_name(point.cell, point.sizes.H).num_gates
    peak = {"float32": 989e12 / 6, "tf32": 989e12 / 2}.get(point.dtype, 989e12)
    one = 0.48 + 1e6 * 2 * point.sizes.B * point.sizes.H**2 * gates / peak
    return {"forward": round(one, 3), "training": round(2 * one, 3)}


# A program: what its row begins with, a function and its arguments, and options of XLA.
Program = tuple[dict[str, str], Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def _resets(steps: int) -> list[Program]:
    """A GRU in training, without resets and where 1 % of the steps begin anew."""
    cell = rnnjax.GRU(768)
    params = cell.init(jax.random.key(0), 768, jnp.bfloat16)
    state = cell.initial_state((16,), jnp.bfloat16)
    xs = jax.random.normal(jax.random.key(1), (steps, 16, 768), jnp.bfloat16)
    flags = jax.random.uniform(jax.random.key(2), (steps, 16)) < 0.01
    found = []
    for name, resets in (("none", None), ("1 %", flags)):

        def loss(params: Any, xs: Any, resets: Any) -> jax.Array:
            final, ys = rnnjax.unroll(cell, params, state, xs, resets=resets)
            return loss_of(ys, final)

        found.append(({"resets of a GRU of 768": name}, jax.grad(loss, argnums=(0, 1)), (params, xs, resets), {}))
    return found


def _networks(steps: int) -> list[Program]:
    """One LSTM in training, both directions of one, layers, and several that `jax.vmap` trains side by side.

    Equal layers share launches if the engine expects a gain; those that differ run one after the other.
    """
    found = []
    for title, count, net in (
        ("one", 1, rnnjax.LSTM(256)),
        ("both directions", 1, rnnjax.Bidirectional((rnnjax.LSTM(256),))),
        ("two layers", 1, rnnjax.Stack((rnnjax.LSTM(256),) * 2)),
        ("four layers", 1, rnnjax.Stack((rnnjax.LSTM(256),) * 4)),
        ("four layers, which differ", 1, rnnjax.Stack((rnnjax.LSTM(256), rnnjax.LSTM(256, forget_bias=0.5)) * 2)),
        ("8 side by side", 8, rnnjax.LSTM(256)),
    ):
        keys = jax.random.split(jax.random.key(0), count)
        params = jax.vmap(lambda k, net=net: net.init(k, 256, jnp.bfloat16))(keys)
        xs = jax.random.normal(jax.random.key(1), (steps, 16, 256), jnp.bfloat16)
        state = net.initial_state((16,), jnp.bfloat16)

        def loss(params: Any, xs: Any, net: Any = net, state: Any = state) -> jax.Array:
            _, ys = rnnjax.unroll(net, params, state, xs)
            return jnp.mean(jnp.square(ys.astype(jnp.float32)))

        function = jax.grad(loss, argnums=(0, 1))
        given = params if count > 1 else jax.tree.map(lambda p: p[0], params)
        step = jax.vmap(function, (0, None)) if count > 1 else function
        found.append(({"LSTM of 256": title}, step, (given, xs), {}))
    return found


def _matmuls(steps: int) -> list[Program]:
    """An LSTM in exact float32 in training: XLA's matmuls by cuBLAS alone, beside the choice among all that it has.

    Triton's are compiled to be tried, in float32 for 10 s and more, and the processor's cores do not do TF32 here.
    """
    cell = rnnjax.LSTM(768)
    params, state = cell.init(jax.random.key(0), 768), cell.initial_state((16,))
    xs = jax.random.normal(jax.random.key(1), (steps, 16, 768))

    @jax.default_matmul_precision("highest")
    def loss(params: Any, xs: Any) -> jax.Array:
        final, ys = rnnjax.unroll(cell, params, state, xs)
        return loss_of(ys, final)

    options = {"cuBLAS": {"xla_gpu_enable_triton_gemm": False}, "cuBLAS, not tuned": UNTUNED}
    return [({"matmuls of an LSTM of 768 in float32": name}, jax.grad(loss, (0, 1)), (params, xs), o)
            for name, o in options.items()]  # fmt: skip


PROGRAMS = {"resets": _resets, "networks": _networks, "matmuls": _matmuls}
_KINDS: dict[str, Callable[[Task], Any]] = {
    "point": _Point, "language_model": _LanguageModel, **dict.fromkeys(PROGRAMS, _Extra),
}  # fmt: skip


def _card_answers() -> bool:
    try:
        return bool(jnp.ones(()) + 1 == 2)
    except jax.errors.JaxRuntimeError:
        return False


def _warm(call: Callable[[], Any], seconds: float) -> float:
    """Calls until the clocks of the card have risen from those of an idle one; seconds of a call."""
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds or count < 2:
        once, count = _seconds(call), count + 1
    return once


def _kernels(call: Callable[[], Any], steps: int, calls: int = 4) -> dict[str, float]:
    """Microseconds a step of the loops alone, by the profiler: without projections, weight gradients and launches."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(calls):
                call()
        files = pathlib.Path(folder).rglob("*.xplane.pb")
        profiles = [jax.profiler.ProfileData.from_file(str(path)) for path in files]
    if not profiles:
        raise RuntimeError("gpu: the profiler has written nothing.")
    spent: dict[str, float] = {}
    for plane in (plane for profile in profiles for plane in profile.planes):
        for line in plane.lines if "GPU" in plane.name else ():
            for event in line.events if line.name.startswith("Stream") else ():
                if event.name.startswith("rnn_"):
                    spent[event.name] = spent.get(event.name, 0.0) + event.duration_ns
    return {name.removeprefix("rnn_"): _short(ns / calls / steps / 1e3) for name, ns in sorted(spent.items())}


def _in_a_row(step: Callable[[], Any], rounds: int, count: int = 8) -> float:
    """Seconds of a call where some follow each other, the median of rounds."""

    def several() -> None:
        for _ in range(count):
            result = step()
        jax.block_until_ready(result)

    several()
    _warm(several, 0.15)
    return float(np.median([_seconds(several) / count for _ in range(rounds)]))


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _short(value: float) -> float:
    return float(f"{value:.4g}")
