"""Networks that read a sequence in both directions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cell import Cell
from rnnjax.kinds import check_fields, public
from rnnjax.network import Controls, Visit, network_initial_state, part_controls
from rnnjax.networks.masks import dropout
from rnnjax.networks.stack import check_layers
from rnnjax.promotion import as_wide

__all__ = ["Bidirectional", "BidirectionalParams", "BidirectionalState", "Directions"]


class Directions(NamedTuple):
    """What a layer has for each of its directions: parameters or states."""

    forward: Any
    backward: Any


class BidirectionalParams(NamedTuple):
    """Parameters of `Bidirectional`, one entry a layer."""

    layers: tuple[Directions, ...]


class BidirectionalState(NamedTuple):
    """State of `Bidirectional`, one entry a layer."""

    layers: tuple[Directions, ...]


@dataclasses.dataclass(frozen=True)
class Bidirectional:
    r"""Layers that run over the whole sequence in both directions (Schuster and Paliwal, 1997).

        forward_l[t]  = y of cells_l.forward  at y_{l-1}[t], from the state after step t - 1
        backward_l[t] = y of cells_l.backward at y_{l-1}[t], from the state after step t + 1
        y_l[t] = concat(forward_l[t], backward_l[t]),  or their sum, mean or product;   y_0 = x,   y = y_L

    It needs the future, so it is no cell and cannot step; `rnnjax.unroll` runs it. With `concat` and one kind of cell
    it is what ``torch.nn.LSTM(bidirectional=True)`` computes.

    A forward direction begins with the state passed in at step 0, a backward one at each row's last valid step; the
    final state is the one after the last valid step, and the one after step 0. Resets say that a new document begins
    with the step they mark, and no direction carries anything from one document to another: at a flag at t, the forward
    direction restores its initial state before step t, and the backward one, which comes from above, before step t - 1.
    So every document comes out as if it were run alone. A flag at step 0, where the backward direction has arrived,
    does not concern it. With ``unroll(..., reverse=True)`` the two change roles.

    Dropout acts where `rnnjax.unroll` gets a ``key``, as that of a `Stack`.

    Args:
        layers: for each layer a cell for both directions, or a pair of cells ``(forward, backward)``. The directions
            never share parameters.
        merge: ``"concat"``, or ``"sum"``, ``"mean"`` or ``"product"``, which need both directions to be equally wide.
        dropout: the share of each layer's outputs that the next layer does not see, new for every step.

    Raises:
        ValueError: if there is no layer, an unknown merge, a sum of directions of different sizes, or for a rate
            outside [0, 1).
        TypeError: if ``layers`` is not a tuple or list of cells and pairs of cells.

    >>> import jax, rnnjax
    >>> net = rnnjax.Bidirectional((rnnjax.LSTM(4), (rnnjax.GRU(3), rnnjax.GRU(2))))
    >>> params = net.init(jax.random.key(0), input_size=3)
    >>> state, ys = rnnjax.unroll(net, params, None, jax.numpy.ones((5, 2, 3)))
    >>> ys.shape, params.layers[1].backward.w_ih.shape
    ((5, 2, 5), (8, 6))
    """

    layers: tuple[Any, ...]  # pairs of cells, once it is made
    _: dataclasses.KW_ONLY
    merge: Literal["concat", "sum", "mean", "product"] = "concat"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.layers, tuple | list):
            raise TypeError(f"Bidirectional: layers must be a tuple of cells or pairs of cells, got {self.layers!r}.")
        check_fields(self, rates=("dropout",))
        pairs = [tuple(layer) if isinstance(layer, tuple | list) else (layer, layer) for layer in self.layers]
        if not pairs:
            raise ValueError("Bidirectional: layers must hold at least one layer, got none.")
        for depth, pair in enumerate(pairs):
            if len(pair) != 2 or any(isinstance(cell, type) or not isinstance(cell, Cell) for cell in pair):
                raise TypeError(
                    f"Bidirectional: layers[{depth}] must be a cell or a pair of cells, got {self.layers[depth]!r}."
                )
            sizes = [cell.hidden_size for cell in pair]
            if self.merge != "concat" and sizes[0] != sizes[1]:
                raise ValueError(
                    f"Bidirectional: with merge={self.merge!r} both directions of layers[{depth}] must have the same "
                    f"hidden_size, got {sizes[0]} and {sizes[1]}; take merge='concat'."
                )
        object.__setattr__(self, "layers", tuple(pairs))

    @property
    def output_size(self) -> int:
        """The size of ``y``."""
        return self._width(self.layers[-1])

    def _width(self, pair: tuple[Cell, Cell]) -> int:
        forward, backward = pair
        return forward.hidden_size + (backward.hidden_size if self.merge == "concat" else 0)

    def merged(self, forward: jax.Array, backward: jax.Array) -> jax.Array:
        """What the two directions say together."""
        if self.merge == "concat":
            return jnp.concatenate([forward, backward], axis=-1)
        if self.merge == "product":
            return forward * backward
        total = forward + backward
        return total if self.merge == "sum" else total / 2

    @public
    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> BidirectionalParams:
        """New parameters of both directions of every layer, each from a key of its own."""
        sizes = [input_size, *(self._width(pair) for pair in self.layers[:-1])]
        keys = jax.random.split(key, (len(sizes), 2))
        return BidirectionalParams(
            tuple(
                Directions(*(cell.init(k, size, dtype) for cell, k in zip(pair, ks, strict=True)))
                for pair, ks, size in zip(self.layers, keys, sizes, strict=True)
            )
        )

    def parts(self, tree: Any) -> tuple[tuple[str, Cell, Any], ...]:
        """Both directions of every layer: ``0.forward``, ``0.backward``, ``1.forward``, ..."""
        layers = check_layers("Bidirectional", len(self.layers), tree, nothing=(None, None))
        return tuple(
            (f"{depth}.{way}", cell, part)
            for depth, (cells, parts) in enumerate(zip(self.layers, layers, strict=True))
            for way, cell, part in zip(Directions._fields, cells, parts, strict=True)
        )

    def join(self, parts: Sequence[Any]) -> BidirectionalState:
        """A state from those of all directions."""
        return BidirectionalState(tuple(Directions(*pair) for pair in zip(parts[::2], parts[1::2], strict=True)))

    def thread(
        self,
        visit: Visit,
        params: BidirectionalParams,
        state: BidirectionalState,
        xs: jax.Array,
        controls: Controls,
        *,
        reverse: bool,
        key: jax.Array | None,
    ) -> tuple[BidirectionalState, jax.Array]:
        """From layer to layer, in both directions; see `rnnjax.Network`."""
        parts = list(zip(self.parts(params), self.parts(state), part_controls(self, controls), strict=True))
        ends, states = _ends(controls, reverse), []
        keys = None if key is None else jax.random.split(key, (3, len(self.layers)))
        for depth in range(len(self.layers)):
            if depth and keys is not None:
                xs = dropout(keys[0, depth], xs, self.dropout)
            ways = [(p, s, control) for (_, _, p), (_, _, s), control in parts[2 * depth : 2 * depth + 2]]
            ways[1] = (*ways[1][:2], ways[1][2]._replace(resets=ends))
            cells, together = self.layers[depth], getattr(visit, "both", None)
            found = None
            if together is not None and keys is None and cells[0] == cells[1]:
                found = together(cells[0], *ways, xs, reverse=reverse)
            if found is None:
                within = (None, None) if keys is None else keys[1:, depth]
                found = [
                    visit(cell, p, s, xs, control, reverse=reverse != bool(way), key=k)
                    for way, (cell, (p, s, control), k) in enumerate(zip(cells, ways, within, strict=True))
                ]
            (first, ys_there), (second, ys_back) = found
            states += [first, second]
            xs = self.merged(ys_there, ys_back)
        return self.join(states), xs

    initial_state = network_initial_state


def _ends(controls: Controls, reverse: bool) -> jax.Array | None:
    """The last steps of documents that another one follows, ``[T, *batch]``: where the way back restarts."""
    flags, valid = controls.restarts, controls.valid
    if flags is None:
        return None
    if reverse:
        flags, valid = jnp.flip(flags, 0), None if valid is None else jnp.flip(valid, 0)
    ends = jnp.concatenate([flags[1:], jnp.zeros_like(flags[:1])])
    if valid is not None and controls.lengths is None:  # there may be gaps: a step ends where the next valid one begins
        time = as_wide(jnp.arange(len(flags)), flags.ndim)
        following = jax.lax.cummin(jnp.where(valid, time, len(flags)), axis=0, reverse=True)
        following = jnp.concatenate([following[1:], jnp.full_like(following[:1], len(flags))])
        found = jnp.take_along_axis(flags, jnp.minimum(following, len(flags) - 1), axis=0)
        ends = found & (following < len(flags))
    return jnp.flip(ends, 0) if reverse else ends
