"""What XLA makes of the programs of ``benchmarks gpu`` for a card that is not there.

XLA compiles for a GPU that it is only told about; it can run nothing then, and takes matmuls by rule. That is enough to
see, before a card is at hand, whether every program compiles, in what time, with how much memory, and how many launches
it has. It needs the packages of ``jax[cuda13]`` (or 12), and neither a driver nor a GPU.
"""

import dataclasses
import re
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import jax
import typer

import rnnjax
from benchmarks.contestants import FAILURES, precision, why
from benchmarks.contestants.base import loss_of, planned_bytes
from benchmarks.contestants.ours import default_implementation
from benchmarks.gpu import STEPS, gpu_tasks
from benchmarks.gpu_tasks import LOOP_STEPS, PROGRAMS, UNTUNED, host_problem
from benchmarks.grid import MODES, Point, Sizes
from rnnjax.engines.affine import cuda
from rnnjax.engines.affine.cuda_rules import Card

__all__ = ["gpu_programs_command", "launches"]

# What XLA must know of a card, as its message GpuTargetConfigProto: an H200, as the driver describes it (XLA has such
# files for its own tests, xla/backends/gpu/target_config). Of an H100 only the memory and its speed differ.
_H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 l2_cache_size: 52428800
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  memory_bandwidth: 4800000000000 device_memory_size: 151397597184
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H200"
"""
# A line of a compiled program that is a launch, and one that is a loop, with how often it turns where that is known.
_LAUNCH = re.compile(r" = .*? (?:fusion|fusion-start|custom-call|copy|dot|reduce|sort|transpose|convert|broadcast)\(")
_LOOP = re.compile(r" while\(.*body=%?([\w.\-]+).*?(?:\"known_trip_count\":\{\"n\":\"(\d+)\"|$)")

# What is compiled: its name, a function, its arguments, and options of XLA.
Program = tuple[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def gpu_programs_command(
    match: Annotated[str, typer.Option(help="Only tasks with this in their name, such as 'lstm float32'.")] = "",
    steps: Annotated[int, typer.Option(help="T.", min=1)] = STEPS,
) -> None:
    """Compile what `gpu` measures, for an H200 that need not be there: seconds, memory, launches."""
    if jax.default_backend() != "cpu":
        raise ValueError(f"gpu-programs: needs JAX_PLATFORMS=cpu, got the backend {jax.default_backend()!r}.")
    place = _not_there()
    jax.default_backend = lambda: "gpu"  # for the rest of this process, which does nothing else
    cuda._card = lambda: Card(90, 132)
    failed = count = 0
    for task in gpu_tasks(steps):
        if match not in task["name"] or task["kind"] not in ("point", *PROGRAMS):
            continue
        with precision(task.get("dtype", "")):
            for title, function, args, options in _programs(task):
                count += 1
                try:
                    said = _compiled(place, function, args, options)
                except FAILURES as error:
                    failed, said = failed + 1, f"failed: {why(error)}"
                typer.echo(f"{task['name']}, {title}: {said}")
        jax.clear_caches()
    typer.echo(f"{count} programs, of which {failed} failed")
    if failed:
        raise typer.Exit(1)


def _not_there() -> Any:
    """Where arrays lie: on a card of which XLA is only told."""
    from jax._src import xla_bridge
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform="cuda", target_config=_H200, topology="1x1x1")
    except NotImplementedError:
        raise ValueError("gpu-programs: needs JAX's compiler for NVIDIA GPUs; pip install 'jax[cuda13]'.") from None
    known = xla_bridge.canonicalize_platform
    # Without a card JAX does not know that "gpu" is a name of "cuda": github.com/jax-ml/jax/issues/23971.
    xla_bridge.canonicalize_platform = lambda name: "cuda" if name == "gpu" else known(name)
    return jax.sharding.SingleDeviceSharding(found.devices[0])


def _programs(task: dict[str, Any]) -> Iterator[Program]:
    if task["kind"] != "point":
        for row, function, args, options in PROGRAMS[task["kind"]](task["steps"]):
            yield ", ".join(row.values()), function, args, UNTUNED | options
        return
    steps, *others = task["sizes"]
    problem = host_problem(Point(task["cell"], Sizes(1, *others), task["dtype"], ""))  # of one step: shapes are enough
    cell, params, state = problem.cell, problem.params, problem.state

    def longer(steps: int) -> Any:
        return jax.ShapeDtypeStruct((steps, *problem.xs.shape[1:]), problem.xs.dtype)

    engine = default_implementation(dataclasses.replace(problem, xs=longer(steps)))
    xs = longer(steps if engine == "cuda" else min(steps, LOOP_STEPS))

    def forward(params: Any, xs: Any) -> tuple[Any, Any]:
        final, ys = rnnjax.unroll(cell, params, state, xs)
        return ys, final

    training = jax.grad(lambda params, xs: loss_of(*forward(params, xs)), argnums=(0, 1))
    for mode, function in zip(MODES, (forward, training), strict=True):
        yield f"{mode}, {engine!r}", function, (params, xs), UNTUNED


def _compiled(place: Any, function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> str:
    args = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), args)
    begin = time.perf_counter()
    lowered = jax.jit(function).lower(*args)
    between = time.perf_counter()
    compiled = lowered.compile(compiler_options=options)
    seconds = (between - begin, time.perf_counter() - between)
    text, peak = compiled.as_text(), planned_bytes(compiled)["peak_bytes"]
    kernels = text.count('custom_call_target="__gpu$xla.gpu.ptx"')
    size = len(lowered.as_text()) / 1e3
    return (
        f"traced in {seconds[0]:.2f} s to {size:.0f} KB, compiled in {seconds[1]:.2f} s; {peak / 1e9:.2f} GB, "
        f"{launches(text)} launches, {kernels} kernels of ours"
    )


def launches(text: str) -> int:
    """Of a compiled program, by its text; those within a loop as often as it turns, once if that is not known."""
    parts = {
        name: lines for name, lines in re.findall(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{\n((?:  .*\n|\n)*)", text, re.M)
    }
    entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.M)

    def count(name: str) -> int:
        total = 0
        for line in parts[name].splitlines():
            loop = _LOOP.search(line)
            total += int(loop[2] or 1) * count(loop[1]) if loop else bool(_LAUNCH.search(line))
        return total

    return count(entry[1]) if entry else 0
