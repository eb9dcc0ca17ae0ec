r"""The update of an affine cell as straight-line arithmetic, for engines that compile it into a loop of their own.

An update treats every unit alone: ``state'[u], y[u] = update(own[u], state[u], seen[u])``. Traced once, together with
its vector-Jacobian product, it becomes a list of operations on the numbers of one unit:

    new, y                = update(own, old, seen)
    d_own, d_old, d_seen  = pull(own, old, seen, d_new, d_y)

`emit_c` prints parts of that list as C for vectors of a CPU or for a thread of a GPU. An update that holds anything
else (a sum over the units, a loop, random numbers) is refused with a sentence that names what and where, and XLA runs.

Parameters may be scalars, one number a unit ``[H]``, or several ``[n H]`` that the update cuts as gates are cut: such
an array counts as ``n`` columns, and so does everything that is computed from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.engines.affine.tracer import REAL, Columns, Node, NotPointwise, Tracer

__all__ = ["Node", "Program", "Refusal", "make_program"]

# What costs more to compute again than to load.
_EXPENSIVE = REAL - {"add", "sub", "mul", "neg", "max", "min", "abs", "sign", "floor", "ceil", "is_finite"}


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Why an update has no `Program`: the end of a sentence."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Program:
    """An update and its vector-Jacobian product; two programs are equal if they compute the same.

    Attributes:
        nodes: all numbers, in an order in which they can be computed.
        own: a parameter that the update reads: its number of columns, None for a scalar.
        inputs: the nodes ``own[i]`` (a column each), ``old[i]``, ``seen[i]``, ``d_new[i]``, ``d_y``, in this order.
        new: the nodes of the new state, a leaf each.
        y: the output.
        d_own: the cotangents of the columns of ``own``; that of a scalar is to be summed over the units.
        d_old: those of the old state.
        d_seen: those of what the update sees of the projections.
    """

    nodes: tuple[Node, ...]
    own: tuple[int | None, ...]
    inputs: Columns
    new: Columns
    y: int
    d_own: Columns
    d_old: Columns
    d_seen: Columns

    @property
    def num_own(self) -> int:
        """How many columns of parameters there are."""
        return len(self.d_own)

    def names(self) -> dict[int, str]:
        """The inputs' own names: what `emit_c.emit` takes as given."""
        return {i: self.nodes[i].name for i in self.inputs}

    def needed(self, roots: Iterable[int], stop: Iterable[int] = ()) -> set[int]:
        """All nodes that ``roots`` are computed from, themselves included, not looking behind those of ``stop``."""
        found: set[int] = set()
        todo, ends = list(roots), set(stop)
        while todo:
            i = todo.pop()
            if i not in found:
                found.add(i)
                todo += () if i in ends else self.nodes[i].args
        return found

    def reads(self, roots: Iterable[int], name: str) -> bool:
        """Whether any of ``roots`` depends on the input of that name."""
        return any(self.nodes[i].name == name for i in self.needed(roots))

    def on_cotangents(self) -> tuple[bool, ...]:
        """A node: whether it depends on a cotangent, so that only the backward pass can compute it."""
        found: list[bool] = []
        for node in self.nodes:
            found.append(node.name.startswith("d_") or any(found[j] for j in node.args))
        return tuple(found)

    def saved(self) -> Columns:
        """What the forward pass should keep: inputs, and results that cost more to compute again than to load.

        Everything else that the backward pass needs follows from these, the parameters and the cotangents cheaply.
        """
        late = self.on_cotangents()
        return self._frontier(lambda i: not late[i] and (self.nodes[i].op in _EXPENSIVE or self._is_value(i)))

    def early(self) -> Columns:
        """What the backward pass can compute before the cotangents are there, and reads afterwards."""
        late = self.on_cotangents()
        return self._frontier(lambda i: not late[i])

    def _is_value(self, i: int) -> bool:
        return self.nodes[i].op == "input" and not self.nodes[i].name.startswith("own")

    def _frontier(self, stop: Callable[[int], bool]) -> Columns:
        found: dict[int, None] = {}
        seen: set[int] = set()

        def visit(i: int) -> None:
            if i in seen:
                return
            seen.add(i)
            node = self.nodes[i]
            if node.op == "constant" or node.name.startswith(("own", "d_")):
                return
            if stop(i):
                found[i] = None
                return
            for j in node.args:
                visit(j)

        for i in (*self.d_own, *self.d_old, *self.d_seen):
            visit(i)
        return tuple(found)

    def columns(self, leaves: Sequence[jax.Array], hidden_size: int, dtype: Any) -> list[jax.Array]:
        """The parameters as arrays ``[H]``, one for each of ``own``."""
        found: list[jax.Array] = []
        for leaf, count in zip(leaves, self.own, strict=True):
            wide = leaf.astype(dtype)
            found += [jnp.broadcast_to(wide, (hidden_size,))] if count is None else jnp.split(wide, count)
        return found

    def parameters(self, columns: Sequence[jax.Array]) -> list[jax.Array]:
        """The inverse of `columns`."""
        found, rest = [], list(columns)
        for count in self.own:
            found.append(rest[0][0] if count is None else jnp.concatenate(rest[:count]))
            rest = rest[count or 1 :]
        return found

    def leaves(self, columns: Sequence[jax.Array]) -> list[jax.Array]:
        """The cotangents of the parameters from those of their columns, ``[H]`` each."""
        found, rest = [], list(columns)
        for count in self.own:
            here, rest = rest[: count or 1], rest[count or 1 :]
            found.append(jnp.sum(here[0]) if count is None else jnp.concatenate(here))
        return found


