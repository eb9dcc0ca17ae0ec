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

from rnnjax.cell import Cell, batch_shape
from rnnjax.cpu import cores_in_use
from rnnjax.implementations.registry import Controls, choose
from rnnjax.implementations.rules import split_count

__all__ = ["priority", "supports", "unroll_split"]

_AXIS = "rnnjax_rows"


def supports(cell: Any) -> bool:
    """Whether the state is vectors, each with an axis of the batch, and there are devices to split them over."""
    return cores_in_use() and _has_rows(cell)


@functools.lru_cache(maxsize=1024)  # every call of `unroll` asks
def _has_rows(cell: Any) -> bool:
    leaves = jax.tree.leaves(jax.eval_shape(lambda: cell.initial_state((3,))))
    return all(leaf.ndim == 2 and leaf.shape[0] == 3 for leaf in leaves)


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
    """The implementation that would be the default otherwise, by rows of the batch where `split_count` says so.

    Within `jax.shard_map`, under a mesh of the user's, and for arrays without an axis of the batch nothing is split.

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
    entry = choose(cell, None, jax.tree.leaves(state)[0].dtype, but="split")
    local = functools.partial(entry.fn, cell, reverse=reverse, remat=remat)
    count = 1
    if batch_shape(cell, state) and jax.sharding.get_abstract_mesh().empty:
        devices = jax.local_devices(backend="cpu")
        count = split_count(xs.shape, sum(leaf.size for leaf in jax.tree.leaves(params)), len(devices))
    if count == 1:
        return local(params, state, xs, controls)
    rows, columns = PartitionSpec(_AXIS), PartitionSpec(None, _AXIS)
    masks = Controls._make((columns, columns, rows))
    split = jax.shard_map(
        local,
        mesh=Mesh(devices[:count], (_AXIS,)),
        in_specs=(PartitionSpec(), rows, columns, masks),
        out_specs=(rows, columns),
        check_vma=False,
    )
    return split(params, state, xs, controls)
