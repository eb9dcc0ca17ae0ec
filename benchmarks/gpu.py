"""What a step of a recurrence costs on a GPU: the kernel of rnnjax beside a scan, flax, torch and the floor.

One command with a budget of time. Worker processes trace and compile side by side, and one at a time measures while
all others wait (`benchmarks.crew`); tasks come in the order of their weight, whoever fails or is missing at a point is
reported there with the reason, and points that the budget did not reach are listed as such.

The points that say most have rivals and are compiled as any program is, with XLA's tuning of matmuls, one after the
other, since tuning measures on the card. All other points are compiled without it: so 16 cores compile at once, and
float32 with ``"highest"`` precision does not spend 27 s a point on it.

How long it takes, by an estimate from figures of a run on an H200 with 16 cores, that is 14 workers. Tracing and
lowering a program, with NVRTC, takes 0.14 to 0.34 s of a core (measured for LSTM and GRU of 256 to 1024 units on an AMD
EPYC, CPU time), XLA without tuning 1.0 s (mean of all 576, `gpu-programs` on one of two busy cores); a
program took 0.3 to 1.3 s forward and 0.5 to 2.3 s in training there, all in all and tuned. The driver's assembler takes
0.05 to 0.14 s a kernel, of which a point has three.

    start of the workers                                                             15 s
    18 tasks with rivals, or of networks: tuned one by one, 1 to 4 s, one of 27 s    70 s, while others prepare
    274 points, two programs each, 2 to 3 s of a core, 14 at a time                  50 s, of which 45 in that shadow
    loading all of them, 0.5 to 1 s each, 14 at a time                               20 s
    measuring 18 tasks, and 9 points beside torch: 3 to 4 s                          90 s
    measuring 265 points, 0.3 s with copies to the card                              80 s
    ends of phases, where some cores wait for the last                               40 s
    altogether                                                                      320 s

The last two are what `Crew` took with 14 workers that slept for such times. With 10, for which there is memory on 80
GB, the budget of 330 s left out 30 points of 2,048 units.
"""

import itertools
import os
import pathlib
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any

import jax
import typer

from benchmarks.contestants.torch_rnn import available_cores
from benchmarks.crew import Crew, Progress
from benchmarks.gpu_tasks import UNTUNED_NOTE
from benchmarks.grid import MODES, Sizes
from benchmarks.provenance import provenance
from benchmarks.results_file import comparable, read_json, write_json

__all__ = ["BUDGET", "STEPS", "WORKER", "Results", "gpu_command", "gpu_table", "gpu_tasks", "run_tasks"]

BUDGET = 330.0  # seconds
STEPS = 1024
CUSTOM = "peephole_lstm"  # a cell that no other library has a kernel for
SIZES, LARGE, BATCHES = (768, 256, 1024, 512, 128), (2048,), (16, 1, 64)
WORKER = [sys.executable, "-m", "benchmarks.worker"]
_MOST_WORKERS = 14  # each with a context of its own on the card, and memory
_MOST_NUMBERS = 2**26  # T B H of a point; beyond, T is smaller
_MEMORY = 5.5 * 2**30  # what a worker needs: XLA plans 4.3 GiB for the largest point, training in float32

Task = dict[str, Any]
EXTRAS = ("resets", "networks", "language_model", "matmuls")


