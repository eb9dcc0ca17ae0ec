"""The backward pass around the loop of an engine: segments, the gradients of weights and inputs, casts."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cell import cast_like, matmul, split_gates, widen
from rnnjax.engines.affine.loops import Finished, Kept, Loops, Operands
from rnnjax.engines.affine.plan import Gates, Plan, Seen, packs_gates
from rnnjax.engines.choice import Controls
from rnnjax.engines.placement import zeros as zeros_of
from rnnjax.engines.scan import in_segments

__all__ = ["backward", "weight_cotangent"]


def backward(loops: Loops, plan: Plan, operands: Operands, kept: Kept, d_final: Any, d_ys: jax.Array) -> Operands:
    """The cotangents of all operands; those of masks are None."""
    controls = operands.controls
    segment = loops.segment(plan, operands)
    if not plan.keep_gates:
        # Not before the cotangents are there: computed early they would be kept after all.
        xs, kept, d_final, d_ys = jax.lax.optimization_barrier((operands.xs, kept, d_final, d_ys))
        operands = operands._replace(xs=xs)

    def some_steps(carry: Any, inputs: Any) -> tuple[Any, jax.Array]:
        """Some steps, and what they add to the gradients of what is the same at all steps."""
        d_state, sums = carry
        xs, kept, d_ys, valid, resets = inputs
        here = operands._replace(xs=xs, controls=Controls(valid, resets, controls.fresh))
        found = loops.backward(plan, here, kept, d_state, d_ys)
        finished = found.seen if isinstance(found.seen, Finished) else _finish(plan, here, kept, found.seen)
        here_sums = (finished[:3], found.own, found.fresh)
        return (found.state, jax.tree.map(jnp.add, sums, here_sums)), finished.xs.astype(xs.dtype)

    d_final = widen(d_final, plan.dtype)
    shared = (operands[1:4], operands.own)
    sums = jax.tree.map(lambda leaf: zeros_of(leaf, plan.dtype), shared)
    d_fresh = None if controls.resets is None else jax.tree.map(jnp.zeros_like, d_final)
    inputs = (operands.xs, kept, d_ys, controls.valid, controls.resets)
    end, d_xs = in_segments(some_steps, (d_final, (*sums, d_fresh)), inputs, segment, reverse=not plan.reverse)
    d_state, (d_weights, d_own, d_fresh) = end
    w_ih, w_hh, b = cast_like(d_weights, shared[0])
    return Operands(
        d_xs,
        w_ih,
        w_hh,
        b,
        cast_like(d_own, operands.own),
        cast_like(d_state, operands.state),
        Controls(None, None, None if d_fresh is None else cast_like(d_fresh, controls.fresh)),
    )


def _finish(plan: Plan, operands: Operands, kept: Kept, d_seen: Seen) -> Finished:
    """The gradients of weights and inputs: matmuls over all steps."""
    xs, w_ih, w_hh, *_ = operands
    d_zx = tuple(gate[0] for gate in d_seen)
    d_zh = tuple(gate[-1] for gate in d_seen)
    blocks = split_gates(w_ih, plan.cell.num_gates)
    if packs_gates():
        d_zx, d_zh = ((jnp.concatenate(gates, axis=-1),) for gates in (d_zx, d_zh))
        blocks = (w_ih,)
    return Finished(
        weight_cotangent(xs, d_zx, w_ih, plan.dtype),
        None if w_hh is None else weight_cotangent(kept.states.h, d_zh, w_hh, plan.dtype),
        jnp.concatenate([jnp.sum(d, axis=range(d.ndim - 1)) for d in d_zx]),
        functools.reduce(jnp.add, (matmul(d, w.T, plan.dtype) for d, w in zip(d_zx, blocks, strict=True))),
    )


def weight_cotangent(a: jax.Array, d_gates: Gates, w: jax.Array, dtype: Any) -> jax.Array:
    """``sum_t a[t].T @ d[t]`` for every gate: that of ``w [K, G H]`` from ``a [T, *batch, K]``."""
    rows = jnp.moveaxis(a.astype(w.dtype), -1, 0)  # [K, T, *batch]
    if jax.default_backend() == "cpu":
        # Keeps XLA from folding the transpose into the matmul, which then takes 1.2 to 1.6 times as long.
        rows = jax.lax.optimization_barrier(rows)
    summed = tuple(range(a.ndim - 1))
    dims = ((tuple(axis + 1 for axis in summed), summed), ((), ()))
    # The sum runs over the batch; under explicit sharding of that, JAX must be told what the result has.
    dot = functools.partial(jax.lax.dot_general, preferred_element_type=dtype, out_sharding=jax.typeof(w).sharding)
    return jnp.concatenate([dot(rows, d.astype(w.dtype), dims) for d in d_gates], axis=-1)
