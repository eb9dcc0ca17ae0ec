r"""Linear cells over a whole sequence: every matmul before or after the recurrence, none inside it.

The state of a linear cell is ``s[t] = a[t] * s[t-1] + b[t]`` with ``a`` and ``b`` from the inputs alone. So
``coefficients`` is called once, with time as a leading axis, then the recurrence runs, and then ``output`` is called
once. The recurrence runs in one of two ways:

* ``"associative"``: `jax.lax.associative_scan` over pairs with ``(a, b) then (a', b') = (a' a, a' b + b')``, which
  takes about 2 log2(T) dependent operations over long arrays instead of T over short ones.
* ``"hoisted"``: `jax.lax.scan`, in which one multiplication and one addition an entry are left of the step.

What else happens at a step is a change of its coefficients: where ``valid`` is not set, ``a = 1`` and ``b = 0``;
where ``resets`` is, ``a = 0`` and ``b = a * fresh + b``. The initial state enters the first ``b`` as
``a[0] * s[-1]``, so it may be zero or negative and may be learned; nothing is done in log space.

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
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cell import LinearCell, cast_like, compute_dtype, pack_state, unpack_state, widen
from rnnjax.engines.choice import Controls, Job
from rnnjax.engines.operation import Axes, Flat, Operation, apply, wanted
from rnnjax.engines.scan import checkpointed, no_named_remat, segment_length

__all__ = ["fits", "rank", "unroll_associative", "unroll_hoisted"]

_RANK = {  # by backend, and with what it is read: see `rank`
    "associative": {"cpu": -1, "other": 8},
    "hoisted": {"cpu": 5, "other": 5},
}


def rank(name: str, job: Job) -> float:
    """How ``"associative"`` and ``"hoisted"`` rank against each other and ``"scan"``, which has 0.

    On a CPU the loop is sequential anyway, and the associative scan does twice the arithmetic and passes over
    memory log2(T) times; on an accelerator a loop of T tiny kernels leaves the device idle.

    Args:
        name: of the engine.
        job: read is the backend alone; all linear cells and dtypes rank alike.
    """
    return _RANK[name]["cpu" if job.backend == "cpu" else "other"]


def fits(job: Job) -> str:
    """What both need: a linear cell with a state of floating dtypes."""
    if not _is_linear(job.cell):
        return f"needs a linear cell with a floating state, got {type(job.cell).__name__}"
    return no_named_remat(job)


@functools.lru_cache(maxsize=1024)  # every choice asks
def _is_linear(cell: Any) -> bool:
    if not isinstance(cell, LinearCell):
        return False
    leaves = jax.tree.leaves(jax.eval_shape(cell.initial_state))
    return all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves)


def unroll_associative(
    cell: LinearCell,
    params: Any,
    state: Any,
    xs: jax.Array,
    controls: Controls,
    *,
    reverse: bool = False,
    remat: bool | int | None = None,
) -> tuple[Any, jax.Array]:
    """Unrolls a linear cell by an associative scan over time. Reverse-mode derivatives of any order.

    Args:
        cell: any linear cell.
        params: its parameters.
        state: the state before the first step.
        xs: ``[T, *batch, I]``.
        controls: masks and resets, see `Controls`.
        reverse: whether time runs from the last step to the first.
        remat: True and integers checkpoint segments as ``"scan"`` does: segments come one after the other, and
            the steps of one in parallel.

    Returns:
        The final state, and ``ys [T, *batch, H]``.
    """
    return _unroll(True, cell, params, state, xs, controls, reverse, remat)


def unroll_hoisted(
    cell: LinearCell,
    params: Any,
    state: Any,
    xs: jax.Array,
    controls: Controls,
    *,
    reverse: bool = False,
    remat: bool | int | None = None,
) -> tuple[Any, jax.Array]:
    """Unrolls a linear cell by a loop of ``a * s + b``; arguments and result are those of `unroll_associative`."""
    return _unroll(False, cell, params, state, xs, controls, reverse, remat)


def _unroll(
    parallel: bool, cell: LinearCell, params: Any, state: Any, xs: jax.Array, controls: Controls, backward: bool,
    remat: Any,
) -> tuple[Any, jax.Array]:  # fmt: skip
    narrow = jax.tree.leaves(state)[0].dtype
    dtype = compute_dtype(narrow)

    def run(state: Any, inputs: Any, reverse: bool = False) -> tuple[Any, jax.Array]:
        xs, valid, resets = inputs
        a, b = cell.coefficients(params, xs, dtype)
        start = pack_state(widen(state, dtype), a)
        fresh = (None,) * len(a) if resets is None else pack_state(widen(controls.fresh, dtype), a)
        arrays = []
        for k, d, s, f in zip(a, b, start, fresh, strict=True):
            d = jnp.broadcast_to(d, (xs.shape[0], *s.shape))
            k = k.reshape((1,) * (d.ndim - k.ndim) + k.shape)  # [1, .., N] if the same at all steps
            k, d = _with_controls(k, d, valid, resets, f)
            arrays.append(_recurrence(parallel, reverse, k, d, s))
        states = unpack_state(tuple(arrays), state)
        ys = cell.output(params, states, xs).astype(narrow)
        last = 0 if reverse else -1
        return (cast_like(jax.tree.map(lambda s: s[last], states), state) if xs.shape[0] else state), ys

    inputs = (xs, controls.valid, controls.resets)
    segment = segment_length(remat, xs.shape[0])
    if segment is None:
        return run(state, inputs, backward)
    return checkpointed(run, state, inputs, segment, backward)


def _with_controls(
    a: jax.Array, b: jax.Array, valid: jax.Array | None, resets: jax.Array | None, fresh: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """The coefficients of steps that may restart from ``fresh``, or do nothing."""
    zero, one = jnp.zeros((), b.dtype), jnp.ones((), b.dtype)
    if resets is not None and fresh is not None:
        restart = jnp.expand_dims(resets, range(resets.ndim, b.ndim))
        a, b = jnp.where(restart, zero, a), jnp.where(restart, a * fresh + b, b)
    if valid is not None:  # after the resets: a flag in the padding does nothing
        going = jnp.expand_dims(valid, range(valid.ndim, b.ndim))
        a, b = jnp.where(going, a, one), jnp.where(going, b, zero)
    return a, b


def _recurrence(parallel: bool, reverse: bool, a: jax.Array, b: jax.Array, start: jax.Array) -> jax.Array:
    """All states, with the derivatives of `_States`."""
    return apply(_States(parallel, reverse), a, b, start)


def _states(parallel: bool, reverse: bool, a: jax.Array, b: jax.Array, start: jax.Array) -> jax.Array:
    """All states of ``s[t] = a[t] * s[t-1] + b[t]``, with ``reverse`` of ``s[t] = a[t] * s[t+1] + b[t]``.

    Args:
        parallel: whether by an associative scan.
        reverse: whether time runs from the last step to the first.
        a: ``[T, *batch, N]``, or with any of these axes of length 1.
        b: ``[T, *batch, N]``.
        start: ``[*batch, N]``, the state before the first step.
    """
    length = b.shape[0]
    if length == 0:
        return b
    if not parallel:
        steady = a.shape[0] == 1

        def step(s: jax.Array, inputs: Any) -> tuple[jax.Array, jax.Array]:
            k, d = inputs
            s = _affine(a[0] if steady else k, s, d)
            return s, s

        return jax.lax.scan(step, start, (None if steady else a, b), reverse=reverse)[1]

    def after(first: Any, second: Any) -> Any:
        (a1, b1), (a2, b2) = first, second
        return _affine(a2, a1, jnp.zeros_like(a1)), _affine(a2, b1, b2)

    begin = _affine(_first(a, reverse), start, _first(b, reverse))
    b = jnp.concatenate([b[:-1], begin] if reverse else [begin, b[1:]])
    a = jnp.broadcast_to(a, (length, *a.shape[1:]))
    return jax.lax.associative_scan(after, (a, b), reverse=reverse)[1]


def _affine(a: jax.Array, s: jax.Array, b: jax.Array) -> jax.Array:
    """``a * s + b``, and ``b`` where ``a`` is zero, so that a reset forgets also what is not finite."""
    return jnp.where(a == 0, b, a * s + b)


@dataclasses.dataclass(frozen=True)
class _States(Operation):
    """The recurrence: under `jax.vmap` one more axis, and its tangent is the same recurrence with another ``b``."""

    parallel: bool
    reverse: bool

    def run(self, *args: jax.Array) -> Any:
        return _states(self.parallel, self.reverse, *args)

    def jvp(self, primals: Flat, tangents: Flat) -> tuple[Flat, Flat]:
        a, _, start = primals
        states = apply(self, *primals)
        which = wanted(tangents)
        some = [t for t, here in zip(tangents, which, strict=True) if here]
        return [states], [apply(_Tangent(self.parallel, self.reverse, which), a, states, start, *some)]

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

    parallel: bool
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
        return _recurrence(self.parallel, self.reverse, a, source, d_start)

    def transpose(self, cts: Flat, args: Flat) -> Flat:
        a, states, start = args[:3]
        found = _recurrence_bwd(self.parallel, self.reverse, (a, states, start), cts[0])
        return [None, None, None, *(d for d, here in zip(found, self.which, strict=True) if here)]


def _recurrence_bwd(parallel: bool, reverse: bool, residuals: Any, d_states: jax.Array) -> Any:
    a, states, start = residuals
    if states.shape[0] == 0:
        return jnp.zeros_like(a), d_states, jnp.zeros_like(start)
    # JAX's cotangents of complex numbers are transposed, not conjugated: no `conj` anywhere.
    zeros = jnp.zeros_like(start)
    g = _recurrence(parallel, not reverse, a, a * d_states, zeros)
    d_b = d_states + _shifted(g, zeros, not reverse)
    d_a = d_b * _shifted(states, start, reverse)
    summed = tuple(axis for axis in range(a.ndim) if a.shape[axis] != d_a.shape[axis])
    return jnp.sum(d_a, axis=summed, keepdims=True), d_b, _first(g, reverse)[0]


def _first(array: jax.Array, reverse: bool) -> jax.Array:
    """The step at which time begins, ``[1, *batch, N]``."""
    return array[-1:] if reverse else array[:1]


def _shifted(states: jax.Array, start: jax.Array, reverse: bool) -> jax.Array:
    """The state *before* every step, from those after it and that before the first."""
    return jnp.concatenate([states[1:], start[None]] if reverse else [start[None], states[:-1]])
