"""Many equal layers whose program does not grow with their number."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cell import Cell, batch_axes, batch_shape, check_size, start_state
from rnnjax.engines import Controls
from rnnjax.networks.norms import check_norm, init_norm, normalize
from rnnjax.networks.stack import StackParams, unroll_layered
from rnnjax.unroll import run

__all__ = ["DeepStack", "DeepStackParams", "DeepStackState"]


class DeepStackParams(NamedTuple):
    """Parameters of `DeepStack`; all but ``first`` have a leading axis of L - 1 layers."""

    first: Any
    rest: Any  # leaves [L - 1, ...]
    norms: Any = None  # `NormParams` with leaves [L - 1, H]


class DeepStackState(NamedTuple):
    """State of `DeepStack`; the layers' axis stands behind the batch axes, which come first in every state."""

    first: Any
    rest: Any  # leaves [*batch, L - 1, ...]


@dataclasses.dataclass(frozen=True)
class DeepStack:
    r"""L layers of one cell in a `jax.lax.scan` over the layers: a `Stack` whose program is as short for any L.

        y_1 = cell(x)
        y_l = cell(norm_l(y_{l-1}))                with residual: y_l = y_{l-1} + cell(norm_l(y_{l-1}))
        y   = y_L

    Values and gradients are those of ``Stack((cell,) * L, residual, norm)``, and ``init`` draws the same numbers. The
    first layer has parameters of its own, since its input may have any size I; those of the others, whose input has
    size H, lie on top of each other. In an unroll, every layer runs the cell's own best implementation over the whole
    sequence. There is no dropout between the layers, and ``cell.init`` runs under `jax.vmap`.

    Args:
        cell: any cell whose outputs it takes as inputs.
        num_layers: L, at least 2.
        residual: whether every layer but the first adds its output to what comes from below.
        norm: ``"layer"`` or ``"rms"`` normalises what every layer but the first sees; see `normalize`.

    Raises:
        ValueError: for fewer than two layers, or an unknown norm.
        TypeError: if ``cell`` is none.

    >>> import jax, rnnjax
    >>> deep = rnnjax.DeepStack(rnnjax.GRU(4), num_layers=6, residual=True, norm="rms")
    >>> params = deep.init(jax.random.key(0), input_size=3)
    >>> params.first.w_ih.shape, params.rest.w_ih.shape, params.norms.scale.shape
    ((3, 12), (5, 4, 12), (5, 4))
    >>> state, ys = rnnjax.unroll(deep, params, deep.initial_state((2,)), jax.numpy.ones((5, 2, 3)))
    >>> ys.shape, state.rest.h.shape
    ((5, 2, 4), (2, 5, 4))
    """

    cell: Cell
    num_layers: int
    residual: bool = False
    norm: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.cell, type) or not isinstance(self.cell, Cell):
            raise TypeError(f"DeepStack: cell must be a cell, got {self.cell!r}.")
        check_size("DeepStack", "num_layers", self.num_layers)
        if self.num_layers < 2:
            raise ValueError("DeepStack: num_layers must be at least 2, got 1; take the cell itself.")
        check_norm("DeepStack", self.norm)

    @property
    def hidden_size(self) -> int:
        """That of every layer."""
        return self.cell.hidden_size

    @property
    def input_shape(self) -> Any:
        """The method of the cell; there is none, as `hasattr` sees it, where the cell has none."""
        return self.cell.input_shape  # type: ignore[attr-defined]

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> DeepStackParams:
        """New parameters of every layer, each from a key of its own; norms start with gain one."""
        size, keys = self.cell.hidden_size, jax.random.split(key, self.num_layers)
        norm = init_norm(self.norm, size, dtype)
        return DeepStackParams(
            self.cell.init(keys[0], input_size, dtype),
            jax.vmap(lambda k: self.cell.init(k, size, dtype))(keys[1:]),
            jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (self.num_layers - 1, *leaf.shape)), norm),
        )

    def initial_state(self, batch_shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> DeepStackState:
        """The initial state of every layer."""
        rest = self.cell.initial_state((*batch_axes(batch_shape), self.num_layers - 1), dtype)
        return DeepStackState(self.cell.initial_state(batch_shape, dtype), rest)

    def start_state(
        self, params: DeepStackParams, batch_shape: tuple[int, ...] = (), dtype: Any = jnp.float32
    ) -> DeepStackState:
        """The initial state of every layer, learned where the cell learns it."""
        self._check(params)
        rest = jax.vmap(lambda p: start_state(self.cell, p, batch_shape, dtype), out_axes=len(batch_shape))(params.rest)
        return DeepStackState(start_state(self.cell, params.first, batch_shape, dtype), rest)

    def step(self, params: DeepStackParams, state: DeepStackState, x: jax.Array) -> tuple[DeepStackState, jax.Array]:
        """One step of all layers, from the first to the last."""
        self._check(params)
        axis = len(batch_shape(self, state))
        first, y = self.cell.step(params.first, state.first, x)

        def layer(x: jax.Array, parts: Any) -> tuple[jax.Array, Any]:
            p, norm, s = parts
            s, y = self.cell.step(p, s, normalize(self.norm, norm, x))
            return x + y if self.residual else y, s

        y, rest = jax.lax.scan(layer, y, (params.rest, params.norms, _layers_first(state.rest, axis)))
        return DeepStackState(first, _layers_behind(rest, axis)), y

    def pack(self, params: StackParams) -> DeepStackParams:
        """The parameters of the equal `Stack` in the form of this one, with the arrays copied on top of each other."""
        first, *rest = params.layers
        norms = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params.norms[1:]) if params.norms else None
        return DeepStackParams(first, jax.tree.map(lambda *leaves: jnp.stack(leaves), *rest), norms)

    def unpack(self, params: DeepStackParams) -> StackParams:
        """The inverse of `pack`."""
        self._check(params)

        def layers(tree: Any) -> list[Any]:
            return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(self.num_layers - 1)]

        norms = () if self.norm is None else (None, *layers(params.norms))
        return StackParams((params.first, *layers(params.rest)), norms)

    def _check(self, params: DeepStackParams) -> None:
        depth = {leaf.shape[0] if leaf.ndim else None for leaf in jax.tree.leaves((params.rest, params.norms))}
        if depth != {self.num_layers - 1}:
            raise ValueError(
                f"DeepStack: params.rest and params.norms must have a leading axis of num_layers - 1 = "
                f"{self.num_layers - 1}, got {sorted(depth, key=str)}; take params that init of this cell makes."
            )
        if (params.norms is None) != (self.norm is None):
            raise ValueError(
                f"DeepStack: params.norms must be there exactly if norm is, got norm={self.norm!r} and "
                f"{type(params.norms).__name__}; take params that init of this cell makes."
            )


