"""Networks that read a sequence in both directions."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cell import Cell, batch_shape, start_state
from rnnjax.networks.regularization import check_rate
from rnnjax.networks.stack import check_layers, dropout
from rnnjax.unroll import unroll

__all__ = ["Bidirectional", "BidirectionalParams", "BidirectionalState", "Directions", "unroll_bidirectional"]


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
        y_l[t] = concat(forward_l[t], backward_l[t]),  or their sum;   y_0 = x,   y = y_L

    It needs the future, so it is no cell and cannot step; `unroll_bidirectional` runs it. With `concat` and one kind of
    cell it is what ``torch.nn.LSTM(bidirectional=True)`` computes.

    Args:
        layers: for each layer a cell for both directions, or a pair of cells ``(forward, backward)``. The directions
            never share parameters.
        merge: ``"concat"`` or ``"sum"``; the latter needs both directions to be equally wide.

    Raises:
        ValueError: if there is no layer, an unknown merge, or a sum of directions of different sizes.
        TypeError: if ``layers`` is not a tuple or list of cells and pairs of cells.

    >>> import jax, rnnjax
    >>> net = rnnjax.Bidirectional((rnnjax.LSTM(4), (rnnjax.GRU(3), rnnjax.GRU(2))))
    >>> params = net.init(jax.random.key(0), input_size=3)
    >>> state = net.initial_state((2,))
    >>> state, ys = rnnjax.unroll_bidirectional(net, params, state, jax.numpy.ones((5, 2, 3)))
    >>> ys.shape, params.layers[1].backward.w_ih.shape
    ((5, 2, 5), (8, 6))
    """

    layers: tuple[Any, ...]  # pairs of cells, once it is made
    merge: Literal["concat", "sum"] = "concat"

    def __post_init__(self) -> None:
        if not isinstance(self.layers, tuple | list):
            raise TypeError(f"Bidirectional: layers must be a tuple of cells or pairs of cells, got {self.layers!r}.")
        if self.merge not in ("concat", "sum"):
            raise ValueError(f"Bidirectional: merge must be 'concat' or 'sum', got {self.merge!r}.")
        pairs = [tuple(layer) if isinstance(layer, tuple | list) else (layer, layer) for layer in self.layers]
        if not pairs:
            raise ValueError("Bidirectional: layers must hold at least one layer, got none.")
        for depth, pair in enumerate(pairs):
            if len(pair) != 2 or any(isinstance(cell, type) or not isinstance(cell, Cell) for cell in pair):
                raise TypeError(
                    f"Bidirectional: layers[{depth}] must be a cell or a pair of cells, got {self.layers[depth]!r}."
                )
            sizes = [cell.hidden_size for cell in pair]
            if self.merge == "sum" and sizes[0] != sizes[1]:
                raise ValueError(
                    f"Bidirectional: with merge='sum' both directions of layers[{depth}] must have the same "
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

    def initial_state(self, batch_shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> BidirectionalState:
        """The initial state of both directions of every layer."""
        return BidirectionalState(
            tuple(Directions(*(cell.initial_state(batch_shape, dtype) for cell in pair)) for pair in self.layers)
        )

    def start_state(
        self, params: BidirectionalParams, batch_shape: tuple[int, ...] = (), dtype: Any = jnp.float32
    ) -> BidirectionalState:
        """The initial state of both directions of every layer, learned where a cell learns it."""
        check_layers("Bidirectional", len(self.layers), params=params)
        layers = zip(self.layers, params.layers, strict=True)
        return BidirectionalState(
            tuple(
                Directions(*(start_state(cell, p, batch_shape, dtype) for cell, p in zip(pair, ps, strict=True)))
                for pair, ps in layers
            )
        )


def unroll_bidirectional(
    net: Bidirectional,
    params: BidirectionalParams,
    state: BidirectionalState,
    xs: jax.Array,
    *,
    lengths: jax.Array | None = None,
    resets: jax.Array | None = None,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
    implementation: str | None = None,
    remat: bool | int | str | None = None,
) -> tuple[BidirectionalState, jax.Array]:
    """Runs a bidirectional network over a sequence.

    Args:
        net: the network.
        params: from ``net.init``.
        state: from ``net.initial_state(batch_shape)``. A forward direction begins with it at step 0, a backward one at
            the last valid step; the final state is the one after the last valid step, and the one after step 0.
        xs: ``[T, *batch, I]``.
        lengths: int ``[*batch]``, see `unroll`: each row's backward direction begins at its own last valid step, and
            padding stays at the end and comes out as zeros.
        resets: bool ``[T, *batch]``; a set flag says that a new document begins with the step it marks. No direction
            carries anything from one document to another: at a flag at t, the forward direction restores its initial
            state before step t, and the backward one, which comes from above, before step t - 1. So every
            document comes out as if it were run alone. A flag at step 0, where the backward direction has
            arrived, does not concern it.
        dropout_rate: share of each layer's outputs that the next layer does not see, as in `unroll_stack`.
        key: one key a call; without a key nothing is dropped.
        implementation: of every layer, see `unroll`.
        remat: of every layer, see `unroll`.

    Returns:
        The final state, and ``ys [T, *batch, output_size]``.

    Raises:
        ValueError: if params or state have another number of layers, for a rate outside [0, 1), or as `unroll` does.
        TypeError: as `unroll` does.
    """
    check_rate("unroll_bidirectional", "dropout_rate", dropout_rate)
    if not isinstance(net, Bidirectional):
        raise TypeError(f"unroll_bidirectional: net must be a Bidirectional network, got {net!r}; a cell has unroll.")
    check_layers("unroll_bidirectional", len(net.layers), params=params, state=state)
    keys = None if key is None else jax.random.split(key, len(net.layers))
    axes = len(batch_shape(net.layers[0][0], state.layers[0].forward))
    ys, states = jnp.asarray(xs), []
    for depth, (pair, p, s) in enumerate(zip(net.layers, params.layers, state.layers, strict=True)):
        if depth and keys is not None:
            ys = dropout(keys[depth], ys, dropout_rate)
        options: Any = {"lengths": lengths, "implementation": implementation, "remat": remat}
        forward, up = unroll(pair[0], p.forward, s.forward, ys, resets=resets, **options)
        ends = None if resets is None else _ends(resets, lengths, axes)  # after unroll has checked them
        backward, down = unroll(pair[1], p.backward, s.backward, ys, resets=ends, reverse=True, **options)
        states.append(Directions(forward, backward))
        ys = up + down if net.merge == "sum" else jnp.concatenate([up, down], axis=-1)
    return BidirectionalState(tuple(states)), ys


def _ends(resets: jax.Array, lengths: jax.Array | None, axes: int) -> jax.Array:
    """The last steps of documents that another one follows, ``[T, *batch]``: where the backward direction restarts."""
    resets = jnp.asarray(resets)
    if lengths is not None:  # a flag in the padding would restart at the last valid step and lose the state passed in
        time = jnp.arange(resets.shape[0]).reshape(-1, *(1,) * axes)
        resets = resets & (time < jnp.asarray(lengths))
    return jnp.concatenate([resets[1:], jnp.zeros_like(resets[:1])])
