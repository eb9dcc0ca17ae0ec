r"""The loops of an affine cell as one Pallas kernel each, for TPUs: the engine ``"pallas"``.

The grid runs over time, one step after the other. ``w_hh`` and the parameters of the update have a constant index map,
so they are brought into the fast memory once; states are kept in scratch from step to step; what belongs to a step
comes and goes while others are computed. The update is traced within the kernel, and so is its pull (`jax.vjp`), which
is why any update is taken that Pallas can lower: of layer norms, too. It has run on no TPU yet; tests run it in
Pallas' interpreter, and lower it for a TPU. It is used when named.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cell import cast_like, matmul, param_shapes, split_gates, widen
from rnnjax.engines.affine.loops import Cotangents, Kept, Operands
from rnnjax.engines.affine.plan import Plan
from rnnjax.engines.choice import Controls, Job
from rnnjax.engines.scan import select

__all__ = ["PallasLoops"]

_FAST_BYTES = 12 * 2**20  # of the 16 MB that a kernel has unless told otherwise


@dataclasses.dataclass(frozen=True)
class PallasLoops:
    """Two kernels; see `rnnjax.engines.affine.loops.Loops`.

    Attributes:
        interpret: whether Pallas' interpreter runs them, on any backend.
    """

    interpret: bool = False

    @property
    def platform(self) -> str | None:
        """Where the kernels can be compiled."""
        return "any" if self.interpret else "tpu"

    def fits(self, plan: Plan, job: Job) -> str:
        """Whether there is a TPU, room in its fast memory, and a way to lower the update."""
        return _fits(self, plan, job)

    def segment(self, plan: Plan, operands: Operands) -> int | None:
        """All steps at once."""
        del plan, operands
        return None

    def forward(self, plan: Plan, operands: Operands, *, keep: bool) -> tuple[Any, jax.Array, Kept | None]:
        """One kernel."""
        from jax.experimental import pallas as pl  # takes a while, and few need it

        steps, batch = operands.xs.shape[0], operands.xs.shape[1:-1]
        if 0 in (steps, *batch):
            states = jax.tree.map(lambda s: jnp.zeros((steps, *s.shape), s.dtype), operands.state)
            seen = jnp.zeros((steps, *batch, _slots(plan) * plan.cell.hidden_size), plan.dtype)
            ys = jnp.zeros((steps, *batch, plan.cell.hidden_size), operands.state.h.dtype)
            return operands.state, ys, Kept(states, seen) if keep else None
        rows, size, dtype = math.prod(batch), plan.cell.hidden_size, operands.state.h.dtype
        w_hh, own, state = operands.w_hh, operands.own, _rows(operands.state, rows)
        leaves = jax.tree.leaves(state)
        tree: Any = jax.tree.structure(state)
        zx = matmul(operands.xs, operands.w_ih, plan.dtype) + operands.b.astype(plan.dtype)
        flags, fresh = _masks(operands, rows)

        def kernel(zx_ref: Any, flags_ref: Any, *refs: Any) -> None:
            w_refs, own_refs, first, fresh_refs, refs = _take(refs, 1, len(own), len(leaves), len(fresh))
            ys_ref, end, refs = _take(refs, 1, len(leaves))
            kept, seen_refs, carry = _take(refs, len(leaves) if keep else 0, 1 if keep else 0)

            @pl.when(pl.program_id(0) == 0)
            def _() -> None:
                for to, leaf in zip(carry, first, strict=True):
                    to[...] = leaf[...]

            state = tree.unflatten([ref[...] for ref in carry])
            valid, restart = _read(flags_ref)
            if fresh:
                state = select(restart, tree.unflatten([ref[...] for ref in fresh_refs]), state)
            zh = split_gates(matmul(state.h, w_refs[0][...], plan.dtype), plan.cell.num_gates)
            seen = _see(plan, split_gates(zx_ref[0], plan.cell.num_gates), zh)
            wide, y = plan.update(_own(own_refs, own), widen(state, plan.dtype), seen)
            new = select(valid, cast_like(wide, state), state)
            ys_ref[0][0] = y.astype(dtype)
            if keep:
                for ref, leaf in zip(kept, jax.tree.leaves(state), strict=True):
                    ref[0] = leaf
                seen_refs[0][0] = jnp.concatenate([slot for gate in seen for slot in gate], axis=-1)
            for ref, last, leaf in zip(carry, end, jax.tree.leaves(new), strict=True):
                ref[...] = last[...] = leaf

        at = _time(plan.reverse, steps)
        whole = [_whole(a) for a in (w_hh, *map(_flat, own), *leaves, *fresh)]
        step = functools.partial(_step, at)
        outs = [jax.ShapeDtypeStruct((steps, rows, size), dtype), *leaves]
        specs = [step(rows, size), *map(_whole, leaves)]
        if keep:
            outs += [jax.ShapeDtypeStruct((steps, rows, size), leaf.dtype) for leaf in leaves]
            outs += [jax.ShapeDtypeStruct((steps, rows, _slots(plan) * size), plan.dtype)]
            specs += [step(rows, size)] * len(leaves) + [step(rows, _slots(plan) * size)]
        found = self._call(
            kernel, steps, [step(rows, zx.shape[-1]), step(rows, 1), *whole], specs, outs, leaves,
            zx.reshape(steps, rows, -1), flags, w_hh, *map(_flat, own), *leaves, *fresh,
        )  # fmt: skip
        ys, final, rest = found[0], found[1 : 1 + len(leaves)], found[1 + len(leaves) :]
        final = tree.unflatten([a.reshape(*batch, size) for a in final])
        kept = None
        if keep:
            *states, seen = (a.reshape(steps, *batch, -1) for a in rest)
            kept = Kept(tree.unflatten(states), seen)
        return final, ys.reshape(steps, *batch, size), kept

    def backward(self, plan: Plan, operands: Operands, kept: Kept, d_final: Any, d_ys: jax.Array) -> Cotangents:
        """One kernel, the other way."""
        from jax.experimental import pallas as pl

        steps, batch = operands.xs.shape[0], operands.xs.shape[1:-1]
        rows, size, dtype = math.prod(batch), plan.cell.hidden_size, plan.dtype
        w_hh, own = operands.w_hh, operands.own
        if 0 in (steps, *batch):
            zeros = [jnp.zeros(leaf.shape, dtype) for leaf in own]
            d_fresh = None if operands.controls.resets is None else jax.tree.map(jnp.zeros_like, d_final)
            return Cotangents(d_final, zeros, d_fresh, _split_seen(plan, jnp.zeros_like(kept.rest)))
        d_leaves = jax.tree.leaves(_rows(d_final, rows))
        tree: Any = jax.tree.structure(d_final)
        states = [a.reshape(steps, rows, size) for a in jax.tree.leaves(kept.states)]
        flags, fresh = _masks(operands, rows)
        count = len(d_leaves)

        def kernel(seen_ref: Any, dy_ref: Any, flags_ref: Any, *refs: Any) -> None:
            state_refs, w_refs, own_refs, first, refs = _take(refs, count, 1, len(own), count)
            d_seen_ref, end, d_own_refs, d_fresh_refs, carry = _take(refs, 1, count, len(own), len(fresh))

            @pl.when(pl.program_id(0) == 0)
            def _() -> None:
                for to, leaf in zip(carry, first, strict=True):
                    to[...] = leaf[...]
                for ref in (*d_own_refs, *d_fresh_refs):
                    ref[...] = jnp.zeros_like(ref)

            d_state = tree.unflatten([ref[...] for ref in carry])
            state = tree.unflatten([ref[0].astype(dtype) for ref in state_refs])
            valid, restart = _read(flags_ref)
            zeros = jax.tree.map(jnp.zeros_like, d_state)
            update: Any = plan.update
            _, pull = jax.vjp(update, _own(own_refs, own, dtype), state, _split_seen(plan, seen_ref[0]))
            d_y = jnp.where(valid[:, None], dy_ref[0].astype(dtype), 0)
            d_own, d_old, d_seen = pull((select(valid, d_state, zeros), d_y))
            d_zh = jnp.concatenate([gate[-1] for gate in d_seen], axis=-1)
            d_old = d_old._replace(h=d_old.h + _back(d_zh, w_refs[0][...], dtype))
            d_old = select(valid, d_old, d_state)
            d_seen_ref[0][0] = jnp.concatenate([slot for gate in d_seen for slot in gate], axis=-1)
            for ref, d in zip(d_own_refs, d_own, strict=True):
                ref[...] += d.reshape(ref.shape)
            if fresh:
                for ref, d in zip(d_fresh_refs, jax.tree.leaves(select(restart, d_old, zeros)), strict=True):
                    ref[...] += d
                d_old = select(restart, zeros, d_old)
            for ref, last, leaf in zip(carry, end, jax.tree.leaves(d_old), strict=True):
                ref[...] = last[...] = leaf

        step = functools.partial(_step, _time(not plan.reverse, steps))
        wide = _slots(plan) * size
        flat = [_flat(leaf).astype(dtype) for leaf in own]
        outs = [jax.ShapeDtypeStruct((steps, rows, wide), dtype), *d_leaves, *flat, *(d_leaves if fresh else ())]
        specs = [step(rows, wide), *map(_whole, outs[1:])]
        taken = [step(rows, wide), step(rows, size), step(rows, 1), *[step(rows, size)] * count]
        taken += map(_whole, (w_hh, *flat, *d_leaves))
        found = self._call(
            kernel, steps, taken, specs, outs, d_leaves,
            kept.rest.reshape(steps, rows, wide), d_ys.reshape(steps, rows, size), flags, *states, w_hh, *flat,
            *d_leaves,
        )  # fmt: skip
        (d_seen,), d_state, d_own, d_fresh, _ = _take(found, 1, count, len(own), len(fresh))
        shape = functools.partial(jax.tree.map, lambda a: a.reshape(*batch, size))
        return Cotangents(
            shape(tree.unflatten(d_state)),
            [d.reshape(leaf.shape) for d, leaf in zip(d_own, own, strict=True)],
            shape(tree.unflatten(d_fresh)) if fresh else None,
            _split_seen(plan, d_seen.reshape(steps, *batch, wide)),
        )

    def _call(
        self, kernel: Callable[..., None], steps: int, in_specs: Any, out_specs: Any, outs: Any, carry: Any, *args: Any
    ) -> Any:
        from jax.experimental import pallas as pl
        from jax.experimental.pallas import tpu as pltpu

        shapes = [jax.ShapeDtypeStruct(out.shape, out.dtype) for out in outs]
        call = pl.pallas_call(
            kernel,
            grid=(steps,),
            in_specs=in_specs,
            out_specs=out_specs,
            out_shape=shapes,
            scratch_shapes=[pltpu.VMEM(leaf.shape, leaf.dtype) for leaf in carry],
            interpret=self.interpret,
        )
        return call(*args)


@functools.lru_cache(maxsize=512)
def _fits(loops: PallasLoops, plan: Plan, job: Job) -> str:
    if job.backend != "tpu" and not loops.interpret:
        return f"needs a TPU, got the backend {job.backend!r}"
    if not plan.summed:
        return "needs a cell with a recurrent matrix w_hh"
    if job.dtype is None or job.param_dtype is None:
        return "needs one dtype for the parameters and one for the state"
    size, gates, rows = plan.cell.hidden_size, plan.cell.num_gates, math.prod(job.batch)
    state = jax.eval_shape(lambda: plan.cell.initial_state(job.batch))
    if any(leaf.shape != (*job.batch, size) for leaf in jax.tree.leaves(state)):
        return "needs a state whose leaves are all [*batch, H]"
    if loops.interpret:
        return ""
    if plan.dtype != jnp.float32:
        return f"needs a state of float32 or narrower, got {job.dtype}"
    taken = size * gates * size * job.param_dtype.itemsize
    taken += 16 * rows * size * (gates + len(jax.tree.leaves(state)))
    if taken > _FAST_BYTES:
        return f"needs {_FAST_BYTES >> 20} MB for weights and a step, got {taken >> 20} MB with H = {size}, {rows} rows"
    return _lowers(loops, plan, job)


def _lowers(loops: PallasLoops, plan: Plan, job: Job) -> str:
    """Whether both kernels can be lowered for a TPU; none is needed for that."""

    def both(operands: Operands) -> Any:
        final, ys, kept = loops.forward(plan, operands, keep=True)
        return kept and loops.backward(plan, operands, kept, widen(final, plan.dtype), ys)

    try:
        jax.jit(both).trace(example(plan, job)).lower(lowering_platforms=("tpu",))
    except Exception as error:  # Mosaic raises many kinds for what it cannot do, and a refusal is an answer
        return f"needs an update that Pallas lowers for a TPU ({(str(error).splitlines() or [''])[0][:120]})"
    return ""


def example(plan: Plan, job: Job) -> Operands:
    """Operands of a job, as shapes and dtypes."""
    shape: Any = jax.ShapeDtypeStruct
    params = param_shapes(plan.cell, job.input_size, job.param_dtype)
    state = jax.eval_shape(lambda: plan.cell.initial_state(job.batch, job.dtype))
    masks = shape((job.steps, *job.batch), jnp.bool)
    xs = shape((job.steps, *job.batch, job.input_size), job.input_dtype)
    b = shape(params.w_ih.shape[1:], params.w_ih.dtype)  # also where the cell has none
    return Operands(xs, params.w_ih, params.w_hh, b, plan.own(params), state, Controls(masks, masks, state))


def _slots(plan: Plan) -> int:
    return sum(1 if together else 2 for together in plan.summed)


def _see(plan: Plan, zx: Any, zh: Any) -> Any:
    return tuple((x + h,) if s else (x, h) for x, h, s in zip(zx, zh, plan.summed, strict=True))


def _split_seen(plan: Plan, seen: jax.Array) -> Any:
    slots = iter(split_gates(seen, _slots(plan)))
    return tuple((next(slots),) if s else (next(slots), next(slots)) for s in plan.summed)


def _masks(operands: Operands, rows: int) -> tuple[jax.Array, list[jax.Array]]:
    """``[T, B, 1]``: 1 for a valid step, 2 more for a restart; and the leaves of the state of a restart."""
    controls, steps = operands.controls, operands.xs.shape[0]
    valid = jnp.ones((steps, rows), jnp.int32)
    if controls.valid is not None:
        valid = controls.valid.reshape(steps, rows).astype(jnp.int32)
    if controls.resets is None:
        return valid[..., None], []
    flags = valid + 2 * valid * controls.resets.reshape(steps, rows)
    fresh = jax.tree.map(lambda f, s: jnp.broadcast_to(f, s.shape).astype(s.dtype), controls.fresh, operands.state)
    return flags[..., None], jax.tree.leaves(_rows(fresh, rows))


def _read(flags_ref: Any) -> tuple[jax.Array, jax.Array]:
    flags = flags_ref[0][:, 0]
    return (flags & 1) == 1, flags >= 2


def _rows(tree: Any, rows: int) -> Any:
    return jax.tree.map(lambda a: a.reshape(rows, a.shape[-1]), tree)


def _flat(leaf: jax.Array) -> jax.Array:
    return leaf.reshape(1, -1)


def _own(refs: Any, own: list[jax.Array], dtype: Any = None) -> list[jax.Array]:
    return [ref[...].reshape(leaf.shape).astype(dtype or leaf.dtype) for ref, leaf in zip(refs, own, strict=True)]


def _back(d_zh: jax.Array, w: jax.Array, dtype: Any) -> jax.Array:
    """``d_zh @ w.T``."""
    return jax.lax.dot_general(d_zh.astype(w.dtype), w, (((1,), (1,)), ((), ())), preferred_element_type=dtype)


def _take(items: Any, *counts: int) -> Any:
    """Cuts a sequence into pieces of so many, and the rest."""
    pieces, at = [], 0
    for count in counts:
        pieces.append(items[at : at + count])
        at += count
    return (*pieces, items[at:])


def _time(reverse: bool, steps: int) -> Callable[[Any], Any]:
    return (lambda i: steps - 1 - i) if reverse else (lambda i: i)


def _step(at: Callable[[Any], Any], rows: int, width: int) -> Any:
    """The part of ``[T, rows, width]`` that belongs to a step."""
    from jax.experimental import pallas as pl

    return pl.BlockSpec((1, rows, width), lambda i: (at(i), 0, 0))


def _whole(array: Any) -> Any:
    """All of an array at every step, brought once."""
    from jax.experimental import pallas as pl

    return pl.BlockSpec(array.shape, lambda i: (0,) * array.ndim)
