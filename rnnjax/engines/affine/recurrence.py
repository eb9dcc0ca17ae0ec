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
from typing import Any

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim

from rnnjax.cell import AffineCell, compute_dtype, param_shapes
from rnnjax.checks import check_kind, describe
from rnnjax.engines.affine.loops import Loops, Operands, take_many
from rnnjax.engines.affine.plan import Plan, make_plan
from rnnjax.engines.affine.transforms import recur
from rnnjax.engines.choice import Controls, Engine, Job, is_floating
from rnnjax.engines.scan import checkpointed

__all__ = ["affine_engine"]


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

    Raises:
        TypeError: if ``loops`` lacks the methods, or ``name`` is no string.
    """
    check_kind("affine_engine", "name", name, str, "a string")
    if isinstance(loops, type) or not callable(getattr(loops, "fits", None)):
        raise TypeError(f"affine_engine: loops must have the methods of Loops, got {describe(loops)}.")

    def fits(job: Job) -> str:
        if not is_floating(job.cell, AffineCell):
            return f"needs an affine cell with a floating state, got {type(job.cell).__name__}"
        if any(map(is_symbolic_dim, (job.steps, *job.batch))):
            return f"needs numbers of steps and rows that are known, got {job.steps} and {job.batch}"
        if isinstance(job.remat, str) and job.remat != "gates":
            return f"needs remat to be None, True, an int or 'gates', got {job.remat!r}"
        return loops.fits(plan_of(job.cell, job.input_size, job.param_dtype, job.dtype), job)

    def pieces(job: Job, layers: int) -> int:
        plan = plan_of(job.cell, job.input_size, job.param_dtype, job.dtype)
        return loops.pieces(plan, job, layers) if take_many(loops) else 1

    ranked = rank if callable(rank) else lambda job: rank
    run = functools.partial(_unroll, loops)
    return Engine(name, run, fits, ranked, many=take_many(loops), pieces=pieces)


@functools.lru_cache(maxsize=256)
def plan_of(cell: Any, input_size: int, param_dtype: Any, dtype: Any) -> Plan:
    """The plan of a job: see `Job` for the dtypes."""
    wide = jnp.dtype("float32")  # where leaves differ
    return make_plan(cell, param_shapes(cell, input_size, param_dtype or wide), compute_dtype(dtype or wide))


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
    b = getattr(params, "b", None)  # where there is none, the loops add zeros, which spares each of them a case
    weights = (params.w_ih, getattr(params, "w_hh", None), jnp.zeros_like(params.w_ih[0]) if b is None else b)
    own, fresh = whole.own(params), controls.fresh

    def run(state: Any, inputs: Any, reverse: bool = False) -> tuple[Any, jax.Array]:
        xs, valid, resets = inputs
        operands = Operands(xs, *weights, own, state, Controls(valid, resets, fresh))
        return recur(loops, whole.directed(reverse), operands)

    return checkpointed(run, state, (xs, controls.valid, controls.resets), remat, reverse)
