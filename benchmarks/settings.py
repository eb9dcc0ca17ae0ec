"""What settings of a device are worth: compiler options of one `jax.jit`, and the batch split over several devices.

Nothing here is a default of the library: compiler options belong to the outermost `jax.jit`, which is the user's, and
the number of CPU devices is set before JAX starts.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import rnnjax
from benchmarks.contestants import make_problem
from benchmarks.contestants.base import Problem, loss_of
from benchmarks.grid import MODES, Point, Sizes
from benchmarks.timing import interleave

__all__ = ["OPTIONS", "setting_costs"]

_GRAPHS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION"
AS_IT_IS, SPLIT, MAPPED = "as it is", "batch split, by shardings", "batch split, by shard_map"
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "cpu": {
        AS_IT_IS: {},
        "vectors of 512 bits": {"xla_cpu_prefer_vector_width": 512},
        "one thread a matmul": {"xla_cpu_multi_thread_eigen": False},
    },
    "gpu": {
        AS_IT_IS: {},
        "no CUDA graphs": {"xla_gpu_enable_command_buffer": ""},
        "CUDA graphs of bodies": {"xla_gpu_enable_command_buffer": _GRAPHS, "xla_gpu_graph_min_graph_size": 1},
        "CUDA graphs of loops": {
            "xla_gpu_enable_command_buffer": f"{_GRAPHS},CONDITIONAL,WHILE",
            "xla_gpu_graph_min_graph_size": 1,
        },
    },
}


def setting_costs(
    backend: str, cells: list[str], sizes: list[Sizes], *, rounds: int, burst_seconds: float
) -> list[dict[str, Any]]:
    """Rows of seconds a call, for every option of a backend, and with several devices for the split batch.

    Raises:
        ValueError: if JAX runs on another kind of device.
    """
    if jax.default_backend() != backend:
        raise ValueError(
            f"{backend}: measures settings of the {backend.upper()}, but JAX runs on {jax.default_backend()}."
        )
    rows = []
    for cell in cells:
        for size in sizes:
            problem = make_problem(Point(cell, size, "float32", "training"))
            for mode in MODES:
                options = OPTIONS[backend]
                calls = {name: _call(problem, mode, compiler_options=extra) for name, extra in options.items()}
                devices = jax.device_count()
                if devices > 1 and size.B % devices == 0:
                    calls |= {SPLIT: _split(problem, mode), MAPPED: _mapped(problem, mode)}
                seconds = interleave(calls, rounds=rounds, burst_seconds=burst_seconds)
                base = seconds[AS_IT_IS]["median"]
                for name in calls:
                    speedup = float(f"{base / seconds[name]['median']:.3g}")
                    row = {"cell": cell, **size._asdict(), "mode": mode, "setting": name}
                    rows.append(row | {"seconds": seconds[name], "speedup": speedup})
    return rows


def _loss(cell: Any, params: Any, state: Any, xs: Any) -> jax.Array:
    final, ys = rnnjax.unroll(cell, params, state, xs)
    return loss_of(ys, final)


def _function(cell: Any, mode: str) -> Callable[..., Any]:
    if mode == "training":
        return jax.grad(partial(_loss, cell), argnums=(0, 2))
    return partial(rnnjax.unroll, cell)


def _call(problem: Problem, mode: str, **options: Any) -> Callable[[], Any]:
    arguments = (problem.params, problem.state, problem.xs)
    compiled = jax.jit(_function(problem.cell, mode), **options).lower(*arguments).compile()
    return lambda: jax.block_until_ready(compiled(*arguments))


def _place(problem: Problem, kind: AxisType) -> tuple[Any, Any]:
    mesh = jax.make_mesh((jax.device_count(),), ("batch",), axis_types=(kind,))

    def put(tree: Any, *spec: str | None) -> Any:
        return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*spec)))

    return mesh, (put(problem.params), put(problem.state, "batch"), put(problem.xs, None, "batch"))


def _split(problem: Problem, mode: str) -> Callable[[], Any]:
    """The compiler splits the batch, and adds up gradients where they are needed."""
    _, arguments = _place(problem, AxisType.Auto)
    compiled = jax.jit(_function(problem.cell, mode)).lower(*arguments).compile()
    return lambda: jax.block_until_ready(compiled(*arguments))


def _mapped(problem: Problem, mode: str) -> Callable[[], Any]:
    """Each device runs its own loop over its rows; the gradients of the weights are added up once, at the end."""
    mesh, arguments = _place(problem, AxisType.Auto)
    rows, columns, everywhere = PartitionSpec("batch"), PartitionSpec(None, "batch"), PartitionSpec()

    def local(params: Any, state: Any, xs: Any) -> Any:
        if mode == "forward":
            return rnnjax.unroll(problem.cell, params, state, xs)
        d_params, d_xs = _function(problem.cell, mode)(params, state, xs)
        count = jax.device_count()  # a loss of means: that of the whole batch is the mean over the parts
        return jax.lax.pmean(d_params, "batch"), jax.tree.map(lambda d: d / count, d_xs)

    mapped = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(everywhere, rows, columns),
        out_specs=(rows, columns) if mode == "forward" else (everywhere, columns),
        check_vma=False,
    )
    compiled = jax.jit(mapped).lower(*arguments).compile()
    want = jax.jit(_function(problem.cell, mode))(problem.params, problem.state, problem.xs)
    for got, expected in zip(jax.tree.leaves(compiled(*arguments)), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5)
    return lambda: jax.block_until_ready(compiled(*arguments))
