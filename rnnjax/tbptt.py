"""Chunked truncated backpropagation through time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rnnjax.checks import check_key, check_size, is_traced
from rnnjax.engines.scan import select
from rnnjax.online import Border, Cut, Lookback
from rnnjax.programs import kept
from rnnjax.update import (
    Carry,
    Info,
    check_arrays,
    check_opt_state,
    check_optimizer,
    gradient_step,
    loss_parts,
    vary,
)

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
    border: Border | Cut | Lookback = Cut(),  # noqa: B008  (a frozen value)
    trace: Any = None,
    key: jax.Array | None = None,
    axis_name: str | None = None,
) -> TBPTTResult:
    r"""Trains on a contiguous stream by truncated backpropagation through time (Williams and Peng, 1990).

    The stream is cut into N chunks of ``chunk_len`` steps, and the state is carried from chunk to chunk:

        s_n     = state after chunk n - 1
        loss_n  = loss_fn of chunk n, from s_n
        params <- optimizer(d loss_n / d params)

    What the parameters did to ``s_n`` is the border's business: `rnnjax.online.Cut`, the default, gives it no gradient,
    `rnnjax.online.Lookback` runs the steps before again, `rnnjax.online.SnAp1`, `RTRL`, `EProp` and `UORO` carry an
    influence trace. With ``chunk_len >= T`` it is one step of full backpropagation, with ``chunk_len=1`` learning
    online. A last chunk that is shorter is trained on as well.

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
    if isinstance(border, type) or not isinstance(border, Border | Cut | Lookback):
        raise TypeError(f"tbptt: border must be a value from rnnjax.online, as Cut() or Lookback(64), got {border!r}.")
    lookback = border.steps if isinstance(border, Lookback) else chunk_len
    if lookback < chunk_len or lookback % chunk_len:
        raise ValueError(
            f"tbptt: border=Lookback(k) must have a multiple of chunk_len = {chunk_len} as k, got {lookback}; "
            f"take {max(1, round(lookback / chunk_len)) * chunk_len}."
        )
    if trace is not None and not isinstance(border, Border):
        raise ValueError(f"tbptt: trace must be None for border={border!r}, which has none.")
    if not callable(loss_fn):
        raise TypeError(f"tbptt: loss_fn must be a function of (params, state, chunk), got {loss_fn!r:.60}.")
    check_optimizer("tbptt", optimizer)
    check_arrays("tbptt", params=params, opt_state=opt_state, state=state, stream=stream)
    if key is not None:
        check_key("tbptt", key)
    _length(stream)
    arrays = params, opt_state, state, stream, trace, key
    options = chunk_len, border, axis_name
    if is_traced(arrays):
        return _tbptt(loss_fn, optimizer, *options, *arrays)  # part of the program that is being made
    return cast(TBPTTResult, kept(_tbptt, loss_fn, optimizer, options=options)(*arrays))


def _tbptt(
    loss_fn: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    chunk_len: int,
    border: Border | Cut | Lookback,
    axis_name: str | None,
    params: Any,
    opt_state: Any,
    state: Any,
    stream: Any,
    trace: Any,
    key: jax.Array | None,
) -> TBPTTResult:
    check_opt_state("tbptt", optimizer, params, opt_state)
    params, opt_state, state, stream = jax.tree.map(jnp.asarray, (params, opt_state, state, stream))
    count, rest = divmod(_length(stream), chunk_len)
    whole = jax.tree.map(lambda a: a[: count * chunk_len].reshape(count, chunk_len, *a.shape[1:]), stream)
    if isinstance(border, Border) and trace is None:
        trace = border.start(params, state, jax.tree.map(lambda a: a[:chunk_len], stream))
    if axis_name is not None:
        state, trace = vary((state, trace), axis_name)

    def call(params: Any, state: Any, chunk: Any, place: Any, keys: dict[str, jax.Array]) -> Any:
        """One chunk; every place of a window has a key of its own."""
        keys = {name: jax.random.fold_in(key, place) for name, key in keys.items()}
        return loss_parts("tbptt", loss_fn(params, state, chunk, **keys), state)

    def update(carry: Carry, inputs: tuple[Any, Any], before: int) -> tuple[Carry, Info]:
        n, chunk = inputs

        def window_loss(params: Any, states: Any, chunk: Any, **keys: jax.Array) -> Any:
            """The loss of chunk n, reached through ``before`` chunks from the state in front of them."""

            def earlier(states: Any, j: Any) -> tuple[Any, None]:
                state, after_first = states
                m = n - before + j
                old = jax.tree.map(lambda a: a[jnp.maximum(m, 0)], whole)
                new = call(params, state, old, j, keys)[1][0]
                state = select(jnp.asarray(m >= 0), new, state)  # before the start of the stream there is nothing
                return (state, select(j == 0, state, after_first)), None

            start, _, trace = jax.lax.stop_gradient(states)
            if isinstance(border, Border):
                start = border.enter(params, start, trace, chunk)
            state, after_first = (
                jax.lax.scan(earlier, (start, start), jnp.arange(before))[0] if before else (start,) * 2
            )
            loss, (state, metrics) = call(params, state, chunk, before, keys)
            return loss, (after_first if before else state, state, trace), metrics

        own_key = None if key is None else jax.random.fold_in(key, n)
        new, info = gradient_step(window_loss, optimizer, carry, chunk, key=own_key, axis_name=axis_name, where="tbptt")
        if isinstance(border, Border):
            _, now, trace = carry.state
            keys = {} if own_key is None else {"key": own_key}
            trace = border.advance(
                carry.params, now, trace, chunk, lambda params, state: call(params, state, chunk, 0, keys)[1][0], n
            )
            new = new._replace(state=(*new.state[:2], trace))
        return new, info

    # A window cannot reach back further than to the first chunk of the stream.
    window = border.steps // chunk_len if isinstance(border, Lookback) else 1
    before = min(window - 1, max(0, count - 1 + bool(rest)))
    carry, infos = Carry(params, opt_state, (state, state, trace)), []  # states before the window, and now
    if count == 1:
        carry, info = update(carry, (0, jax.tree.map(lambda a: a[0], whole)), before)
        infos.append(jax.tree.map(lambda a: a[None], info))
    elif count:
        carry, info = jax.lax.scan(
            lambda carry, inputs: update(carry, inputs, before), carry, (jnp.arange(count), whole)
        )
        infos.append(info)
    if rest:
        last = jax.tree.map(lambda a: a[count * chunk_len :], stream)
        carry, info = update(carry, (count, last), before if count else 0)
        infos.append(jax.tree.map(lambda a: a[None], info))
    params, opt_state, (_, state, trace) = carry
    return TBPTTResult(params, opt_state, state, jax.tree.map(lambda *a: jnp.concatenate(a), *infos), trace)


def _length(stream: Any) -> int:
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(stream)]
    lengths = {shape[0] if shape else None for shape in shapes}
    if len(lengths) != 1 or not (length := lengths.pop()):
        raise ValueError(
            f"tbptt: stream must hold arrays with the same leading time axis of at least one step, got shapes {shapes}."
        )
    return length
