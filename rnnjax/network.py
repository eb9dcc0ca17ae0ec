r"""The contract of a network, which is made of cells and networks, and what is written once for all of them.

A network is a hashable value, as a cell is, and says three things: which parts it has (`Network.parts`), how states of
the parts make a state (`Network.join`), and how data flow through them (`Network.thread`). Steps, start states, the
cells inside, and `rnnjax.unroll` follow.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from rnnjax.cell import Cell, Params, State, batch_shape, param_shapes, state_like
from rnnjax.checks import describe, short
from rnnjax.kinds import public

__all__ = [
    "NO_CONTROLS",
    "Around",
    "Controls",
    "Leaf",
    "Network",
    "Visit",
    "check_state",
    "flatten_state",
    "free_state",
    "input_shape",
    "leaves",
    "network_initial_state",
    "network_step",
    "output_shape",
    "part_controls",
    "start_state",
    "unflatten_state",
    "walk",
]

Visit = Callable[..., tuple[Any, jax.Array]]  # visit(cell, params, state, xs, controls, *, reverse, key) -> (state, ys)


class Controls(NamedTuple):
    """What happens at a step beside the cell's own mathematics; None where there is nothing to do.

    Attributes:
        valid: bool ``[T, *batch]``; where False the state passes unchanged (the output there is masked later).
        resets: bool ``[T, *batch]``; where True the state becomes ``fresh`` before the step.
        fresh: the state that a reset restores; None if and only if ``resets`` is.
        lengths: int ``[*batch]``, where that is what ``valid`` was made from; else None.
        noise: a pytree of arrays ``[T, ...]`` whose slice of a step goes to the cell as ``step(params, state, x,
            noise)``; only a cell that asks for it gets one, and only ``"scan"`` hands it over.
    """

    valid: jax.Array | None = None
    resets: jax.Array | None = None
    fresh: Any = None
    lengths: jax.Array | None = None
    noise: Any = None

    @property
    def restarts(self) -> jax.Array | None:
        """The resets that do something: a flag in the padding does nothing."""
        return self.resets if self.resets is None or self.valid is None else self.resets & self.valid


NO_CONTROLS = Controls()


@runtime_checkable
class Network(Protocol):
    """What is made of cells and networks, and writes only these three, beside ``init`` and ``initial_state``.

    A network that can go step by step takes ``step = network_step`` into its class, and then is a `rnnjax.Cell` as
    well; one that needs the future, such as `rnnjax.Bidirectional`, does not. ``initial_state =
    network_initial_state`` does for both. Where the start of a sequence is not that of the parts, a method
    ``start_state(params, batch_shape, dtype)`` says what it is; see `start_state`.
    """

    def parts(self, tree: Any) -> tuple[tuple[str, Any, Any], ...]:
        """``(name, cell, its part)`` of parameters, of a state, or of None, which has None for every part."""
        ...

    def join(self, parts: Sequence[Any]) -> State:
        """A state from those of the parts, in the order of `parts`."""
        ...

    def thread(
        self,
        visit: Visit,
        params: Params,
        state: State,
        xs: jax.Array,
        controls: Controls,
        *,
        reverse: bool,
        key: jax.Array | None,
    ) -> tuple[State, jax.Array]:
        """The flow of the data, for one step ``[*batch, I]`` as for all ``[T, *batch, I]``.

        ``visit(cell, params, state, xs, controls, reverse=reverse, key=key)`` runs a part and returns its state and
        ``ys``; the ``controls`` of each part are those of `part_controls`. Without a key nothing is random.
        """
        ...


def walk(
    visit: Visit,
    net: Any,
    params: Params,
    state: State,
    xs: jax.Array,
    controls: Controls = NO_CONTROLS,
    *,
    reverse: bool = False,
    key: jax.Array | None = None,
) -> tuple[State, jax.Array]:
    """Threads data through a network and the networks in it, down to the cells, each of which ``visit`` runs.

    >>> import jax.numpy as jnp, rnnjax
    >>> net = rnnjax.Stack((rnnjax.LSTM(4), rnnjax.Stack((rnnjax.GRU(3), rnnjax.GRU(2)))))
    >>> params, state = net.init(jax.random.key(0), input_size=5), net.initial_state()
    >>> def visit(cell, params, state, x, controls, *, reverse, key):
    ...     print(type(cell).__name__, x.shape)
    ...     return cell.step(params, state, x)
    >>> _, y = walk(visit, net, params, state, jnp.ones(5))
    LSTM (5,)
    GRU (4,)
    GRU (3,)
    """
    if not isinstance(net, Network):
        return visit(net, params, state, xs, controls, reverse=reverse, key=key)
    return net.thread(functools.partial(walk, visit), params, state, xs, controls, reverse=reverse, key=key)


def _step(
    cell: Any, params: Params, state: State, x: jax.Array, controls: Controls, *, reverse: bool, key: jax.Array | None
) -> tuple[State, jax.Array]:
    del controls, reverse, key  # of sequences
    return cell.step(params, state, x)


@public(but=("params", "state", "x"))
def network_step(net: Any, params: Params, state: State, x: jax.Array) -> tuple[State, jax.Array]:
    """One step of any network that needs no future; a class takes it over by ``step = network_step``.

    Args:
        net: the network.
        params: its parameters.
        state: its state.
        x: ``[*batch, I]``.

    Returns:
        The next state, and ``y [*batch, H]``.
    """
    return walk(_step, net, params, state, x)


def network_initial_state(net: Any, batch_shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> State:
    """The initial states of all parts; a class takes it over by ``initial_state = network_initial_state``."""
    return net.join([cell.initial_state(batch_shape, dtype) for _, cell, _ in net.parts(None)])


class Around:
    """What stands around one cell, ``self.cell``: its size, parameters and state are those of the cell.

    A network of one part takes it for a base, and writes `Network.thread`; who has parameters of its own writes `init`
    and `parts` as well.
    """

    cell: Any

    @property
    def hidden_size(self) -> int:
        """That of the cell inside."""
        size: int = self.cell.hidden_size
        return size

    @public
    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> Any:
        """New parameters of the cell inside."""
        return self.cell.init(key, input_size, dtype)

    def parts(self, tree: Any) -> tuple[tuple[str, Any, Any], ...]:
        """The cell inside, whose parameters and state are those of the whole."""
        return (("cell", self.cell, tree),)

    def join(self, parts: Sequence[Any]) -> State:
        """The state of the cell inside."""
        (state,) = parts
        return state

    step = network_step
    initial_state = network_initial_state


def start_state(net: Any, params: Params, batch_shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> State:
    """The state before the first step, which a reset restores; a function of the parameters where a cell learns it.

    What learns its initial state, as `LearnedState` does, has a method ``start_state(params, batch_shape, dtype)``; a
    network without one starts as its parts do, and any other cell with ``cell.initial_state(batch_shape, dtype)``.

    Args:
        net: any cell or network.
        params: its parameters.
        batch_shape: the batch axes.
        dtype: of the state; None keeps the dtype of what is learned, and is float32 for what is not.

    Returns:
        A state as ``net.initial_state`` makes it; its gradient flows into ``params``.

    >>> import jax.numpy as jnp, rnnjax
    >>> cell = rnnjax.LearnedState(rnnjax.GRU(2))
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> params = params._replace(start=params.start._replace(h=jnp.array([1.0, 2.0])))
    >>> rnnjax.start_state(cell, params, (3,)).h.tolist()
    [[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]
    """
    own = getattr(net, "start_state", None)
    if own is not None:
        return own(params, batch_shape, dtype)
    if isinstance(net, Network):
        return net.join([start_state(cell, part, batch_shape, dtype) for _, cell, part in net.parts(params)])
    if isinstance(net, type) or not hasattr(net, "initial_state"):
        raise TypeError(f"start_state: net must be a cell or a network, got {short(net)}.")
    return net.initial_state(batch_shape) if dtype is None else net.initial_state(batch_shape, dtype)


def check_state(where: str, net: Any, state: State) -> tuple[int, ...]:
    """The batch axes of a state of a cell or network.

    Raises:
        ValueError: for anything that ``initial_state`` of it does not make.
        TypeError: if it holds integers where that has floating numbers.
    """
    name = type(net).__name__
    structure, single = state_like(net)
    if jax.tree.structure(state) != structure:
        raise ValueError(
            f"{where}: state must be what {name}.initial_state makes, got {type(state).__name__}; "
            "start from None, or from initial_state(batch_shape)."
        )
    batch = batch_shape(net, state)
    for want, leaf in zip(single, jax.tree.leaves(state), strict=True):
        if leaf.shape != (*batch, *want.shape):
            raise ValueError(
                f"{where}: every leaf of the state must have the shape of {name}.initial_state({batch}), "
                f"{[*batch, *want.shape]} here, got {describe(leaf)}."
            )
        if jnp.issubdtype(want.dtype, jnp.floating) and not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"{where}: every leaf of the state must be of a floating dtype, got {describe(leaf)}.")
    return batch


@public
def flatten_state(cell: Cell, state: Any) -> jax.Array:
    """The state as vectors ``[*batch, D]``: its leaves in their order, each row by row."""
    batch, leaves = check_state("flatten_state", cell, state), jax.tree.leaves(state)
    return jnp.concatenate([leaf.reshape(*batch, math.prod(leaf.shape[len(batch) :])) for leaf in leaves], axis=-1)


def unflatten_state(cell: Any, flat: Any) -> Any:
    """The inverse of `flatten_state`, for JAX and NumPy arrays; all leaves have the dtype of ``flat [*batch, D]``."""
    structure, single = state_like(cell)
    pieces, start = [], 0
    for leaf in single:
        size = math.prod(leaf.shape)
        pieces.append(flat[..., start : start + size].reshape(*flat.shape[:-1], *leaf.shape))
        start += size
    return jax.tree.unflatten(structure, pieces)


class Leaf(NamedTuple):
    """A cell within a network, and its part of the parameters or of the state."""

    path: str  # the names of the parts that lead to it: "1.forward"
    cell: Any
    part: Any


def leaves(net: Any, tree: Any = None) -> tuple[Leaf, ...]:
    """All cells in a network that are no networks themselves, from the bottom up; of a cell, the cell.

    Args:
        net: any cell or network.
        tree: its parameters, a state, or None.

    >>> import rnnjax
    >>> net = rnnjax.Stack((rnnjax.LearnedState(rnnjax.LSTM(4)), rnnjax.GRU(2)))
    >>> [(leaf.path, type(leaf.cell).__name__) for leaf in leaves(net)]
    [('0.cell', 'LSTM'), ('1', 'GRU')]
    >>> [leaf.part.h.shape for leaf in leaves(net, net.initial_state((3,)))]
    [(3, 4), (3, 2)]
    """
    if not isinstance(net, Network):
        return (Leaf("", net, tree),)
    found = []
    for name, cell, part in net.parts(tree):
        found += [leaf._replace(path=f"{name}.{leaf.path}".rstrip(".")) for leaf in leaves(cell, part)]
    return tuple(found)


def part_controls(net: Network, controls: Controls) -> tuple[Controls, ...]:
    """The controls of every part: those of the network, with the part's own fresh state."""
    if controls.fresh is None:
        return (controls,) * len(net.parts(None))
    return tuple(controls._replace(fresh=fresh) for _, _, fresh in net.parts(controls.fresh))


def free_state(where: str, net: Any, state: State) -> State:
    """The state with None in place of the fields that are not free to be anything.

    A cell whose fields have a meaning only together names those that are free in an attribute ``free_state``, as
    ``("h",)``; of any other cell all are.

    Raises:
        ValueError: if ``free_state`` names what the state does not have, or nothing.
    """
    if isinstance(net, Network):
        return net.join([free_state(where, cell, part) for _, cell, part in net.parts(state)])
    names = getattr(net, "free_state", None)
    if names is None:
        return state
    if not names or not set(names) <= set(state._fields):
        raise ValueError(
            f"{where}: free_state of {type(net).__name__} must be a tuple of fields of its state, of "
            f"{', '.join(state._fields)}, got {short(names)}."
        )
    return state._replace(**{name: None for name in state._fields if name not in names})


def input_shape(net: Any, input_size: int) -> tuple[int, ...]:
    """The axes of one input behind the batch axes: ``(I,)``, unless the cell that reads it has an `input_shape`.

    A cell whose features are not one axis (channels of an image, say) offers ``input_shape(input_size)``; everybody
    else reads the shape through this function.

    >>> import rnnjax
    >>> input_shape(rnnjax.LSTM(4), 3), input_shape(rnnjax.Stack((rnnjax.ConvLSTM(4, spatial_shape=(8, 8)),)), 3)
    ((3,), (8, 8, 3))
    """
    own = getattr(leaves(net)[0].cell, "input_shape", None)
    return (input_size,) if own is None else tuple(own(input_size))


def output_shape(net: Any, input_size: int) -> tuple[int, ...]:
    """The axes of ``y`` behind the batch axes: ``(H,)`` of all but a few cells, and else found by tracing one step.

    >>> import rnnjax
    >>> output_shape(rnnjax.Bidirectional((rnnjax.LSTM(4),)), 3)
    (8,)
    >>> output_shape(rnnjax.ConvLSTM(4, spatial_shape=(8, 8)), 3)
    (8, 8, 4)
    """
    if hasattr(net, "hidden_size") and not any(hasattr(leaf.cell, "input_shape") for leaf in leaves(net)):
        return (net.hidden_size,)
    return _traced_output_shape(net, input_size)


@functools.lru_cache(maxsize=256)
def _traced_output_shape(net: Any, input_size: int) -> tuple[int, ...]:
    params = param_shapes(net, input_size)
    x = jax.ShapeDtypeStruct(input_shape(net, input_size), jnp.float32)
    _, y = jax.eval_shape(functools.partial(walk, _step, net), params, jax.eval_shape(net.initial_state), x)
    return tuple(y.shape)
