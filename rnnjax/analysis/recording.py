r"""Records what every unit of every layer does over a sequence: states and gates, as much as asked and no more.

Leaves are those of the state, and what the cell names in its step: see `rnnjax.traced`, and `rnnjax.analysis.units` for
how they are called.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.analysis.flat import check_sequence
from rnnjax.analysis.units import Leaf, Selection, parse_unit, select_units
from rnnjax.cell import batch_shape, cast_like, leaf_names
from rnnjax.checks import check_ids, check_starts
from rnnjax.engines.scan import select
from rnnjax.kinds import public
from rnnjax.network import start_state, walk
from rnnjax.promotion import compute_dtype
from rnnjax.text.windows import windows
from rnnjax.traced import observe

__all__ = [
    "OneHot",
    "SymbolModel",
    "Window",
    "leaves_of",
    "observe_layers",
    "read_text",
    "record",
    "step_layers",
    "text_values",
]

_KINDS = {"logistic": "gate", "exp": "gate", "tanh": "candidate"}  # of a named value, by what made it
Visit = Callable[[Any, Any, Any, jax.Array], tuple[Any, jax.Array]]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class OneHot:
    """Inputs of a model that reads symbols as one-hot vectors: the table ``[V, V]`` without its zeros.

    >>> OneHot(3)[np.array([2, 0])].tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """

    size: int
    dtype: Any = jnp.float32

    @property
    def shape(self) -> tuple[int, int]:
        """``(V, V)``."""
        return self.size, self.size

    def __getitem__(self, symbols: Any) -> jax.Array:
        """``[...]`` to ``[..., V]``."""
        return jax.nn.one_hot(symbols, self.size, dtype=self.dtype)


class SymbolModel(NamedTuple):
    r"""A model of a text, as the analyses need it: a cell, what it reads for a symbol, and how it predicts the next.

    x_t = inputs[s_t];  state_t, y_t = cell.step(params, state_{t-1}, x_t);  logits_t = y_t @ w_out + b_out
    """

    cell: Any
    params: Any  # of the cell
    inputs: jax.Array | OneHot  # [V, I]
    w_out: jax.Array  # [H, V]
    b_out: jax.Array  # [V]


class Window(NamedTuple):
    """A piece of a text that was read, B streams side by side; what does not count is warm-up or padding."""

    positions: np.ndarray  # int [T, B]: which symbol of the text has just been read
    counted: np.ndarray  # bool [T, B]: over all windows True once for every symbol
    values: dict[str, np.ndarray]  # by leaf: [T, B, n]

    def rows(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Positions ``[m]`` and values ``[m, n]`` of what counts."""
        return self.positions[self.counted], {leaf: v[self.counted] for leaf, v in self.values.items()}


def step_layers(cell: Any, params: Any, state: Any, x: jax.Array, visit: Visit) -> tuple[Any, jax.Array]:
    """One step of a cell in which ``visit(cell, params, state, x)`` takes that of every layer, from the first up.

    The layers are the cells of a network; any other cell is one layer. With ``visit = lambda cell, *args:
    cell.step(*args)`` it is ``cell.step``.
    """

    def one(cell: Any, params: Any, state: Any, x: jax.Array, controls: Any, **options: Any) -> tuple[Any, jax.Array]:
        del controls, options  # of sequences
        return visit(cell, params, state, x)

    return walk(one, cell, params, state, x)


