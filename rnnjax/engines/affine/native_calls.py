"""The two calls of the native engine as functions of arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rnnjax.engines.affine.native_text import Layout
from rnnjax.engines.affine.plan import Plan
from rnnjax.engines.affine.program import Program

__all__ = ["Call", "Loaded"]


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
        inputs: whether the backward pass gives the cotangent of xs.
    """

    plan: Plan
    cell: Loaded
    valid: bool
    resets: bool
    keep: int
    inputs: bool = True

    @property
    def y_is_h(self) -> bool:
        """Whether the output is the state that the matmul takes."""
        program = self.cell.program
        return program.y == program.new[self.cell.layout.h]

    def flags(self) -> Any:
        """As the handler reads them."""
        return np.int32(self.plan.reverse + 2 * self.valid + 4 * self.resets + 8 * self.keep + 32 * (not self.inputs))

    def forward(self, *arrays: jax.Array) -> Sequence[jax.Array]:
        """``ys``, the final states, and what is kept beside ys: h where it is not ys, and values or states."""
        (T, B, _), H, dtype = arrays[0].shape, self._hidden_size(arrays[1]), arrays[0].dtype
        over_time, row, states = _shape(dtype, T, B, H), _shape(dtype, B, H), len(self.cell.program.new)
        outs = [over_time, *[row] * states]
        if self.keep and not self.y_is_h:
            outs.append(over_time)
        if self.keep == 1:
            width = len(self.cell.program.saved()) * self.cell.lanes
            outs.append(_shape(dtype, T, -(-H // self.cell.lanes), B, width))
        outs += [over_time] * ((states - 1) * (self.keep == 2))
        return self._run("forward", outs, arrays)

    def backward(self, *arrays: jax.Array) -> Sequence[jax.Array]:
        """Cotangents of xs where it is wanted, w_ih, w_hh, b, own, the states and the fresh states."""
        xs, w_ih = arrays[:2]
        H, GH, dtype = self._hidden_size(w_ih), w_ih.shape[1], xs.dtype
        outs = [_shape(dtype, *xs.shape)] * self.inputs + [_shape(dtype, *w_ih.shape)]
        outs += [_shape(dtype, H, GH)] * (len(self.cell.layout.gate_h) > 0) + [_shape(dtype, GH)]
        outs += [_shape(dtype, self.cell.program.num_own, H)] * (self.cell.program.num_own > 0)
        outs += [_shape(dtype, xs.shape[1], H)] * (len(self.cell.program.new) * (1 + self.resets))
        return self._run("backward", outs, arrays)

    def _hidden_size(self, w_ih: jax.Array) -> int:
        return w_ih.shape[1] // len(self.cell.layout.gate_x)

    def _run(self, which: str, outs: Sequence[Any], arrays: Sequence[jax.Array]) -> Sequence[jax.Array]:
        call = jax.ffi.ffi_call(f"{self.cell.target}_{which}", outs)
        return call(*arrays, cell=self.cell.name, flags=self.flags())


def _shape(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)
