"""`jax.vmap` over a launch: a new axis becomes more rows of the batch, since a kernel treats every row alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

__all__ = ["over_rows"]

Axes = Sequence[int | None]


def over_rows(call: Callable[..., tuple[Any, ...]], axes_in: Axes, axes_out: Axes) -> Callable[..., tuple[Any, ...]]:
    """The same function, for any number of `jax.vmap` around it.

    Args:
        call: of arrays, or None in the place of some.
        axes_in: of every argument, the axis of its rows; None for one that all rows share.
        axes_out: of every result, the axis of its rows; None for one that speaks of all of them.
    """

    @custom_vmap
    def run(*args: Any) -> tuple[Any, ...]:
        return call(*args)

    def rule(size: int, batched: Sequence[Any], *args: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        moving = [arg is not None and bool(b) for arg, b in zip(args, batched, strict=True)]
        if any(m and axis is None for m, axis in zip(moving, axes_in, strict=True)):
            # Weights of their own for everyone: one launch after the other.

            def one(own: list[Any]) -> tuple[Any, ...]:
                rest = iter(own)
                return call(*(next(rest) if m else arg for arg, m in zip(args, moving, strict=True)))

            found = jax.lax.map(one, [arg for arg, m in zip(args, moving, strict=True) if m])
            return found, tuple(None if out is None else True for out in found)
        wide = []
        for arg, axis, b in zip(args, axes_in, batched, strict=True):
            if arg is None or axis is None:
                wide.append(arg)
                continue
            full = arg if b else jnp.broadcast_to(arg, (size, *arg.shape))
            moved = jnp.moveaxis(full, 0, axis)
            wide.append(moved.reshape(*moved.shape[:axis], -1, *moved.shape[axis + 2 :]))
        outs = over_rows(call, axes_in, axes_out)(*wide)
        split = tuple(
            out
            if out is None or axis is None
            else jnp.moveaxis(out.reshape(*out.shape[:axis], size, -1, *out.shape[axis + 1 :]), axis, 0)
            for out, axis in zip(outs, axes_out, strict=True)
        )
        return split, tuple(None if out is None else axis is not None for out, axis in zip(outs, axes_out, strict=True))

    run.def_vmap(rule)
    return run
