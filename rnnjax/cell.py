r"""The contract of a cell, and the steps that affine and linear cells share.

A cell is a hashable value that holds sizes and switches; its parameters and its state are pytrees of arrays
that are passed in and handed back. Nothing here is stateful.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim

from rnnjax.checks import check_dtype, check_size, describe, short
from rnnjax.promotion import compute_dtype, promoting
from rnnjax.traced import name_values

__all__ = [
    "AffineCell",
    "Cell",
    "Coefficients",
    "Gates",
    "LinearCell",
    "affine_step",
    "batch_axes",
    "batch_shape",
    "check_resets",
    "check_size",
    "check_step",
    "compute_dtype",
    "describe",
    "input_size_of",
    "leaf_names",
    "linear_step",
    "named_leaves",
    "pack_state",
    "param_shapes",
    "project_input",
    "project_state",
    "shapes_of",
    "split_gates",
    "state_like",
    "unpack_state",
    "wide_dtype",
]

Params = Any  # a NamedTuple of arrays
State = Any  # a NamedTuple of arrays, each [*batch, ...]
Gates = tuple[jax.Array, ...]
Coefficients = tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]
S = TypeVar("S")
_PROBES = (10_007, 10_009)  # two input sizes that nobody has


@runtime_checkable
class Cell(Protocol):
    """What every recurrent cell offers; third parties need import nothing from here to satisfy it.

    A step gives names to what a reader may want to see or hold, its gates and its state: see `rnnjax.traced`.

    Where some fields of the state have a meaning only together, an attribute ``free_state`` names those that may be
    anything, as ``("h",)``: only these are learned by `LearnedState` and set by `ContextState`; without it all are.
    """

    @property
    def hidden_size(self) -> int:
        """H, the size of the output ``y`` of a step."""
        ...

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> Params:
        """New parameters for inputs of size I."""
        ...

    def initial_state(self, batch_shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> State:
        """The state before the first step; every leaf is ``[*batch_shape, ...]``."""
        ...

    def step(self, params: Params, state: State, x: jax.Array) -> tuple[State, jax.Array]:
        """One step: ``x [*batch, I]`` to the next state and ``y [*batch, H]``."""
        ...


@runtime_checkable
class AffineCell(Cell, Protocol):
    """A cell whose step is two affine maps and a pointwise update between them.

    Its state has a field ``h``, its parameters ``w_ih [I, G H]``; ``b [G H]``, unless biases are part of the update;
    and ``w_hh [H, G H]``, unless the recurrence is.
    """

    @property
    def num_gates(self) -> int:
        """G, the number of blocks of width H in ``w_ih`` and ``w_hh``."""
        ...

    def update(self, params: Params, state: State, zx: Gates, zh: Gates) -> tuple[State, jax.Array]:
        """The pointwise part: per gate one array ``[*batch, H]`` from the input and one from the state."""
        ...


@runtime_checkable
class LinearCell(Cell, Protocol):
    r"""A cell whose next state is linear in the state, entry by entry, with coefficients from the input alone.

        s' = a(x) * s + b(x)
        y  = output(s', x)

    So the states of all steps come from one scan with an associative operator, and no matmul waits for a state.
    Both methods take any number of leading axes, a step's batch or the whole sequence, and treat them alike.
    """

    def coefficients(self, params: Params, x: jax.Array, dtype: Any) -> Coefficients:
        """``(a, b)`` for ``x [..., I]``, in ``dtype`` (float32 or wider), each with one array a leaf of the state.

        Where they are complex, the array stands for two leaves in a row: the real and the imaginary part.
        ``b`` is ``[..., N]`` for a leaf ``[*batch, N]``; ``a`` too, or only ``[N]`` where it does not depend on x.
        """
        ...

    def output(self, params: Params, state: State, x: jax.Array) -> jax.Array:
        """``y [..., H]`` from the new state, which comes in the wider dtype, and ``x [..., I]``."""
        ...


def split_gates(z: jax.Array, num_gates: int) -> Gates:
    """Cuts ``z [..., G H]`` into G arrays ``[..., H]``."""
    return tuple(jnp.split(z, num_gates, axis=-1))


def matmul(x: jax.Array, w: jax.Array, dtype: Any) -> jax.Array:
    """``x @ w`` in the dtype of the weights, accumulated and returned in ``dtype``."""
    return jnp.matmul(x.astype(w.dtype), w, preferred_element_type=dtype)


@promoting
def project_input(cell: AffineCell, params: Params, x: jax.Array, dtype: Any) -> Gates:
    """``split(x @ w_ih + b)``: the input's contribution to every gate, for one step or many; ``b`` may be absent."""
    z, b = matmul(x, params.w_ih, dtype), getattr(params, "b", None)
    return split_gates(z if b is None else z + b.astype(dtype), cell.num_gates)


def project_state(cell: AffineCell, params: Params, h: jax.Array, dtype: Any) -> Gates:
    """``split(h @ w_hh)``: the state's contribution to every gate; empty for a cell without ``w_hh``."""
    w_hh = getattr(params, "w_hh", None)
    return () if w_hh is None else split_gates(matmul(h, w_hh, dtype), cell.num_gates)


def cast_like(tree: S, like: S) -> S:
    """Gives every leaf of ``tree`` the dtype of the same leaf in ``like``."""
    return jax.tree.map(lambda new, old: new.astype(old.dtype), tree, like)


def widen(tree: S, dtype: Any) -> S:
    """Casts every leaf to ``dtype``."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def check_step(cell: Any, params: Any, state: Any, x: Any, by: str = "step") -> jax.Array:
    """The arguments of a cell's ``step``; hands back ``x`` as an array.

    Whatever has other axes than the state would be broadcast against it, and a whole sequence is such a thing.

    Raises:
        TypeError: if params or state are no trees of arrays, for example in the wrong order, or ``x`` no array.
        ValueError: if ``x`` has another size than the parameters, or other batch axes than the state.
    """
    if isinstance(cell, type) or not hasattr(cell, "init"):
        raise TypeError(f"{by}: cell must be a cell, an instance, got {describe(cell)}.")
    where, order = f"{type(cell).__name__}.step", "the order is step(params, state, x)"
    for name, tree in (("params", params), ("state", state)):
        if tree is None or hasattr(tree, "shape") or isinstance(tree, str | int | float):
            raise TypeError(f"{where}: {name} must be a tree of arrays, got {describe(tree)}; {order}.")
    if hasattr(cell, "num_gates") and not (hasattr(params, "w_ih") and hasattr(state, "h")):
        names = f"{type(params).__name__} and {type(state).__name__}"
        raise TypeError(f"{where}: params and state must be what init and initial_state make, got {names}; {order}.")
    if hasattr(state, "w_ih") and not hasattr(params, "w_ih"):
        raise TypeError(f"{where}: params come before the state, got them the other way round; step(params, state, x).")
    if not hasattr(x, "shape"):
        if isinstance(x, tuple) and hasattr(x, "_fields"):
            raise TypeError(f"{where}: x must be an array, got a {type(x).__name__}; {order}.")
        try:
            x = jnp.asarray(x)
        except (TypeError, ValueError, OverflowError):
            raise TypeError(f"{where}: x must be an array, got {short(x)}.") from None
    leaves = jax.tree.leaves(state)
    weights: Any = getattr(params, "w_ih", None)
    size = weights.shape[-2] if getattr(weights, "ndim", 0) >= 2 else None
    if not x.ndim or (size is not None and x.shape[-1] != size):
        wanted = "" if size is None else f" with I = {size} (from params.w_ih)"
        raise ValueError(f"{where}: x must have shape [*batch, I]{wanted}, got {describe(x)}.")
    first: Any = getattr(state, "h", leaves[0] if leaves else x)
    if first.shape[:-1] != x.shape[:-1]:
        axes = ", ".join(map(str, first.shape[:-1]))
        raise ValueError(
            f"{where}: x must have the axes of the state, [{axes + ', ' if axes else ''}I], got {describe(x)}; a whole "
            "sequence goes to rnnjax.unroll."
        )
    return x


def affine_step(cell: AffineCell, params: Params, state: State, x: jax.Array) -> tuple[State, jax.Array]:
    r"""One step of any affine cell; a cell's class takes it over by ``step = affine_step``.

        zx = split(x @ w_ih + b)
        zh = split(h @ w_hh)
        state', y = update(params, state, zx, zh)

    The matmuls run in the dtype of the weights and accumulate in float32 (float64 for a float64 state); the
    update sees that wider dtype; the new state and ``y`` have the dtype of the old state.

    Args:
        cell: the affine cell.
        params: its parameters.
        state: ``state.h`` is ``[*batch, H]``.
        x: ``[*batch, I]``.

    Returns:
        The next state, and ``y [*batch, H]``.
    """
    x = check_step(cell, params, state, x, "affine_step")
    dtype = compute_dtype(state.h.dtype)
    zx = project_input(cell, params, x, dtype)
    zh = project_state(cell, params, state.h, dtype)
    new_state, y = cell.update(params, widen(state, dtype), zx, zh)
    return cast_like(new_state, state), y.astype(state.h.dtype)


def pack_state(state: State, coefficients: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """The leaves of ``state`` as the arrays that the coefficients multiply: two real ones become a complex one."""
    leaves = iter(jax.tree.leaves(state))
    return tuple(
        jax.lax.complex(next(leaves), next(leaves)) if jnp.iscomplexobj(a) else next(leaves) for a in coefficients
    )


def unpack_state(arrays: tuple[jax.Array, ...], like: S) -> S:
    """The inverse of `pack_state`: a state with the structure of ``like``."""
    leaves: list[jax.Array] = []
    for s in arrays:
        leaves += [jnp.real(s), jnp.imag(s)] if jnp.iscomplexobj(s) else [s]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def linear_step(cell: LinearCell, params: Params, state: State, x: jax.Array) -> tuple[State, jax.Array]:
    r"""One step of any linear cell; a cell's class takes it over by ``step = linear_step``.

        a, b = coefficients(params, x)
        s'   = a * s + b
        y    = output(params, s', x)

    Matmuls run in the dtype of the weights, all else in float32 (float64 for a float64 state); the new state and
    ``y`` have the dtype of the old state.

    Args:
        cell: the linear cell.
        params: its parameters.
        state: every leaf is ``[*batch, N]``.
        x: ``[*batch, I]``.

    Returns:
        The next state, and ``y [*batch, H]``.
    """
    x = check_step(cell, params, state, x, "linear_step")
    narrow = jax.tree.leaves(state)[0].dtype
    dtype = compute_dtype(narrow)
    a, b = cell.coefficients(params, x, dtype)
    old = pack_state(widen(state, dtype), a)
    new_state = unpack_state(tuple(_advance(k, s, d) for k, s, d in zip(a, old, b, strict=True)), state)
    name_values(**dict(zip(leaf_names(new_state), jax.tree.leaves(new_state), strict=True)))
    y = cell.output(params, new_state, x)
    return cast_like(new_state, state), y.astype(narrow)


@promoting
def _advance(a: jax.Array, s: jax.Array, b: jax.Array) -> jax.Array:
    return a * s + b


def leaf_names(state: State) -> list[str]:
    """What the leaves of a state are called: ``h`` for a field of a NamedTuple, ``left_h`` for one within another.

    >>> import rnnjax
    >>> leaf_names(rnnjax.LSTM(4).initial_state())
    ['h', 'c']
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    return [jax.tree_util.keystr(path, simple=True, separator="_") or "state" for path in paths]


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, as they stand in files: ``{"layers[0].w_ih": ...}``."""
    return {jax.tree_util.keystr(path).lstrip("."): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def batch_shape(cell: Any, state: State) -> tuple[int, ...]:
    """The batch axes of ``state``: what stands before the axes that ``cell.initial_state(())`` has."""
    first, (_, (single, *_)) = jax.tree.leaves(state)[0], state_like(cell)
    return tuple(first.shape[: first.ndim - len(single.shape)])


@functools.lru_cache(maxsize=1024)  # tracing `initial_state` takes longer than many a step
def state_like(cell: Any) -> tuple[Any, tuple[Any, ...]]:
    """The structure of a state without batch axes, and its leaves as shapes and dtypes."""
    like = jax.eval_shape(cell.initial_state)
    return jax.tree.structure(like), tuple(jax.tree.leaves(like))


def batch_axes(batch_shape: tuple[int, ...], dtype: Any = jnp.float32) -> tuple[int, ...]:
    """The arguments of an ``initial_state``: the axes as a tuple of plain ints.

    Raises:
        TypeError: if the axes are no tuple, as a single size is the commonest slip, or ``dtype`` is no floating one.
        ValueError: if a size is negative.
    """
    if not isinstance(batch_shape, tuple | list):
        raise TypeError(f"initial_state: batch_shape must be a tuple of sizes, got {short(batch_shape)}; write (32,).")
    check_dtype("initial_state", dtype)
    sizes = ((size, is_symbolic_dim(size)) for size in batch_shape)  # a program exported for any batch has symbols
    name = "every size of batch_shape"
    return tuple(size if symbol else check_size("initial_state", name, size, least=0) for size, symbol in sizes)


def input_size_of(cell: Any, arrays: Mapping[str, Any]) -> tuple[int, str]:
    """I, and the name of the first array with an axis that depends on it; ``(1, "")`` where nothing tells.

    Sizes are affine in I, so that two sizes that ``init`` is tried with tell how.

    Args:
        cell: anything with an ``init``.
        arrays: its parameters by their paths, as ``"layers[0].w_ih"``; more and other ones do no harm.

    >>> import rnnjax
    >>> input_size_of(rnnjax.Bidirectional((rnnjax.GRU(4),)), {"layers[0].forward.w_ih": jnp.zeros((5, 12))})
    (5, 'layers[0].forward.w_ih')
    """
    low, high = (named_leaves(shapes_of(cell, size)) for size in _PROBES)
    for (name, first), second in zip(low.items(), high.values(), strict=True):
        shape = jnp.shape(arrays[name]) if name in arrays else ()
        for a, b, size in zip(first.shape, second.shape, shape) if len(shape) == first.ndim else ():
            if a != b:
                found = _PROBES[0] + (size - a) * (_PROBES[1] - _PROBES[0]) / (b - a)
                if found >= 1 and found == int(found):
                    return int(found), name
    return 1, ""


def param_shapes(cell: Any, input_size: int, dtype: Any = jnp.float32) -> Any:
    """The parameters of a cell as shapes and dtypes; found once, since initialisers take long to trace."""
    return _param_shapes(cell, input_size, jax.dtypes.canonicalize_dtype(dtype))  # float64 is not always enabled


@functools.lru_cache(maxsize=1024)
def _param_shapes(cell: Any, input_size: int, dtype: Any) -> Any:
    return jax.eval_shape(lambda: cell.init(jax.random.key(0), input_size, dtype))


def shapes_of(cell: Any, input_size: int) -> Any:
    """What ``init`` makes, as shapes and dtypes; a model that knows the size of its inputs itself is not told."""
    try:
        inspect.signature(cell.init).bind(None, input_size)
        own = list(inspect.signature(cell.init).parameters)[1] == "dtype"
    except TypeError:
        own = True
    return jax.eval_shape(lambda: cell.init(jax.random.key(0)) if own else cell.init(jax.random.key(0), input_size))


def check_resets(where: str, flags: Any, shape: tuple[int, ...], of: str = "xs", name: str = "resets") -> jax.Array:
    """The flags as an array; raises unless they are bool and have ``shape``, that of ``of`` without its features."""
    flags = jnp.asarray(flags)
    if flags.dtype != bool:
        raise TypeError(f"{where}: {name} must be bool, got {describe(flags)}; compare with != 0 first.")
    if flags.shape != shape:
        raise ValueError(
            f"{where}: {name} must have shape {list(shape)}, as {of} without features, got {describe(flags)}."
        )
    return flags


def wide_dtype(params: Params) -> Any:
    """The dtype of a state beside these parameters: float32, or wider where a parameter is."""
    leaves = [leaf.dtype for leaf in jax.tree.leaves(params) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return compute_dtype(*leaves)
