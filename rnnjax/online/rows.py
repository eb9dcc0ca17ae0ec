"""States as rows, and a scan over the steps of a chunk that brings a trace forward beside the state."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cell import batch_shape
from rnnjax.network import start_state
from rnnjax.online.borders import Read

__all__ = ["each_step", "flatten_rows", "where_rows"]


def flatten_rows(cell: Any, state: Any) -> jax.Array:
    """A state with any batch axes as ``[B, S]``."""
    rows = math.prod(batch_shape(cell, state))
    return jnp.concatenate([leaf.reshape(rows, -1) for leaf in jax.tree.leaves(state)], axis=1)


def where_rows(mask: jax.Array, new: Any, old: Any) -> Any:
    """``new`` where the mask ``[B]`` is set and ``old`` elsewhere, for leaves ``[B, ...]``."""
    return jax.tree.map(lambda n, o: jnp.where(mask.reshape(-1, *(1,) * (n.ndim - 1)), n, o), new, old)


def each_step(
    cell: Any, forward: Callable[[Any, Any, jax.Array], tuple[Any, Any]], read: Read, state: Any, trace: Any
) -> Any:
    """The trace after all steps of a chunk.

    Args:
        cell: what runs.
        forward: ``(state, trace, x) -> (state, trace)``, one step, with the batch axes of the state; leaves of the
            trace are ``[B, ...]`` with all rows in one axis.
        read: what the cell reads.
        state: before the chunk.
        trace: before the chunk.
    """
    batch = batch_shape(cell, state)
    steps = jnp.arange(read.xs.shape[0])
    fresh = None if read.resets is None else start_state(cell, read.params, batch)

    def select(mask: jax.Array, new: Any, old: Any) -> Any:
        return jax.tree.map(
            lambda n, o: jnp.where(mask.reshape(*batch, *(1,) * (o.ndim - len(batch))), n.astype(o.dtype), o), new, old
        )

    def step(carry: Any, inputs: Any) -> tuple[Any, None]:
        state, trace = carry
        t, x, reset = inputs
        valid = None if read.lengths is None else t < read.lengths
        if reset is not None:
            restart = reset if valid is None else reset & valid
            state = select(restart, fresh, state)
            trace = where_rows(restart.reshape(-1), jax.tree.map(jnp.zeros_like, trace), trace)
        new_state, new_trace = forward(state, trace, x)
        if valid is not None:
            new_state = select(valid, new_state, state)
            new_trace = where_rows(valid.reshape(-1), new_trace, trace)
        return (new_state, new_trace), None

    (_, trace), _ = jax.lax.scan(step, (state, trace), (steps, read.xs, read.resets))
    return jax.lax.stop_gradient(trace)
