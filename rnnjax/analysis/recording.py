r"""Records what every unit of every layer does over a sequence: states and gates, as much as asked and no more.

A unit is called ``L2.c.137``: layer 2 (the first is 1), leaf ``c``, number 137 (the first is 0). Leaves are those of
the state (``h``, ``c``, ...), the gates after their nonlinearity (``i``, ``f``, ...) and before it (``z_i``, ...); see
`gate_values`.
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

from rnnjax.analysis.gate_values import CANDIDATES, gate_values
from rnnjax.cell import batch_shape, start_state
from rnnjax.networks import DeepStack, LearnedState, Stack, normalize

__all__ = [
    "Leaf",
    "Selection",
    "SymbolModel",
    "Unit",
    "Window",
    "leaves_of",
    "observe",
    "parse_unit",
    "read_text",
    "record",
    "select_units",
    "step_layers",
    "text_values",
]

Visit = Callable[[Any, Any, Any, jax.Array], tuple[Any, jax.Array]]
Selection = tuple[tuple[str, tuple[int, ...] | None], ...]  # leaves, and which of their units; None for all


class SymbolModel(NamedTuple):
    r"""A model of a text, as the analyses need it: a cell, what it reads for a symbol, and how it predicts the next.

    x_t = inputs[s_t];  state_t, y_t = cell.step(params, state_{t-1}, x_t);  logits_t = y_t @ w_out + b_out
    """

    cell: Any
    params: Any  # of the cell
    inputs: jax.Array  # [V, I]
    w_out: jax.Array  # [H, V]
    b_out: jax.Array  # [V]


class Unit(NamedTuple):
    """One number of one leaf of one layer."""

    leaf: str  # "L2.c"
    number: int

    def __str__(self) -> str:
        return f"{self.leaf}.{self.number}"


@dataclasses.dataclass(frozen=True)
class Leaf:
    """What a layer has under one name: its number of units, and what they are."""

    size: int
    kind: str  # "state", "gate" (0 to 1), "candidate" (-1 to 1) or "pre" (before the nonlinearity)


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

    The layers are those of a `Stack` (also of stacks), a `DeepStack`, and what is in a `LearnedState`; any other cell
    is one layer. With ``visit = lambda cell, *args: cell.step(*args)`` it is ``cell.step``.
    """
    if isinstance(cell, LearnedState):
        return step_layers(cell.cell, params.cell, state, x, visit)
    if isinstance(cell, DeepStack):
        axis = len(batch_shape(cell, state))
        rest = [jax.tree.map(lambda leaf, k=k: jnp.take(leaf, k, axis), state.rest) for k in range(cell.num_layers - 1)]
        stack = Stack((cell.cell,) * cell.num_layers, cell.residual, cell.norm)
        layers = type(stack.initial_state())((state.first, *rest))
        new, y = step_layers(stack, cell.unpack(params), layers, x, visit)
        return state._replace(
            first=new.layers[0], rest=jax.tree.map(lambda *leaves: jnp.stack(leaves, axis), *new.layers[1:])
        ), y
    if not isinstance(cell, Stack):
        return visit(cell, params, state, x)
    norms = params.norms or (None,) * len(cell.cells)
    states = []
    for depth, (layer, p, s) in enumerate(zip(cell.cells, params.layers, state.layers, strict=True)):
        s, y = step_layers(layer, p, s, normalize(cell.norm, norms[depth], x), visit)
        x = x + y if cell.residual and depth else y
        states.append(s)
    return state._replace(layers=tuple(states)), x


