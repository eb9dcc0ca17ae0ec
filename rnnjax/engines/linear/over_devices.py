r"""A linear cell over a sequence that is split over devices: each of them scans its part, all at the same time.

The state after a part is a linear function of the state before it, ``s' = A s + B``, where ``A`` is the product of the
part's ``a[t]`` and ``B`` is where it ends from zero. So each device runs two recurrences over its part that need
nothing from the others, ``A`` and ``B`` of all parts are exchanged (two numbers a unit, once a sequence and layer), the
states at all borders follow by the same recurrence over the devices, and with the one before its part each device has

    s[t] = A[t] s + B[t]        A[t], B[t]: products and sums within the part, up to t
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cell import LinearCell, cast_like, wide_dtype
from rnnjax.checks import describe
from rnnjax.engines.choice import Controls
from rnnjax.engines.linear.recurrence import all_states, linear_pass
from rnnjax.engines.linear.scans import Associative, Recurrence, advance
from rnnjax.engines.placement import meet, placed
from rnnjax.kinds import public
from rnnjax.network import Network, start_state

__all__ = ["unroll_over"]


@public
def unroll_over(
    axis_name: str,
    net: Any,
    params: Any,
    state: Any,
    xs: jax.Array,
    *,
    resets: jax.Array | None = None,
    reverse: bool = False,
    key: jax.Array | None = None,
    recurrence: Recurrence = Associative(),  # noqa: B008  (a frozen value)
) -> tuple[Any, jax.Array]:
    r"""`rnnjax.unroll` of a linear cell, or a network of them, over a sequence whose time is split over devices.

    To be called within `jax.shard_map`, where every device has its part of the steps, the parts in the order of the
    devices. Derivatives of any order. Compared with one device, each step takes two multiplications more.

    Args:
        axis_name: of the axis of the mesh along which time is split.
        net: a linear cell, or a network all of whose cells are.
        params: its parameters, the same on all devices.
        state: the state before the first step of the whole sequence, the same on all devices; None: the start state.
        xs: ``[T / devices, *batch, I]``, the part of this device.
        resets: ``[T / devices, *batch]``, see `rnnjax.unroll`.
        reverse: whether time runs from the last step of the last device to the first of the first.
        key: for a network that drops; every device draws for its own steps.
        recurrence: how each device scans its part.

    Returns:
        The state after the last step of the whole sequence, the same on all devices, and ``ys`` of this part.

    Raises:
        TypeError: for a cell that is not linear.
        ValueError: for resets of a network that reads both ways.

    >>> import jax, rnnjax
    >>> from jax.sharding import PartitionSpec as P
    >>> cell, mesh = rnnjax.MinGRU(4), jax.sharding.Mesh(jax.devices(), ("time",))
    >>> params, xs = cell.init(jax.random.key(0), 3), jax.random.normal(jax.random.key(1), (64, 2, 3))
    >>> split = jax.shard_map(
    ...     lambda params, xs: unroll_over("time", cell, params, None, xs),
    ...     mesh=mesh, in_specs=(P(), P("time")), out_specs=(P(), P("time")),
    ... )
    >>> state, ys = jax.jit(split)(params, xs)
    >>> bool(abs(ys - rnnjax.unroll(cell, params, None, xs)[1]).max() < 1e-5)
    True
    """
    if state is None:
        state = start_state(net, params, xs.shape[1:-1], wide_dtype(params))
    fresh = None
    if resets is not None and not hasattr(net, "step"):
        raise ValueError(
            f"unroll_over: resets must be None for {type(net).__name__}, which reads both ways: backward, those of the "
            "next device would be needed; split the batch instead."
        )
    if resets is not None:
        new = start_state(net, params, xs.shape[1:-1], None)
        fresh = jax.tree.map(lambda new, old: new.astype(old.dtype), new, state)
    if key is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    params, state, xs, controls = meet(params, state, xs, Controls(None, resets, fresh), xs.ndim - 2)
    return _run(axis_name, recurrence, net, params, state, xs, controls, reverse=reverse, key=key)


def _run(
    axis_name: str,
    recurrence: Recurrence,
    net: Any,
    params: Any,
    state: Any,
    xs: jax.Array,
    controls: Controls,
    *,
    reverse: bool = False,
    key: jax.Array | None = None,
) -> tuple[Any, jax.Array]:
    if isinstance(net, Network):
        visit = functools.partial(_run, axis_name, recurrence)
        return net.thread(visit, params, state, xs, controls, reverse=reverse, key=key)
    if not isinstance(net, LinearCell):
        raise TypeError(
            f"unroll_over: net must be linear in its state (MinGRU, MinLSTM, LRU, ...), or made of such cells, got "
            f"{describe(net)}; split the batch instead."
        )
    solve = functools.partial(_solve, axis_name, recurrence, reverse)
    states, ys = linear_pass(solve, net, params, state, xs, controls)
    last = 0 if reverse else jax.lax.axis_size(axis_name) - 1
    here = jax.lax.axis_index(axis_name) == last
    ends = jax.tree.map(lambda s: s[0 if reverse else -1], states)
    final = jax.lax.psum(jax.tree.map(lambda s: jnp.where(here, s, jnp.zeros_like(s)), ends), axis_name)
    return cast_like(final, state), ys


def _solve(
    axis_name: str, recurrence: Recurrence, reverse: bool, a: jax.Array, b: jax.Array, start: jax.Array
) -> jax.Array:
    """All states of this device's part; see `Recurrence.states`."""
    count, index, last = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name), 0 if reverse else -1
    run = functools.partial(all_states, recurrence, reverse)
    sums = run(a, b, jnp.zeros_like(start))
    products = run(jnp.broadcast_to(a, (b.shape[0], *a.shape[1:])), jnp.zeros_like(b), jnp.ones_like(start))
    # An all-reduce, whose derivative is one: gloo's reduce-scatter, that of an all-gather, gives up after 30 seconds.
    own = jnp.arange(count).reshape(count, *(1,) * start.ndim) == index
    parts = [jnp.where(own, array[last], jnp.zeros_like(array[last])) for array in (products, sums)]
    all_products, all_sums = placed(jax.lax.psum(parts, axis_name), [jax.typeof(start)] * 2)
    ends = run(all_products, all_sums, start)  # [devices, *batch, N], the state after every part
    before = jnp.concatenate([ends[1:], start[None]] if reverse else [start[None], ends[:-1]])
    return advance(products, before[index], sums)
