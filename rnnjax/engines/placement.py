"""Arrays that meet in one loop lie alike: what was made without the data is placed as the data are.

Within `jax.shard_map` JAX knows along which axes of the mesh an array varies, and a loop may not carry one that begins
the same everywhere and then differs. On a mesh with explicit axes it likewise knows how each array is sharded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

__all__ = ["meet", "on_mesh", "placed", "zeros"]


def meet(params: Any, state: Any, xs: jax.Array, controls: Any, batch_axes: int) -> tuple[Any, Any, jax.Array, Any]:
    """The same arrays; outside of `jax.shard_map` and meshes with explicit axes nothing happens.

    Within `jax.shard_map` all vary along every axis along which one of them does; the cotangent of what did not is
    summed over these axes, as JAX transposes it. On an explicit mesh the state lies as the batch of ``xs`` does, and
    parameters that were made before it was set have all of themselves on every device.
    """
    everything = (params, state, xs, controls)
    if not on_mesh():
        return everything
    if _is_explicit():
        rows = tuple(jax.typeof(xs).sharding.spec)[1 : 1 + batch_axes]
        params = jax.tree.map(lambda leaf: _as_rows(leaf, ()) if _is_elsewhere(leaf) else leaf, params)
        state = jax.tree.map(lambda leaf: _as_rows(leaf, rows), state)
        controls = controls._replace(fresh=jax.tree.map(lambda leaf: _as_rows(leaf, rows), controls.fresh))
        everything = (params, state, xs, controls)
    along = frozenset[Any]().union(*(_varies(jax.typeof(leaf)) for leaf in jax.tree.leaves(everything)))
    return jax.tree.map(lambda leaf: _vary(leaf, along), everything)


def on_mesh() -> bool:
    """Whether JAX may know where arrays lie: within `jax.shard_map`, or where a mesh is set."""
    return bool(jax.sharding.get_abstract_mesh().axis_names)


def _is_explicit() -> bool:
    return AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types


def placed(tree: Any, types: Sequence[Any]) -> Any:
    """The arrays of a tree, of which some lie on no device in particular, where those of their types do."""

    def place(leaf: jax.Array, kind: Any) -> jax.Array:
        if _is_explicit() and not any(jax.typeof(leaf).sharding.spec):
            leaf = jax.sharding.reshard(leaf, kind.sharding.spec)
        return _vary(leaf, _varies(kind))

    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, map(place, leaves, types))


def zeros(like: jax.Array, dtype: Any) -> jax.Array:
    """Zeros of the shape of ``like`` that vary where it does."""
    return _vary(jnp.zeros(like.shape, dtype), _varies(jax.typeof(like)))


def _varies(kind: Any) -> frozenset[Any]:
    found = kind.mat.varying if hasattr(kind, "mat") else getattr(kind, "vma", ())  # by the version of JAX
    return frozenset(found)


def _vary(leaf: Any, along: frozenset[Any]) -> Any:
    missing = tuple(sorted(along - _varies(jax.typeof(leaf)), key=str))
    return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf


def _as_rows(leaf: Any, rows: tuple[Any, ...]) -> Any:
    spec = PartitionSpec(*rows, *(None,) * (jnp.ndim(leaf) - len(rows)))
    there = jax.typeof(leaf).sharding.spec == spec and not _is_elsewhere(leaf)
    return leaf if there else jax.sharding.reshard(leaf, spec)


def _is_elsewhere(leaf: Any) -> bool:
    """Whether it was made before the mesh was set, and lies on none."""
    return bool(jax.typeof(leaf).sharding.mesh.empty)
