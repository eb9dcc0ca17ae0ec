r"""The equal layers of a deep `Stack` in one `jax.lax.scan` over the layers: a program that does not grow with depth.

    weights = stack(params.layers[1:]);    state, ys = scan(layer, ys_1, weights)

The first layer runs by itself, since its input may have any size; the weights of the others are laid on top of each
other at every call, and their gradients taken apart again. Values are those of the layers one by one.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import jax
import jax.numpy as jnp

from rnnjax.network import Controls, Visit, part_controls
from rnnjax.networks.stack import Stack, StackParams, StackState

__all__ = ["stackable", "thread_stacked", "worth_stacking"]

_LAYERS = 12  # from here on, see `worth_stacking`


def stackable(net: Any) -> TypeGuard[Stack]:
    """Whether it is a `Stack` of three layers or more of which all but the first are equal, and read as much."""
    if not isinstance(net, Stack) or type(net).thread is not Stack.thread or len(net.cells) < 3:
        return False
    first, second, *others = net.cells
    return all(cell == second for cell in others) and first.hidden_size == second.hidden_size


def worth_stacking(net: Any) -> TypeGuard[Stack]:
    """Whether stacking is the default: from 12 layers on, where it compiles sooner and runs as fast.

    Seconds to trace and compile a gradient one by one -> stacked, and milliseconds of a run (two cores of an AMD EPYC
    under load, jax 0.10.2, float32; LSTM of 128 units, 64 steps of 32 rows; GRU of 32 units, 64 steps of 16 rows):

        layers   LSTM compile    LSTM run       GRU compile     GRU run
        4        2.8 ->  3.6      136 ->  116   4.9 -> 6.5      2.5 ->  2.6
        8        2.3 ->  3.4      223 ->  237   6.7 -> 9.2      6.4 ->  6.8
        16       7.8 ->  6.1      864 ->  692   9.2 -> 7.6     13.2 -> 11.7
        24      16.7 ->  8.1     1244 -> 1087  11.8 -> 8.4     80.0 -> 28.2
    """
    return stackable(net) and len(net.cells) >= _LAYERS


def thread_stacked(
    net: Stack,
    visit: Visit,
    params: StackParams,
    state: StackState,
    xs: jax.Array,
    controls: Controls,
    *,
    reverse: bool,
    key: jax.Array | None,
) -> tuple[StackState, jax.Array]:
    """What ``net.thread`` computes, with all layers but the first in one loop."""
    first, *others = part_controls(net, controls)
    norms, keys = params.norms or (None,), net.keys(key)
    rest: Any = (params.layers[1:], norms[1:], state.layers[1:], tuple(control.fresh for control in others))
    if not all(map(_alike, rest)):
        return net.thread(visit, params, state, xs, controls, reverse=reverse, key=key)
    options: Any = {"reverse": reverse, "keys": None if keys is None else keys[0]}
    bottom, ys = net.layer(visit, 0, (params.layers[0], norms[0], state.layers[0]), xs, first, **options)

    def layer(xs: jax.Array, inputs: Any) -> tuple[jax.Array, Any]:
        (*part, fresh), own = inputs
        s, ys = net.layer(visit, 1, part, xs, controls._replace(fresh=fresh), reverse=reverse, keys=own)
        return ys, s

    stacked = tuple(jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees) if trees else None for trees in rest)
    ys, states = jax.lax.scan(layer, ys, (stacked, None if keys is None else keys[1:]))
    count = len(net.cells) - 1
    return net.join([bottom, *(jax.tree.map(lambda leaf, k=k: leaf[k], states) for k in range(count))]), ys


def _alike(trees: tuple[Any, ...]) -> bool:
    """Whether arrays of all layers have the same structure, shapes and dtypes."""
    return len({(jax.tree.structure(t), *((a.shape, a.dtype) for a in jax.tree.leaves(t))) for t in trees}) <= 1
