"""What a step of a recurrence costs on a GPU: the kernel of rnnjax beside a scan, flax, torch and the floor.

Everything is one command with a budget of time: points come in the order of their weight, whoever fails or is missing
at a point is reported there with the reason, and points that the budget did not reach are listed as such.
"""

import pathlib
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer

import rnnjax
from benchmarks.contestants import FAILURES, RIVALS, Skip, make_problem, precision, why
from benchmarks.contestants.base import Contestant, Problem, loss_of
from benchmarks.contestants.ours import default_implementation, make
from benchmarks.grid import MODES, Point, Sizes
from benchmarks.provenance import provenance
from benchmarks.results_file import write_json
from benchmarks.timing import stats

__all__ = ["BUDGET", "gpu_command", "gpu_points", "gpu_table", "measure_gpu"]

BUDGET = 330.0  # seconds
STEPS = 1024
CUSTOM = "peephole_lstm"  # a cell that no other library has a kernel for
SIZES, BATCHES = (768, 256, 1024, 512, 128, 2048), (16, 1, 64)
DTYPES = ("bfloat16", "float16", "tf32", "float32")


def gpu_points(steps: int = STEPS) -> Iterator[tuple[Point, tuple[str, ...]]]:
    """Points, the most telling first, and the rivals that take part: a scan takes 40 times as long as a kernel."""

    def point(cell: str, size: int, batch: int, dtype: str, *rivals: str) -> tuple[Point, tuple[str, ...]]:
        return Point(cell, Sizes(steps, batch, size, size), dtype, ""), rivals

    for cell in ("lstm", "gru"):
        yield point(cell, 768, 16, "bfloat16", "torch", "bare scan", "flax.linen")
    for dtype in ("float16", "tf32", "float32"):
        yield point("lstm", 768, 16, dtype, "torch")
    for cell in ("elman", CUSTOM):
        yield point(cell, 768, 16, "bfloat16", "torch")
    yield point("lstm", 256, 16, "tf32", "torch", "bare scan")
    for size in SIZES:
        for batch in BATCHES:
            if (size, batch) != (768, 16):
                yield point("lstm", size, batch, "float16", "torch")
    for cell in ("gru", "elman", CUSTOM, "lstm"):
        for size in SIZES:
            for batch in BATCHES:
                for dtype in DTYPES:
                    yield point(cell, size, batch, dtype)


def measure_gpu(
    *,
    budget: float = BUDGET,
    rounds: int = 7,
    steps: int = STEPS,
    say: Callable[[str], None] = lambda text: None,
    points: Callable[[int], Iterator[tuple[Point, tuple[str, ...]]]] = gpu_points,
) -> dict[str, Any]:
    """Rows, what was left out and why, and the smaller measurements.

    Args:
        budget: seconds; no new point begins after them.
        rounds: how often everything is timed.
        steps: T.
        say: gets a line for every point.
        points: in the order in which they are measured.
    """
    start = time.perf_counter()
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    left: list[str] = []
    done: set[tuple[Any, ...]] = set()
    resets = _guarded(skipped, "resets", lambda: _resets(steps, rounds))
    together = _guarded(skipped, "networks at once", lambda: _networks(steps, rounds))
    model = _guarded(skipped, "language model", lambda: _language_model(rounds))
    for point, rivals in points(steps):
        key = (point.cell, point.sizes, point.dtype)
        if key in done:
            continue
        done.add(key)
        if time.perf_counter() - start > budget:
            left.append(f"{point.cell} {point.dtype} {tuple(point.sizes)}")
            continue
        problem = make_problem(point)
        floor = _floor(problem)
        builders: dict[str, Callable[[], Contestant]] = {}
        builders["rnnjax"] = lambda problem=problem: make(problem, default_implementation(problem))
        for name in rivals:
            builders[name] = lambda name=name, problem=problem: RIVALS[name](problem)
        for name, builder in builders.items():
            alone = steps if rivals and name == "rnnjax" else None
            where = {"cell": point.cell, **point.sizes._asdict(), "dtype": point.dtype, "contestant": name}
            with precision(point.dtype):
                for mode in MODES:
                    row = _guarded(
                        skipped,
                        where | {"mode": mode},
                        lambda builder=builder, mode=mode, alone=alone: _time(builder(), mode, rounds, alone),
                    )
                    if row is not None:
                        rows.append(where | {"mode": mode, "floor_us": floor[mode]} | _per_step(row, steps))
        say(_sentence(rows, point))
        jax.clear_caches()
    found = {"gpu": rows, "skipped": skipped, "not_reached": left, "resets": resets, "networks": together}
    return found | {"language_model": model}


