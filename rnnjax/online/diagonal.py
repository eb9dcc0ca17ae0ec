r"""Influence traces that keep a parameter's effect on its own unit, at the cost of about one more forward pass."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cell import (
    AffineCell,
    LinearCell,
    batch_shape,
    compute_dtype,
    linear_step,
    param_shapes,
    project_input,
    project_state,
    widen,
)
from rnnjax.engines.affine.plan import make_plan
from rnnjax.engines.affine.program import Refusal
from rnnjax.kinds import check_kinds
from rnnjax.network import Network, input_shape, leaves, walk
from rnnjax.online.across import Reader, each_step, read_with, send

__all__ = ["EProp", "SnAp1"]


@dataclasses.dataclass(frozen=True)
class SnAp1:
    r"""The sparse one-step approximation of real-time recurrent learning (Menick et al., 2021).

    Of the influence of a parameter on the state, only that on the unit which reads it is kept. For an affine cell,
    whose update treats every unit alone, and with ``D`` its derivatives by state, ``zx`` and ``zh``, a step is

        J    = D_state + sum_g D_zh[g] * diag(w_hh[:, g])        for every unit a block of its states
        e_hh = J @ e_hh + h * D_zh                               [B, H, G H] a state
        e_ih = J @ e_ih + x * D_zx                               [B, I, G H] a state

    and likewise for biases and what the update reads besides. Where the recurrence is elementwise (`IndRNN`, and all
    linear cells) nothing is left out, and the border is exact. Elsewhere memory that passes from unit to unit is not
    seen: `Lookback` is dearer, and better where it reaches.

    Of a network every cell has a trace of its own, over the inputs that it gets from below. What parameters of one cell
    do to the state of another is dropped, and so is what the network itself holds (norms between layers, a learned
    start). Masks that a key draws are those of the chunk alone: the trace is brought forward without them.

    A row of the batch holds one copy of the weights for each state of a unit (two for an LSTM).

    Args:
        cell: an affine cell whose update is pointwise, a linear cell, or a network of such cells that has a ``step``.
        reader: as in `RTRL`.

    Raises:
        TypeError: for any other cell.
        ValueError: for an affine cell whose update mixes units, as layer normalisation does, or reads a parameter that
            is not a number a unit.
    """

    cell: Any
    reader: Reader | None = None
    _recurrent = True

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_kinds(self)
        if isinstance(self.cell, Network) and not hasattr(self.cell, "step"):
            raise TypeError(f"{name}: cell must go step by step, {type(self.cell).__name__} needs the future.")
        for leaf in leaves(self.cell):
            if not isinstance(leaf.cell, AffineCell | LinearCell):
                raise TypeError(f"{name}: cell must be an affine or a linear cell, got {leaf.cell!r}; RTRL takes any.")
            _check_local(name, leaf.cell)

    def start(self, params: Any, state: Any, chunk: Any) -> Any:
        """Of each cell, and of each state of a unit of it, zeros ``[B, *shape]`` for every parameter."""
        read = read_with(self, params, chunk)
        rows = math.prod(batch_shape(self.cell, state))
        cells = zip(leaves(self.cell, read.params), leaves(self.cell, state), strict=True)
        return tuple(
            tuple(
                jax.tree.map(lambda p: jnp.zeros((rows, *p.shape), compute_dtype(p.dtype)), _moving(cell, own))
                for _ in jax.tree.leaves(part)
            )
            for (_, cell, own), (_, _, part) in cells
        )

    def enter(self, params: Any, state: Any, trace: Any, chunk: Any) -> Any:
        """See `Border`."""
        rows = math.prod(batch_shape(self.cell, state))

        def into(net: Any, params: Any, state: Any, traces: Iterator[Any]) -> Any:
            if isinstance(net, Network):
                inside = zip(net.parts(params), net.parts(state), strict=True)
                return net.join([into(cell, own, part, traces) for (_, cell, own), (_, _, part) in inside])
            return send(functools.partial(_contract, rows, jax.eval_shape(lambda: params)), params, state, next(traces))

        return into(self.cell, read_with(self, params, chunk).params, state, iter(trace))

    def advance(self, params: Any, state: Any, trace: Any, chunk: Any, run: Any, n: Any) -> Any:
        """See `Border`."""
        del run, n
        read = read_with(self, params, chunk)
        batch = batch_shape(self.cell, state)
        rows = math.prod(batch)

        def forward(state: Any, trace: Any, x: jax.Array) -> tuple[Any, Any]:
            traces, found = iter(trace), []

            def visit(cell: Any, params: Any, state: Any, x: Any, controls: Any, *, reverse: bool, key: Any) -> Any:
                del controls, reverse, key
                old, seen = jax.tree.map(lambda a: a.reshape(rows, *a.shape[len(batch) :]), (state, x))
                found.append(_advanced(cell, params, old, seen, next(traces), recurrent=self._recurrent))
                return cell.step(params, state, x)

            new, _ = walk(visit, self.cell, read.params, state, x)
            return new, tuple(found)

        return each_step(self.cell, forward, read, state, trace)


@dataclasses.dataclass(frozen=True)
class EProp(SnAp1):
    """Eligibility traces (Bellec et al., 2020): as `SnAp1`, but none passes through ``w_hh``, not even a unit's own.

    Args:
        cell: as in `SnAp1`.
        reader: as in `RTRL`.
    """

    _recurrent = False


def _contract(rows: int, like: Any, d_state: Any, trace: Any) -> Any:
    """What the gradient of a cell's state is to its parameters."""

    def one(param: Any, *traces: jax.Array | None) -> jax.Array:
        total = jnp.zeros(param.shape, compute_dtype(param.dtype))
        for e, d in zip(traces, jax.tree.leaves(d_state), strict=True):
            if e is not None:
                total = total + jnp.sum(e * _over(d.reshape(rows, -1).astype(e.dtype), e), axis=0)
        return total

    return jax.tree.map(one, like, *trace, is_leaf=lambda leaf: leaf is None)


