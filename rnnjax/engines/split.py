r"""A batch split over the CPU devices of a process, each of which steps through time over its own rows.

    state[rows d], ys[:, rows d] = unroll(params, state[rows d], xs[:, rows d])    for every device d

Nothing is exchanged between steps; in the backward pass the gradients of the parameters are added up once, at the end.
`rnnjax.use_cores` makes the devices, and makes this the default.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from rnnjax.cell import AffineCell, Cell, LinearCell, batch_shape
from rnnjax.cpu import splits_batches
from rnnjax.engines.affine.rules import splits
from rnnjax.engines.choice import Controls, choose

__all__ = ["priority", "supports", "unroll_split"]

_AXIS = "rnnjax_rows"


def supports(cell: Any) -> bool:
    """Whether the cell computes each row of a batch by itself, as affine and linear ones do, after `rnnjax.use_cores`.

    Networks of layers are split layer by layer.
    """
    return splits_batches() and isinstance(cell, AffineCell | LinearCell)


def priority(cell: Cell, backend: str, dtype: Any) -> int:
    """Above all others on a CPU."""
    del cell, dtype
    return 20 if backend == "cpu" else -1


def unroll_split(
    cell: Any,
    params: Any,
    state: Any,
    xs: jax.Array,
    controls: Controls,
    *,
    reverse: bool = False,
    remat: bool | int | str | None = None,
) -> tuple[Any, jax.Array]:
    """The implementation that would be the default otherwise, by rows of the batch where `splits` says so.

    Always over all CPU devices, so that what several unrolls return can meet. Within `jax.shard_map`, under
    `jax.set_mesh` or `jax.default_device`, and for arrays without an axis of the batch nothing is split.

    Args:
        cell: see `supports`.
        params: its parameters; every device gets them.
        state: the state before the first step.
        xs: ``[T, B, ..., I]``.
        controls: masks and resets, see `Controls`.
        reverse: whether time runs from the last step to the first.
        remat: what the other implementation makes of it.

    Returns:
        The final state, and ``ys [T, B, ..., H]``; where the batch was split they lie on several devices.
    """
    entry = choose(cell, None, jax.tree.leaves(state)[0].dtype, without="split")
    local = functools.partial(entry.fn, cell, reverse=reverse, remat=remat)
    batch = batch_shape(cell, state)
    devices = jax.local_devices(backend="cpu")
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    placed = not jax.sharding.get_abstract_mesh().empty or getattr(jax.config, "jax_default_device", None) is not None
    if placed or jax.default_backend() != "cpu" or not xs.shape[0] or not splits(batch, weights, len(devices)):
        return local(params, state, xs, controls)
    rows, columns = PartitionSpec(_AXIS), PartitionSpec(None, _AXIS)
    masks = Controls._make((columns, columns, rows))
    split = jax.shard_map(
        local,
        mesh=Mesh(devices, (_AXIS,)),
        in_specs=(PartitionSpec(), rows, columns, masks),
        out_specs=(rows, columns),
        check_vma=False,
    )
    return split(params, state, xs, controls)
