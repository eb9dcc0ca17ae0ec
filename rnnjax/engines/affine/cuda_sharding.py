"""Launches whose rows lie on several devices. A kernel treats every row alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

__all__ = ["by_rows"]

Axes = Sequence[int | None]


def by_rows(call: Callable[..., tuple[Any, ...]], axes_in: Axes, axes_out: Axes) -> Callable[..., tuple[Any, ...]]:
    """The same function, for arrays whose rows lie on several devices: each of them runs its own.

    Without this every device would run all rows, for XLA cannot look into a kernel.

    Args:
        call: of arrays, or None in the place of some.
        axes_in: of every argument, the axis of its rows; None for one that all rows share.
        axes_out: of every result, the axis of its rows; None for one that speaks of all of them.
    """
    if jax.device_count() == 1:
        return call

    def run(*args: Any) -> tuple[Any, ...]:
        given = [arg for arg in args if arg is not None]
        axes = [axis for arg, axis in zip(args, axes_in, strict=True) if arg is not None]
        present = [arg is not None for arg in args]

        def flat(*some: Any) -> tuple[Any, ...]:
            rest = iter(some)
            outs = call(*(next(rest) if here else None for here in present))
            return tuple(out for out in outs if out is not None)

        shapes = jax.eval_shape(call, *args)
        wanted = [axis for out, axis in zip(shapes, axes_out, strict=True) if out is not None]
        ranks = [out.ndim for out in shapes if out is not None]
        found = iter(_partitioned(flat, axes, [arg.ndim for arg in given], wanted, ranks)(*given))
        return tuple(None if out is None else next(found) for out in shapes)

    return run


def _partitioned(
    call: Callable[..., tuple[Any, ...]],
    axes_in: Axes,
    ranks_in: Sequence[int],
    axes_out: Axes,
    ranks_out: Sequence[int],
) -> Callable[..., tuple[Any, ...]]:
    # Einstein notation: "rows" is the one factor that all share, and every other axis is whole on every device.
    names = iter(f"f{i}" for i in range(10_000))
    others: list[str] = []

    def factors(axis: int | None, rank: int) -> str:
        here = ["rows" if k == axis else next(names) for k in range(rank)]
        others.extend(name for name in here if name != "rows")
        return " ".join(here)

    left = ", ".join(factors(axis, rank) for axis, rank in zip(axes_in, ranks_in, strict=True))
    right = ", ".join(factors(axis, rank) for axis, rank in zip(axes_out, ranks_out, strict=True))

    def shardings(mesh: Any, spec: Any, axes: Axes, ranks: Sequence[int]) -> tuple[NamedSharding, ...]:
        placed = zip(axes, ranks, strict=True)
        return tuple(
            NamedSharding(mesh, PartitionSpec(*(spec if k == a else None for k in range(r)))) for a, r in placed
        )

    def partition(mesh: Any, args: Any, results: Any) -> tuple[Any, ...]:
        del results
        spec = None
        for arg, axis in zip(args, axes_in, strict=True):
            if axis is not None and axis < len(arg.sharding.spec) and arg.sharding.spec[axis] is not None:
                spec = arg.sharding.spec[axis]
        whole = (shardings(mesh, spec, axes_out, ranks_out), shardings(mesh, spec, axes_in, ranks_in))
        return mesh, call, *whole

    run = custom_partitioning(call)
    run.def_partition(
        partition=partition,
        sharding_rule=f"{left} -> {right}",
        need_replication_factors=tuple(sorted(others, key=others.index)),
    )
    return run