def observe(
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
        layer, axes = f"L{next(number)}", len(batch_shape(cell, state))
        new, y = cell.step(params, state, x)

        def keep(name: str, value: jax.Array, kind: str) -> None:
            value = value.astype(jnp.promote_types(value.dtype, jnp.float32))
            found[f"{layer}.{name}"] = value.reshape(*value.shape[:axes], -1)
            kinds[f"{layer}.{name}"] = kind

        for path, leaf in jax.tree_util.tree_leaves_with_path(new):
            keep("_".join(_key(key) for key in path) or "state", leaf, "state")
        gates = gate_values(cell, params, state, new, x)
        for name, gate in gates.items():
            if gate.value is not None:
                keep(name, gate.value, "candidate" if name in CANDIDATES else "gate")
        for name, gate in gates.items():
            keep(name if gate.value is None else f"z_{name}", gate.pre, "pre")
        return new, y

    new, y = step_layers(cell, params, state, x, visit)
    return new, y, found


def _key(key: Any) -> str:
    for attribute in ("name", "key", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def leaves_of(cell: Any, params: Any, x: Any) -> dict[str, Leaf]:
    """Everything that can be recorded of a cell, by name: for every layer states, gates, and gates before it all.

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
    x = jax.ShapeDtypeStruct(x.shape, x.dtype)

    def look(params: Any, x: jax.Array) -> dict[str, jax.Array]:
        return observe(cell, params, start_state(cell, params), x, kinds)[2]

    sizes = jax.eval_shape(look, params, x)
    return {name: Leaf(sizes[name].shape[-1], kind) for name, kind in kinds.items()}


def parse_unit(name: str, leaves: dict[str, Leaf]) -> Unit:
    """The unit of a name such as ``L2.c.137``.

    Raises:
        ValueError: if there is no such layer, leaf or unit; it says what there is.

    >>> parse_unit("L1.c.3", {"L1.h": Leaf(4, "state"), "L1.c": Leaf(4, "state")})
    Unit(leaf='L1.c', number=3)
    """
    leaf, _, number = name.rpartition(".")
    layers = sorted({int(known[1 : known.index(".")]) for known in leaves})
    if leaf not in leaves:
        layer = name.split(".")[0]
        mine = [known.partition(".")[2] for known in leaves if known.startswith(f"{layer}.")]
        what = f"the leaves of {layer} are {', '.join(mine)}" if mine else f"layers are L1 to L{layers[-1]}"
        raise ValueError(f"unit: a unit must be LAYER.LEAF.NUMBER such as L1.h.0, got {name!r}; {what}.")
    size = leaves[leaf].size
    if not number.isdecimal() or int(number) >= size:
        raise ValueError(
            f"unit: the units of {leaf} are {leaf}.0 to {leaf}.{size - 1}, got {name!r}; take one of them."
        )
    return Unit(leaf, int(number))


def select_units(names: Sequence[str] | None, leaves: dict[str, Leaf]) -> Selection:
    """Leaves and units by name, in the order of the leaves.

    Args:
        names: units (``L2.c.137``), leaves (``L2.c``), kinds (``state``, ``gate``, ``candidate``, ``pre``); None for
            all but ``pre``.
        leaves: from `leaves_of`.

    Raises:
        ValueError: for a name that is none of these.
    """
    wanted: dict[str, set[int] | None] = {}
    for name in ("state", "gate", "candidate") if names is None else names:
        whole = [leaf for leaf, about in leaves.items() if name in (leaf, about.kind)]
        wanted |= dict.fromkeys(whole)
        if not whole and name not in ("state", "gate", "candidate", "pre"):
            unit = parse_unit(name, leaves)
            chosen = wanted.setdefault(unit.leaf, set())
            if chosen is not None:
                chosen.add(unit.number)
    return tuple(
        (leaf, None if (units := wanted[leaf]) is None else tuple(sorted(units))) for leaf in leaves if leaf in wanted
    )


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
    axes = len(batch_shape(cell, state))
    x = jax.ShapeDtypeStruct(xs.shape[1 + axes :], xs.dtype)
    selection = select_units(select, leaves_of(cell, params, x))
    state, values = _record(cell, params, state, xs, resets, selection)
    return state, {leaf: values[leaf] for leaf, _ in selection}  # a compiled function sorts the keys of a dict


@functools.partial(jax.jit, static_argnames=("cell", "selection"))
def _record(
    cell: Any, params: Any, state: Any, xs: jax.Array, resets: jax.Array | None, selection: Selection
) -> tuple[Any, dict[str, jax.Array]]:
    def step(state: Any, inputs: tuple[jax.Array, jax.Array | None]) -> tuple[Any, dict[str, jax.Array]]:
        x, reset = inputs
        state, _, found = observe(cell, params, restart(cell, params, state, reset), x)
        return state, {
            leaf: found[leaf] if units is None else found[leaf][..., np.array(units)] for leaf, units in selection
        }

    return jax.lax.scan(step, state, (xs, resets))


def restart(cell: Any, params: Any, state: Any, reset: jax.Array | None) -> Any:
    """The start state where ``reset [*batch]`` is set, else ``state``."""
    if reset is None:
        return state

    def choose(fresh: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(reset.reshape(*reset.shape, *(1,) * (old.ndim - reset.ndim)), fresh.astype(old.dtype), old)

    return jax.tree.map(choose, start_state(cell, params, reset.shape), state)


def windows(
    begin: int, end: int, streams: int, window: int, warmup: int, starts: np.ndarray | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Positions, which of them count, and resets, each ``[T, B]``: ``begin`` to ``end`` in B contiguous pieces.

    Every piece is read from ``warmup`` symbols before its beginning; what stands before position 0 is padding, after
    which the state is reset.
    """
    for name, value in (("streams", streams), ("window", window)):
        if value < 1:
            raise ValueError(f"read_text: {name} must be at least 1, got {value}.")
    if warmup < 0 or not 0 <= begin < end:
        raise ValueError(
            f"read_text: warmup must not be negative and the text not empty, got warmup {warmup} and positions {begin} "
            f"to {end}; use a longer text."
        )
    streams = min(streams, end - begin)
    piece = -(-(end - begin) // streams)
    first = begin + np.arange(streams) * piece
    last = np.minimum(first + piece, end)
    for offset in range(-min(warmup, int(first[-1])), piece, window):
        at = first + offset + np.arange(window)[:, None]
        resets = at == 0
        if starts is not None and len(starts):
            resets |= starts[np.minimum(np.searchsorted(starts, at), len(starts) - 1)] == at
        yield at, (at >= first) & (at < last), resets


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
        ValueError: for an empty text, a size out of range, or a name in ``select`` that there is not.
    """
    cell, end = model.cell, len(ids) if end is None else min(end, len(ids))
    selection = select_units(select, leaves_of(cell, model.params, model.inputs[0]))
    state = None
    for at, counted, resets in windows(begin, end, streams, window, warmup, starts):
        state = start_state(cell, model.params, at.shape[1:]) if state is None else state
        read = np.clip(at, 0, len(ids) - 1)
        state, values = _read(cell, model.params, model.inputs, state, ids[read].astype(np.int32), resets, selection)
        yield Window(read, counted, {leaf: np.asarray(values[leaf]) for leaf, _ in selection})


@functools.partial(jax.jit, static_argnames=("cell", "selection"))
def _read(
    cell: Any, params: Any, table: jax.Array, state: Any, ids: jax.Array, resets: jax.Array, selection: Selection
) -> tuple[Any, dict[str, jax.Array]]:
    return _record(cell, params, state, table[ids], resets, selection)


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
