r"""The loops of an affine cell as XLA makes them from `jax.lax.scan`: the engine ``"fused"``.

Choices that were measured (LSTM, float32, training, two AMD EPYC cores with AVX-512, jax 0.10.2; T, B, I, H):

* Gates are separate arrays throughout: slicing a packed ``[.., G H]`` array inside the loop is slow on CPU.
* Of a gate that ``update`` sees only as ``zx + zh``, such as every gate of an LSTM, the sum is kept instead of
  both, and one cotangent serves both: passes over memory cost more than arithmetic.
* The backward pass calls `jax.vjp` on ``update`` from states and pre-activations. Stacking what ``jax.vjp`` saves in
  the forward pass takes more memory and was 1-25 % slower.
* All arrays are batch-major. Feature-major ones, ``w_hh.T @ h`` with ``h [H, B]``, make the matmul of a step up
  to 1.2 times faster for H >= 512, but the transposes around the large matmuls cost more: 1.3 times the time of
  batch-major at (64, 32, 65, 512), 1.6 at (50, 50, 65, 128), 1.1 at (32, 64, 512, 1024), 1.2 at (64, 16, 256, 256).
* The four gates of ``h @ w_hh`` as four matmuls, as one batched matmul, or against a transposed ``w_hh``, and
  ``[x, h] @ [w_ih; w_hh]`` as one matmul: none was faster than one matmul of ``h`` whose result is cut, except by
  chance at single shapes.
* What depends on sizes is in `rnnjax.engines.affine.rules`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cell import cast_like, matmul, split_gates, widen
from rnnjax.engines.affine.loops import Cotangents, Kept, Operands
from rnnjax.engines.affine.plan import Plan, Seen
from rnnjax.engines.affine.rules import backward_segment, projects_inside
from rnnjax.engines.choice import Job
from rnnjax.engines.placement import zeros as zeros_of
from rnnjax.engines.scan import select

__all__ = ["XlaLoops"]


@dataclasses.dataclass(frozen=True)
class XlaLoops:
    """Two calls of `jax.lax.scan`; see `rnnjax.engines.affine.loops.Loops`."""

    platform = None

    def fits(self, plan: Plan, job: Job) -> str:
        """They run every plan."""
        del plan, job
        return ""

    def segment(self, plan: Plan, operands: Operands) -> int | None:
        """See `rnnjax.engines.affine.rules.backward_segment`."""
        weights = (operands.w_ih, operands.w_hh)
        backend = jax.default_backend()
        return backward_segment(operands.xs, weights, plan.dtype, backend, keep_gates=plan.keep_gates)

    def forward(self, plan: Plan, operands: Operands, *, keep: bool) -> tuple[Any, jax.Array, Kept | None]:
        """All steps; with ``keep`` also the states before every one and, if the plan has it so, what it saw."""
        xs, w_ih, w_hh, b, own, state, controls = operands
        inside = projects_inside(xs, w_ih, plan.dtype, jax.default_backend())

        def step(state: Any, inputs: Any) -> tuple[Any, Any]:
            zx, valid, restart = inputs
            if inside:
                zx = split_gates(matmul(zx, w_ih, plan.dtype), plan.cell.num_gates)
            if restart is not None:
                state = select(restart, controls.fresh, state)
            zh = () if w_hh is None else split_gates(matmul(state.h, w_hh, plan.dtype), plan.cell.num_gates)
            seen = plan.see(zx, b, zh)
            wide, y = plan.update(own, widen(state, plan.dtype), seen)
            new_state = cast_like(wide, state)
            if valid is not None:
                new_state = select(valid, new_state, state)
            kept = (state, seen if plan.keep_gates else None) if keep else None
            return new_state, (y.astype(state.h.dtype), kept)

        inputs = (xs if inside else plan.project(xs, w_ih), controls.valid, controls.restarts)
        final, (ys, kept) = jax.lax.scan(step, state, inputs, reverse=plan.reverse)
        return final, ys, Kept(*kept) if keep else None

    def backward(self, plan: Plan, operands: Operands, kept: Kept, d_final: Any, d_ys: jax.Array) -> Cotangents:
        """All steps the other way, each by `jax.vjp` of the update."""
        xs, w_ih, w_hh, b, own, _, controls = operands
        states, seen = kept
        if seen is None:
            seen = plan.see(plan.project(xs, w_ih), b, () if w_hh is None else plan.project(states.h, w_hh))
        w_back = None if w_hh is None else w_hh.T  # transposed once, not at every step

        def step(carry: Any, inputs: Any) -> tuple[Any, Seen]:
            d_state, d_own, d_fresh = carry
            state, seen, d_y, valid, restart = inputs
            zeros = jax.tree.map(jnp.zeros_like, d_state)
            d_new = d_state if valid is None else select(valid, d_state, zeros)
            _, pull = jax.vjp(plan.update, own, widen(state, plan.dtype), seen)
            d_own_here, d_old, d_seen = pull((d_new, d_y.astype(plan.dtype)))
            d_own = jax.tree.map(lambda total, d: total + d.astype(plan.dtype), d_own, d_own_here)
            if w_back is not None:
                d_zh = jnp.concatenate([gate[-1] for gate in d_seen], axis=-1)
                d_old = d_old._replace(h=d_old.h + matmul(d_zh, w_back, plan.dtype))
            if valid is not None:
                d_old = select(valid, d_old, d_state)
            if restart is not None:
                d_fresh = jax.tree.map(jnp.add, d_fresh, select(restart, d_old, zeros))
                d_old = select(restart, zeros, d_old)
            return (d_old, d_own, d_fresh), d_seen

        d_own = [zeros_of(leaf, plan.dtype) for leaf in own]
        d_fresh = None if controls.resets is None else jax.tree.map(jnp.zeros_like, d_final)
        inputs = (states, seen, d_ys, controls.valid, controls.restarts)
        (d_state, d_own, d_fresh), d_seen = jax.lax.scan(
            step, (d_final, d_own, d_fresh), inputs, reverse=not plan.reverse
        )
        return Cotangents(d_state, d_own, d_fresh, d_seen)
