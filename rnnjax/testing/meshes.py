"""The laws of a batch that lies on several devices: as many as there are, at most four."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rnnjax.engines.choice import UnfitError
from rnnjax.testing.problems import Case, Outcome, Problem, assert_close, fast_jit, make_problem, unroll_problem

__all__ = ["shard_map", "sharded"]

AXIS, ROWS, TIME = "batch", 4, 5


def sharded(case: Case) -> None:
    """On a mesh whose axes are automatic, and on one whose axes are explicit."""
    problem, specs, run, want = _answer(case.cell, case.input_size, case.implementation)
    for kind, where in ((AxisType.Auto, "a mesh with automatic axes"), (AxisType.Explicit, "one with explicit axes")):
        mesh = _mesh(kind)
        with jax.set_mesh(mesh) if kind is AxisType.Explicit else contextlib.nullcontext():
            places = jax.tree.map(lambda spec, mesh=mesh: NamedSharding(mesh, spec), specs)
            placed = jax.device_put(problem, places)
            got = _tried(f"on {where}", fast_jit(run), placed)
        rows = {shard.data.shape[1] for shard in got.ys.addressable_shards}
        if rows != {ROWS // mesh.size}:
            raise AssertionError(f"on {where} each of {mesh.size} devices has {rows} rows of ys, not its share")
        assert_close(jax.device_get(got), want)


def shard_map(case: Case) -> None:
    """Within `jax.shard_map` as it is by default, where it is known which arrays differ from device to device."""
    problem, specs, run, want = _answer(case.cell, case.input_size, case.implementation)
    gradients = (specs.params, (), specs.xs)  # that of what all devices share is summed over them
    outs: Any = Outcome._make((P(AXIS), P(None, AXIS), gradients))
    mapped = jax.shard_map(run, mesh=_mesh(AxisType.Auto), in_specs=(specs,), out_specs=outs)
    assert_close(_tried("within jax.shard_map", fast_jit(mapped), problem), want)


def _tried(where: str, run: Callable[[Problem], Outcome], problem: Problem) -> Any:
    try:
        return run(problem)
    except UnfitError:
        raise
    except Exception as error:  # JAX has no public class for what it says of arrays that do not lie alike
        raise AssertionError(f"{where} JAX says: {(str(error).splitlines() or [''])[0]}") from error


def _mesh(kind: AxisType) -> Mesh:
    count = 1 << min(len(jax.devices()), ROWS).bit_length() - 1  # a power of two divides the batch
    return jax.make_mesh((count,), (AXIS,), axis_types=(kind,), devices=jax.devices()[:count])


@functools.lru_cache(maxsize=1)  # both laws ask for it
def _answer(
    cell: Any, input_size: int, implementation: str
) -> tuple[Problem, Problem, Callable[[Problem], Outcome], Outcome]:
    """A problem that leaves the state to the library, where its arrays lie, what computes its outcome, and that."""
    problem = make_problem(cell, input_size, batch=(ROWS,), seq_len=TIME)._replace(state=None)
    shared, rows, columns = jax.tree.map(lambda _: P(), problem.params), P(AXIS), P(None, AXIS)
    specs = Problem._make((shared, None, columns, rows, columns, None))

    def loss(point: Any, problem: Problem) -> Any:
        params, xs = point
        state, ys = unroll_problem(cell, implementation, problem._replace(params=params, xs=xs))
        # Every number of an example has another cotangent, and none depends on the place of the example in the batch.
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves((ys, state))), (state, ys)

    def run(problem: Problem) -> Outcome:
        (d_params, d_xs), (state, ys) = jax.grad(loss, has_aux=True)((problem.params, problem.xs), problem)
        return Outcome(state, ys, (d_params, (), d_xs))

    return problem, specs, run, jax.device_get(fast_jit(run)(problem))
