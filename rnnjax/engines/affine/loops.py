"""What an engine of affine cells writes: two loops over time, and the arrays that go in and come out.

Nothing else of a layer has to be written again: see `rnnjax.engines.affine.recurrence`. A test registers an engine in
ten lines (``tests/engines/test_seam.py``).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypeGuard

import jax

from rnnjax.engines.affine.plan import Plan, Seen
from rnnjax.engines.choice import Controls, Job

__all__ = ["Cotangents", "Finished", "Kept", "Loops", "ManyLoops", "Operands", "take_many"]


class Operands(NamedTuple):
    """The arrays of one recurrence.

    Attributes:
        xs: ``[T, *batch, I]``; ``plan.project(xs, w_ih)`` projects all steps at once.
        w_ih: ``[I, G H]``.
        w_hh: ``[H, G H]``, or None.
        b: ``[G H]``; ``plan.see`` adds it. Zeros for a cell without one.
        own: the parameters that the update reads itself.
        state: before the first step.
        controls: masks and resets.
    """

    xs: jax.Array
    w_ih: jax.Array
    w_hh: jax.Array | None
    b: jax.Array
    own: list[jax.Array]
    state: Any
    controls: Controls


class Kept(NamedTuple):
    """What a forward loop leaves for its backward loop.

    Attributes:
        states: those before every step; only the field ``h``, ``[T, *batch, H]``, is read here, for ``dw_hh``. None
            where the loops compute that gradient themselves.
        rest: the engine's own; any arrays, with time as the first axis if there are segments.
    """

    states: Any
    rest: Any


class Finished(NamedTuple):
    """Gradients of the weights and the inputs, from loops that compute them themselves.

    They are in the dtype of the plan; those of the inputs may be in that of ``xs``.
    """

    w_ih: jax.Array
    w_hh: jax.Array | None
    b: jax.Array
    xs: jax.Array


class Cotangents(NamedTuple):
    """What a backward loop computes, in the dtype of the plan.

    Attributes:
        state: of the state before the first step.
        own: of the parameters that the update reads, summed over all steps.
        fresh: of the state that resets restore, ``[*batch, ...]``, summed over all steps; None without resets.
        seen: of what the update saw, a gate: ``(dz,)`` where it sees the sum, else ``(dzx, dzh)``, each
            ``[T, *batch, H]``; or what would be computed from it, `Finished`.
    """

    state: Any
    own: list[jax.Array]
    fresh: Any
    seen: Seen | Finished


class Loops(Protocol):
    """All that an engine of affine cells writes; a hashable value.

    Those that are `ManyLoops` take several networks at once, which is what `jax.vmap` over parameters makes.

    What they may read of a plan: ``cell``, ``dtype``, ``reverse``, ``summed``, ``keep_gates``, ``moves_inputs``,
    ``update`` as a function of arrays, and ``program()``, the update as straight-line arithmetic.

    Attributes:
        platform: where loops that are opaque to JAX (kernels, native code) can be compiled: ``"cpu"``, ``"cuda"``,
            ``"tpu"``, or ``"any"``; what JAX cannot do with them goes to `XlaLoops`. None for loops made of JAX's
            operations, which it can differentiate and map itself.
    """

    @property
    def platform(self) -> str | None: ...

    def fits(self, plan: Plan, job: Job) -> str:
        """``""``, or why not: the end of a sentence, such as "needs float32 parameters, got bfloat16"."""
        ...

    def segment(self, plan: Plan, operands: Operands) -> int | None:
        """The steps after which the backward pass stops to add up gradients; None for once, at the end."""
        ...

    def forward(self, plan: Plan, operands: Operands, *, keep: bool) -> tuple[Any, jax.Array, Kept | None]:
        """The final state, ``ys [T, *batch, H]`` in the dtype of the state and, with ``keep``, what is kept."""
        ...

    def backward(self, plan: Plan, operands: Operands, kept: Kept, d_final: Any, d_ys: jax.Array) -> Cotangents:
        """The loop the other way; of segments, the operands hold the inputs and controls of this one."""
        ...


class ManyLoops(Loops, Protocol):
    """Loops that take several networks of one cell at once.

    Parameters then have one more axis, the first, and the batch one more, its first: of N networks, ``w_hh`` is
    ``[N, H, G H]``, ``xs`` ``[T, N, *batch, I]``, and a leaf of the state ``[N, *batch, ...]``.
    """

    def kept_axes(self, kept: Kept) -> Any:
        """Where what is kept has that axis: the same tree of integers."""
        ...

    def pieces(self, plan: Plan, job: Job, layers: int) -> int:
        """See `rnnjax.engines.choice.Engine`."""
        ...


def take_many(loops: Loops) -> TypeGuard[ManyLoops]:
    """Whether they are `ManyLoops`; reads none of their properties, which may look for a device."""
    return hasattr(type(loops), "kept_axes")
