"""What a training carries, between devices and files."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["finite", "placed", "without_keys"]


def finite(params: Any) -> bool:
    """Whether all floating-point numbers are."""
    leaves = [leaf for leaf in jax.tree.leaves(params) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return all(bool(np.isfinite(leaf).all()) for leaf in jax.device_get(leaves))


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def without_keys(tree: Any) -> Any:
    """Typed random keys as the integers they are made of, which files can hold."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree)


def placed(tree: Any, like: Any) -> Any:
    """Host arrays on the devices of ``like``, with its typed keys."""

    def place(array: Any, like: Any) -> Any:
        if _is_key(like):
            return jax.random.wrap_key_data(jnp.array(array), impl=jax.random.key_impl(like))
        if not like.sharding.is_fully_addressable:  # each process has the whole, and places its part
            return jax.make_array_from_callback(np.shape(array), like.sharding, lambda index: np.asarray(array)[index])
        # An array of a single device stays free to move, as one that jax made itself.
        return jax.device_put(array, like.sharding) if len(like.sharding.device_set) > 1 else jnp.array(array)

    return jax.tree.map(place, tree, like)
