r"""The loops of an affine cell as a solver: all steps at once, by Newton's method over the whole sequence.

All states together are the root of ``S[t] - F(S[t-1], x[t])``. From a guess S, with ``D`` the derivative of F there,
the next one solves a recurrence that is linear, which an associative scan does in log2(T) passes (Lim et al., 2024;
Danieli et al., 2023):

    S'[t] = F(S[t-1]) + D[t] * (S'[t-1] - S[t-1])

A pointwise update couples a unit's own states alone, so ``D`` is a block of k by k a unit, for k states. Where the
recurrence has no matrix it is the whole derivative, and Newton's method converges quadratically. Where it has one, D
takes of ``w_hh`` the diagonal alone (Gonzalez et al., 2024): more iterations, and the more the farther units drive each
other; a recurrence that amplifies small differences (a positive Lyapunov exponent) takes as many as there are steps.

It ends when the residual ``|S - F(S)| / (1 + |F(S)|)`` is below the tolerance everywhere. If it is not within the
iterations allowed, or no number, the loop over the steps runs after all, in the same program; `rnnjax.analysis.newton`
tells.

Gradients: without ``w_hh`` the adjoint is the same recurrence with ``D`` transposed, one scan the other way. With it
the adjoint is dense, and the backward loop of `XlaLoops` runs, a step at a time.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cell import cast_like, widen
from rnnjax.checks import check_real, check_size
from rnnjax.engines.affine.loops import Cotangents, Kept, Operands
from rnnjax.engines.affine.plan import Plan
from rnnjax.engines.affine.program import Refusal
from rnnjax.engines.affine.xla import XlaLoops
from rnnjax.engines.choice import Controls, Job
from rnnjax.engines.scan import select

__all__ = ["Newton", "Solution", "solve"]

_XLA = XlaLoops()
# Blocks [T, k, k, *batch, H]: how state k of a unit follows its state j; sources and states [T, k, *batch, H]. In one
# array each, for a scan over lists of them had k * k times as many operations in each of its 2 log2(T) levels, and
# compiled for minutes.


class Solution(NamedTuple):
    """What the iteration came to."""

    before: Any  # the states before every step, as a reset has them: leaves [T, *batch, H]
    iterations: jax.Array
    residual: jax.Array  # at the last but one guess
    converged: jax.Array


@dataclasses.dataclass(frozen=True)
class Newton:
    """The loops, see `rnnjax.engines.affine.loops.Loops`: when they stop, and how much of the derivative they trust.

    Args:
        max_iters: at most so many iterations; by default 64.
        tolerance: of the residual; by default 1e-6, in float64 1e-12.
        damping: from 0, Newton's method, to 1, plain iteration: the derivative is taken times ``1 - damping``.

    Raises:
        ValueError: for numbers out of range.
    """

    max_iters: int = 64
    tolerance: float | None = None
    damping: float = 0.0
    platform = "any"  # what reverse mode alone cannot do with it goes to the loops of XLA

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_iters", check_size("Newton", "max_iters", self.max_iters))
        if self.tolerance is not None:
            object.__setattr__(self, "tolerance", check_real("Newton", "tolerance", self.tolerance, above=0.0))
        object.__setattr__(self, "damping", check_real("Newton", "damping", self.damping, least=0.0, most=1.0))

    def fits(self, plan: Plan, job: Job) -> str:
        """It needs an update that treats every unit alone, and states that are not rounded at every step."""
        if job.dtype is None or jnp.finfo(job.dtype).bits < 32:
            return f"needs a state in float32 or wider, got {job.dtype or 'several dtypes'}"
        program = plan.program()
        if isinstance(program, Refusal):
            return program.reason
        return ""

    def segment(self, plan: Plan, operands: Operands) -> int | None:
        """None where there is no ``w_hh``, else as the loops of XLA."""
        return None if operands.w_hh is None else _XLA.segment(plan, operands)

    def forward(self, plan: Plan, operands: Operands, *, keep: bool) -> tuple[Any, jax.Array, Kept | None]:
        """All steps at once, or one after the other where that does not converge."""
        if not operands.xs.shape[0]:
            return _XLA.forward(plan, operands, keep=keep)
        dtype = operands.state.h.dtype
        found = solve(plan, operands, self)

        def at_once() -> Any:
            seen = _see(plan, operands, found.before)
            new, ys = plan.update(operands.own, found.before, seen)
            valid, last = operands.controls.valid, 0 if plan.reverse else -1
            new = new if valid is None else select(valid, new, found.before)
            final = jax.tree.map(lambda a: a[last], new)
            return cast_like(final, operands.state), ys.astype(dtype), found.before

        def one_by_one() -> Any:
            final, ys, kept = _XLA.forward(plan, operands, keep=True)
            return final, ys, widen(kept.states, plan.dtype)  # type: ignore[union-attr]  # asked for

        final, ys, before = jax.lax.cond(found.converged, at_once, one_by_one)
        return final, ys, Kept(cast_like(before, operands.state), None) if keep else None

    def backward(self, plan: Plan, operands: Operands, kept: Kept, d_final: Any, d_ys: jax.Array) -> Cotangents:
        """One scan the other way where the recurrence has no matrix, else the loop of XLA."""
        if operands.w_hh is not None or not operands.xs.shape[0]:
            return _XLA.backward(plan, operands, kept, d_final, d_ys)
        before, d_ys = widen(kept.states, plan.dtype), d_ys.astype(plan.dtype)
        seen, own = _see(plan, operands, before), widen(operands.own, plan.dtype)
        _, pull = jax.vjp(plan.update, own, before, seen)
        blocks = _derivative(plan, operands, before, seen)[1]
        controls = operands.controls
        source = _stack(pull((jax.tree.map(jnp.zeros_like, before), d_ys))[1])
        transposed, source = _with_controls(controls, jnp.swapaxes(blocks, 1, 2), source)
        # Of the state before each step, from those after it: time runs the other way.
        start = _stack(widen(d_final, plan.dtype), 0)
        d_before = _linear(transposed, source, start, reverse=not plan.reverse)
        d_new = _unstack(before, _shift(d_before, start, not plan.reverse))
        if controls.valid is not None:
            d_new = select(controls.valid, d_new, jax.tree.map(jnp.zeros_like, d_new))
        d_own, d_old, d_seen = pull((d_new, d_ys))
        first = -1 if plan.reverse else 0
        d_state = jax.tree.map(lambda d: d[first], _unstack(before, d_before))
        d_fresh = None
        if (restarts := controls.restarts) is not None:
            only = select(restarts, d_old, jax.tree.map(jnp.zeros_like, d_old))
            d_fresh = jax.tree.map(lambda d: jnp.sum(d, axis=0), only)
        return Cotangents(d_state, d_own, d_fresh, d_seen)


def solve(plan: Plan, operands: Operands, options: Newton) -> Solution:
    """The states before every step, in the dtype of the plan, and how good they are."""
    state, controls = widen(operands.state, plan.dtype), operands.controls
    length = operands.xs.shape[0]
    repeat = functools.partial(jax.tree.map, lambda a: jnp.broadcast_to(a, (length, *a.shape)))
    fresh = None if controls.resets is None else repeat(widen(controls.fresh, plan.dtype))
    tolerance = options.tolerance or (1e-12 if jnp.finfo(plan.dtype).bits > 32 else 1e-6)
    zx = plan.project(operands.xs, operands.w_ih)  # once: it does not change

    def before(guess: Any) -> Any:
        """The state before every step, from those after it."""
        moved = jax.tree.map(lambda a, s: _shift(a, s, plan.reverse), guess, state)
        return moved if controls.restarts is None else select(controls.restarts, fresh, moved)

    def improved(guess: Any) -> tuple[Any, jax.Array]:
        """A better guess, and the residual of this one."""
        old = before(guess)
        seen = _see(plan, operands, old, zx)
        (new, _), blocks = _derivative(plan, operands, old, seen, 1.0 - options.damping)
        new = new if controls.valid is None else select(controls.valid, new, old)
        now, news, olds = _stack(guess), _stack(new), _stack(old)
        gap = jnp.abs(now - news) / (1 + jnp.abs(news))
        known = jnp.all(jnp.isfinite(gap))  # a maximum may lose a NaN
        source = news - jnp.sum(blocks * olds[:, None], axis=2)
        blocks, source = _with_controls(controls, blocks, source, news)
        # Before the first step the state is known.
        first = slice(-1, None) if plan.reverse else slice(0, 1)
        blocks, source = blocks.at[first].set(0.0), source.at[first].set(news[first])
        better = _linear(blocks, source, jnp.zeros_like(source[0]), reverse=plan.reverse)
        return _unstack(guess, better), jnp.where(known, jnp.max(gap, initial=0.0), jnp.inf)

    def going(carry: Any) -> jax.Array:
        _, residual, n = carry
        return ~(residual <= tolerance) & jnp.isfinite(residual) & (n < options.max_iters)

    def again(carry: Any) -> Any:
        guess, _, n = carry
        return *improved(guess), n + 1

    guess, residual = improved(repeat(state))
    guess, residual, n = jax.lax.while_loop(going, again, (guess, residual, jnp.ones((), jnp.int32)))
    return Solution(before(guess), n, residual, residual <= tolerance)


def _see(plan: Plan, operands: Operands, before: Any, zx: Any = None) -> Any:
    """What the update sees at every step, from the states before them."""
    if zx is None:
        zx = plan.project(operands.xs, operands.w_ih)
    zh = () if operands.w_hh is None else plan.project(before.h, operands.w_hh)
    return plan.see(zx, operands.b, zh)


def _derivative(plan: Plan, operands: Operands, before: Any, seen: Any, share: float = 1.0) -> tuple[Any, jax.Array]:
    """``(new, y)`` of all steps, and ``share`` times how a unit's states follow its own."""
    leaves, treedef = jax.tree.flatten(before)
    size, place = len(leaves), next(j for j, leaf in enumerate(leaves) if leaf is before.h)

    def along(leaf: jax.Array, scale: jax.Array | float, j: int) -> jax.Array:
        """``scale`` along direction j of all, and zero along the others."""
        ways = jnp.arange(size).reshape(-1, *(1,) * leaf.ndim) == j
        return jnp.broadcast_to(jnp.where(ways, scale, jnp.zeros((), leaf.dtype)), (size, *leaf.shape))

    def moved(leaves: list[jax.Array], seen: Any) -> Any:
        return plan.update(operands.own, jax.tree.unflatten(treedef, leaves), seen)

    seen_along = jax.tree.map(lambda z: along(z, 0.0, 0), seen)
    if operands.w_hh is not None:
        diagonals = [jnp.diagonal(w).astype(plan.dtype) for w in jnp.split(operands.w_hh, plan.cell.num_gates, axis=1)]
        last = [along(gate[-1], d.reshape(*(1,) * gate[-1].ndim, -1), place) for gate, d in zip(seen, diagonals)]
        seen_along = tuple((*gate[:-1], z) for gate, z in zip(seen_along, last, strict=True))
    out, push = jax.linearize(moved, leaves, seen)
    new, _ = jax.vmap(push)([along(leaf, jnp.ones((), leaf.dtype), j) for j, leaf in enumerate(leaves)], seen_along)
    return out, share * jnp.moveaxis(_stack(new), (0, 1), (2, 1))  # from [j, k, T, ...]


