r"""One custom derivative for every affine cell: only what is sequential stays in the loop.

Forward, with ``x[t] @ w_ih`` computed for all steps at once before the loop unless `projects_inside` says otherwise:

    zx[t] = split(x[t] @ w_ih + b)
    zh[t] = split(h[t-1] @ w_hh)
    state[t], y[t] = update(params, state[t-1], zx[t], zh[t])

Backward, from the last step to the first, where ``pull[t]`` is the vector-Jacobian product of ``update`` at step t:

    dstate[t-1], dzx[t], dzh[t] = pull[t](dstate[t], dy[t])
    dh[t-1] += dzh[t] @ w_hh.T

and after the loop, each a matmul over all steps for every gate (or after every segment of it, see `backward_segment`):

    dw_ih = sum_t x[t].T @ dzx[t],   db = sum_t dzx[t],   dx[t] = dzx[t] @ w_ih.T
    dw_hh = sum_t h[t-1].T @ dzh[t]

The derivative that JAX makes of the plain scan reads and writes all of ``dw_ih`` and ``dw_hh`` at every step
instead. Parameters that ``update`` reads itself (the GRU's ``b_hn``, peepholes) are small, and their cotangents
are summed in the loop. Cotangents of the state are carried in the dtype of the update.

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
import functools
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cell import AffineCell, cast_like, compute_dtype, matmul, split_gates, widen
from rnnjax.engines.affine.rules import backward_segment, projects_inside
from rnnjax.engines.choice import Controls
from rnnjax.engines.scan import checkpointed, in_segments, segment_length, select

__all__ = ["supports", "unroll_fused"]

Gates = tuple[jax.Array, ...]
Seen = tuple[Gates, ...]  # what the update sees, a gate: (zx + zh,) where the sum is all it reads, else (zx, zh)
Weights = tuple[jax.Array, jax.Array | None, jax.Array]  # w_ih, w_hh, b


def supports(cell: Any) -> bool:
    """Whether ``cell`` is an affine cell with a state of floating dtypes."""
    return _supports(cell)


@functools.lru_cache(maxsize=1024)  # every call of `unroll` asks, and tracing `initial_state` takes longer than a step
def _supports(cell: Any) -> bool:
    if not isinstance(cell, AffineCell):
        return False
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
) -> tuple[Any, jax.Array]:
    """Unrolls an affine cell. Reverse-mode derivatives of any order; forward mode is what ``"scan"`` has.

    Args:
        cell: any affine cell.
        params: its parameters.
        state: the state before the first step.
        xs: ``[T, *batch, I]``.
        controls: masks and resets, see `Controls`.
        reverse: whether time runs from the last step to the first.
        remat: None keeps the states and pre-activations of all steps for the backward pass. ``"gates"`` keeps the
            states only, 2 arrays ``[T, *batch, H]`` instead of 6 for an LSTM, and computes the pre-activations
            again, by two large matmuls a segment of the backward pass. True and integers checkpoint segments as
            ``"scan"`` does: a fifth of the memory for up to 40 % more time.

    Returns:
        The final state, and ``ys [T, *batch, H]``.

    Raises:
        ValueError: for an unknown name of a ``remat``.
    """
    if isinstance(remat, str) and remat != "gates":
        raise ValueError(f"unroll: remat of 'fused' must be None, True, an int or 'gates', got {remat!r}.")
    plan = _make_plan(cell, params, compute_dtype(state.h.dtype), keep_gates=remat != "gates")
    weights = (params.w_ih, getattr(params, "w_hh", None), params.b)
    own = [leaf for leaf, known in zip(jax.tree.leaves(params), plan.template, strict=True) if known is None]

    def run(state: Any, inputs: Any, reverse: bool = False) -> tuple[Any, jax.Array]:
        xs, valid, resets = inputs
        inside = projects_inside(xs, params.w_ih, plan.dtype, jax.default_backend())
        here = dataclasses.replace(plan, inside=inside, reverse=reverse)
        return _fused(here, weights, own, state, xs, Controls(valid, resets, controls.fresh))

    inputs = (xs, controls.valid, controls.resets)
    segment = None if isinstance(remat, str) else segment_length(remat, xs.shape[0])
    if segment is None:
        return run(state, inputs, reverse)
    return checkpointed(run, state, inputs, segment, reverse)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is known before there are arrays, and the steps of the computation that depend on it."""

    cell: AffineCell
    dtype: Any  # of the update, and of what matmuls return
    keep_gates: bool
    summed: tuple[bool, ...]  # a gate: whether the update sees only zx + zh; empty without w_hh
    treedef: Any  # of params
    template: tuple[Any, ...]  # a leaf of params: None if the update reads it, else its shape and dtype
    inside: bool = False  # whether inputs are projected within the loop
    reverse: bool = False

    def update(self, own: list[jax.Array], state: Any, seen: Seen) -> tuple[Any, jax.Array]:
        """The cell's update, as a function of all that it reads; ``own`` are the parameters among that."""
        leaves = iter(own)
        params = self.treedef.unflatten([next(leaves) if known is None else known for known in self.template])
        zx = tuple(gate[0] for gate in seen)
        # Where the first entry is the sum already, nothing is left for the second; XLA drops the zeros.
        zh = tuple(gate[1] if len(gate) == 2 else jnp.zeros_like(gate[0]) for gate in seen)
        return self.cell.update(params, state, zx, zh if self.summed else ())

    def project(self, a: jax.Array, w: jax.Array) -> Gates:
        """``split(a @ w)`` for all steps: G arrays ``[T, *batch, H]`` that no slice has to cut."""
        return tuple(matmul(a, block, self.dtype) for block in split_gates(w, self.cell.num_gates))

    def see(self, zx: Gates, b: jax.Array, zh: Gates) -> Seen:
        """What the update sees of the projections; the bias joins here, where it costs no pass over memory."""
        biases = split_gates(b.astype(self.dtype), self.cell.num_gates)
        zx = tuple(z + bias for z, bias in zip(zx, biases, strict=True))
        if not zh:
            return tuple((x,) for x in zx)
        return tuple((x + h,) if s else (x, h) for x, h, s in zip(zx, zh, self.summed, strict=True))


