r"""The equal layers of a `Stack` side by side, where an engine runs several networks in one launch.

Time is cut into C pieces. In wave w, layer l works on piece w - l, so that all layers work at once:

    w = 0    layer 0 on piece 0
    w = 1    layer 0 on piece 1,   layer 1 on piece 0
    ...
    w = C    layer 0 is through,   layer 1 on piece C - 1            with two layers

A wave is a run of L networks over T / C steps: one launch, backward another. There are C + L - 1 waves, in one
`jax.lax.scan`, whose derivative has the same waves the other way. A layer without a piece runs on whatever is there,
and nobody looks at what it makes. In between, what stands between the layers happens as in `Stack.layer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cell import cast_like, compute_dtype
from rnnjax.engines.choice import Engine, choose, make_job
from rnnjax.engines.placement import on_mesh
from rnnjax.engines.scan import select
from rnnjax.network import Controls, Network, part_controls
from rnnjax.networks.masks import dropout, scale_kept
from rnnjax.networks.stack import Stack, StackParams, StackState, normalize
from rnnjax.networks.start import LearnedState
from rnnjax.promotion import promoting

__all__ = ["run_waves"]

_WIDEST = 2  # inputs that are wider than that many layers cost more as padding of all of them than waves gain


class _Layers(NamedTuple):
    """What every layer has, stacked: the first axis of every array is that of the layers."""

    params: Any
    state: Any
    fresh: Any
    norms: Any  # of all but the first
    keys: Any  # of the dropout below all but the first


def run_waves(
    net: Any,
    params: Any,
    state: Any,
    xs: jax.Array,
    controls: Controls,
    *,
    reverse: bool,
    key: jax.Array | None,
    implementation: str | None,
    remat: Any,
) -> tuple[StackState, jax.Array] | None:
    """Final state and ``ys`` of a stack; None where its layers are not equal, or no engine gains by it.

    The arguments are those of `rnnjax.unroll` below its checks. Checkpoints (``remat`` of True or a number) are for
    long sequences that do not find room; they are taken layer by layer.
    """
    if type(net) is not Stack or len(net.cells) < 2 or remat not in (None, "gates") or controls.noise is not None:
        return None  # who derives from it may thread data in another way
    if any(cell != net.cells[0] for cell in net.cells) or 0 in xs.shape or jax.device_count() > 1 or on_mesh():
        return None
    cell: Any = net.cells[0]
    weights = params.layers
    if type(cell) is LearnedState:
        cell, weights = cell.cell, tuple(p.cell for p in weights)
    if isinstance(cell, Network) or len(params.norms) != (0 if net.norm is None else len(net.cells)):
        return None
    engine = _engine(cell, weights, state, xs, controls, implementation, reverse=reverse, remat=remat)
    if engine is None:
        return None
    steps, count = xs.shape[0], len(net.cells)
    job = make_job(cell, weights[1], state.layers[1], _outputs(state, xs), controls, reverse=reverse, remat=remat)
    pieces = engine.pieces(job, count)
    if controls.valid is not None or (pieces > 1 and steps % pieces):
        job = job._replace(valid="any")  # masks have the form of pieces, and the last one may be padded
    if pieces < 2 or engine.fits(job):
        return None
    layers = _stacked(net, params, weights, state, controls, key, xs.shape[-1])
    if layers is None:
        return None
    return _waves(net, cell, engine, layers, xs, controls, pieces, reverse=reverse, remat=remat)


@promoting
def _waves(
    net: Stack,
    cell: Any,
    engine: Engine,
    layers: _Layers,
    xs: jax.Array,
    controls: Controls,
    pieces: int,
    *,
    reverse: bool,
    remat: Any,
) -> tuple[StackState, jax.Array]:
    steps, batch, count = xs.shape[0], xs.shape[1:-1], len(net.cells)
    length = -(-steps // pieces)
    padding = pieces * length - steps
    valid = jnp.ones((steps, *batch), bool) if padding and controls.valid is None else controls.valid

    def cut(a: jax.Array | None, axis: int = 0) -> jax.Array | None:
        """Pieces ``[C, T / C, ...]`` along an axis of time, in the order in which they come; padding is zero."""
        if a is None:
            return None
        a = jnp.pad(a, [(0, padding if i == axis else 0) for i in range(a.ndim)])
        a = a.reshape(*a.shape[:axis], pieces, length, *a.shape[axis + 1 :])
        return jnp.flip(a, axis) if reverse else a

    size = cell.hidden_size
    width = max(size, xs.shape[-1])
    valid, resets = cut(valid), cut(controls.resets)
    # Pieces of inputs for the first layer, and nothing in the waves that come after them.
    first = jnp.pad(_wide(xs, width), [(0, padding), *[(0, 0)] * (xs.ndim - 1)]).reshape(pieces, length, *batch, width)
    first = jnp.pad(jnp.flip(first, 0) if reverse else first, [(0, count - 1), *[(0, 0)] * xs.ndim])
    kept = cut(_kept(net, layers.keys, (steps, *batch, size), controls, reverse=reverse), 1)
    below = jnp.arange(count - 1)
    axes = (0, 0, 1, Controls._make((1, 1, 0, None, None)))  # of the layers
    # Their gradients are added up from wave to wave, in float32 if they are narrower themselves.
    shared = (layers.params, layers.fresh, layers.norms)
    wide = jax.tree.map(lambda a: a.astype(compute_dtype(a.dtype)), shared)
    begin = jax.lax.stop_gradient(layers.state)

    def one(params: Any, state: Any, xs: jax.Array, controls: Controls) -> tuple[Any, jax.Array]:
        return engine.run(cell, params, state, xs, controls, reverse=reverse, remat=remat)

    def wave(carry: Any, given: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
        number, xs = given
        params, fresh, norms = cast_like(wide, shared)
        state, under = carry  # under [T / C, L - 1, *batch, H]: what the layers below made in the wave before
        piece = number - jnp.arange(count)
        active, piece = (piece >= 0) & (piece < pieces), jnp.clip(piece, 0, pieces - 1)

        def at(mask: jax.Array | None) -> jax.Array | None:
            return None if mask is None else jnp.moveaxis(mask[piece], 0, 1)

        seen = jax.vmap(lambda norm, x: normalize(net.norm, norm, x), (0, 1), 1)(norms, under)
        if kept is not None:
            seen = scale_kept(jnp.moveaxis(kept[below, piece[1:]], 0, 1), seen, net.dropout)
        inputs = jnp.concatenate([xs[:, None], _wide(seen, width)], axis=1)
        # Who has no piece begins anew: whoever went on from a large final state might meet infinities, and a cotangent
        # of zero times an infinity is NaN.
        start = select(active, state, begin)
        new, ys = jax.vmap(one, axes, (0, 1))(params, start, inputs, Controls(at(valid), at(resets), fresh))
        if net.residual:
            ys = ys.at[:, 1:].add(under)
        return (select(active, new, state), ys[:, :-1]), ys[:, -1]

    nothing = jnp.zeros((length, count - 1, *batch, size), _outputs(layers.state, xs).dtype)
    (state, _), tops = jax.lax.scan(wave, (layers.state, nothing), (jnp.arange(pieces + count - 1), first))
    ys = jnp.flip(tops[count - 1 :], 0) if reverse else tops[count - 1 :]
    states = [jax.tree.map(lambda leaf, k=k: leaf[k], state) for k in range(count)]
    return net.join(states), ys.reshape(-1, *ys.shape[2:])[:steps]


def _engine(
    cell: Any,
    weights: Sequence[Any],
    state: StackState,
    xs: jax.Array,
    controls: Controls,
    implementation: str | None,
    *,
    reverse: bool,
    remat: Any,
) -> Engine | None:
    """The one that all layers take, if it takes several networks."""
    found: Engine | None = None
    for depth, (p, s) in enumerate(zip(weights, state.layers, strict=True)):
        seen: Any = xs if depth == 0 else _outputs(state, xs)
        engine = choose(make_job(cell, p, s, seen, controls, reverse=reverse, remat=remat), implementation)
        if not engine.many or engine is not (found or engine):
            return None
        found = engine
    return found


def _outputs(state: Any, xs: jax.Array) -> Any:
    """Shape and dtype of what a layer writes."""
    h = (state.layers[0] if isinstance(state, StackState) else state).h
    return jax.ShapeDtypeStruct((*xs.shape[:-1], h.shape[-1]), h.dtype)


def _stacked(
    net: Stack,
    params: StackParams,
    weights: Sequence[Any],
    state: StackState,
    controls: Controls,
    key: jax.Array | None,
    inputs: int,
) -> _Layers | None:
    """The layers on top of each other; None where they differ in shapes, dtypes or structure."""
    size = weights[1].w_ih.shape[0]
    if inputs > _WIDEST * size or not hasattr(weights[0], "_replace"):
        return None
    width = max(inputs, size)
    wide = [p._replace(w_ih=jnp.pad(p.w_ih, ((0, width - p.w_ih.shape[0]), (0, 0)))) for p in weights]
    fresh = [control.fresh for control in part_controls(net, controls)]
    trees = (wide, state.layers, fresh, params.norms[1:] or (None,) * (len(wide) - 1))
    for layers in trees:
        kinds = {(jax.tree.structure(t), *((a.shape, a.dtype) for a in jax.tree.leaves(t))) for t in layers}
        if len(kinds) > 1:
            return None
    keys = net.keys(key)
    stacked = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers) for layers in trees]
    return _Layers._make((*stacked, None if keys is None else keys[1:, 0]))


def _kept(
    net: Stack, keys: jax.Array | None, shape: tuple[int, ...], controls: Controls, *, reverse: bool
) -> jax.Array | None:
    """Which outputs the layer above sees, ``[L - 1, T, *batch, H]``: the masks that `Stack.layer` draws."""
    if keys is None or not net.dropout:
        return None
    options: Any = {"locked": net.locked, "resets": controls.restarts, "reverse": reverse}
    return jnp.stack([dropout(key, jnp.ones(shape), net.dropout, **options) != 0 for key in keys])


def _wide(a: jax.Array, width: int) -> jax.Array:
    """With zeros behind the last axis."""
    return jnp.pad(a, [*[(0, 0)] * (a.ndim - 1), (0, width - a.shape[-1])])