def gpu_command(
    budget: Annotated[float, typer.Option(help="Seconds after which no new point begins.", min=0)] = BUDGET,
    rounds: Annotated[int, typer.Option(help="How often everything is timed.", min=1)] = 7,
    steps: Annotated[int, typer.Option(help="T.", min=1)] = STEPS,
    out: Annotated[pathlib.Path | None, typer.Option(help="Where to write the results, as JSON.")] = None,
) -> None:
    """Microseconds a step of every cell, size and dtype on this GPU, beside a scan, flax, torch and the floor."""
    if jax.default_backend() != "gpu":
        raise ValueError(f"gpu: needs a GPU as JAX's backend, got {jax.default_backend()!r}.")
    document: dict[str, Any] = {"command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])}
    document |= {"provenance": provenance(), **measure_gpu(budget=budget, rounds=rounds, steps=steps, say=typer.echo)}
    typer.echo(gpu_table(document))
    for entry in document["skipped"]:
        typer.echo(f"without {entry['where']}: {entry['reason']}")
    if document["not_reached"]:
        typer.echo(f"{len(document['not_reached'])} points were not reached in {budget:g} s; --budget gives more time.")
    if out is not None:
        write_json(out, document)
        typer.echo(f"written to {out}")


def _guarded(skipped: list[dict[str, Any]], where: Any, call: Callable[[], Any]) -> Any:
    """The result; None where somebody could not, with the reason: nobody ends the benchmark for the others."""
    try:
        return call()
    except Skip as reason:
        skipped.append({"where": where, "reason": str(reason)})
    except FAILURES as error:
        skipped.append({"where": where, "reason": why(error)})
    return None


def _time(one: Contestant, mode: str, rounds: int, alone: int | None) -> dict[str, Any]:
    """Seconds of compilation, of a call where calls follow each other (the median of some), and of the loops alone.

    The last are asked for by their number of steps.
    """
    prepared = one.prepare(mode)
    start = time.perf_counter()
    if prepared.compile is not None:
        prepared.compile()
    compiled = time.perf_counter() - start
    once = _warm(prepared.call)
    repeats = max(1, round(0.02 / once))
    several = prepared.several or (lambda count: [prepared.call() for _ in range(count)])
    several(repeats)
    seconds = [_seconds(lambda: several(repeats)) / repeats for _ in range(rounds)]
    return {
        "seconds": stats(seconds),
        "compile_seconds": round(compiled, 2) if prepared.compile is not None else None,
        "detail": one.detail,
        "note": one.note,
    } | ({"kernels_us": _kernels(prepared.call, alone)} if alone and mode == "training" else {})


def _warm(call: Callable[[], Any], seconds: float = 0.15) -> float:
    """Calls until the clocks of the card have risen from those of an idle one; seconds of a call."""
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds or count < 3:
        begin = time.perf_counter()
        call()
        once, count = time.perf_counter() - begin, count + 1
    return once


def _kernels(call: Callable[[], Any], steps: int, calls: int = 4) -> dict[str, float]:
    """Microseconds a step of the loops alone, by the profiler: without projections, weight gradients and launches."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(calls):
                call()
        path = next(pathlib.Path(folder).rglob("*.xplane.pb"))
        profile = jax.profiler.ProfileData.from_file(str(path))
    spent: dict[str, float] = {}
    for plane in profile.planes:
        for line in plane.lines if "GPU" in plane.name else ():
            for event in line.events if line.name.startswith("Stream") else ():
                if event.name.startswith("rnn_"):
                    spent[event.name] = spent.get(event.name, 0.0) + event.duration_ns
    return {name.removeprefix("rnn_"): float(f"{ns / calls / steps / 1e3:.4g}") for name, ns in sorted(spent.items())}


def _per_step(row: dict[str, Any], steps: int) -> dict[str, Any]:
    return row | {"us_per_step": float(f"{1e6 * row['seconds']['median'] / steps:.4g}")}


def _floor(problem: Problem) -> dict[str, float]:
    """Microseconds a step below which no kernel of this kind comes: an exchange of h through the cache, and its matmul.

    An exchange takes 0.48 us on an H200 (`docs/engines.md`); the matmul of a step has to pass the tensor cores, 989
    TFLOP/s in 16 bits and half of that in TF32. A backward pass is another such pass and at least as long.
    """
    _, batch, _ = problem.xs.shape
    size, gates = problem.cell.hidden_size, problem.cell.num_gates
    peak = {"float32": 989e12 / 6, "tf32": 989e12 / 2}.get(problem.dtype, 989e12)
    one = 0.48 + 1e6 * 2 * batch * size * size * gates / peak
    return {"forward": round(one, 3), "training": round(2 * one, 3)}


def _resets(steps: int, rounds: int) -> list[dict[str, Any]]:
    """A GRU in training, without resets and where 1 % of the steps begin anew."""
    cell = rnnjax.GRU(768)
    params = cell.init(jax.random.key(0), 768, jnp.bfloat16)
    state = cell.initial_state((16,), jnp.bfloat16)
    xs = jax.random.normal(jax.random.key(1), (steps, 16, 768), jnp.bfloat16)
    flags = jax.random.uniform(jax.random.key(2), (steps, 16)) < 0.01
    found = []
    for name, resets in (("none", None), ("1 %", flags)):

        def loss(params: Any, xs: Any, resets: Any = resets) -> jax.Array:
            final, ys = rnnjax.unroll(cell, params, state, xs, resets=resets)
            return loss_of(ys, final)

        step = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, xs).compile()
        seconds = _in_a_row(lambda step=step: step(params, xs), 3 * rounds)
        found.append({"resets of a GRU of 768": name, "us_per_step": round(1e6 * seconds / steps, 3)})
    return found


def _networks(steps: int, rounds: int) -> list[dict[str, Any]]:
    """One LSTM in training, both directions of one, and several that `jax.vmap` trains side by side."""
    rows = []
    for title, count, net in (
        ("one", 1, rnnjax.LSTM(256)),
        ("both directions", 1, rnnjax.Bidirectional((rnnjax.LSTM(256),))),
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
        step = jax.jit(jax.vmap(function, (0, None)) if count > 1 else function)
        given = params if count > 1 else jax.tree.map(lambda p: p[0], params)
        seconds = _in_a_row(lambda step=step, given=given, xs=xs: step(given, xs), rounds)
        rows.append({"LSTM of 256": title, "us_per_step": round(1e6 * seconds / steps, 3)})
    return rows


def _in_a_row(step: Callable[[], Any], rounds: int, count: int = 8) -> float:
    """Seconds of a call where some follow each other, the median of rounds."""

    def several() -> None:
        for _ in range(count):
            result = step()
        jax.block_until_ready(result)

    several()
    _warm(several)
    return float(np.median([_seconds(several) / count for _ in range(rounds)]))


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _language_model(rounds: int) -> list[dict[str, Any]]:
    from benchmarks import lm

    rows = []
    for name, sizes in lm.CONFIGURATIONS.items():
        _, _, batch, chunk = sizes
        symbols = np.random.default_rng(0).integers(0, lm.VOCAB, (chunk + 1, batch)).astype(np.int32)
        step, wait = lm.ours(*sizes, symbols)
        _warm(lambda step=step, wait=wait: wait(step()))
        seconds = []
        for _ in range(rounds):
            begin = time.perf_counter()
            for _ in range(10):
                result = step()
            wait(result)
            seconds.append((time.perf_counter() - begin) / 10)
        median = float(np.median(seconds))
        rows.append(
            {
                "configuration": name,
                "ms": round(1e3 * median, 3),
                "characters_per_second": round(batch * chunk / median),
            }
        )
    return rows


def _sentence(rows: list[dict[str, Any]], point: Point) -> str:
    here = [r for r in rows if (r["cell"], r["dtype"], r["B"], r["H"]) == (point.cell, point.dtype, *point.sizes[1::2])]
    times = ", ".join(f"{r['contestant']} {r['mode']} {r['us_per_step']}" for r in here)
    return f"{point.cell} {point.dtype} H={point.sizes.H} B={point.sizes.B}, us a step: {times or 'nothing'}"


def gpu_table(document: dict[str, Any]) -> str:
    """All points as a table: microseconds a step, forward / training."""
    rows = document["gpu"]
    names = list(dict.fromkeys(row["contestant"] for row in rows))
    cells: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        key = (row["cell"], row["dtype"], row["H"], row["B"])
        cells.setdefault(key, {}).setdefault(row["contestant"], {})[row["mode"]] = row
    lines = ["| cell | dtype | H | B | " + " | ".join(names) + " | loops alone | floor | compile s |"]
    lines.append("|" + " --- |" * (len(names) + 7))
    for (cell, dtype, size, batch), found in cells.items():
        columns = []
        for name in names:
            times = [found.get(name, {}).get(mode, {}).get("us_per_step") for mode in MODES]
            columns.append(" / ".join("-" if t is None else f"{t:.3g}" for t in times) if any(times) else "")
        one = next(iter(next(iter(found.values())).values()))
        compiled = found.get("rnnjax", {}).get("training", {}).get("compile_seconds")
        alone = found.get("rnnjax", {}).get("training", {}).get("kernels_us") or {}
        columns += [
            " + ".join(f"{alone[key]:.3g}" for key in ("forward", "backward") if key in alone),
            f"{one['floor_us'] / (1 if one['mode'] == 'forward' else 2):.2g}",
            "" if compiled is None else str(compiled),
        ]
        lines.append(f"| {cell} | {dtype} | {size} | {batch} | " + " | ".join(columns) + " |")
    for title in ("resets", "networks", "language_model"):
        rows = document.get(title) or ()
        if rows:
            heads = [key.replace("_", " ") for key in rows[0]]
            lines += ["", "| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
            lines += ["| " + " | ".join(str(value) for value in row.values()) + " |" for row in rows]
    return "\n".join(lines)
