r"""Everything about an affine cell over a sequence but its two loops: written once, for all engines.

Forward, in the loop of an engine; ``x[t] @ w_ih`` may be computed for all steps at once before it:

    zx[t] = split(x[t] @ w_ih + b)
    zh[t] = split(h[t-1] @ w_hh)
    state[t], y[t] = update(params, state[t-1], zx[t], zh[t])

Backward, from the last step to the first, where ``pull[t]`` is the vector-Jacobian product of ``update`` at step t:

    dstate[t-1], dzx[t], dzh[t] = pull[t](dstate[t], dy[t])
    dh[t-1] += dzh[t] @ w_hh.T

and after the loop, each a matmul over all steps for every gate (or after every segment of it, see `Loops.segment`):

    dw_ih = sum_t x[t].T @ dzx[t],   db = sum_t dzx[t],   dx[t] = dzx[t] @ w_ih.T
    dw_hh = sum_t h[t-1].T @ dzh[t]

The derivative that JAX makes of the plain scan reads and writes all of ``dw_ih`` and ``dw_hh`` at every step
instead. Parameters that ``update`` reads itself (the GRU's ``b_hn``, peepholes) are small, and their cotangents
are summed in the loop. Cotangents of the state are carried in the dtype of the update.

An engine is a pair of loops, `Loops`; `affine_engine` makes it one. Written for every engine are: how gates combine
(`Plan`), the custom derivative, checkpointing by segments, the gradients of weights and inputs, and the casts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from rnnjax.cell import AffineCell, cast_like, compute_dtype, matmul, split_gates, widen
from rnnjax.engines.affine.plan import Gates, Plan, Seen, make_plan, packs_gates
from rnnjax.engines.choice import Controls, Engine, Job
from rnnjax.engines.scan import checkpointed, in_segments, segment_length

__all__ = [
    "Cotangents",
    "Finished",
    "Kept",
    "Loops",
    "Operands",
    "affine_engine",
    "is_affine",
    "weight_cotangent",
]


class Operands(NamedTuple):
    """The arrays of one recurrence.

    Attributes:
        xs: ``[T, *batch, I]``; ``plan.project(xs, w_ih)`` projects all steps at once.
        w_ih: ``[I, G H]``.
        w_hh: ``[H, G H]``, or None.
        b: ``[G H]``; ``plan.see`` adds it.
        own: the parameters that the update reads itself.
        state: before the first step.
        controls: masks and resets.
    """

    xs: jax.Array
    w_ih: jax.Array
    w_hh: jax.Array | None
    b: jax.Array
    own: list[jax.Array]
    state: Any
    controls: Controls


class Kept(NamedTuple):
    """What a forward loop leaves for its backward loop.

    Attributes:
        states: those before every step; only the field ``h``, ``[T, *batch, H]``, is read here, for ``dw_hh``. None
            where the loops compute that gradient themselves.
        rest: the engine's own; any arrays, with time as the first axis if there are segments.
    """

    states: Any
    rest: Any


class Finished(NamedTuple):
    """Gradients of the weights and the inputs, from loops that compute them themselves; in the dtype of the plan."""

    w_ih: jax.Array
    w_hh: jax.Array | None
    b: jax.Array
    xs: jax.Array


class Cotangents(NamedTuple):
    """What a backward loop computes, in the dtype of the plan.

    Attributes:
        state: of the state before the first step.
        own: of the parameters that the update reads, summed over all steps.
        fresh: of the state that resets restore, ``[*batch, ...]``, summed over all steps; None without resets.
        seen: of what the update saw, a gate: ``(dz,)`` where it sees the sum, else ``(dzx, dzh)``, each
            ``[T, *batch, H]``; or what would be computed from it, `Finished`.
    """

    state: Any
    own: list[jax.Array]
    fresh: Any
    seen: Seen | Finished


class Loops(Protocol):
    """All that an engine of affine cells writes; a hashable value.

    What they may read of a plan: ``cell``, ``dtype``, ``reverse``, ``summed``, ``keep_gates``, ``update`` as a
    function of arrays, and ``program()``, the update as straight-line arithmetic.
    """

    def fits(self, plan: Plan, job: Job) -> str:
        """``""``, or why not: the end of a sentence, such as "needs float32 parameters, got bfloat16"."""
        ...

    def segment(self, plan: Plan, operands: Operands) -> int | None:
        """The steps after which the backward pass stops to add up gradients; None for once, at the end."""
        ...

    def forward(self, plan: Plan, operands: Operands, *, keep: bool) -> tuple[Any, jax.Array, Kept | None]:
        """The final state, ``ys [T, *batch, H]`` in the dtype of the state and, with ``keep``, what is kept."""
        ...

    def backward(self, plan: Plan, operands: Operands, kept: Kept, d_final: Any, d_ys: jax.Array) -> Cotangents:
        """The loop the other way; of segments, the operands hold the inputs and controls of this one."""
        ...


def is_affine(cell: Any) -> bool:
    """Whether ``cell`` is an affine cell with a state of floating dtypes."""
    return _is_affine(cell)


@functools.lru_cache(maxsize=1024)  # every choice asks, and tracing `initial_state` takes longer than a step
def _is_affine(cell: Any) -> bool:
    if not isinstance(cell, AffineCell):
        return False
    leaves = jax.tree.leaves(jax.eval_shape(cell.initial_state))
    return all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves)


def affine_engine(name: str, loops: Loops, rank: Callable[[Job], float] | float) -> Engine:
    """An engine for affine cells from a pair of loops.

    Its ``remat`` knows None, which keeps what the loops keep; ``"gates"``, which keeps the states only, 2 arrays
    ``[T, *batch, H]`` instead of 6 for an LSTM, and computes the pre-activations again, by two large matmuls a segment
    of the backward pass; True and integers checkpoint segments as ``"scan"`` does: a fifth of the memory for up to
    40 % more time.

    Args:
        name: what ``implementation=`` selects.
        loops: a hashable value with the methods of `Loops`.
        rank: see `Engine`.
    """

    def fits(job: Job) -> str:
        if not is_affine(job.cell):
            return f"needs an affine cell with a floating state, got {type(job.cell).__name__}"
        if isinstance(job.remat, str) and job.remat != "gates":
            return f"needs remat to be None, True, an int or 'gates', got {job.remat!r}"
        return loops.fits(plan_of(job.cell, job.input_size, job.param_dtype, job.dtype), job)

    return Engine(name, functools.partial(_unroll, loops), fits, rank if callable(rank) else lambda job: rank)


@functools.lru_cache(maxsize=256)
def plan_of(cell: Any, input_size: int, param_dtype: Any, dtype: Any) -> Plan:
    """The plan of a job: see `Job` for the dtypes."""
    wide = jnp.dtype("float32")  # where leaves differ
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), input_size, param_dtype or wide))
    return make_plan(cell, shapes, compute_dtype(dtype or wide))


def _unroll(
    loops: Loops,
    cell: AffineCell,
    params: Any,
    state: Any,
    xs: jax.Array,
    controls: Controls,
    *,
    reverse: bool = False,
    remat: bool | int | str | None = None,
) -> tuple[Any, jax.Array]:
    """The final state and ``ys``; see `affine_engine`."""
    by_name = isinstance(remat, str)
    whole = make_plan(cell, params, compute_dtype(state.h.dtype), keep_gates=not by_name)
    weights = (params.w_ih, getattr(params, "w_hh", None), params.b)
    own, fresh = whole.own(params), controls.fresh

    def run(state: Any, inputs: Any, reverse: bool = False) -> tuple[Any, jax.Array]:
        xs, valid, resets = inputs
        operands = Operands(xs, *weights, own, state, Controls(valid, resets, fresh))
        return _recur(loops, whole.directed(reverse), operands)

    inputs = (xs, controls.valid, controls.resets)
    segment = None if isinstance(remat, str) else segment_length(remat, xs.shape[0])
    if segment is None:
        return run(state, inputs, reverse)
    return checkpointed(run, state, inputs, segment, reverse)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _recur(loops: Loops, plan: Plan, operands: Operands) -> tuple[Any, jax.Array]:
    final, ys, _ = loops.forward(plan, operands, keep=False)
    return final, ys


def _recur_fwd(loops: Loops, plan: Plan, operands: Operands) -> tuple[tuple[Any, jax.Array], Any]:
    final, ys, kept = loops.forward(plan, operands, keep=True)
    return (final, ys), (operands, kept)


def _recur_bwd(loops: Loops, plan: Plan, residuals: Any, cotangents: Any) -> tuple[Operands]:
    return (_backward(loops, plan, *residuals, *cotangents),)


_recur.defvjp(_recur_fwd, _recur_bwd)


def _backward(loops: Loops, plan: Plan, operands: Operands, kept: Kept, d_final: Any, d_ys: jax.Array) -> Operands:
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
    sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, plan.dtype), shared)
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
