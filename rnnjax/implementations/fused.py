r"""One custom derivative for every affine cell: only what is sequential stays in the loop.

Forward, with ``zx[t] = split(xs[t] @ w_ih + b)`` computed for all steps at once before the loop:

    zh[t] = split(h[t-1] @ w_hh)
    state[t], ys[t] = update(params, state[t-1], zx[t], zh[t])

Backward, from the last step to the first, where ``pull[t]`` is the vector-Jacobian product of ``update`` at step t:

    dstate[t-1], dzx[t], dzh[t] = pull[t](dstate[t], dys[t])
    dh[t-1] += dzh[t] @ w_hh.T

and after the loop, each as matmuls over all steps:

    dw_ih = sum_t xs[t].T @ dzx[t],   db = sum_t dzx[t],   dxs[t] = dzx[t] @ w_ih.T
    dw_hh = sum_t h[t-1].T @ dzh[t]

Differentiating the plain scan instead reads and writes all of ``dw_ih`` and ``dw_hh`` at every step. Parameters
that ``update`` itself reads (a GRU's ``b_hn``, peepholes) are small; their cotangents are summed in the loop.

Gates are kept as separate arrays throughout: slicing a packed ``[.., G H]`` array inside the loop is slow on CPU.
Where ``update`` sees a gate only as ``zx + zh``, as it does all gates of an LSTM, the sum is kept instead of
both, and one cotangent serves both.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cell import AffineCell, batch_shape, cast_like, compute_dtype, matmul, widen
from rnnjax.implementations.registry import Controls
from rnnjax.implementations.scan import checkpointed, segment_length, select

__all__ = ["supports", "unroll_fused"]

Gate = tuple[jax.Array, ...]  # (zx + zh,) where that is all the update sees of a gate, else (zx, zh)


def supports(cell: Any) -> bool:
    """Whether ``cell`` is an affine cell whose state is of floating dtype."""
    return isinstance(cell, AffineCell) and _has_floating_state(cell)


@functools.lru_cache(maxsize=1024)
def _has_floating_state(cell: AffineCell) -> bool:
    leaves = jax.tree.leaves(jax.eval_shape(cell.initial_state))
    return all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves)


def unroll_fused(
    cell: AffineCell,
    params: Any,
    state: Any,
    xs: jax.Array,
    controls: Controls,
    *,
    reverse: bool = False,
    remat: bool | int | str | None = None,
    feature_major: bool | None = None,
) -> tuple[Any, jax.Array]:
    """Unrolls an affine cell; reverse mode to any order, no forward mode.

    Args:
        cell: any affine cell.
        params: its parameters.
        state: the state before the first step.
        xs: ``[T, *batch, I]``.
        controls: masks and resets, see `Controls`.
        reverse: whether time runs from the last step to the first.
        remat: None keeps states and pre-activations of all steps for the backward pass; ``"gates"`` keeps the
            states and computes the pre-activations again, by two large matmuls; True and integers checkpoint
            segments as ``"scan"`` does.
        feature_major: whether the arrays in the loop are ``[H, B]`` instead of ``[B, H]``; None decides by
            `prefers_feature_major`.

    Returns:
        The final state, and ``ys [T, *batch, H]``.

    Raises:
        ValueError: for an unknown ``remat``.
    """
    if isinstance(remat, str) and remat != "gates":
        raise ValueError(f"unroll: remat of 'fused' must be None, True, an int or 'gates', got {remat!r}.")
    length, batch = xs.shape[0], batch_shape(cell, state)
    size = math.prod(batch)
    dtype = compute_dtype(state.h.dtype)
    if feature_major is None:
        feature_major = prefers_feature_major(jax.default_backend(), size, cell.hidden_size, dtype)
    plan = _make_plan(cell, params, feature_major=feature_major, keep_gates=remat != "gates", dtype=dtype)
    used = [leaf for leaf, known in zip(jax.tree.leaves(params), plan.template, strict=True) if known is None]
    weights = (params.w_ih, getattr(params, "w_hh", None), params.b)

    def enter(tree):  # [*batch, ...] -> [B, ...] or [..., B]
        flat = jax.tree.map(lambda a: a.reshape(size, *a.shape[len(batch) :]), tree)
        return jax.tree.map(lambda a: jnp.moveaxis(a, 0, -1), flat) if feature_major else flat

    def leave(array):
        array = jnp.moveaxis(array, -1, 0) if feature_major else array
        return array.reshape(*batch, *array.shape[1:])

    def run(state, inputs, reverse=False):
        xs, valid, resets = inputs
        local = Controls(valid, resets, fresh)
        return _fused(dataclasses.replace(plan, reverse=reverse), weights, used, state, xs, local)

    fresh = enter(controls.fresh)
    inputs = jax.tree.map(
        lambda a: a.reshape(length, size, *a.shape[1 + len(batch) :]), (xs, controls.valid, controls.resets)
    )
    segment = None if remat == "gates" else segment_length(remat, length)
    if segment is None:
        state, ys = run(enter(state), inputs, reverse)
    else:
        state, ys = checkpointed(run, enter(state), inputs, segment, reverse)
    return jax.tree.map(leave, state), ys.reshape(length, *batch, *ys.shape[2:])


def prefers_feature_major(backend: str, batch_size: int, hidden_size: int, dtype: Any) -> bool:
    """Whether the loop's arrays are better ``[H, B]`` than ``[B, H]``."""
    return backend == "cpu" and hidden_size >= 512 and batch_size % 16 == 0


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What `_fused` knows before it sees an array."""

    cell: AffineCell
    feature_major: bool
    keep_gates: bool
    dtype: Any  # of the update and of sums
    summed: tuple[bool, ...]  # a gate: whether the update sees only zx + zh
    treedef: Any  # of params
    template: tuple[Any, ...]  # a leaf of params: None if the update reads it, else its shape and dtype
    reverse: bool = False

    def update(self, used: list, state: Any, gates: tuple[Gate, ...]) -> tuple[Any, jax.Array]:
        """The cell's update for all examples, on a wide state."""
        rest = iter(used)
        params = self.treedef.unflatten([next(rest) if known is None else known for known in self.template])

        def update(state, gates):
            zx = tuple(gate[0] for gate in gates)
            zh = tuple(gate[1] if len(gate) == 2 else jnp.zeros_like(gate[0]) for gate in gates)
            return self.cell.update(params, state, zx, zh if self.summed else ())

        return jax.vmap(update, -1, -1)(state, gates) if self.feature_major else update(state, gates)

    def join(self, zx: Gate, zh: Gate) -> tuple[Gate, ...]:
        """What the update sees of every gate."""
        if not zh:
            return tuple((x,) for x in zx)
        return tuple((x + h,) if s else (x, h) for x, h, s in zip(zx, zh, self.summed, strict=True))

    def select(self, mask: jax.Array, new: Any, old: Any) -> Any:
        """``new`` where the mask ``[B]`` is set, else ``old``."""
        if self.feature_major:
            return jax.tree.map(lambda n, o: jnp.where(mask, n, o), new, old)
        return select(mask, new, old)

    def split(self, w: jax.Array) -> Gate:
        """The blocks ``[.., H]`` of a weight or bias ``[.., G H]``, one a gate."""
        return tuple(jnp.split(w, self.cell.num_gates, axis=-1))

    def project(self, a: jax.Array, w: jax.Array) -> Gate:
        """``split(a @ w)`` for all steps at once: ``[T, B, K] -> G * [T, B, H]``, or ``[T, H, B]``."""
        gates = tuple(matmul(a, block, self.dtype) for block in self.split(w))
        return tuple(jnp.swapaxes(z, 1, 2) for z in gates) if self.feature_major else gates