def gpu_tasks(steps: int = STEPS, rounds: int = 7) -> Iterator[Task]:
    """What is measured, the most telling first; names are unique."""

    def point(
        cell: str, size: int, batch: int, dtype: str, *rivals: str, tuned: bool = True, alone: bool = True
    ) -> Task:
        sizes = Sizes(max(1, min(steps, _MOST_NUMBERS // (batch * size))), batch, size, size)
        task = {"name": f"{cell} {dtype} H={size} B={batch}", "kind": "point", "cell": cell, "sizes": sizes}
        task |= {"dtype": dtype, "rivals": rivals, "tuned": tuned, "alone": alone}
        return task | {"rounds": rounds if tuned else min(rounds, 5)}

    def every_one() -> Iterator[Task]:
        yield point("lstm", 768, 16, "bfloat16", "torch", "bare scan")
        yield point("gru", 768, 16, "bfloat16", "torch", "bare scan")
        yield point("lstm", 256, 16, "tf32", "torch", "bare scan", "flax.linen")
        for cell in ("elman", CUSTOM):
            yield point(cell, 768, 16, "bfloat16")
        yield point("lstm", 768, 16, "float16", "torch")
        for name in EXTRAS:
            yield {"name": name, "kind": name, "steps": steps, "rounds": rounds, "tuned": True}
        yield point("lstm", 768, 16, "float32", "torch")
        for size, batch in ((768, 64), (1024, 64), (1024, 16), (256, 16), (768, 1)):
            yield point("lstm", size, batch, "float16", "torch")
        yield point("lstm", 768, 16, "tf32", "torch")
        yield point("gru", 768, 16, "float16", "torch")
        # cuDNN at its best: the persistent algorithm, if it can have that. The loops alone are what is compared.
        for size, batch in itertools.product(SIZES, BATCHES):
            yield point("lstm", size, batch, "float16", "torch", tuned=False)
        cells = ("lstm", "gru", "elman", CUSTOM)
        for sizes, dtypes in itertools.product((SIZES, LARGE), (("bfloat16", "tf32"), ("float16", "float32"))):
            for cell, size, batch, dtype in itertools.product(cells, sizes, BATCHES, dtypes):
                yield point(cell, size, batch, dtype, tuned=False, alone=False)

    names = set()
    for task in every_one():
        if task["name"] not in names:
            names.add(task["name"])
            yield task


class Results:
    """What was found, in memory and after every task in a file.

    Args:
        path: of the file; None for none.
        header: of the file.
        resume: whether to go on with an existing one.

    Raises:
        ValueError: if the file exists and is not to be gone on with, or is of another machine, Python, jax or commit.
    """

    def __init__(self, path: pathlib.Path | None, header: Mapping[str, Any], *, resume: bool = False):
        self.path = path
        self.found: dict[str, Any] = {"gpu": [], "skipped": [], "done": [], "not_reached": []}
        self.found |= {name: [] for name in EXTRAS}
        if path is not None and path.exists():
            if not resume:
                raise ValueError(f"gpu: {str(path)!r} exists; take another --out, or --resume to go on with it.")
            old = read_json(path)
            if "done" not in old or not comparable(old["provenance"], header["provenance"]):
                raise ValueError(
                    f"gpu: --resume goes on with results of this machine, Python, jax and commit, got those of "
                    f"{str(path)!r}; take another --out."
                )
            self.found |= {key: old[key] for key in self.found}
        self.header = dict(header)

    def add(self, progress: Progress) -> list[dict[str, Any]]:
        """Takes what a task has found, writes the file; the rows of the task.

        What was lost with its worker is no more than a line: it is tried again by whoever goes on with the file.
        """
        name, rows = progress.task["name"], []
        lost = [entry for entry in self.found["skipped"] if entry["where"] != name]
        self.found["skipped"] = lost
        if progress.reason is not None:
            self.found["skipped"].append({"where": name, "reason": progress.reason})
        else:
            self.found["done"].append(name)
            for key, entries in progress.found.items():
                self.found[key] += entries
                rows += entries if key == "gpu" else []
        self.write()
        return rows

    def document(self) -> dict[str, Any]:
        """All of it."""
        return self.header | self.found

    def write(self) -> None:
        """The file, if there is one."""
        if self.path is not None:
            write_json(self.path, self.document())


def run_tasks(
    tasks: Iterable[Task],
    results: Results,
    *,
    workers: int,
    budget: float = BUDGET,
    command: list[str] | None = None,
    say: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> None:
    """Does what the results do not have yet; what was not reached, for whatever reason, is noted there at the end.

    Args:
        tasks: see `gpu_tasks`.
        results: get what is found.
        workers: how many.
        budget: seconds after which no task begins.
        command: starts a worker.
        say: gets a line for every task.
        options: of `Crew`.
    """
    wanted = [task for task in tasks if task["name"] not in results.found["done"]]
    over: set[str] = set()

    def tell(progress: Progress) -> None:
        over.add(progress.task["name"])
        rows = results.add(progress)
        what = f"lost: {progress.reason}" if progress.reason else _sentence(rows)
        place = f"[{progress.done}/{progress.total}] {progress.task['name']}"
        say(f"{place}{what and f': {what}'}; about {progress.left:.0f} s left")

    crew = Crew(command or WORKER, min(workers, max(1, len(wanted))), budget=budget, **options)
    try:
        crew.run(wanted, tell)
    finally:
        results.found["not_reached"] = [task["name"] for task in wanted if task["name"] not in over]
        results.write()


def gpu_command(
    budget: Annotated[float, typer.Option(help="Seconds after which no task begins.", min=0)] = BUDGET,
    rounds: Annotated[int, typer.Option(help="How often everything is timed.", min=1)] = 7,
    steps: Annotated[int, typer.Option(help="T.", min=1)] = STEPS,
    workers: Annotated[int, typer.Option(help="Processes that compile; 0: by the number of cores.", min=0)] = 0,
    out: Annotated[pathlib.Path | None, typer.Option(help="Where to write the results, as JSON.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --out: what it has from this machine and commit stays.")
    ] = False,
) -> None:
    """Microseconds a step of every cell, size and dtype on this GPU, beside a scan, flax, torch and the floor."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # of this process, which computes nothing
    if jax.default_backend() != "gpu":
        raise ValueError(f"gpu: needs a GPU as JAX's backend, got {jax.default_backend()!r}.")
    if resume and out is None:
        raise ValueError("gpu: --resume goes on with a file, got no --out.")
    header = {"command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]), "provenance": provenance()}
    results = Results(out, header, resume=resume)
    count, env = _crew(workers)
    stopped = False
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # of `timeout`, say: as Ctrl-C
    try:
        run_tasks(gpu_tasks(steps, rounds), results, workers=count, budget=budget, say=typer.echo, env=env)
    except KeyboardInterrupt:
        stopped = True
    finally:
        signal.signal(signal.SIGTERM, before)
    document = results.document()
    typer.echo(gpu_table(document))
    for entry in document["skipped"]:
        typer.echo(f"without {entry['where']}: {entry['reason']}")
    if document["not_reached"]:
        more = f"--resume goes on with {out}" if out is not None else "--budget gives more time"
        typer.echo(f"{len(document['not_reached'])} tasks were not reached; {more}.")
    if out is not None:
        typer.echo(f"written to {out}")
    if stopped:
        raise typer.Exit(130)


def _crew(workers: int) -> tuple[int, dict[str, str]]:
    """How many workers there are, if nobody says, and their environment.

    Each has its part of the memory of the card from the start. Otherwise one might take what another needs, for XLA
    keeps what it has had. A quarter of the card is left to the contexts of all of them and to torch.
    """
    env = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    given = env.pop("XLA_PYTHON_CLIENT_MEM_FRACTION", None) or env.get("XLA_CLIENT_MEM_FRACTION") or "0.75"
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")  # that part of the card
    count = workers or max(1, min(available_cores() - 2, _MOST_WORKERS))
    if not workers and memory:
        count = max(1, min(count, int(memory / _MEMORY)))
    env |= {"XLA_PYTHON_CLIENT_ALLOCATOR": "bfc", "XLA_PYTHON_CLIENT_PREALLOCATE": "true"}
    return count, env | {"XLA_CLIENT_MEM_FRACTION": f"{float(given) / count:.4f}"}


def _sentence(rows: list[dict[str, Any]]) -> str:
    times = ", ".join(f"{r['contestant']} {r['mode']} {r['us_per_step']}" for r in rows)
    return f"us a step: {times}" if times else ""


def _marks(row: dict[str, Any]) -> str:
    """What a reader must know of a row."""
    engine = (row.get("detail") or "").partition("rnnjax.unroll, ")[2].strip("'")
    other = f" ({engine})" if engine not in ("", "cuda") else ""
    return other + (" \\*" if UNTUNED_NOTE in (row.get("note") or "") else "")


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
            text = " / ".join("-" if t is None else f"{t:.3g}" for t in times) if any(times) else ""
            columns.append(text + (_marks(next(iter(found[name].values()))) if text else ""))
        one = next(iter(next(iter(found.values())).values()))
        compiled = found.get("rnnjax", {}).get("training", {}).get("compile_seconds")
        alone = found.get("rnnjax", {}).get("training", {}).get("kernels_us") or {}
        columns += [
            " + ".join(f"{alone[key]:.3g}" for key in ("forward", "backward") if key in alone),
            f"{one['floor_us'] / (1 if one['mode'] == 'forward' else 2):.2g}",
            "" if compiled is None else str(compiled),
        ]
        lines.append(f"| {cell} | {dtype} | {size} | {batch} | " + " | ".join(columns) + " |")
    if any(_marks(row) for row in document["gpu"]):
        lines += ["", f'\\* {UNTUNED_NOTE}. In brackets the engine, where it is not `"cuda"`.']
    for title in EXTRAS:
        rows = document.get(title) or ()
        if rows:
            heads = [key.replace("_", " ") for key in rows[0]]
            lines += ["", "| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
            lines += ["| " + " | ".join(str(value) for value in row.values()) + " |" for row in rows]
    return "\n".join(lines)