def _make_plan(cell: AffineCell, params: Any, dtype: Any, *, keep_gates: bool) -> _Plan:
    """Traces the update of one example, to learn which parameters it reads and how it combines the gates."""
    z = (jax.ShapeDtypeStruct((cell.hidden_size,), dtype),) * cell.num_gates
    zh = () if getattr(params, "w_hh", None) is None else z
    state = jax.eval_shape(lambda: widen(cell.initial_state(()), dtype))
    jaxpr = jax.make_jaxpr(cell.update)(params, state, z, zh).jaxpr
    leaves, treedef = jax.tree.flatten(params)

    def readers(*variables: Any) -> list[Any]:
        wanted = {id(v) for v in variables}
        equations = [e for e in jaxpr.eqns if wanted & {id(v) for v in e.invars}]
        return equations + [None] * any(id(v) in wanted for v in jaxpr.outvars)

    def is_summed(x: Any, h: Any) -> bool:
        found = readers(x, h)
        if len(found) != 1 or found[0] is None:
            return False
        return found[0].primitive.name == "add" and {id(v) for v in found[0].invars} == {id(x), id(h)}

    template = tuple(
        None if readers(v) else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for v, leaf in zip(jaxpr.invars, leaves, strict=False)  # params come first
    )
    split_at = len(jaxpr.invars) - len(zh)
    summed = tuple(map(is_summed, jaxpr.invars[split_at - len(z) : split_at], jaxpr.invars[split_at:]))
    return _Plan(cell, dtype, keep_gates, summed, treedef, template)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(
    plan: _Plan, weights: Weights, own: list[jax.Array], state: Any, xs: jax.Array, controls: Controls
) -> tuple[Any, jax.Array]:
    """The final state and ``ys``; see `unroll_fused`."""
    result, _ = _forward(plan, weights, own, state, xs, controls, keep=False)
    return result


def _forward(
    plan: _Plan, weights: Weights, own: list[jax.Array], state: Any, xs: jax.Array, controls: Controls, *, keep: bool
) -> tuple[tuple[Any, jax.Array], Any]:
    """The result, and with ``keep`` also the states before every step and what every update saw."""
    w_ih, w_hh, b = weights

    def step(state: Any, inputs: Any) -> tuple[Any, Any]:
        zx, valid, reset = inputs
        if plan.inside:
            zx = split_gates(matmul(zx, w_ih, plan.dtype), plan.cell.num_gates)
        if reset is not None:
            state = select(reset if valid is None else reset & valid, controls.fresh, state)
        zh = () if w_hh is None else split_gates(matmul(state.h, w_hh, plan.dtype), plan.cell.num_gates)
        seen = plan.see(zx, b, zh)
        wide, y = plan.update(own, widen(state, plan.dtype), seen)
        new_state = cast_like(wide, state)
        if valid is not None:
            new_state = select(valid, new_state, state)
        kept = (state, seen if plan.keep_gates else None) if keep else None
        return new_state, (y.astype(state.h.dtype), kept)

    inputs = (xs if plan.inside else plan.project(xs, w_ih), controls.valid, controls.resets)
    final, (ys, kept) = jax.lax.scan(step, state, inputs, reverse=plan.reverse)
    return (final, ys), kept


