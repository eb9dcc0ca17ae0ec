"""What is known of an affine cell before there are arrays: what its update reads, and how it sees a gate."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cell import AffineCell, matmul, param_shapes, split_gates, widen
from rnnjax.engines.affine.program import Program, Refusal, make_program
from rnnjax.promotion import promoting

__all__ = ["Gates", "Plan", "Seen", "make_plan", "packs_gates"]

Gates = tuple[jax.Array, ...]
Seen = tuple[Gates, ...]  # what the update sees, a gate: (zx + zh,) where the sum is all it reads, else (zx, zh)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A cell as its engines see it, and the steps of the computation that all of them share; hashable.

    Attributes:
        cell: the cell.
        dtype: of the update, and of what matmuls return: float32 or wider.
        summed: a gate: whether the update sees only ``zx + zh``; empty for a cell without ``w_hh``.
        treedef: of the parameters.
        template: a leaf of the parameters: None if the update reads it, else its shape and dtype.
        reverse: whether time runs from the last step to the first.
        keep_gates: whether the forward pass may keep more than the states for the backward pass; not with
            ``remat="gates"``.
        moves_inputs: whether anybody asks for the cotangent of ``xs``; where not, loops may leave it out.
    """

    cell: AffineCell
    dtype: Any
    summed: tuple[bool, ...]
    treedef: Any
    template: tuple[Any, ...]
    reverse: bool = False
    keep_gates: bool = True
    moves_inputs: bool = True

    @property
    def reads(self) -> tuple[bool, ...]:
        """A leaf of the parameters: whether the update reads it."""
        return tuple(known is None for known in self.template)

    def directed(self, reverse: bool) -> Plan:
        """The plan for this direction of time."""
        return dataclasses.replace(self, reverse=reverse)

    def own(self, params: Any) -> list[jax.Array]:
        """The parameters that the update reads itself (the GRU's ``b_hn``, peepholes)."""
        return [leaf for leaf, read in zip(jax.tree.leaves(params), self.reads, strict=True) if read]

    def update(self, own: list[jax.Array], state: Any, seen: Seen) -> tuple[Any, jax.Array]:
        """The cell's update, as a function of all that it reads."""
        leaves = iter(own)
        params = self.treedef.unflatten([next(leaves) if known is None else known for known in self.template])
        zx = tuple(gate[0] for gate in seen)
        # Where the first entry is the sum already, nothing is left for the second; XLA drops the zeros.
        zh = tuple(gate[1] if len(gate) == 2 else jnp.zeros_like(gate[0]) for gate in seen)
        return self.cell.update(params, state, zx, zh if self.summed else ())

    def project(self, a: jax.Array, w: jax.Array) -> Gates:
        """``split(a @ w)`` for all steps: G arrays ``[T, *batch, H]``.

        On a CPU G matmuls, so that no slice has to cut them. On a GPU one: each matmul is tuned when it is compiled,
        and with one a gate a training step took 6 to 21 seconds to compile (H200, a plain scan: 0.3 to 2).
        """
        if packs_gates():
            return split_gates(matmul(a, w, self.dtype), self.cell.num_gates)
        return tuple(matmul(a, block, self.dtype) for block in split_gates(w, self.cell.num_gates))

    @promoting
    def see(self, zx: Gates, b: jax.Array, zh: Gates) -> Seen:
        """What the update sees of the projections; the bias joins here, where it costs no pass over memory."""
        biases = split_gates(b.astype(self.dtype), self.cell.num_gates)
        zx = tuple(z + bias for z, bias in zip(zx, biases, strict=True))
        if not zh:
            return tuple((x,) for x in zx)
        return tuple((x + h,) if s else (x, h) for x, h, s in zip(zx, zh, self.summed, strict=True))

    def program(self) -> Program | Refusal:
        """The update of one example and its vector-Jacobian product as straight-line arithmetic, or why not."""
        return _program(self.bare())

    def bare(self) -> Plan:
        """The plan without what differs from call to call: what a compiled cell depends on."""
        return dataclasses.replace(self, reverse=False, keep_gates=True, moves_inputs=True)


def packs_gates() -> bool:
    """Whether matmuls over all steps take all gates at once; see `Plan.project`."""
    return jax.default_backend() != "cpu"


@functools.lru_cache(maxsize=256)
def _program(plan: Plan) -> Program | Refusal:
    cell, dtype = plan.cell, plan.dtype
    z = jax.ShapeDtypeStruct((cell.hidden_size,), dtype)
    seen = tuple((z,) if s else (z, z) for s in plan.summed) or ((z,),) * cell.num_gates
    with _without_mesh():
        state = jax.eval_shape(lambda: widen(cell.initial_state(()), dtype))
        return make_program(plan.update, plan.own(param_shapes(cell, 1)), state, seen)


def _without_mesh() -> Any:
    """What is traced for one example is kept for the whole process, and so would be what a mesh puts into it."""
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))


def make_plan(cell: Any, params: Any, dtype: Any, *, keep_gates: bool = True) -> Plan:
    """Traces the update of one example, to learn which parameters it reads and how it combines the gates.

    Args:
        cell: an affine cell.
        params: its parameters, or their shapes and dtypes.
        dtype: of the update: `rnnjax.cell.compute_dtype` of the state's.
        keep_gates: see `Plan`.
    """
    leaves, treedef = jax.tree.flatten(params)
    shapes = tuple((tuple(leaf.shape), jnp.dtype(leaf.dtype)) for leaf in leaves)
    plan = _trace(cell, treedef, shapes, jnp.dtype(dtype))
    return dataclasses.replace(plan, keep_gates=keep_gates)


@functools.lru_cache(maxsize=256)  # an engine asks before it says whether it takes a cell, and again when it runs
def _trace(cell: Any, treedef: Any, shapes: tuple[Any, ...], dtype: Any) -> Plan:
    z = (jax.ShapeDtypeStruct((cell.hidden_size,), dtype),) * cell.num_gates
    leaves = [jax.ShapeDtypeStruct(*known) for known in shapes]
    params = treedef.unflatten(leaves)
    zh = () if getattr(params, "w_hh", None) is None else z
    with _without_mesh():
        state = jax.eval_shape(lambda: widen(cell.initial_state(()), dtype))
        jaxpr = jax.make_jaxpr(cell.update)(params, state, z, zh).jaxpr

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
        None if readers(v) else leaf
        for v, leaf in zip(jaxpr.invars, leaves, strict=False)  # params come first
    )
    split_at = len(jaxpr.invars) - len(zh)
    summed = tuple(map(is_summed, jaxpr.invars[split_at - len(z) : split_at], jaxpr.invars[split_at:]))
    return Plan(cell, dtype, summed, treedef, template)
