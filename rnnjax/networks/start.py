"""Where a sequence starts: a learned initial state, and one that is a function of a context."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cell import Cell, check_size, compute_dtype, describe, matmul
from rnnjax.engines import Controls
from rnnjax.initializers import Glorot, Initializer
from rnnjax.networks.deep import DeepStack, DeepStackState
from rnnjax.networks.stack import Stack, StackState, unroll_layered
from rnnjax.unroll import run

__all__ = ["ContextState", "ContextStateParams", "LearnedState", "LearnedStateParams"]


class LearnedStateParams(NamedTuple):
    """Parameters of `LearnedState`."""

    cell: Any  # of the cell inside
    start: Any  # a state of that cell without batch axes; None where a leaf is not free


@dataclasses.dataclass(frozen=True)
class LearnedState:
    r"""A cell whose initial state is a parameter, the same for every sequence.

        state_0 = params.start
        state_t, y_t = cell.step(params.cell, state_{t-1}, x_t)

    `start_state` makes ``state_0`` for a batch, and a reset in `unroll` restores it; both pass gradients on to
    ``params.start``. ``initial_state`` has no parameters to read and stays that of the cell inside, from which
    ``params.start`` begins its training. It goes into a `Stack` like any cell, and unrolls as fast as the cell inside.

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
    ...     state = rnnjax.start_state(cell, params, (2,))
    ...     return rnnjax.unroll(cell, params, state, jnp.ones((5, 2, 3)))[1].sum()
    >>> bool((jax.grad(loss)(params).start.h != 0).all())
    True
    """

    cell: Cell

    def __post_init__(self) -> None:
        _check_cell("LearnedState", self.cell)

    @property
    def hidden_size(self) -> int:
        """That of the cell inside."""
        return self.cell.hidden_size

    @property
    def input_shape(self) -> Any:
        """The method of the cell inside; there is none, as `hasattr` sees it, where that cell has none."""
        return self.cell.input_shape  # type: ignore[attr-defined]

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> LearnedStateParams:
        """New parameters of the cell inside, and what is free of its initial state."""
        start = _free("LearnedState", self.cell, self.cell.initial_state((), dtype))
        return LearnedStateParams(self.cell.init(key, input_size, dtype), start)

    def initial_state(self, batch_shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> Any:
        """That of the cell inside; the learned one is ``rnnjax.start_state(cell, params, batch_shape)``."""
        return self.cell.initial_state(batch_shape, dtype)

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
        return jax.tree.map(begin, params.start, others, is_leaf=_is_none)

    def step(self, params: LearnedStateParams, state: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        """A step of the cell inside."""
        return self.cell.step(params.cell, state, x)


@unroll_layered.register(LearnedState)
def _unroll_learned(
    cell: LearnedState,
    params: LearnedStateParams,
    state: Any,
    xs: jax.Array,
    controls: Controls,
    *,
    reverse: bool,
    remat: Any,
) -> tuple[Any, jax.Array]:
    return run(cell.cell, params.cell, state, xs, controls, None, reverse=reverse, remat=remat)


class ContextStateParams(NamedTuple):
    """Parameters of `ContextState`, both with the structure of a state; a leaf of a state has N numbers an example.

    Where a leaf is not free, both are None.
    """

    w: Any  # leaves [C, N]
    b: Any  # leaves [N]


@dataclasses.dataclass(frozen=True)
class ContextState:
    r"""An initial state that is an affine function of a context: an image's features, or what an encoder returns.

        leaf = phi(context @ w + b),  reshaped to [*batch, ...],  for every free leaf of the cell's state

    with ``phi`` the identity, or tanh as in the decoder of Cho et al. (2014). It is no cell but stands in front of one:
    ``init`` makes the parameters of this map alone, and ``apply`` the state for `rnnjax.unroll`. A reset within
    `unroll` restores the cell's own initial state, since it comes with no context.

    All leaves are free, unless a cell names the fields of its state that are in an attribute ``free_state``, as `SLSTM`
    does; the others are those of ``initial_state``, whatever the context.

    Args:
        cell: any cell with a state of floating dtypes, also a `Stack`.
        activation: ``"tanh"`` keeps every number of the state within (-1, 1), where the ``h`` of most cells lives;
            None leaves it as it is.
        kernel_init: initialiser of each ``w``, ``[C, N]``; ``b`` starts at zero.

    Raises:
        ValueError: for an unknown activation, or if ``free_state`` names what the state does not have, or nothing.
        TypeError: if ``cell`` is none, or has a state of integers.

    >>> import jax, jax.numpy as jnp, rnnjax
    >>> decoder = rnnjax.Stack((rnnjax.LSTM(4), rnnjax.GRU(4)))
    >>> start = rnnjax.ContextState(decoder, activation="tanh")
    >>> params = start.init(jax.random.key(0), context_size=3)
    >>> state = start.apply(params, jnp.ones((2, 3)))
    >>> state.layers[0].c.shape, params.w.layers[0].c.shape
    ((2, 4), (3, 4))
    """

    cell: Cell
    activation: Literal["tanh"] | None = None
    kernel_init: Initializer = Glorot()

    def __post_init__(self) -> None:
        _check_cell("ContextState", self.cell)
        if self.activation not in (None, "tanh"):
            raise ValueError(f"ContextState: activation must be 'tanh' or None, got {self.activation!r}.")

    def init(self, key: jax.Array, context_size: int, dtype: Any = jnp.float32) -> ContextStateParams:
        """New parameters for contexts of C = ``context_size`` numbers."""
        check_size("ContextState.init", "context_size", context_size)
        like = _free("ContextState", self.cell, jax.eval_shape(self.cell.initial_state))
        structure: Any = jax.tree.structure(like)
        sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(like)]
        keys = jax.random.split(key, len(sizes))
        ws = [self.kernel_init(k, (context_size, size), dtype) for k, size in zip(keys, sizes, strict=True)]
        bs = [jnp.zeros((size,), dtype) for size in sizes]
        return ContextStateParams(structure.unflatten(ws), structure.unflatten(bs))

    def apply(self, params: ContextStateParams, context: jax.Array, dtype: Any = jnp.float32) -> Any:
        """The initial state for each context.

        Args:
            params: from `init`.
            context: ``[*batch, C]``.
            dtype: of the state; matmuls run in the dtype of the weights.

        Returns:
            A state of the cell, with leaves ``[*batch, ...]``.

        Raises:
            ValueError: if the context has another size.
        """
        context = jnp.asarray(context)
        size = jax.tree.leaves(params.w)[0].shape[0]
        if context.ndim < 1 or context.shape[-1] != size:
            raise ValueError(
                f"ContextState.apply: context must have shape [*batch, C] with C = {size} (from params.w), "
                f"got {describe(context)}."
            )

        def leaf(w: jax.Array | None, b: jax.Array, other: jax.Array) -> jax.Array:
            if w is None:
                return other
            wide = compute_dtype(dtype)
            z = matmul(context, w, wide) + b.astype(wide)
            z = jnp.tanh(z) if self.activation == "tanh" else z
            return z.reshape(other.shape).astype(dtype)

        others = self.cell.initial_state(context.shape[:-1], dtype)
        return jax.tree.map(leaf, params.w, params.b, others, is_leaf=_is_none)


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _free(where: str, cell: Any, state: Any) -> Any:
    """The state with None in place of the fields that are not free, of a cell or of all cells that it is made of."""
    if isinstance(cell, Stack):
        layers = zip(cell.cells, state.layers, strict=True)
        return StackState(tuple(_free(where, inner, part) for inner, part in layers))
    if isinstance(cell, DeepStack):
        return DeepStackState(_free(where, cell.cell, state.first), _free(where, cell.cell, state.rest))
    if isinstance(cell, LearnedState):
        return _free(where, cell.cell, state)
    names = getattr(cell, "free_state", None)
    if names is None:
        return state
    if not names or not set(names) <= set(state._fields):
        raise ValueError(
            f"{where}: free_state of {type(cell).__name__} must be a tuple of fields of its state, of "
            f"{', '.join(state._fields)}, got {names!r}."
        )
    return state._replace(**{name: None for name in state._fields if name not in names})


def _check_cell(where: str, cell: Any) -> None:
    if isinstance(cell, type) or not isinstance(cell, Cell):
        raise TypeError(f"{where}: cell must be a cell, got {cell!r}.")
    state = jax.eval_shape(cell.initial_state)
    for leaf in jax.tree.leaves(state):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"{where}: the state of {type(cell).__name__} must be of floating dtypes, got {describe(leaf)}; "
                "make its initial state by hand."
            )
    _free(where, cell, state)