def _fused_fwd(
    plan: _Plan, weights: Weights, own: list[jax.Array], state: Any, xs: jax.Array, controls: Controls
) -> tuple[tuple[Any, jax.Array], Any]:
    result, (states, seen) = _forward(plan, weights, own, state, xs, controls, keep=True)
    return result, (weights, own, xs, controls, states, seen)


def _fused_bwd(plan: _Plan, residuals: Any, cotangents: Any) -> tuple[Any, ...]:
    weights, own, xs, controls, states, seen = residuals
    w_ih, w_hh, b = weights
    d_final, d_ys = cotangents
    if seen is None:
        # Not before the cotangents are there: computed early they would be kept after all.
        xs, states, d_final, d_ys = jax.lax.optimization_barrier((xs, states, d_final, d_ys))
    w_back = None if w_hh is None else w_hh.T  # transposed once, not at every step

    def step(carry: Any, inputs: Any) -> tuple[Any, Seen]:
        d_state, d_own, d_fresh = carry
        state, seen, d_y, valid, reset = inputs
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
        if reset is not None:
            restart = reset if valid is None else reset & valid
            d_fresh = jax.tree.map(jnp.add, d_fresh, select(restart, d_old, zeros))
            d_old = select(restart, zeros, d_old)
        return (d_old, d_own, d_fresh), d_seen

    def segment_backward(carry: Any, inputs: Any) -> tuple[Any, jax.Array]:
        """Some steps, and what they add to the gradients of the weights."""
        d_carry, d_weights = carry
        xs, (states, seen, *rest) = inputs
        if seen is None:
            seen = plan.see(plan.project(xs, w_ih), b, () if w_hh is None else plan.project(states.h, w_hh))
        d_carry, d_seen = jax.lax.scan(step, d_carry, (states, seen, *rest), reverse=not plan.reverse)
        d_zx = tuple(gate[0] for gate in d_seen)
        d_zh = tuple(gate[-1] for gate in d_seen)
        here = (
            _weight_cotangent(xs, d_zx, w_ih, plan.dtype),
            None if w_hh is None else _weight_cotangent(states.h, d_zh, w_hh, plan.dtype),
            jnp.concatenate([jnp.sum(d, axis=range(d.ndim - 1)) for d in d_zx]),
        )
        blocks = split_gates(w_ih, plan.cell.num_gates)
        d_xs = functools.reduce(jnp.add, (matmul(d, w.T, plan.dtype) for d, w in zip(d_zx, blocks, strict=True)))
        return (d_carry, jax.tree.map(jnp.add, d_weights, here)), d_xs.astype(xs.dtype)

    d_final = widen(d_final, plan.dtype)
    d_fresh = None if controls.resets is None else jax.tree.map(jnp.zeros_like, d_final)
    d_own = [jnp.zeros(leaf.shape, plan.dtype) for leaf in own]
    d_weights = jax.tree.map(lambda w: jnp.zeros(w.shape, plan.dtype), weights)
    start = ((d_final, d_own, d_fresh), d_weights)
    inputs = (xs, (states, seen, d_ys, controls.valid, controls.resets))
    segment = backward_segment(xs, (w_ih, w_hh), plan.dtype, jax.default_backend(), keep_gates=plan.keep_gates)
    end, d_xs = in_segments(segment_backward, start, inputs, segment, reverse=not plan.reverse)
    (d_state, d_own, d_fresh), d_weights = end
    return (
        cast_like(d_weights, weights),
        cast_like(d_own, own),
        cast_like(d_state, states),
        d_xs,
        Controls(None, None, None if d_fresh is None else cast_like(d_fresh, controls.fresh)),
    )


def _weight_cotangent(a: jax.Array, d_gates: Gates, w: jax.Array, dtype: Any) -> jax.Array:
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


_fused.defvjp(_fused_fwd, _fused_bwd)