@unroll_layered.register(DeepStack)
def _unroll_deep(
    cell: DeepStack,
    params: DeepStackParams,
    state: DeepStackState,
    xs: jax.Array,
    controls: Controls,
    *,
    reverse: bool,
    remat: Any,
) -> tuple[DeepStackState, jax.Array]:
    cell._check(params)
    axis = len(batch_shape(cell, state))
    fresh = controls.fresh or DeepStackState(None, None)

    def unroll_layer(p: Any, s: Any, xs: jax.Array, fresh: Any) -> tuple[Any, jax.Array]:
        return run(cell.cell, p, s, xs, controls._replace(fresh=fresh), None, reverse=reverse, remat=remat)

    def layer(xs: jax.Array, parts: Any) -> tuple[jax.Array, Any]:
        p, norm, s, fresh = parts
        s, ys = unroll_layer(p, s, normalize(cell.norm, norm, xs), fresh)
        return xs + ys if cell.residual else ys, s

    first, ys = unroll_layer(params.first, state.first, xs, fresh.first)
    parts = (params.rest, params.norms, _layers_first(state.rest, axis), _layers_first(fresh.rest, axis))
    ys, rest = jax.lax.scan(layer, ys, parts)
    return DeepStackState(first, _layers_behind(rest, axis)), ys


def _layers_first(tree: Any, axis: int) -> Any:
    """Leaves ``[*batch, L - 1, ...]`` as ``[L - 1, *batch, ...]``, for a scan."""
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, axis, 0), tree)


def _layers_behind(tree: Any, axis: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, axis), tree)
