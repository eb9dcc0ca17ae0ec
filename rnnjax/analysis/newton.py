"""How ``implementation="newton"`` fares on a cell and its data."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.analysis.flat import check_sequence
from rnnjax.cell import AffineCell, cast_like, compute_dtype, widen
from rnnjax.engines import Newton
from rnnjax.engines.affine.loops import Operands
from rnnjax.engines.affine.newton import solve
from rnnjax.engines.affine.plan import make_plan
from rnnjax.engines.choice import is_floating, make_job
from rnnjax.kinds import public
from rnnjax.network import NO_CONTROLS, start_state
from rnnjax.unroll import unroll

__all__ = ["NewtonReport", "newton_report"]


class NewtonReport(NamedTuple):
    """What the iteration came to, as scalars of JAX."""

    iterations: jax.Array
    residual: jax.Array  # of the last guess but one, the largest of all entries: |S - F(S)| / (1 + |F(S)|)
    agreement: jax.Array  # the largest |ys - ys of "scan"|; nan if either is
    converged: jax.Array  # bool; if not, "newton" gives what "scan" does


@public
def newton_report(
    cell: Any,
    params: Any,
    state: Any,
    xs: jax.Array,
    *,
    options: Newton = Newton(),  # noqa: B008  (a frozen value)
) -> NewtonReport:
    """How many iterations ``implementation="newton"`` takes, and how near it comes to ``"scan"``.

    It solves once more, beside an `rnnjax.unroll` of the same arrays, and may be called within a program, whose loss
    returns what it finds as metrics: there what is not used is not computed, so that without ``agreement`` no loop over
    the steps runs.

    Args:
        cell: an affine cell whose update treats every unit alone.
        params: its parameters.
        state: before the first step; None for the start.
        xs: ``[T, *batch, I]``, with T of at least one.
        options: when to stop, see `rnnjax.engines.Newton`.

    Raises:
        ValueError: for a cell that the method does not take.

    >>> import jax, jax.numpy as jnp, rnnjax
    >>> cell = rnnjax.cells.DiagonalGRU(4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> report = newton_report(cell, params, None, jax.random.normal(jax.random.key(1), (100, 3)))
    >>> bool(report.converged), int(report.iterations) < 10, float(report.agreement) < 1e-5
    (True, True, True)
    """
    if not is_floating(cell, AffineCell):
        raise ValueError(
            f"newton_report: cell must be an affine cell with a floating state, got {type(cell).__name__}."
        )
    jax.eval_shape(lambda: unroll(cell, params, state, xs))  # says what of them does not fit
    if state is None:
        state = start_state(cell, params, xs.shape[1:-1])
    xs = check_sequence("newton_report", cell, state, xs)
    job = make_job(cell, params, state, xs)
    plan = make_plan(cell, params, compute_dtype(state.h.dtype))
    if reason := options.fits(plan, job):
        raise ValueError(f"newton_report: 'newton' {reason}.")
    return NewtonReport(*_report(cell, options, params, state, xs))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _report(cell: Any, options: Newton, params: Any, state: Any, xs: jax.Array) -> Any:
    plan = make_plan(cell, params, compute_dtype(state.h.dtype))
    w_hh, b = getattr(params, "w_hh", None), getattr(params, "b", jnp.zeros_like(params.w_ih[0]))
    operands = Operands(xs, params.w_ih, w_hh, b, plan.own(params), state, NO_CONTROLS)
    found = solve(plan, operands, options)
    own = widen(plan.own(params), plan.dtype)
    zh = () if operands.w_hh is None else plan.project(found.before.h, operands.w_hh)
    _, ys = plan.update(own, found.before, plan.see(plan.project(xs, operands.w_ih), operands.b, zh))
    _, wanted = unroll(cell, params, cast_like(state, state), xs, implementation="scan")
    gap = jnp.abs(ys - wanted)
    return (
        found.iterations,
        found.residual,
        jnp.where(jnp.all(jnp.isfinite(gap)), jnp.max(gap), jnp.nan),
        found.converged,
    )
