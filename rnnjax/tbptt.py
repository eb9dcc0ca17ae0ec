"""Chunked truncated backpropagation through time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rnnjax.engines.scan import select

__all__ = ["TBPTTInfo", "TBPTTResult", "tbptt"]


class TBPTTInfo(NamedTuple):
    """What happened at each of the N updates."""

    loss: jax.Array  # [N], before the update
    grad_norm: jax.Array  # [N], global norm of the gradient before the optimizer sees it


class TBPTTResult(NamedTuple):
    """What `tbptt` returns; the first three continue the training where it stopped."""

    params: Any
    opt_state: Any
    state: Any
    info: TBPTTInfo


def tbptt(
    loss_fn: Callable[..., tuple[jax.Array, Any]],
    optimizer: optax.GradientTransformation,
    params: Any,
    opt_state: Any,
    state: Any,
    stream: Any,
    *,
    chunk_len: int,
    lookback: int | None = None,
    key: jax.Array | None = None,
    axis_name: str | None = None,
) -> TBPTTResult:
    r"""Trains on a contiguous stream by truncated backpropagation through time (Williams and Peng, 1990).

    The stream is cut into N chunks of k1 = ``chunk_len`` steps. Update n takes the gradient of the loss of chunk n,
    followed back through the last k2 = ``lookback`` steps, and cuts it there with `jax.lax.stop_gradient`:

        s_n     = state after chunk n - k2/k1, without gradient
        loss_n  = loss_fn of chunk n, reached from s_n through the chunks between
        params <- optimizer(d loss_n / d params)

    The state is carried from chunk to chunk. With ``chunk_len >= T`` it is one step of full backpropagation; with
    ``lookback == chunk_len``, the default, nothing is computed twice. All N updates are one `jax.lax.scan`: under one
    `jax.jit` a whole epoch runs on the device. A last chunk that is shorter is trained on as well.

    Args:
        loss_fn: ``(params, state, chunk) -> (loss, state)``, where ``chunk`` is a slice of ``stream`` in time and
            ``loss`` a scalar; with ``key``, it is called with a keyword argument ``key`` besides. Resets of single
            rows are part of the stream, passed on to `rnnjax.unroll` by ``loss_fn``.
        optimizer: any optax optimizer.
        params: what ``loss_fn`` differentiates.
        opt_state: ``optimizer.init(params)``, or from the call before.
        state: the recurrent state at the start of the stream.
        stream: arrays with the same leading axis T.
        chunk_len: k1, steps between updates.
        lookback: k2, steps that the gradient goes back; a multiple of ``chunk_len``. It reaches back to the start
            of this stream at most.
        key: for a random ``loss_fn`` (dropout); every chunk of every update gets a key of its own.
        axis_name: of a mapped axis (`jax.shard_map` with ``check_vma=False``, `jax.vmap`) along which the batch is
            split in equal parts: gradients and losses, which must be means, are averaged over it before every update,
            and every part draws from a key of its own.

    Returns:
        `TBPTTResult`: parameters, optimizer state and recurrent state at the end, and the losses and gradient norms.

    Raises:
        ValueError: for a chunk length below 1, a lookback that is no multiple of it, or an empty stream.

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
    length = _length(stream)
    if chunk_len < 1:
        raise ValueError(f"tbptt: chunk_len must be at least 1, got {chunk_len}.")
    lookback = chunk_len if lookback is None else lookback
    if lookback < chunk_len or lookback % chunk_len:
        raise ValueError(
            f"tbptt: lookback must be a multiple of chunk_len = {chunk_len}, got {lookback}; "
            f"take {max(1, round(lookback / chunk_len)) * chunk_len}."
        )
    count, rest = divmod(length, chunk_len)
    whole = jax.tree.map(lambda a: a[: count * chunk_len].reshape(count, chunk_len, *a.shape[1:]), stream)
    if key is not None and axis_name is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    before = lookback // chunk_len - 1  # chunks that the gradient passes before it reaches its own

    def update(carry, inputs):
        params, opt_state, start, _ = carry
        n, chunk = inputs

        def call(params, state, chunk, place):
            if key is None:
                return loss_fn(params, state, chunk)
            return loss_fn(params, state, chunk, key=jax.random.fold_in(jax.random.fold_in(key, n), place))

        def window_loss(params):
            state = after_first = jax.lax.stop_gradient(start)
            for j in range(before):
                earlier = n - before + j
                old = jax.tree.map(lambda a: a[jnp.maximum(earlier, 0)], whole)  # noqa: B023  (called at once)
                state = select(jnp.asarray(earlier >= 0), call(params, state, old, j)[1], state)
                if j == 0:
                    after_first = state
            loss, state = call(params, state, chunk, before)
            return loss, (after_first if before else state, state)

        (loss, (start, state)), grads = jax.value_and_grad(window_loss, has_aux=True)(params)
        if axis_name is not None:
            loss, grads = jax.lax.pmean((loss, grads), axis_name)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, opt_state, start, state), TBPTTInfo(loss, optax.tree.norm(grads))

    carry, infos = (params, opt_state, state, state), []
    if count == 1:
        carry, info = update(carry, (0, jax.tree.map(lambda a: a[0], whole)))
        infos.append(jax.tree.map(lambda a: a[None], info))
    elif count:
        carry, info = jax.lax.scan(update, carry, (jnp.arange(count), whole))
        infos.append(info)
    if rest:
        if not count:
            before = 0
        carry, info = update(carry, (count, jax.tree.map(lambda a: a[count * chunk_len :], stream)))
        infos.append(jax.tree.map(lambda a: a[None], info))
    params, opt_state, _, state = carry
    return TBPTTResult(params, opt_state, state, jax.tree.map(lambda *a: jnp.concatenate(a), *infos))


def _length(stream: Any) -> int:
    lengths = {leaf.shape[0] if leaf.ndim else None for leaf in jax.tree.leaves(stream)}
    if len(lengths) != 1 or not (length := lengths.pop()):
        raise ValueError(
            "tbptt: stream must hold arrays with the same leading time axis of at least one step, got "
            f"shapes {[leaf.shape for leaf in jax.tree.leaves(stream)]}."
        )
    return length