def observe_layers(
    cell: Any, params: Any, state: Any, x: jax.Array, kinds: dict[str, str] | None = None
) -> tuple[Any, jax.Array, dict[str, jax.Array]]:
    """One step: the state, ``y``, and every leaf of every layer after it, ``[*batch, n]``, by name.

    Args:
        cell: any cell.
        params: its parameters.
        state: the state before the step.
        x: ``[*batch, I]``.
        kinds: is filled with the `Leaf.kind` of every leaf.
    """
    found: dict[str, jax.Array] = {}
    kinds = {} if kinds is None else kinds
    number = itertools.count(1)

    def visit(cell: Any, params: Any, state: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        layer, batch = f"L{next(number)}", batch_shape(cell, state)
        (new, y), named = observe(cell.step, params, state, x)
        leaves = dict(zip(leaf_names(new), jax.tree.leaves(new), strict=True))

        def keep(name: str, value: jax.Array, kind: str) -> None:
            if value.shape[: len(batch)] == batch:  # what has no batch axes is nothing that units do
                value = value.astype(compute_dtype(value.dtype))
                found[f"{layer}.{name}"] = value.reshape(*batch, -1)
                kinds[f"{layer}.{name}"] = kind

        for name, leaf in leaves.items():
            keep(name, leaf, "state")
        before = {f"z_{name}": seen.before for name, seen in named.items() if seen.before is not None}
        before |= {
            name: seen.value for name, seen in named.items() if name[2:] in (*leaves, *named) and name[:2] == "z_"
        }
        for name, seen in named.items():
            if name not in leaves and name not in before:
                keep(name, seen.value, _KINDS.get(seen.made_by, "value"))
        for name, value in before.items():
            keep(name, value, "pre")
        return new, y

    new, y = step_layers(cell, params, state, x, visit)
    return new, y, found


def leaves_of(cell: Any, params: Any, x: Any) -> dict[str, Leaf]:
    """Everything that can be recorded of a cell, by name: for every layer its state and what its step names.

    Args:
        cell: any cell.
        params: its parameters.
        x: one input ``[I]``, or anything with its shape and dtype.

    >>> import jax, jax.numpy as jnp, rnnjax
    >>> cell = rnnjax.Stack((rnnjax.Elman(4), rnnjax.LSTM(2)))
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> {name: leaf.size for name, leaf in leaves_of(cell, params, jnp.ones(3)).items() if leaf.kind != "pre"}
    {'L1.h': 4, 'L2.h': 2, 'L2.c': 2, 'L2.i': 2, 'L2.f': 2, 'L2.g': 2, 'L2.o': 2}
    """
    kinds: dict[str, str] = {}
    batch = (7919,)  # a size that nothing else has; nothing is computed
    x = jax.ShapeDtypeStruct((*batch, *x.shape), x.dtype)

    def look(params: Any, x: jax.Array) -> dict[str, jax.Array]:
        return observe_layers(cell, params, start_state(cell, params, batch), x, kinds)[2]

    sizes = jax.eval_shape(look, params, x)
    return {name: Leaf(sizes[name].shape[-1], kind) for name, kind in kinds.items()}


@public
def record(
    cell: Any,
    params: Any,
    state: Any,
    xs: jax.Array,
    *,
    select: Sequence[str] | None = None,
    resets: jax.Array | None = None,
) -> tuple[Any, dict[str, jax.Array]]:
    r"""Unrolls any cell and keeps the values of its units after every step.

    Chunk after chunk with the state handed on gives the same values as all at once, in bounded memory.

    Args:
        cell: any cell.
        params: its parameters.
        state: the state before the first step.
        xs: ``[T, *batch, I]``.
        select: what to keep, see `select_units`; nothing else leaves the device.
        resets: bool ``[T, *batch]``: a set flag restores the start state before the step it marks.

    Returns:
        The final state, and ``[T, *batch, n]`` for every leaf asked for, by name.

    Raises:
        ValueError: for a name in ``select`` that there is not.

    >>> import jax, jax.numpy as jnp, rnnjax
    >>> cell = rnnjax.LSTM(4)
    >>> params, xs = cell.init(jax.random.key(0), input_size=3), jnp.ones((7, 2, 3))
    >>> state, values = record(cell, params, cell.initial_state((2,)), xs, select=["L1.c", "L1.f.1"])
    >>> {name: value.shape for name, value in values.items()}
    {'L1.c': (7, 2, 4), 'L1.f': (7, 2, 1)}
    """
    xs = check_sequence("record", cell, state, xs)
    axes = len(batch_shape(cell, state))
    x = jax.ShapeDtypeStruct(xs.shape[1 + axes :], xs.dtype)
    selection = select_units(select, leaves_of(cell, params, x))
    state, values = _record(cell, params, state, xs, resets, selection)
    return state, {leaf: values[leaf] for leaf, _ in selection}  # a compiled function sorts the keys of a dict


@functools.partial(jax.jit, static_argnames=("cell", "selection"))
def _record(
    cell: Any,
    params: Any,
    state: Any,
    xs: jax.Array,
    resets: jax.Array | None,
    selection: Selection,
    table: Any = None,
) -> tuple[Any, dict[str, jax.Array]]:
    def step(state: Any, inputs: tuple[jax.Array, jax.Array | None]) -> tuple[Any, dict[str, jax.Array]]:
        x, reset = inputs
        x = x if table is None else table[x]  # here, since the vectors of all steps may be many
        state, _, found = observe_layers(cell, params, restart(cell, params, state, reset), x)
        return state, {
            leaf: found[leaf] if units is None else found[leaf][..., np.array(units)] for leaf, units in selection
        }

    return jax.lax.scan(step, state, (xs, resets))


def restart(cell: Any, params: Any, state: Any, reset: jax.Array | None) -> Any:
    """The start state where ``reset [*batch]`` is set, else ``state``."""
    return state if reset is None else select(reset, cast_like(start_state(cell, params, reset.shape), state), state)


@public
def read_text(
    model: SymbolModel,
    ids: np.ndarray,
    *,
    select: Sequence[str] | None = None,
    begin: int = 0,
    end: int | None = None,
    streams: int = 16,
    window: int = 128,
    warmup: int = 256,
    starts: np.ndarray | None = None,
) -> Iterator[Window]:
    """Reads a text and yields the values of the units piece by piece, in memory that does not grow with the text.

    The text is cut into contiguous pieces that are read side by side. With one stream the values are exact; with more,
    a piece misses what the model would remember from more than ``warmup`` symbols before it.

    Args:
        model: the model.
        ids: integers ``[n]``.
        select: what to keep, see `select_units`.
        begin: the first symbol that counts; the warm-up reaches back before it.
        end: one after the last that counts; None for the end of the text.
        streams: B, pieces.
        window: T, steps of one call on the device.
        warmup: steps that a piece begins early.
        starts: positions where a document starts, sorted: there the state is reset.

    Raises:
        ValueError: for an empty text, an id that is no symbol, starts that are not sorted positions, a size out of
            range, or a name in ``select`` that there is not.
        TypeError: if ids or starts are not integers.
    """
    ids = check_ids("read_text", ids, model.inputs.shape[0])
    starts = check_starts("read_text", starts, len(ids))
    cell, end = model.cell, len(ids) if end is None else min(end, len(ids))
    selection = select_units(select, leaves_of(cell, model.params, model.inputs[0]))
    state = None
    streams = min(streams, max(1, end - begin))
    cut = windows(begin, end, streams=streams, window=window, warmup=warmup, starts=starts, where="read_text")
    for at, counted, resets in cut:
        state = start_state(cell, model.params, at.shape[1:]) if state is None else state
        read = np.clip(at, 0, len(ids) - 1)
        symbols = ids[read].astype(np.int32)
        state, values = _record(cell, model.params, state, symbols, resets, selection, model.inputs)
        yield Window(read, counted, {leaf: np.asarray(values[leaf]) for leaf, _ in selection})


@public
def text_values(model: SymbolModel, ids: np.ndarray, units: Sequence[str], **options: Any) -> np.ndarray:
    """The values of a few units after every symbol of a text, ``[n, len(units)]``, in the order of ``units``.

    Args:
        model: the model.
        ids: integers ``[n]``.
        units: names such as ``L2.c.137``.
        **options: of `read_text`, but for ``select``.

    Raises:
        ValueError: as `read_text` does.
    """
    leaves = leaves_of(model.cell, model.params, model.inputs[0])
    chosen = [parse_unit(name, leaves) for name in units]
    selection = dict(select_units(list(units), leaves))
    begin = options.get("begin", 0)
    last = len(ids) if options.get("end") is None else min(options["end"], len(ids))
    out = np.zeros((max(0, last - begin), len(units)), np.float32)
    for part in read_text(model, ids, select=list(units), **options):
        positions, values = part.rows()
        for column, unit in enumerate(chosen):
            known = selection[unit.leaf] or ()
            out[positions - begin, column] = values[unit.leaf][:, known.index(unit.number)]
    return out