def make_program(update: Callable[..., Any], own: Sequence[Any], state: Any, seen: Any) -> Program | Refusal:
    """Traces an update for one example.

    Args:
        update: ``(own, state, seen)`` to ``(state, y)``.
        own: the parameters that it reads, as shapes and dtypes; ``[]`` if it reads none.
        state: the state, every leaf ``[H]``.
        seen: what it sees of the projections, any pytree of ``[H]``.

    Returns:
        The program; for an update that is not pointwise, why there is none.
    """
    leaves = jax.tree.leaves(state)
    shape, dtype = leaves[0].shape, leaves[0].dtype
    arrays = [*leaves, *jax.tree.leaves(seen)]
    if len(shape) != 1 or any(leaf.shape != shape or leaf.dtype != dtype for leaf in arrays):
        return Refusal(f"needs a state of leaves [H] of one dtype, got {[tuple(leaf.shape) for leaf in leaves]}")
    for leaf in own:
        if leaf.ndim > 1 or (leaf.ndim == 1 and leaf.shape[0] % shape[0]):
            return Refusal(f"needs parameters of the update to be scalars or [n H], got {list(leaf.shape)}")

    def both(own: Any, state: Any, seen: Any, d_new: Any, d_y: Any) -> Any:
        (new, y), pull = jax.vjp(update, own, state, seen)
        return new, y, pull((d_new, d_y))

    own = [jax.ShapeDtypeStruct(leaf.shape, dtype) for leaf in own]
    try:  # the update alone: there a sum can be named with its line
        alone = jax.make_jaxpr(update)(own, state, seen)
        columns = [(0,) * max(1, v.aval.size // shape[0]) for v in alone.jaxpr.invars]
        Tracer(shape[0], jnp.dtype(dtype), [Node("input")]).run(alone.jaxpr, alone.consts, columns)
    except NotPointwise as refused:
        return Refusal(str(refused))
    closed = jax.make_jaxpr(both)(own, state, seen, state, jax.ShapeDtypeStruct(shape, dtype))
    tracer = Tracer(shape[0], jnp.dtype(dtype), may_sum=True)
    counts = tuple(None if leaf.ndim == 0 else leaf.shape[0] // shape[0] for leaf in own)
    sizes = [c or 1 for c in counts] + [1] * (len(closed.jaxpr.invars) - len(own))
    total = sum(c or 1 for c in counts)
    labels = [f"own[{i}]" for i in range(total)]
    for name, count in (("old", len(leaves)), ("seen", len(jax.tree.leaves(seen))), ("d_new", len(leaves))):
        labels += [f"{name}[{i}]" for i in range(count)]
    inputs = tuple(tracer.add("input", name=label) for label in [*labels, "d_y"])
    rest = iter(inputs)
    try:
        outs = tracer.run(closed.jaxpr, closed.consts, [tuple(next(rest) for _ in range(n)) for n in sizes])
        S, P = len(leaves), len(own)
        new, (y,), d_own = [c for (c,) in outs[:S]], outs[S], outs[S + 1 : S + 1 + P]
        d_old, d_seen = [c for (c,) in outs[S + 1 + P :][:S]], [c for (c,) in outs[S + 1 + P + S :]]
        tracer.check_sums(d_own, counts, [*new, y, *d_old, *d_seen])
    except NotPointwise as refused:
        return Refusal(str(refused))
    flat = [c for columns in d_own for c in columns]
    nodes = tuple(tracer.nodes)
    return Program(nodes, counts, inputs, tuple(new), y, tuple(flat), tuple(d_old), tuple(d_seen))
