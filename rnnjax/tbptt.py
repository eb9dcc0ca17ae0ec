"""Chunked truncated backpropagation through time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rnnjax.checks import check_key, check_optimizer, check_size, is_traced, short
from rnnjax.online import Cut
from rnnjax.online.across import AnyBorder, Border, across, begin, check_border
from rnnjax.programs import kept
from rnnjax.update import (
    Carry,
    Info,
    check_arrays,
    check_opt_state,
    gradient_step,
    vary,
)

if TYPE_CHECKING:
    import optax

__all__ = ["TBPTTResult", "tbptt"]


class TBPTTResult(NamedTuple):
    """What `tbptt` returns; the first three continue the training where it stopped."""

    params: Any
    opt_state: Any
    state: Any
    info: Info  # of the N updates: loss [N], grad_norm [N], and metrics if the loss returns any
    trace: Any = None  # of the border, for the next call


def tbptt(
    loss_fn: Callable[..., tuple[jax.Array, Any]],
    optimizer: optax.GradientTransformation,
    params: Any,
    opt_state: Any,
    state: Any,
    stream: Any,
    *,
    chunk_len: int,
    border: AnyBorder = Cut(),  # noqa: B008  (a frozen value)
    trace: Any = None,
    key: jax.Array | None = None,
    axis_name: str | None = None,
    mesh: Mesh | None = None,
) -> TBPTTResult:
    r"""Trains on a contiguous stream by truncated backpropagation through time (Williams and Peng, 1990).

    The stream is cut into N chunks of ``chunk_len`` steps, and the state is carried from chunk to chunk:

        s_n     = state after chunk n - 1
        loss_n  = loss_fn of chunk n, from s_n
        params <- optimizer(d loss_n / d params)

    What the parameters did to ``s_n`` is the border's business: `rnnjax.online.Cut`, the default, gives it no gradient,
    `rnnjax.online.Lookback` runs the steps before again, `rnnjax.online.SnAp1`, `RTRL`, `EProp` and `UORO` carry an
    influence trace, and `rnnjax.online.Immediate` cuts between the steps of a chunk too. With ``chunk_len >= T`` it is
    one step of full backpropagation, with ``chunk_len=1`` learning online. A last chunk that is shorter is trained on
    as well.

    All N updates are one compiled program, which is found again at the next call with the same ``loss_fn`` and
    ``optimizer`` (the same objects, pure functions of their arguments) and shapes, and freed with them. Within a
    `jax.jit` of the caller it is a part of the caller's program.

    Args:
        loss_fn: ``(params, state, chunk) -> (loss, state)``, or with a dict of scalars as a third, where ``chunk`` is
            a slice of ``stream`` in time and ``loss`` a scalar; with ``key``, it is called with a keyword argument
            ``key`` besides. Resets of single rows are part of the stream, passed on to `rnnjax.unroll` by ``loss_fn``.
        optimizer: any optax optimizer.
        params: what ``loss_fn`` differentiates.
        opt_state: ``optimizer.init(params)``, or from the call before.
        state: the recurrent state at the start of the stream.
        stream: arrays with the same leading axis T.
        chunk_len: steps between updates.
        border: what crosses the border of a chunk. ``Lookback(k)`` takes a multiple of ``chunk_len`` steps, and reaches
            back to the start of this stream at most.
        trace: of the border, from the call before; None begins with none.
        key: for a random ``loss_fn`` (dropout); every chunk of every update gets a key of its own. Without one,
            networks in ``loss_fn`` drop nothing, whatever their rates.
        axis_name: of a mapped axis (`jax.shard_map`, `jax.vmap`) along which the batch is split in equal parts:
            gradients and losses, which must be means, are averaged over it before every update, and every part draws
            from a key of its own.
        mesh: devices along one axis that share the batch in this way: the rows are the first axis of every array of
            ``state`` and the second of every array of ``stream``.

    Returns:
        `TBPTTResult`: parameters, optimizer state and recurrent state at the end, the losses and gradient norms, and
        the border's trace.

    Raises:
        ValueError: for a chunk length below 1, a look-back that is no multiple of it, an empty stream, the state of
            another optimizer, or a ``loss_fn`` that returns something else or another kind of state.
        TypeError: for a ``loss_fn`` that is no function, an optimizer or a border that is none, or leaves that are no
            arrays.

    >>> import jax, jax.numpy as jnp, optax, rnnjax
    >>> cell = rnnjax.GRU(8)
    >>> params, state = cell.init(jax.random.key(0), 1), cell.initial_state((2,))
    >>> def loss_fn(params, state, chunk):
    ...     state, ys = rnnjax.unroll(cell, params, state, chunk["x"])
    ...     return jnp.mean((ys[..., :1] - chunk["y"]) ** 2), state
    >>> x = jnp.sin(jnp.arange(100.0))[:, None, None] * jnp.ones((1, 2, 1))
    >>> optimizer = optax.adam(1e-2)
    >>> result = rnnjax.tbptt(loss_fn, optimizer, params, optimizer.init(params), state,
    ...                       {"x": x, "y": jnp.roll(x, -1, 0)}, chunk_len=10)
    >>> result.info.loss.shape
    (10,)
    """
    chunk_len = check_size("tbptt", "chunk_len", chunk_len)
    check_border("tbptt", border, chunk_len)
    if trace is not None and not isinstance(border, Border):
        raise ValueError(f"tbptt: trace must be None for border={border!r}, which has none.")
    if not callable(loss_fn):
        raise TypeError(f"tbptt: loss_fn must be a function of (params, state, chunk), got {short(loss_fn)}.")
    check_optimizer("tbptt", optimizer)
    check_arrays("tbptt", params=params, opt_state=opt_state, state=state, stream=stream)
    if key is not None:
        check_key("tbptt", key)
    _length(stream)
    arrays = params, opt_state, state, stream, trace, key
    if mesh is not None:
        mesh = _check_mesh(mesh, border, axis_name)
        if is_traced(arrays):
            return _split(loss_fn, optimizer, chunk_len, border, mesh, *arrays)
        if not mesh.is_multi_process:
            specs = jax.tree.map(functools.partial(NamedSharding, mesh), _specs(mesh))
            arrays = jax.device_put(arrays, specs)
        return cast(TBPTTResult, kept(_split, loss_fn, optimizer, options=(chunk_len, border, mesh))(*arrays))
    options = chunk_len, border, axis_name
    if is_traced(arrays):
        return _tbptt(loss_fn, optimizer, *options, *arrays)  # part of the program that is being made
    return cast(TBPTTResult, kept(_tbptt, loss_fn, optimizer, options=options)(*arrays))


def _check_mesh(mesh: Mesh, border: AnyBorder, axis_name: str | None) -> Mesh:
    if not isinstance(mesh, Mesh) or len(mesh.axis_names) != 1:
        raise TypeError(f"tbptt: mesh must be a jax.sharding.Mesh of one axis, got {short(mesh)}; see jax.make_mesh.")
    if axis_name is not None:
        raise ValueError(f"tbptt: axis_name is that of the mesh, got {axis_name!r} besides; leave one of them out.")
    if isinstance(border, Border):
        raise ValueError(
            f"tbptt: border={border!r:.60} has a trace that is not split, got a mesh of {mesh.size}; call tbptt within "
            "your own jax.shard_map, with axis_name."
        )
    return Mesh(mesh.devices, mesh.axis_names)  # of the kind that leaves the types of arrays alone


def _specs(mesh: Mesh) -> tuple[PartitionSpec, ...]:
    """Of params, opt_state, state, stream, trace and key."""
    everywhere, (axis_name,) = PartitionSpec(), mesh.axis_names
    rows, steps = PartitionSpec(axis_name), PartitionSpec(None, axis_name)
    return everywhere, everywhere, rows, steps, everywhere, everywhere


def _split(
    loss_fn: Callable[..., Any], optimizer: Any, chunk_len: int, border: AnyBorder, mesh: Mesh, *arrays: Any
) -> TBPTTResult:
    (axis_name,) = mesh.axis_names
    specs: tuple[Any, ...] = _specs(mesh)
    everywhere, _, rows, *_ = specs
    found: TBPTTResult = jax.shard_map(
        functools.partial(_tbptt, loss_fn, optimizer, chunk_len, border, axis_name),
        mesh=mesh,
        in_specs=specs,
        out_specs=TBPTTResult(everywhere, everywhere, rows, everywhere, everywhere),
        check_vma=False,
    )(*arrays)
    return found


def _tbptt(
    loss_fn: Callable[..., Any], optimizer: Any, chunk_len: int, border: AnyBorder, axis_name: str | None, *arrays: Any
) -> TBPTTResult:
    params, opt_state, state, stream, trace, key = arrays
    check_opt_state("tbptt", optimizer, params, opt_state)
    params, opt_state, state, stream = jax.tree.map(jnp.asarray, (params, opt_state, state, stream))
    count, rest = divmod(_length(stream), chunk_len)
    whole = jax.tree.map(lambda a: a[: count * chunk_len].reshape(count, chunk_len, *a.shape[1:]), stream)
    first = jax.tree.map(lambda a: a[:chunk_len], stream)
    carried = begin(border, params, state, first, most=max(0, count - 1 + bool(rest)) if count else 0)
    if trace is not None:
        carried = carried._replace(trace=trace)
    if axis_name is not None:
        carried = vary(carried, axis_name)
    loss = across("tbptt", loss_fn, border)

    def update(carry: Carry, chunk: Any) -> tuple[Carry, Info]:
        own_key = None if key is None else jax.random.fold_in(key, carry.state.count)
        return gradient_step(loss, optimizer, carry, chunk, key=own_key, axis_name=axis_name, where="tbptt")

    carry, infos = Carry(params, opt_state, carried), []
    if count == 1:
        carry, info = update(carry, jax.tree.map(lambda a: a[0], whole))
        infos.append(jax.tree.map(lambda a: a[None], info))
    elif count:
        carry, info = jax.lax.scan(update, carry, whole)
        infos.append(info)
    if rest:
        carry, info = update(carry, jax.tree.map(lambda a: a[count * chunk_len :], stream))
        infos.append(jax.tree.map(lambda a: a[None], info))
    params, opt_state, (state, trace, _) = carry
    trace = trace if isinstance(border, Border) else None
    return TBPTTResult(params, opt_state, state, jax.tree.map(lambda *a: jnp.concatenate(a), *infos), trace)


def _length(stream: Any) -> int:
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(stream)]
    lengths = {shape[0] if shape else None for shape in shapes}
    if len(lengths) != 1 or not (length := lengths.pop()):
        raise ValueError(
            f"tbptt: stream must hold arrays with the same leading time axis of at least one step, got shapes {shapes}."
        )
    return length
