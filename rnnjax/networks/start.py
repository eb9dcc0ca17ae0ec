"""An initial state that is learned."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cell import Cell, describe
from rnnjax.checks import check_kind
from rnnjax.kinds import public
from rnnjax.network import Around, Controls, Visit, free_state

__all__ = ["LearnedState", "LearnedStateParams", "check_start"]


class LearnedStateParams(NamedTuple):
    """Parameters of `LearnedState`."""

    cell: Any  # of the cell inside
    start: Any  # a state of that cell without batch axes; None where a leaf is not free


@dataclasses.dataclass(frozen=True)
class LearnedState(Around):
    r"""A cell whose initial state is a parameter, the same for every sequence.

        state_0 = params.start
        state_t, y_t = cell.step(params.cell, state_{t-1}, x_t)

    `unroll` begins there where it gets None for a state, a reset restores it, and `start_state` makes ``state_0`` for
    a batch; all pass gradients on to ``params.start``. ``initial_state`` has no parameters to read and stays that of
    the cell inside, from which ``params.start`` begins its training. It goes into a `Stack` like any cell, and unrolls
    as fast as the cell inside.

    A cell may name the fields of its state that are free to be anything in an attribute ``free_state``, as `SLSTM`
    does: only these are learned then; the others are None in ``params.start`` and begin as ``initial_state`` has them.

    Args:
        cell: any cell with a state of floating dtypes.

    Raises:
        TypeError: if ``cell`` is none, or has a state of integers.
        ValueError: if ``free_state`` names what the state does not have, or nothing.

    >>> import jax, jax.numpy as jnp, rnnjax
    >>> cell = rnnjax.LearnedState(rnnjax.GRU(4))
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> def loss(params):
    ...     return rnnjax.unroll(cell, params, None, jnp.ones((5, 2, 3)))[1].sum()
    >>> bool((jax.grad(loss)(params).start.h != 0).all())
    True
    """

    cell: Cell

    def __post_init__(self) -> None:
        check_start("LearnedState", self.cell)

    @public
    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> LearnedStateParams:
        """New parameters of the cell inside, and what is free of its initial state."""
        start = free_state("LearnedState", self.cell, self.cell.initial_state((), dtype))
        return LearnedStateParams(self.cell.init(key, input_size, dtype), start)

    def start_state(
        self, params: LearnedStateParams, batch_shape: tuple[int, ...] = (), dtype: Any = jnp.float32
    ) -> Any:
        """The learned state for every example; see `rnnjax.start_state`."""

        def begin(leaf: jax.Array | None, other: jax.Array) -> jax.Array:
            if leaf is None:
                return other
            wide = jnp.broadcast_to(leaf, (*batch_shape, *leaf.shape))
            return wide if dtype is None else wide.astype(other.dtype)

        others = self.cell.initial_state(batch_shape, jnp.float32 if dtype is None else dtype)
        return jax.tree.map(begin, params.start, others, is_leaf=lambda leaf: leaf is None)

    def parts(self, tree: Any) -> tuple[tuple[str, Cell, Any], ...]:
        """The cell inside, whose state is that of the whole."""
        return (("cell", self.cell, tree.cell if isinstance(tree, LearnedStateParams) else tree),)

    def thread(
        self,
        visit: Visit,
        params: LearnedStateParams,
        state: Any,
        xs: jax.Array,
        controls: Controls,
        *,
        reverse: bool,
        key: jax.Array | None,
    ) -> tuple[Any, jax.Array]:
        """Through the cell inside; see `rnnjax.Network`."""
        return visit(self.cell, params.cell, state, xs, controls, reverse=reverse, key=key)


def check_start(where: str, cell: Any) -> None:
    """Raises unless it is a cell whose initial state can be anything, as far as it is free."""
    check_kind(where, "cell", cell, Cell, "a cell")
    state = jax.eval_shape(cell.initial_state)
    for leaf in jax.tree.leaves(state):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"{where}: the state of {type(cell).__name__} must be of floating dtypes, got {describe(leaf)}; "
                "make its initial state by hand."
            )
    free_state(where, cell, state)
