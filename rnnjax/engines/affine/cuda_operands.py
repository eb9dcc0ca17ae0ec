"""Between the operands of a recurrence and those of its CUDA kernels: packing, masks, and what is kept.

Of several networks, whose parameters have an axis of them, the rows follow each other: see `Loops`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.engines.affine import cuda_kernels, cuda_matmuls
from rnnjax.engines.affine.cuda_cell import CellText
from rnnjax.engines.affine.cuda_rules import Facts, Tiles
from rnnjax.engines.affine.loops import Cotangents, Finished, Kept, Operands
from rnnjax.engines.affine.plan import Plan
from rnnjax.engines.affine.program import Program

__all__ = ["States", "Work", "as_kept", "joined", "masks", "networks", "nothing", "see"]


class States(NamedTuple):
    """The states before every step, of which only ``h`` is read."""

    h: jax.Array


@dataclasses.dataclass(frozen=True)
class Work:
    """What one call needs, known before there are arrays."""

    program: Program
    text: CellText
    setting: cuda_kernels.Setting
    forward: Tiles
    backward: Tiles
    leaves: tuple[int, ...]  # of the state: h first
    facts: Facts

    def own(self, operands: Operands) -> jax.Array:
        """The parameters of the update, ``[NP, H]``; of several networks ``[N, NP, H]``."""
        if not operands.own:
            return jnp.zeros((0, self.setting.hidden_size), jnp.float32)

        def stacked(leaves: list[jax.Array]) -> jax.Array:
            return jnp.stack(self.program.columns(leaves, self.setting.hidden_size, jnp.float32))

        return (stacked if networks(operands) is None else jax.vmap(stacked))(operands.own)

    def own_leaves(self, operands: Operands, columns: jax.Array | None) -> list[jax.Array]:
        """The cotangents of the parameters of the update from those by rows, ``[NP, B, H]``."""
        if columns is None:
            return []
        many = networks(operands)
        if many is None:
            return self.program.leaves(list(jnp.sum(columns, axis=1)))
        columns = jnp.sum(columns.reshape(columns.shape[0], many, -1, columns.shape[-1]), axis=2)
        return jax.vmap(lambda c: self.program.leaves(list(c)), in_axes=1)(columns)

    def pack(self, state: Any) -> jax.Array:
        """A state as ``[1 + S, B, H]`` in float32."""
        leaves = jax.tree.leaves(state)
        rows = [leaves[i].astype(jnp.float32).reshape(-1, self.setting.hidden_size) for i in self.leaves]
        return jnp.stack(rows)

    def unpack(self, array: jax.Array, like: Any) -> Any:
        """The opposite, with the shapes and dtypes of ``like``."""
        leaves, treedef = jax.tree.flatten(like)
        for row, i in zip(array, self.leaves, strict=True):
            leaves[i] = row.reshape(leaves[i].shape).astype(leaves[i].dtype)
        return jax.tree.unflatten(treedef, leaves)


def networks(operands: Operands) -> int | None:
    """How many networks there are; None if parameters have no axis of them."""
    return operands.w_ih.shape[0] if operands.w_ih.ndim == 3 else None


def masks(work: Work, operands: Operands) -> tuple[jax.Array | None, jax.Array, jax.Array | None]:
    """A byte for every step and row, the state that the first step sees, and that of a restart."""
    controls = operands.controls
    valid, restart = controls.valid, controls.restarts
    start = work.pack(operands.state)
    if valid is None and restart is None:
        return None, start, None
    steps = operands.xs.shape[0]
    flags = jnp.uint8(1) if valid is None else valid.astype(jnp.uint8)
    packed = None
    if restart is not None:
        flags = flags + 2 * restart.astype(jnp.uint8)
        packed = jnp.broadcast_to(work.pack(controls.fresh), start.shape)
        first = restart[-1 if work.setting.reverse else 0]
        start = jnp.where(first.reshape(-1, 1), packed, start)
    return flags.reshape(steps, -1), start, packed


def see(work: Work, operands: Operands, h: jax.Array) -> jax.Array:
    """What the update saw, from the states: ``[T, B, NS, H]``."""
    zx = cuda_matmuls.project(operands.xs, operands.w_ih)
    zh = jnp.zeros_like(zx) if operands.w_hh is None else cuda_matmuls.project(h, operands.w_hh)
    b = operands.b.astype(jnp.float32)
    zx = zx + b.reshape(*b.shape[:-1], *[1] * (zx.ndim - 1 - b.ndim), b.shape[-1])
    zx, zh = (z.reshape(z.shape[0], -1, work.text.gates, work.setting.hidden_size) for z in (zx, zh))
    seen: list[jax.Array] = []
    for g, together in enumerate(work.text.summed):
        x, s = zx[..., g, :], zh[..., g, :]
        seen += [x + s] if together else [x, s]
    return jnp.stack(seen, axis=-2).astype(work.setting.dtype)


def joined(summed: Sequence[bool], dz: jax.Array, dx: jax.Array) -> jax.Array:
    """The cotangents of zx of all gates: of some they are those of zh."""
    gates = jnp.split(dz, len(summed), axis=-1)
    apart = iter(jnp.split(dx, len(summed) - sum(summed), axis=-1))
    return jnp.concatenate([gate if s else next(apart) for gate, s in zip(gates, summed, strict=True)], axis=-1)


def as_kept(operands: Operands, kept: cuda_kernels.Kept | None) -> Kept:
    """What the kernel keeps, with an axis of networks where there are several; of no steps, None, zeros."""
    batch = operands.xs.shape[1:-1]
    if kept is None:
        h = jnp.zeros((operands.xs.shape[0], *operands.state.h.shape), operands.state.h.dtype)
        return Kept(States(h), (None, None, jnp.zeros(batch, jnp.uint32)))
    h = kept.h.reshape(kept.h.shape[0], *batch, kept.h.shape[-1])
    many = operands.xs.shape[1:2] if networks(operands) else ()  # an axis of its own, for those who map
    rows = (*many, -1)
    seen = None if kept.seen is None else kept.seen.reshape(kept.seen.shape[0], *rows, *kept.seen.shape[2:])
    s = None if kept.s is None else kept.s.reshape(*kept.s.shape[:2], *rows, kept.s.shape[-1])
    return Kept(States(h), (seen, s, kept.broken.reshape(rows)))


def nothing(plan: Plan, operands: Operands, d_final: Any) -> Cotangents:
    """Of no steps."""
    finished = Finished(operands.w_ih, operands.w_hh, operands.b, operands.xs)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, plan.dtype), finished)
    d_own = [jnp.zeros(leaf.shape, plan.dtype) for leaf in operands.own]
    fresh = None if operands.controls.resets is None else jax.tree.map(jnp.zeros_like, d_final)
    return Cotangents(d_final, d_own, fresh, zeros)