def _stack(tree: Any, axis: int = 1) -> jax.Array:
    """The states of a tree as one array."""
    return jnp.stack(jax.tree.leaves(tree), axis)


def _unstack(like: Any, array: jax.Array) -> Any:
    """The tree of an array ``[T, k, *batch, H]``."""
    return jax.tree.unflatten(jax.tree.structure(like), [array[:, k] for k in range(array.shape[1])])


def _with_controls(
    controls: Controls, blocks: jax.Array, source: jax.Array, restarted: jax.Array | float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Steps that restart follow nothing before them, and steps that are not valid change nothing."""

    def mask(steps: jax.Array, array: jax.Array) -> jax.Array:
        return steps.reshape(steps.shape[0], *(1,) * (array.ndim - steps.ndim - 1), *steps.shape[1:], 1)

    if (restarts := controls.restarts) is not None:
        blocks = jnp.where(mask(restarts, blocks), 0.0, blocks)
        source = jnp.where(mask(restarts, source), restarted, source)
    if (valid := controls.valid) is not None:
        stays = jnp.eye(blocks.shape[1], dtype=blocks.dtype).reshape(1, *blocks.shape[1:3], *(1,) * (blocks.ndim - 3))
        blocks = jnp.where(mask(valid, blocks), blocks, stays)
        source = jnp.where(mask(valid, source), source, 0.0)
    return blocks, source


def _linear(blocks: jax.Array, source: jax.Array, start: jax.Array, *, reverse: bool) -> jax.Array:
    """All states of ``s[t] = blocks[t] @ s[t-1] + source[t]``, a system of k numbers for every unit."""
    size = source.shape[1]
    first = slice(-1, None) if reverse else slice(0, 1)
    source = source.at[first].add(jnp.sum(blocks[first] * start[None, None], axis=2))

    def after(earlier: Any, later: Any) -> Any:
        (a1, b1), (a2, b2) = earlier, later
        product = sum(a2[:, :, m, None] * a1[:, None, m] for m in range(size))
        found = product, sum((a2[:, :, m] * b1[:, None, m] for m in range(size)), b2)
        # XLA would fuse the products of a level into those of the next, again and again.
        return found if size == 1 else jax.lax.optimization_barrier(found)

    found: jax.Array = jax.lax.associative_scan(after, (blocks, source), reverse=reverse)[1]
    return found


def _shift(after: jax.Array, start: jax.Array, reverse: bool) -> jax.Array:
    """The state before every step, from those after it and that before the first."""
    return jnp.concatenate([after[1:], start[None]] if reverse else [start[None], after[:-1]])
