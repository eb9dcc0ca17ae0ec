"""The two calls of the native engine as functions of arrays, which `jax.vmap` may wrap any number of times.

A new axis becomes more rows of the batch, since the loops treat every row alone. Where members have parameters of their
own, or gradients of parameters that are theirs alone, the members follow each other.

A program that is exported, or lowered for another platform, gets XLA's loops in their place.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.extend.core import Primitive
from jax.interpreters import mlir

from rnnjax.cell import cast_like
from rnnjax.engines.affine.loops import Operands
from rnnjax.engines.affine.native_text import Layout
from rnnjax.engines.affine.plan import Plan
from rnnjax.engines.affine.program import Program
from rnnjax.engines.affine.xla import XlaLoops
from rnnjax.engines.choice import Controls

__all__ = ["Call", "Loaded", "joined", "pull"]

Arrays = tuple[jax.Array, ...]


class Loaded(NamedTuple):
    """A compiled cell.

    Attributes:
        name: by which the handler knows it.
        target: the handler's, without forward or backward.
        program: its update.
        layout: how the loops see it.
        lanes: numbers in a vector.
    """

    name: str
    target: str
    program: Program
    layout: Layout
    lanes: int


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of the handler, and which arrays it takes and gives.

    Attributes:
        plan: of the cell, and the direction of time.
        cell: the compiled cell.
        valid: whether there is a mask.
        resets: whether there are resets.
        keep: what the forward pass keeps: 0 nothing, 1 all that the backward pass reads, 2 states only.
    """

    plan: Plan
    cell: Loaded
    valid: bool
    resets: bool
    keep: int

    @property
    def y_is_h(self) -> bool:
        """Whether the output is the state that the matmul takes."""
        program = self.cell.program
        return program.y == program.new[self.cell.layout.h]

    @property
    def _states(self) -> int:
        return len(self.cell.program.new)

    @property
    def _recurrent(self) -> int:
        return len(self.cell.layout.gate_h) > 0

    def _inputs(self) -> list[int | None]:
        """Of the arrays of both calls, the axis of the rows: xs, w_ih, w_hh, b, own, masks, states, fresh states."""
        weights: list[int | None] = [None] * (2 + self._recurrent + (self.cell.program.num_own > 0))
        return [1, *weights, *[1] * (self.valid + self.resets), *[0] * (self._states * (1 + self.resets))]

    def _kept(self) -> list[int]:
        """Of what the forward pass keeps beside ys: h where it is not ys, and values or states."""
        h = [1] * (not self.y_is_h and self.keep > 0)
        return [*h, 2] if self.keep == 1 else h + [1] * ((self._states - 1) * (self.keep == 2))

    def flags(self) -> Any:
        """As the handler reads them."""
        return np.int32(self.plan.reverse + 2 * self.valid + 4 * self.resets + 8 * self.keep)

    def forward(self, *arrays: jax.Array) -> Arrays:
        """``ys``, the final states, and what is kept."""
        outs = [1, *[0] * self._states, *self._kept()]
        return _over_rows(self._forward, self._inputs(), outs)(*arrays)

    def backward(self, *arrays: jax.Array) -> Arrays:
        """Cotangents of xs, w_ih, w_hh, b, own, the states and the fresh states; sums have no axis of rows."""
        kept = [1, *self._kept()[not self.y_is_h :]]
        inputs = [*self._inputs(), *kept, 1, *[0] * self._states]
        weights: list[int | None] = [None] * (2 + self._recurrent + (self.cell.program.num_own > 0))
        return _over_rows(self._backward, inputs, [1, *weights, *[0] * (self._states * (1 + self.resets))])(*arrays)

    def _forward(self, *arrays: jax.Array) -> Arrays:
        (T, B, _), H, dtype = arrays[0].shape, self._hidden_size(arrays[1]), arrays[0].dtype
        over_time, row = jax.ShapeDtypeStruct((T, B, H), dtype), jax.ShapeDtypeStruct((B, H), dtype)
        outs = [over_time, *[row] * self._states]
        if self.keep and not self.y_is_h:
            outs.append(over_time)
        if self.keep == 1:
            width = len(self.cell.program.saved()) * self.cell.lanes
            outs.append(jax.ShapeDtypeStruct((T, -(-H // self.cell.lanes), B, width), dtype))
        outs += [over_time] * ((self._states - 1) * (self.keep == 2))
        return self._run("forward", outs, arrays)

    def _backward(self, *arrays: jax.Array) -> Arrays:
        xs, w_ih = arrays[:2]
        H, dtype, B = self._hidden_size(w_ih), xs.dtype, xs.shape[1]
        row, own = jax.ShapeDtypeStruct((B, H), dtype), self.cell.program.num_own
        weights: list[Any] = [w_ih, *[jax.ShapeDtypeStruct((H, w_ih.shape[1]), dtype)] * self._recurrent]
        outs = [jax.ShapeDtypeStruct(a.shape, dtype) for a in (xs, *weights)]
        outs.append(jax.ShapeDtypeStruct((w_ih.shape[1],), dtype))
        outs += [jax.ShapeDtypeStruct((own, H), dtype)] * (own > 0) + [row] * (self._states * (1 + self.resets))
        return self._run("backward", outs, arrays)

    def _hidden_size(self, w_ih: jax.Array) -> int:
        return w_ih.shape[1] // len(self.cell.layout.gate_x)

    def _run(self, which: str, outs: Sequence[Any], arrays: Arrays) -> Arrays:
        shapes = tuple((tuple(out.shape), jnp.dtype(out.dtype)) for out in outs)
        return tuple(_native.bind(*arrays, call=self, which=which, shapes=shapes))

    def portable(self, which: str, shapes: Any, *arrays: jax.Array) -> Arrays:
        """The same by XLA, without what is kept: the backward pass computes it again."""
        rest = iter(arrays)
        xs, w_ih, w_hh, b = next(rest), next(rest), next(rest) if self._recurrent else None, next(rest)
        program = self.cell.program
        own = program.parameters(list(next(rest))) if program.num_own else []
        valid, resets = next(rest) if self.valid else None, next(rest) if self.resets else None
        tree = jax.tree.structure(jax.eval_shape(self.plan.cell.initial_state))
        state = jax.tree.unflatten(tree, [next(rest) for _ in range(self._states)])
        fresh = jax.tree.unflatten(tree, [next(rest) for _ in range(self._states)]) if self.resets else None
        controls = Controls(valid, resets, fresh)
        operands = Operands(xs, w_ih, w_hh, b, own, state, controls)
        if which == "forward":
            final, ys, _ = XlaLoops().forward(self.plan, operands, keep=False)
            found = [ys, *jax.tree.leaves(final)]
            return *found, *(jnp.zeros(shape, dtype) for shape, dtype in shapes[len(found) :])
        d_ys, *d_final = arrays[-1 - self._states :]
        d = pull(self.plan, operands, jax.tree.unflatten(tree, d_final), d_ys)
        columns = program.columns(d.own, self._hidden_size(d.w_ih), d_ys.dtype)
        leaves = [d.xs, d.w_ih, *[d.w_hh] * self._recurrent, d.b, *[jnp.stack(columns)] * (len(columns) > 0)]
        return *leaves, *jax.tree.leaves((d.state, d.controls.fresh))


# An operation of JAX's own kind, since only that knows, when it is lowered, for what it is.
_native = Primitive("rnnjax_native")
_native.multiple_results = True
_native.def_abstract_eval(lambda *_, shapes, **__: [jax.core.ShapedArray(*known) for known in shapes])


@_native.def_impl
def _run_now(*arrays: jax.Array, **options: Any) -> Any:
    with jax.disable_jit(False):
        return jax.jit(functools.partial(_native.bind, **options))(*arrays)


def _lower(context: Any, *operands: Any, call: Call, which: str, shapes: Any) -> Any:
    if context.module_context.lowering_parameters.for_export:
        return _lower_portable(context, *operands, call=call, which=which, shapes=shapes)
    lower = jax.ffi.ffi_lowering(f"{call.cell.target}_{which}")
    return lower(context, *operands, cell=call.cell.name, flags=call.flags())


def _portable(*arrays: jax.Array, call: Call, which: str, shapes: Any) -> Arrays:
    return call.portable(which, shapes, *arrays)


_lower_portable = mlir.lower_fun(_portable, multiple_results=True)
mlir.register_lowering(_native, _lower_portable)
mlir.register_lowering(_native, _lower, platform="cpu")


def pull(plan: Plan, operands: Operands, d_final: Any, d_ys: jax.Array) -> Operands:
    """The cotangents of the operands by XLA; None for masks."""

    def run(floats: Any, fresh: Any) -> tuple[Any, jax.Array]:
        final, ys, _ = XlaLoops().forward(plan, joined(operands, floats, fresh), keep=False)
        return final, ys

    (final, _), back = jax.vjp(run, operands[:-1], operands.controls.fresh)
    return joined(operands, *back((cast_like(d_final, final), d_ys)), masks=False)


def joined(operands: Operands, floats: Any, fresh: Any, *, masks: bool = True) -> Operands:
    """The operands with other arrays, or their cotangents: masks have none."""
    controls = operands.controls if masks else Controls()
    return operands._replace(**dict(zip(Operands._fields, floats)), controls=controls._replace(fresh=fresh))


def _over_rows(
    call: Callable[..., Arrays], axes_in: Sequence[int | None], axes_out: Sequence[int | None]
) -> Callable[..., Arrays]:
    """The same function of arrays for any number of `jax.vmap` around it.

    Args:
        call: the function.
        axes_in: of every argument, the axis of its rows; None for one that all rows share.
        axes_out: of every result, the axis of its rows; None for one that is summed over them.
    """
    run = custom_vmap(call)

    def rule(size: int, batched: Sequence[bool], *arrays: jax.Array) -> tuple[Arrays, tuple[bool, ...]]:
        again = _over_rows(call, axes_in, axes_out)
        shared = [axis is None and b for axis, b in zip(axes_in, batched, strict=True)]
        if any(shared) or None in axes_out:
            found = _one_after_the_other(again, batched, arrays)
        else:
            folded = (_fold(a, axis, b, size) for a, axis, b in zip(arrays, axes_in, batched, strict=True))
            found = tuple(_unfold(a, axis, size) for a, axis in zip(again(*folded), axes_out, strict=True))
        return found, (True,) * len(axes_out)

    run.def_vmap(rule)
    return run


def _one_after_the_other(call: Callable[..., Arrays], batched: Sequence[bool], arrays: Arrays) -> Arrays:
    own = [a for a, b in zip(arrays, batched, strict=True) if b]

    def one(own: Sequence[jax.Array]) -> Arrays:
        rest = iter(own)
        return call(*(next(rest) if b else a for a, b in zip(arrays, batched, strict=True)))

    return jax.lax.map(one, own)


def _fold(a: jax.Array, axis: int | None, batched: bool, size: int) -> jax.Array:
    """Members become rows."""
    if axis is None:
        return a
    moved = jnp.moveaxis(a if batched else jnp.broadcast_to(a, (size, *a.shape)), 0, axis)
    return moved.reshape(*moved.shape[:axis], -1, *moved.shape[axis + 2 :])


def _unfold(a: jax.Array, axis: int | None, size: int) -> jax.Array:
    """And rows members again, on the first axis."""
    at = axis or 0
    return jnp.moveaxis(a.reshape(*a.shape[:at], size, -1, *a.shape[at + 1 :]), at, 0)
