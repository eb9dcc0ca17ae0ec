"""A cell on one page: what it computes and costs, and what it goes together with."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cell import AffineCell, Cell, LinearCell, leaf_names, named_leaves
from rnnjax.checks import check_real, check_size, short
from rnnjax.engines import Job
from rnnjax.engines.affine.program import Refusal
from rnnjax.engines.affine.recurrence import plan_of
from rnnjax.engines.choice import registered
from rnnjax.equations import Operations, count_operations, equations
from rnnjax.network import Network, input_shape
from rnnjax.online import EProp, SnAp1
from rnnjax.traced import observe

__all__ = ["Card", "Gate", "card"]

_BYTES = 4  # of a float32
_SMALL = 16  # units that show the pattern of a Jacobian


class Gate(NamedTuple):
    """A named value that a sigmoid, tanh or exponential made."""

    name: str
    kind: str  # "sigmoid", "tanh" or "exp"


@dataclasses.dataclass(frozen=True)
class Card:
    """What `card` finds; ``str`` of it is a page.

    Attributes:
        name: of the class.
        sizes: I, H, and numbers of a row of the state.
        equations: lines that compute a step, from what JAX traces of it.
        gates: named values by what made them.
        recurrent_blocks: G, the blocks of width H of an affine cell's projections; 0 of any other.
        jacobian: how the next state follows the state: ``"linear"`` (entry by entry, with coefficients from the input
            alone), ``"diagonal"``, ``"blocks of k"`` a unit, or ``"dense"``.
        parameters: shapes by name.
        operations: of one step of one row.
        step_bytes: read and written by one step of the whole batch: parameters, x, states before and after, y.
        batch_size: B.
        floor: seconds that a step takes at least on the given peaks, and what sets it; None without peaks.
        engines: by name ``""`` where it takes the cell, else why not.
        borders: by name ``""`` where it takes the cell, else why not; ``"exact"`` where nothing is left out.
    """

    name: str
    sizes: dict[str, int]
    equations: tuple[str, ...]
    gates: tuple[Gate, ...]
    recurrent_blocks: int
    jacobian: str
    parameters: dict[str, tuple[int, ...]]
    operations: Operations
    step_bytes: int
    batch_size: int
    floor: tuple[float, str] | None
    engines: dict[str, str]
    borders: dict[str, str]

    @property
    def num_parameters(self) -> int:
        """All numbers in the parameters."""
        return sum(math.prod(shape) for shape in self.parameters.values())

    def __str__(self) -> str:
        shapes = ", ".join(f"{name} {list(shape)}" for name, shape in self.parameters.items())
        rows = "1 row" if self.batch_size == 1 else f"{self.batch_size} rows"
        gates = ", ".join(f"{gate.name} ({gate.kind})" for gate in self.gates) or "none"
        matmul, pointwise, hard = self.operations
        lines = [
            f"{self.name}: " + ", ".join(f"{name} {size}" for name, size in self.sizes.items()),
            *(f"    {line}" for line in self.equations),
            f"gates: {gates}" + (f"; {self.recurrent_blocks} blocks of H" if self.recurrent_blocks else ""),
            f"Jacobian d state' / d state: {self.jacobian}",
            f"parameters: {self.num_parameters:,} ({shapes})",
            f"a step of one row: {matmul:,} operations in matrix products, {pointwise:,} others ({hard:,} of them "
            "tanh, exp and the like)",
            f"a step of {rows}: {self.step_bytes:,} bytes of parameters, states, x and y",
        ]
        if self.floor is not None:
            lines.append(f"at least {1e6 * self.floor[0]:.3g} microseconds a step, set by {self.floor[1]}")
        for title, found in (("implementations", self.engines), ("borders of a chunk", self.borders)):
            able = [name + (f" ({word})" if word else "") for name, word in found.items() if word in ("", "exact")]
            lines.append(f"{title}: {', '.join(able)}")
            lines += [f"    not {name}: {word}" for name, word in found.items() if word not in ("", "exact")]
        return "\n".join(lines)


def card(
    cell: Any,
    input_size: int | None = None,
    *,
    batch_size: int = 1,
    peak_flops: float | None = None,
    peak_bytes: float | None = None,
) -> Card:
    """What a cell is, read from what JAX traces of it: equations, gates, costs, and what it goes together with.

    Args:
        cell: any cell, ours or yours.
        input_size: I; None takes H.
        batch_size: B, rows of a step.
        peak_flops: operations a second of the machine.
        peak_bytes: bytes a second that its memory gives.

    Raises:
        TypeError: for anything but a cell.
        ValueError: for sizes below one.

    >>> import rnnjax
    >>> page = card(rnnjax.GRU(64), 32)
    >>> page.jacobian, page.num_parameters, [gate.name for gate in page.gates]
    ('dense', 18688, ['r', 'z', 'n'])
    >>> page.equations[-2]
    "h' = (1 - z) * n + z * h"
    """
    if isinstance(cell, type) or not isinstance(cell, Cell) or isinstance(cell, Network):
        hint = "; its cells are in rnnjax.network.leaves(net)" if isinstance(cell, Network) else ""
        raise TypeError(f"card: cell must be a cell, got {short(cell)}{hint}.")
    size = check_size("card", "input_size", cell.hidden_size if input_size is None else input_size)
    rows = check_size("card", "batch_size", batch_size)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), size))
    state = jax.eval_shape(cell.initial_state)
    x = jax.ShapeDtypeStruct(input_shape(cell, size), jnp.float32)
    closed, (_, y) = jax.make_jaxpr(cell.step, return_shape=True)(params, state, x)
    operations = count_operations(closed.jaxpr)
    shapes = {name: leaf.shape for name, leaf in named_leaves(params).items()}
    num_state = sum(leaf.size for leaf in jax.tree.leaves(state))
    num_params = sum(math.prod(shape) for shape in shapes.values())
    step_bytes = _BYTES * (num_params + rows * (x.size + 2 * num_state + y.size))
    states = leaf_names(state)
    lines = equations(closed.jaxpr, [*shapes, *states, "x"], [*(f"{name}'" for name in states), "y"], states)
    kind, job = jacobian_class(cell), Job(cell, jax.default_backend(), input_size=size)
    return Card(
        name=type(cell).__name__,
        sizes={"input": size, "hidden": cell.hidden_size, "state": num_state},
        equations=tuple(lines),
        gates=_gates(cell, params, state, x),
        recurrent_blocks=cell.num_gates if isinstance(cell, AffineCell) else 0,
        jacobian=kind,
        parameters=shapes,
        operations=operations,
        step_bytes=step_bytes,
        batch_size=rows,
        floor=_floor(rows * (operations.matmul + operations.pointwise), step_bytes, peak_flops, peak_bytes),
        engines={entry.name: entry.fits(job) for entry in registered().entries},
        borders=_borders(cell, kind),
    )


def jacobian_class(cell: Any) -> str:
    """How the next state of a cell follows its state; see `Card`.

    Of an affine cell with a pointwise update, and of a linear one, it follows from what they are; of any other from
    the pattern of the Jacobian at random numbers.
    """
    if isinstance(cell, LinearCell):
        return "linear"
    state = jax.eval_shape(cell.initial_state)
    if isinstance(cell, AffineCell):
        params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 2))
        known: Any = cell  # hashable, as all cells are
        program = plan_of(known, 2, jnp.dtype("float32"), jnp.dtype("float32")).program()
        if not isinstance(program, Refusal):
            if getattr(params, "w_hh", None) is not None:
                return "dense"
            count = len(jax.tree.leaves(state))
            return "diagonal" if count == 1 else f"blocks of {count}"
    return _pattern(cell, state)


def _pattern(cell: Any, state: Any) -> str:
    if cell.hidden_size > _SMALL and dataclasses.is_dataclass(cell) and not isinstance(cell, type):
        with contextlib.suppress(TypeError, ValueError):  # of another size that must not be larger
            cell = dataclasses.replace(cell, hidden_size=_SMALL)  # the pattern does not depend on the size
            state = jax.eval_shape(cell.initial_state)
    rng = np.random.default_rng(0)

    def some(leaf: Any) -> jax.Array:
        return jnp.asarray(rng.normal(size=leaf.shape), jnp.float32)

    params = jax.tree.map(some, jax.eval_shape(lambda: cell.init(jax.random.key(0), 2)))
    x = some(jax.ShapeDtypeStruct(input_shape(cell, 2), jnp.float32))
    start = jax.tree.map(some, state)
    found = jax.jacfwd(lambda s: cell.step(params, s, x)[0])(start)
    rows = [jax.tree.leaves(row) for row in jax.tree.leaves(found, is_leaf=lambda t: type(t) is type(state))]
    sizes = {leaf.size for leaf in jax.tree.leaves(state)}
    if len(sizes) == 1:
        (size,) = sizes
        blocks = [np.asarray(block).reshape(size, size) for row in rows for block in row]
        if all(not block[~np.eye(size, dtype=bool)].any() for block in blocks):
            return "diagonal" if len(rows) == 1 else f"blocks of {len(rows)}"
    return "dense"


def _gates(cell: Any, params: Any, state: Any, x: Any) -> tuple[Gate, ...]:
    spoken, found = {"logistic": "sigmoid", "tanh": "tanh", "exp": "exp"}, []

    def look(params: Any, state: Any, x: jax.Array) -> None:
        for name, seen in observe(cell.step, params, state, x)[1].items():
            if seen.made_by in spoken:
                found.append(Gate(name, spoken[seen.made_by]))

    jax.eval_shape(look, params, state, x)  # nothing is computed
    return tuple(found)


def _floor(flops: int, step_bytes: int, peak_flops: float | None, peak_bytes: float | None) -> Any:
    limits = [
        (amount / check_real("card", key, peak, above=0.0), name)
        for name, amount, key, peak in (
            ("arithmetic", flops, "peak_flops", peak_flops),
            ("memory", step_bytes, "peak_bytes", peak_bytes),
        )
        if peak is not None
    ]
    return max(limits, default=None)


def _borders(cell: Any, kind: str) -> dict[str, str]:
    found = {"cut": "", "immediate": "", "lookback": "", "rtrl": "exact", "uoro": ""}
    for name, border in (("snap1", SnAp1), ("eprop", EProp)):
        try:
            border(cell)
            found[name] = "exact" if kind != "dense" else ""
        except (TypeError, ValueError) as error:
            found[name] = str(error).partition(": ")[2]
    return found