def _make_plan(cell: AffineCell, params: Any, *, feature_major: bool, keep_gates: bool, dtype: Any) -> _Plan:
    """Traces the update of one example to see which parameters it reads and how it combines the gates."""
    num_gates = cell.num_gates
    state = jax.eval_shape(lambda: widen(cell.initial_state(()), dtype))
    z = (jax.ShapeDtypeStruct((cell.hidden_size,), dtype),) * num_gates
    zh = z if hasattr(params, "w_hh") else ()
    jaxpr = jax.make_jaxpr(cell.update)(params, state, z, zh).jaxpr
    leaves, treedef = jax.tree.flatten(params)
    read = {id(v) for equation in jaxpr.eqns for v in equation.invars} | {id(v) for v in jaxpr.outvars}
    template = tuple(
        None if id(v) in read else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for v, leaf in zip(jaxpr.invars, leaves, strict=False)
    )
    gates = jaxpr.invars[len(jaxpr.invars) - len(z) - len(zh) :]

    def is_summed(a, b):
        if any(v is a or v is b for v in jaxpr.outvars):
            return False
        uses = [e for e in jaxpr.eqns if any(v is a or v is b for v in e.invars)]
        return len(uses) == 1 and uses[0].primitive.name == "add" and {*map(id, uses[0].invars)} == {id(a), id(b)}

    summed = tuple(is_summed(a, b) for a, b in zip(gates[:num_gates], gates[num_gates:], strict=False))
    return _Plan(cell, feature_major, keep_gates, dtype, summed, treedef, template)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(plan, weights, used, state, xs, controls):
    result, _ = _forward(plan, weights, used, state, xs, controls, keep=False)
    return result