def _over(a: jax.Array, e: jax.Array) -> jax.Array:
    """``a [B, N]`` as a factor of ``e [B, ..., n N]``: column c belongs to unit c modulo N."""
    a = jnp.tile(a, (1, e.shape[-1] // a.shape[-1]))
    return a.reshape(a.shape[0], *(1,) * (e.ndim - 2), a.shape[-1])


def _advanced(cell: Any, params: Any, state: Any, x: jax.Array, trace: Any, *, recurrent: bool) -> Any:
    """The trace of a cell after a step; a row of the batch in all leaves."""
    jacobian, direct = _derivatives(cell, params, state, x, recurrent=recurrent)
    return tuple(
        jax.tree.map(
            lambda first, *rest, k=k: sum(
                (e * _over(jacobian[k][j], e) for j, e in enumerate((first, *rest[:-1]))), rest[-1]
            ),
            *trace,
            direct[k],
        )
        for k in range(len(trace))
    )


def _derivatives(
    cell: Any, params: Any, state: Any, x: jax.Array, *, recurrent: bool
) -> tuple[list[list[jax.Array]], list[Any]]:
    """How leaf k of the next state follows leaf j in each unit ``[B, N]``, and how it follows parameters directly."""
    leaves, treedef = jax.tree.flatten(state)
    dtype = compute_dtype(leaves[0].dtype)
    wide = widen(state, dtype)

    def project(params: Any, state: Any, x: jax.Array) -> tuple[Any, Any]:
        return project_input(cell, params, x, dtype), project_state(cell, params, state.h, dtype)

    def along(function: Any, position: int, arguments: list[jax.Array]) -> list[jax.Array]:
        tangents = [jnp.full_like(a, j == position) for j, a in enumerate(arguments)]
        return jax.tree.leaves(jax.jvp(lambda *a: function(list(a)), tuple(arguments), tuple(tangents))[1])

    affine = isinstance(cell, AffineCell)
    zx, zh = project(params, wide, x) if affine else ((), ())

    def by_state(leaves: list[jax.Array]) -> Any:
        state = jax.tree.unflatten(treedef, leaves)
        return (cell.update(params, state, zx, zh) if affine else linear_step(cell, params, state, x))[0]

    columns = [along(by_state, j, jax.tree.leaves(wide)) for j in range(len(leaves))]
    if zh and recurrent:
        place = next(j for j, leaf in enumerate(leaves) if leaf is state.h)
        for g, w in enumerate(jnp.split(params.w_hh, cell.num_gates, axis=1)):
            through = along(lambda zh: cell.update(params, wide, zx, tuple(zh))[0], g, list(zh))
            own = jnp.diagonal(w).astype(dtype)
            columns[place] = [d + t * own for d, t in zip(columns[place], through, strict=True)]

    def row(params: Any, state: Any, x: jax.Array) -> list[jax.Array]:
        if affine:
            new, _ = cell.update(params, state, *project(params, state, x))
        else:
            new, _ = linear_step(cell, params, state, x)
        return [jnp.sum(leaf) for leaf in jax.tree.leaves(new)]

    # A parameter reaches one unit only, so the sum over the units loses nothing.
    moving = _moving(cell, params)
    direct = [
        jax.tree.map(
            lambda d, m: None if m is None else d.astype(dtype), tree, moving, is_leaf=lambda leaf: leaf is None
        )
        for tree in jax.vmap(jax.jacrev(row), in_axes=(None, 0, 0))(params, wide, x)
    ]
    return [list(k) for k in zip(*columns, strict=True)], direct


def _check_local(name: str, cell: Any) -> None:
    """Raises unless the next state of a unit depends on that unit and on its own columns of the parameters alone."""
    kind = type(cell).__name__
    state = jax.eval_shape(cell.initial_state)
    units = {leaf.shape[-1] for leaf in jax.tree.leaves(state)}
    if len(units) != 1:
        raise ValueError(f"{name}: all states of {kind} must have one size, got {sorted(units)}; RTRL takes any cell.")
    params = param_shapes(cell, 3)
    if isinstance(cell, AffineCell):
        program = make_plan(cell, params, compute_dtype(state.h.dtype)).program()
        if isinstance(program, Refusal):
            raise ValueError(f"{name}: the update of {kind} must treat every unit alone, it {program.reason}")
    (size,) = units
    for path, leaf in jax.tree_util.tree_leaves_with_path(_moving(cell, params)):
        if not leaf.shape or leaf.shape[-1] % size:
            raise ValueError(
                f"{name}: every parameter must have a column a unit, {kind} has params{jax.tree_util.keystr(path)} of "
                f"shape {list(leaf.shape)}; RTRL takes any cell."
            )


def _moving(cell: Any, params: Any) -> Any:
    """The parameters that the next state depends on, None in place of the others (those that only ``y`` reads)."""
    state = jax.eval_shape(cell.initial_state)
    x = jax.ShapeDtypeStruct(input_shape(cell, params.w_ih.shape[0]), jnp.float32)
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    jaxpr = jax.make_jaxpr(lambda p, s, x: cell.step(p, s, x)[0])(shapes, state, x).jaxpr
    wanted = {id(v) for v in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if wanted & {id(v) for v in equation.outvars}:
            wanted |= {id(v) for v in equation.invars}
    leaves, treedef = jax.tree.flatten(params)
    return jax.tree.unflatten(
        treedef, [leaf if id(v) in wanted else None for leaf, v in zip(leaves, jaxpr.invars, strict=False)]
    )
