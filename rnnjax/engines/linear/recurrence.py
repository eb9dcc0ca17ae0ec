r"""Everything about a linear cell over a sequence but its recurrence: written once, for all engines.

The state of a linear cell is ``s[t] = a[t] * s[t-1] + b[t]`` with ``a`` and ``b`` from the inputs alone. So
``coefficients`` is called once, with time as a leading axis, then the recurrence of an engine runs, and then ``output``
is called once: every matmul comes before or after the recurrence, none inside it. An engine is a `Recurrence`, which
`linear_engine` makes one.

What else happens at a step is a change of its coefficients: where ``valid`` is not set, ``a = 1`` and ``b = 0``;
where ``resets`` is, ``a = 0`` and ``b = a * fresh + b``.

The derivative is written by hand, as it is the same recurrence run the other way. With ``ds`` the cotangent of all
states and ``g[t]`` that of ``s[t-1]`` as far as it comes from later states:

    g[t]  = a[t] * g[t+1] + a[t] * ds[t]
    db[t] = ds[t] + g[t+1],   da[t] = db[t] * s[t-1]

It needs ``a`` and the states, where the derivative that JAX makes of an associative scan also keeps the products
of every level of its tree.

The states between two steps stay in float32 or wider, also where the state itself is bfloat16; ``"scan"`` rounds it
at every step.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cell import LinearCell, cast_like, compute_dtype, pack_state, unpack_state, widen
from rnnjax.checks import check_kind, describe
from rnnjax.engines.choice import Controls, Engine, Job, is_floating
from rnnjax.engines.linear.scans import Associative, Recurrence, first
from rnnjax.engines.operation import Axes, Flat, Operation, apply, wanted
from rnnjax.engines.scan import checkpointed, no_named_remat, select
from rnnjax.promotion import promoting

__all__ = ["all_states", "linear_engine", "linear_pass"]


def linear_engine(name: str, recurrence: Recurrence, rank: Callable[[Job], float] | float) -> Engine:
    """An engine for linear cells from a recurrence. Derivatives of any order, reverse and forward mode.

    Its ``remat`` knows None, True and integers, which checkpoint segments as ``"scan"`` does: segments come one after
    the other, and the steps of one as the recurrence has it.

    Args:
        name: what ``implementation=`` selects.
        recurrence: a hashable value with the methods of `Recurrence`.
        rank: see `Engine`.

    Raises:
        TypeError: if ``recurrence`` lacks the methods, or ``name`` is no string.
    """
    check_kind("linear_engine", "name", name, str, "a string")
    if isinstance(recurrence, type) or not callable(getattr(recurrence, "fits", None)):
        got = describe(recurrence)
        raise TypeError(f"linear_engine: recurrence must have the methods of Recurrence, got {got}.")

    def fits(job: Job) -> str:
        if not is_floating(job.cell, LinearCell):
            return f"needs a linear cell with a floating state, got {type(job.cell).__name__}"
        return no_named_remat(job) or recurrence.fits(job)

    return Engine(name, functools.partial(_unroll, recurrence), fits, rank if callable(rank) else lambda job: rank)


def _unroll(
    recurrence: Recurrence,
    cell: LinearCell,
    params: Any,
    state: Any,
    xs: jax.Array,
    controls: Controls,
    *,
    reverse: bool = False,
    remat: bool | int | None = None,
) -> tuple[Any, jax.Array]:
    """The final state and ``ys``; see `linear_engine`."""

    def run(state: Any, inputs: Any, reverse: bool = False) -> tuple[Any, jax.Array]:
        xs, valid, resets = inputs
        solve = functools.partial(all_states, recurrence, reverse)
        states, ys = linear_pass(solve, cell, params, state, xs, Controls(valid, resets, controls.fresh))
        last = 0 if reverse else -1
        return (cast_like(jax.tree.map(lambda s: s[last], states), state) if xs.shape[0] else state), ys

    return checkpointed(run, state, (xs, controls.valid, controls.resets), remat, reverse)


def linear_pass(
    solve: Callable[..., jax.Array], cell: LinearCell, params: Any, state: Any, xs: jax.Array, controls: Controls
) -> tuple[Any, jax.Array]:
    """The states after all steps, in the compute dtype, and ``ys``.

    Args:
        solve: ``(a, b, start) -> states``, see `Recurrence.states`; differentiable, as `all_states` is.
        cell: any linear cell.
        params: its parameters.
        state: the state before the first step.
        xs: ``[T, *batch, I]``.
        controls: masks and resets.
    """
    narrow = jax.tree.leaves(state)[0].dtype
    dtype = compute_dtype(narrow)
    a, b = cell.coefficients(params, xs, dtype)
    start = pack_state(widen(state, dtype), a)
    fresh = (None,) * len(a) if controls.resets is None else pack_state(widen(controls.fresh, dtype), a)
    arrays = []
    for k, d, s, f in zip(a, b, start, fresh, strict=True):
        d = jnp.broadcast_to(d, (xs.shape[0], *s.shape))
        k = k.reshape((1,) * (d.ndim - k.ndim) + k.shape)  # [1, .., N] if the same at all steps
        k, d = _with_controls(k, d, Controls(controls.valid, controls.resets, f))
        arrays.append(solve(k, d, s))
    states = unpack_state(tuple(arrays), state)
    return states, cell.output(params, states, xs).astype(narrow)


def all_states(recurrence: Recurrence, reverse: bool, a: jax.Array, b: jax.Array, start: jax.Array) -> jax.Array:
    """`Recurrence.states`, with derivatives of any order."""
    found: jax.Array = apply(_States(recurrence, reverse), a, b, start)
    return found


@promoting
def _with_controls(a: jax.Array, b: jax.Array, controls: Controls) -> tuple[jax.Array, jax.Array]:
    """The coefficients of steps that may restart, or do nothing."""
    zero, one = jnp.zeros_like(a), jnp.ones_like(a)
    if controls.restarts is not None:
        a, b = select(controls.restarts, (zero, a * controls.fresh + b), (a, b))
    return (a, b) if controls.valid is None else select(controls.valid, (a, b), (one, jnp.zeros_like(b)))


@dataclasses.dataclass(frozen=True)
class _States(Operation):
    """All states: under `jax.vmap` one more axis, and their tangent is the same recurrence with another ``b``."""

    recurrence: Recurrence
    reverse: bool

    @property
    def platform(self) -> str | None:  # type: ignore[override]
        return self.recurrence.platform

    def run(self, *args: jax.Array) -> Any:
        return self._states(self.recurrence, *args)

    def portable(self, *args: jax.Array) -> Any:
        return self._states(Associative() if self.platform else self.recurrence, *args)

    def _states(self, recurrence: Recurrence, a: jax.Array, b: jax.Array, start: jax.Array) -> jax.Array:
        return recurrence.states(a, b, start, reverse=self.reverse) if b.shape[0] else b

    def jvp(self, primals: Flat, tangents: Flat) -> tuple[Flat, Flat]:
        a, _, start = primals
        states = apply(self, *primals)
        which = wanted(tangents)
        some = [t for t, here in zip(tangents, which, strict=True) if here]
        return [states], [apply(_Tangent(self.recurrence, self.reverse, which), a, states, start, *some)]

    def batch(self, args: Flat, axes: Axes) -> tuple[Flat, Axes]:
        size = next(arg.shape[axis] for arg, axis in zip(args, axes, strict=True) if axis is not None)
        moved = []
        for arg, axis, place in zip(args, axes, (1, 1, 0), strict=True):
            wide = jnp.expand_dims(arg, place) if axis is None else jnp.moveaxis(arg, axis, place)
            moved.append(wide)
        a, b, start = moved
        b = jnp.broadcast_to(b, (b.shape[0], size, *b.shape[2:]))
        start = jnp.broadcast_to(start, (size, *start.shape[1:]))
        return [apply(self, a, b, start)], [1]


@dataclasses.dataclass(frozen=True)
class _Tangent(Operation):
    """The tangent of all states, linear in those of ``a``, ``b`` and the start that there are."""

    recurrence: Recurrence
    reverse: bool
    which: tuple[bool, ...]

    def run(self, *args: jax.Array) -> Any:
        a, states, start, *some = args
        rest = iter(some)
        d_a, d_b, d_start = (next(rest) if here else None for here in self.which)
        source = jnp.zeros_like(states) if d_b is None else d_b
        if d_a is not None:  # where a step restarts, what was before may be anything
            source = source + jnp.where(a == 0, jnp.zeros_like(states), d_a * _shifted(states, start, self.reverse))
        d_start = jnp.zeros_like(start) if d_start is None else d_start
        return apply(_States(self.recurrence, self.reverse), a, source, d_start)

    def transpose(self, cts: Flat, args: Flat) -> Flat:
        a, states, start = args[:3]
        found = self._cotangents(a, states, start, cts[0])
        return [None, None, None, *(d for d, here in zip(found, self.which, strict=True) if here)]

    def _cotangents(self, a: jax.Array, states: jax.Array, start: jax.Array, d_states: jax.Array) -> Flat:
        """Those of ``a``, ``b`` and the start."""
        if states.shape[0] == 0:
            return jnp.zeros_like(a), d_states, jnp.zeros_like(start)
        # JAX's cotangents of complex numbers are transposed, not conjugated: no `conj` anywhere.
        zeros = jnp.zeros_like(start)
        g = apply(_States(self.recurrence, not self.reverse), a, a * d_states, zeros)
        d_b = d_states + _shifted(g, zeros, not self.reverse)
        d_a = d_b * _shifted(states, start, self.reverse)
        summed = tuple(axis for axis in range(a.ndim) if a.shape[axis] != d_a.shape[axis])
        return jnp.sum(d_a, axis=summed, keepdims=True), d_b, first(g, self.reverse)[0]


def _shifted(states: jax.Array, start: jax.Array, reverse: bool) -> jax.Array:
    """The state *before* every step, from those after it and that before the first."""
    return jnp.concatenate([states[1:], start[None]] if reverse else [start[None], states[:-1]])
