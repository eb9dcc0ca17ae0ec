"""The reference: a plain `jax.lax.scan` over the cell's step, differentiated by JAX itself."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.engines.choice import Controls, Job

__all__ = ["checkpointed", "in_segments", "no_named_remat", "select", "unroll_scan"]


def select(mask: jax.Array, new: Any, old: Any) -> Any:
    """``new`` where the mask ``[*batch]`` is set and ``old`` elsewhere, for every leaf ``[*batch, ...]``."""
    return jax.tree.map(lambda n, o: jnp.where(mask.reshape(mask.shape + (1,) * (n.ndim - mask.ndim)), n, o), new, old)


def unroll_scan(
    cell: Any,
    params: Any,
    state: Any,
    xs: jax.Array,
    controls: Controls,
    *,
    reverse: bool = False,
    remat: bool | int | None = None,
) -> tuple[Any, jax.Array]:
    """Steps through time with `jax.lax.scan`; forward mode, reverse mode and higher orders all work.

    Args:
        cell: any cell.
        params: its parameters.
        state: the state before the first step.
        xs: ``[T, *batch, I]``.
        controls: masks and resets, see `Controls`.
        reverse: whether time runs from the last step to the first.
        remat: None keeps what every step leaves for its backward pass; True keeps the states of about
            ``sqrt(T)`` segments and computes each segment again; an int is the length of a segment.

    Returns:
        The final state, and ``ys [T, *batch, H]``.
    """
    fresh = controls.fresh

    def step(state, inputs):
        x, valid, restart, noise = inputs
        if restart is not None:
            state = select(restart, fresh, state)
        new_state, y = cell.step(params, state, x) if noise is None else cell.step(params, state, x, noise)
        if valid is not None:
            new_state = select(valid, new_state, state)
        return new_state, y

    def run(state, inputs, reverse=False):
        return jax.lax.scan(step, state, inputs, reverse=reverse)

    inputs = (xs, controls.valid, controls.restarts, controls.noise)
    return checkpointed(run, state, inputs, remat, reverse)


def no_named_remat(job: Job) -> str:
    """What an engine answers that has no names of its own for ``remat``."""
    return f"needs remat to be None, True or an int, got {job.remat!r}" if isinstance(job.remat, str) else ""


def checkpointed(
    run: Callable[..., tuple[Any, jax.Array]], state: Any, inputs: Any, remat: bool | int | str | None, reverse: bool
) -> tuple[Any, jax.Array]:
    """``run(state, inputs, reverse)``, with ``remat`` by segments that keep only the state they start from."""
    length = inputs[0].shape[0]
    if not remat or isinstance(remat, str) or length < 2:  # a name is the engine's own affair
        return run(state, inputs, reverse)
    segment = math.isqrt(length - 1) + 1 if remat is True else min(remat, length)
    run = jax.checkpoint(functools.partial(run, reverse=reverse), prevent_cse=False)
    return in_segments(run, state, inputs, segment, reverse)


def in_segments(
    run: Callable[[Any, Any], tuple[Any, jax.Array]], state: Any, inputs: Any, segment: int | None, reverse: bool
) -> tuple[Any, jax.Array]:
    """``run(state, inputs)`` over segments of the leading axis, in a loop, and over what is left in one more call.

    Args:
        run: goes through its inputs in the direction of ``reverse``.
        state: what ``run`` hands on, from one segment to the next.
        inputs: arrays ``[T, ...]``.
        segment: the steps of a segment; None for all of them at once.
        reverse: whether the last segment comes first.
    """
    length = jax.tree.leaves(inputs)[0].shape[0]
    if segment is None:
        return run(state, inputs)
    whole = length // segment * segment
    folded = jax.tree.map(lambda a: a[:whole].reshape(whole // segment, segment, *a.shape[1:]), inputs)
    rest = jax.tree.map(lambda a: a[whole:], inputs)
    if reverse and whole < length:
        state, ys_rest = run(state, rest)
    state, ys = jax.lax.scan(run, state, folded, reverse=reverse)
    ys = ys.reshape(whole, *ys.shape[2:])
    if not reverse and whole < length:
        state, ys_rest = run(state, rest)
    return state, jnp.concatenate([ys, ys_rest]) if whole < length else ys
