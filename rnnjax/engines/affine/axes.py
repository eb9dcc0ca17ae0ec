"""Where the operands of a recurrence have the axis that `jax.vmap` maps; operands come as the leaves of `Operands`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.engines.operation import Axes, Flat

__all__ = ["batch_axes", "folded", "network_axes", "of_their_own"]


def batch_axes(args: Flat, axes: Axes) -> int:
    """How many axes the batch has without the one that is mapped; the inputs are the first argument."""
    return args[0].ndim - 2 - (axes[0] is not None)


def network_axes(tree: Any) -> list[int]:
    """Where operands of several networks have the axis of them: the first, after time."""
    operands = jax.tree.map(lambda _: 0, tree.unflatten(range(tree.num_leaves)))
    valid, resets = (None if mask is None else 1 for mask in operands.controls[:2])
    return jax.tree.leaves(operands._replace(xs=1, controls=operands.controls._replace(valid=valid, resets=resets)))


def of_their_own(tree: Any, axes: Axes) -> bool:
    """Whether any parameter differs from example to example."""
    operands = tree.unflatten(range(tree.num_leaves))
    parameters = operands.w_ih, operands.w_hh, operands.b, operands.own
    return any(axes[i] is not None for i in jax.tree.leaves(parameters))


def folded(tree: Any, args: Flat, axes: Axes) -> list[jax.Array] | None:
    """The arguments with what is mapped as one more axis of the batch; None if parameters are mapped.

    It is the last one, so that rows which lie on several devices stay there when a kernel counts all axes as rows.
    """
    if of_their_own(tree, axes):
        return None
    xs, _, _, _, _, state, controls = tree.unflatten(range(tree.num_leaves))
    size = next(a.shape[axis] for a, axis in zip(args, axes, strict=True) if axis is not None)
    found, last = list(args), batch_axes(args, axes)
    for place, those in ((last, (state, controls.fresh)), (last + 1, (xs, controls.valid, controls.resets))):
        for i in jax.tree.leaves(those):
            axis = axes[i]
            if axis is None:
                shape = (*args[i].shape[:place], size, *args[i].shape[place:])
                found[i] = jnp.broadcast_to(jnp.expand_dims(args[i], place), shape)
            else:
                found[i] = jnp.moveaxis(args[i], axis, place)
    return found