def _forward(plan, weights, used, state, xs, controls, keep):
    """The final state and ys; with ``keep`` also the states before every step, and the gates."""
    w_ih, w_hh, b = weights
    if w_hh is not None and plan.feature_major:
        w_hh = w_hh.T
    column = (lambda v: v[:, None]) if plan.feature_major else (lambda v: v)
    bias = tuple(column(v.astype(plan.dtype)) for v in plan.split(b))

    def step(state, inputs):
        zx, valid, reset = inputs
        if reset is not None:
            state = plan.select(reset if valid is None else reset & valid, controls.fresh, state)
        # The bias is added here, where it costs nothing, and not to all steps before the loop.
        gates = plan.join(tuple(z + v for z, v in zip(zx, bias, strict=True)), _recurrent(plan, w_hh, state.h))
        wide, y = plan.update(used, widen(state, plan.dtype), gates)
        new_state, y = cast_like(wide, state), y.astype(state.h.dtype)
        if valid is not None:
            new_state = plan.select(valid, new_state, state)
        kept = (state, gates if plan.keep_gates else None) if keep else None
        return new_state, (y.T if plan.feature_major else y, kept)

    inputs = (plan.project(xs, w_ih), controls.valid, controls.resets)
    state, (ys, kept) = jax.lax.scan(step, state, inputs, reverse=plan.reverse)
    return (state, ys), kept


def _recurrent(plan, w_hh, h):
    """``split(h @ w_hh)`` for one step, where ``w_hh`` is transposed if feature-major."""
    if w_hh is None:
        return ()
    if not plan.feature_major:
        return plan.split(matmul(h, w_hh, plan.dtype))
    z = jnp.matmul(w_hh, h.astype(w_hh.dtype), preferred_element_type=plan.dtype)
    return tuple(jnp.split(z, plan.cell.num_gates, axis=0))


def _fused_fwd(plan, weights, used, state, xs, controls):
    result, kept = _forward(plan, weights, used, state, xs, controls, keep=True)
    return result, (weights, used, xs, controls, *kept)


def _fused_bwd(plan, residuals, cotangents):
    weights, used, xs, controls, states, gates = residuals
    d_final, d_ys = cotangents
    w_ih, w_hh, b = weights
    dtype = plan.dtype
    hs = jnp.swapaxes(states.h, 1, 2) if plan.feature_major else states.h  # [T, B, H]
    if gates is None:
        column = (lambda v: v[:, None]) if plan.feature_major else (lambda v: v)
        zx = tuple(z + column(v.astype(dtype)) for z, v in zip(plan.project(xs, w_ih), plan.split(b), strict=True))
        gates = plan.join(zx, () if w_hh is None else plan.project(hs, w_hh))
    if w_hh is not None and not plan.feature_major:
        w_back = w_hh.T
    else:
        w_back = w_hh

    def step(carry, inputs):
        d_state, d_used, d_fresh = carry
        state, gates, d_y, valid, reset = inputs
        d_y = (d_y.T if plan.feature_major else d_y).astype(dtype)
        d_new, d_kept = d_state, None
        if valid is not None:
            zeros = jax.tree.map(jnp.zeros_like, d_state)
            d_new, d_kept = plan.select(valid, d_state, zeros), plan.select(valid, zeros, d_state)
        _, pull = jax.vjp(plan.update, used, widen(state, dtype), gates)
        d_step, d_old, d_gates = pull((d_new, d_y))
        d_used = jax.tree.map(lambda total, d: total + d.astype(dtype), d_used, d_step)
        if w_hh is not None:
            d_zh = tuple(gate[-1] for gate in d_gates)
            d_old = d_old._replace(h=d_old.h + _recurrent_transposed(plan, w_back, d_zh))
        if valid is not None:
            d_old = jax.tree.map(jnp.add, d_old, d_kept)
        if reset is not None:
            restart = reset if valid is None else reset & valid
            zeros = jax.tree.map(jnp.zeros_like, d_old)
            d_fresh = jax.tree.map(jnp.add, d_fresh, plan.select(restart, d_old, zeros))
            d_old = plan.select(restart, zeros, d_old)
        return (d_old, d_used, d_fresh), d_gates

    d_final = widen(d_final, dtype)
    zeros = jax.tree.map(jnp.zeros_like, d_final)
    d_used = [jnp.zeros(leaf.shape, dtype) for leaf in used]
    inputs = (states, gates, d_ys, controls.valid, controls.resets)
    start = (d_final, d_used, None if controls.resets is None else zeros)
    (d_state, d_used, d_fresh), d_gates = jax.lax.scan(step, start, inputs, reverse=not plan.reverse)

    d_zx = tuple(gate[0] for gate in d_gates)
    d_w_ih = _weight_gradient(plan, xs, d_zx, w_ih)
    d_w_hh = None if w_hh is None else _weight_gradient(plan, hs, tuple(gate[-1] for gate in d_gates), w_hh)
    d_b = jnp.concatenate([jnp.sum(d, axis=(0, 2) if plan.feature_major else (0, 1)) for d in d_zx]).astype(b.dtype)
    order = "thb,ih->tbi" if plan.feature_major else "tbh,ih->tbi"
    d_xs = sum(
        jnp.einsum(order, d.astype(w.dtype), w, preferred_element_type=dtype)
        for d, w in zip(d_zx, plan.split(w_ih), strict=True)
    ).astype(xs.dtype)
    d_fresh = None if d_fresh is None else cast_like(d_fresh, controls.fresh)
    return (
        (d_w_ih, d_w_hh, d_b),
        cast_like(d_used, used),
        cast_like(d_state, states),
        d_xs,
        Controls(None, None, d_fresh),
    )


def _recurrent_transposed(plan, w, d_zh):
    """``sum over gates of d_zh @ w_hh.T``, with ``w`` already in the order that the matmul wants."""
    if plan.feature_major:
        d = jnp.concatenate(d_zh, axis=0)
        return jnp.matmul(w, d.astype(w.dtype), preferred_element_type=plan.dtype)
    return matmul(jnp.concatenate(d_zh, axis=-1), w, plan.dtype)


def _weight_gradient(plan, a, d_gates, w):
    """``sum_t a[t].T @ d[t]``, a matmul over all steps for each gate."""
    order = "tbk,thb->kh" if plan.feature_major else "tbk,tbh->kh"
    blocks = [
        jnp.einsum(order, a.astype(w.dtype), d.astype(w.dtype), preferred_element_type=plan.dtype) for d in d_gates
    ]
    return jnp.concatenate(blocks, axis=-1).astype(w.dtype)


_fused.defvjp(_fused_fwd, _fused_bwd)
