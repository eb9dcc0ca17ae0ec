r"""What crosses the border of a chunk: the protocol, the borders that carry no trace, and a loss that carries all.

Truncated backpropagation cuts the gradient where a chunk begins: what a parameter did to the state before is lost,

    d loss / d params  =  (within the chunk)  +  d loss / d s_0 @ (d s_0 / d params)        s_0: the state that enters

A border with a trace E, an estimate of ``d s_0 / d params``, puts the second term back. The state that enters a chunk
passes an identity whose derivative sends what arrives there on into the parameters, and after the chunk the trace is
brought forward. What runs within the chunk, and the loss, do not change.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from rnnjax.cell import batch_shape, cast_like, describe, param_shapes
from rnnjax.checks import check_size, short
from rnnjax.engines.scan import select
from rnnjax.network import start_state
from rnnjax.update import loss_parts

__all__ = [
    "AnyBorder",
    "Border",
    "Carried",
    "Cut",
    "Immediate",
    "Lookback",
    "Read",
    "Reader",
    "across",
    "begin",
    "check_border",
    "chunk_steps",
    "each_step",
    "read_with",
    "send",
]


class Read(NamedTuple):
    """What a cell reads in a chunk."""

    params: Any  # of the cell
    xs: jax.Array  # [T, *batch, I]
    resets: jax.Array | None = None  # bool [T, *batch]
    lengths: jax.Array | None = None  # int [*batch]


Reader = Callable[[Any, Any], Read]  # (params, chunk) -> Read; params are those of the loss


def read_with(border: Any, params: Any, chunk: Any) -> Read:
    """What the border's reader finds; without one the parameters are the cell's, and the chunk is its input.

    Raises:
        TypeError: if these are no parameters of the cell, or no array.
    """
    where, cell, reader = type(border).__name__, border.cell, border.reader
    read = Read(params, chunk) if reader is None else reader(params, chunk)
    advice = (
        f"pass {where}(cell, reader) with a function (params, chunk) -> rnnjax.online.Read(params['cell'], chunk['x'])"
    )
    if not isinstance(read, Read):
        raise TypeError(f"{where}: reader must return a rnnjax.online.Read, got {describe(read)}; {advice}.")
    if read.xs is not None and not hasattr(read.xs, "shape"):  # what starts a trace may ask for the parameters alone
        raise TypeError(f"{where}: what the cell reads in a chunk must be an array, got {describe(read.xs)}; {advice}.")
    wanted = type(param_shapes(cell, 1))
    if type(read.params) is not wanted:
        raise TypeError(
            f"{where}: the parameters of the cell must be {wanted.__name__}, as its init makes, got "
            f"{describe(read.params)}; {advice}."
        )
    return read


@runtime_checkable
class Border(Protocol):
    """What crosses the border of a chunk, as a value; see `rnnjax.tbptt`."""

    def start(self, params: Any, state: Any, chunk: Any) -> Any:
        """The trace before the first chunk; ``chunk`` is any chunk, or its shapes."""
        ...

    def enter(self, params: Any, state: Any, trace: Any, chunk: Any) -> Any:
        """The state, whose derivative goes on into ``params`` through the trace."""
        ...

    def advance(self, params: Any, state: Any, trace: Any, chunk: Any, run: Callable[[Any, Any], Any], n: Any) -> Any:
        """The trace after chunk ``n``, where ``run(params, state)`` is the state after it."""
        ...


@dataclasses.dataclass(frozen=True)
class Cut:
    """Nothing crosses: plain truncation (Williams and Peng, 1990)."""


@dataclasses.dataclass(frozen=True)
class Immediate:
    """Nothing crosses, and within the chunk nothing goes from step to step either: derivatives of single steps alone.

    The loss of a chunk is the mean of the losses of its steps, each computed by itself from a state that is taken as
    given. A chunk of one step is the same as with `Cut`; a longer one makes one update of the mean of its steps'
    derivatives, where `Cut` goes back through all of the chunk. The loss must be a mean over steps, and is called once
    a step, with chunks of one: more calls of less work each than with the other borders.
    """


@dataclasses.dataclass(frozen=True)
class Lookback:
    """The gradient goes on through the steps before, which run again: k2 of truncated backpropagation.

    Args:
        steps: how far back the gradient of a chunk goes, its own steps included: a multiple of ``chunk_len``.

    Raises:
        ValueError: for a number below one.
        TypeError: for anything but an int.
    """

    steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", check_size("Lookback", "steps", self.steps))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def send(contract: Callable[[Any, Any], Any], params: Any, state: Any, trace: Any) -> Any:
    """``state``; its derivative also reaches ``params``, as ``contract(d_state, trace)``."""
    del contract, params, trace
    return state


def _send_fwd(contract: Any, params: Any, state: Any, trace: Any) -> tuple[Any, Any]:
    del contract
    return state, (params, trace)


def _send_bwd(contract: Any, kept: Any, d_state: Any) -> tuple[Any, Any, Any]:
    params, trace = kept
    d_params = jax.tree.map(lambda d, p: d.astype(p.dtype), contract(d_state, trace), params)
    return d_params, d_state, jax.tree.map(jnp.zeros_like, trace)


send.defvjp(_send_fwd, _send_bwd)


def each_step(
    cell: Any, forward: Callable[[Any, Any, jax.Array], tuple[Any, Any]], read: Read, state: Any, trace: Any
) -> Any:
    """The trace after all steps of a chunk.

    Args:
        cell: what runs.
        forward: ``(state, trace, x) -> (state, trace)``, one step, with the batch axes of the state; leaves of the
            trace are ``[B, ...]`` with all rows in one axis.
        read: what the cell reads.
        state: before the chunk.
        trace: before the chunk.
    """
    batch = batch_shape(cell, state)
    steps = jnp.arange(read.xs.shape[0])
    fresh = None if read.resets is None else cast_like(start_state(cell, read.params, batch), state)

    def step(carry: Any, inputs: Any) -> tuple[Any, None]:
        state, trace = carry
        t, x, reset = inputs
        valid = None if read.lengths is None else t < read.lengths
        if reset is not None:
            restart = reset if valid is None else reset & valid
            state = select(restart, fresh, state)
            trace = select(restart.reshape(-1), jax.tree.map(jnp.zeros_like, trace), trace)
        new_state, new_trace = forward(state, trace, x)
        if valid is not None:
            new_state = select(valid, new_state, state)
            new_trace = select(valid.reshape(-1), new_trace, trace)
        return (new_state, new_trace), None

    (_, trace), _ = jax.lax.scan(step, (state, trace), (steps, read.xs, read.resets))
    return jax.lax.stop_gradient(trace)


AnyBorder = Border | Cut | Immediate | Lookback


class Carried(NamedTuple):
    """What goes from chunk to chunk.

    Attributes:
        state: after the last chunk.
        trace: of the border; of a look-back `Window`; else None.
        count: chunks so far.
    """

    state: Any
    trace: Any
    count: Any


class Window(NamedTuple):
    """What a look-back runs again."""

    state: Any  # before the chunks
    chunks: Any  # the last ones, oldest first: leaves [before, T, ...]


def check_border(where: str, border: Any, chunk_len: int | None = None) -> None:
    """Raises unless it is a border, and one that goes with chunks of this length."""
    if isinstance(border, type) or not isinstance(border, AnyBorder):
        raise TypeError(
            f"{where}: border must be a value from rnnjax.online, as Cut() or Lookback(64), got {short(border)}."
        )
    if isinstance(border, Lookback) and chunk_len is not None and border.steps % chunk_len:
        raise ValueError(
            f"{where}: border=Lookback(k) must have a multiple of chunk_len = {chunk_len} as k, got {border.steps}; "
            f"take {max(1, round(border.steps / chunk_len)) * chunk_len}."
        )


def chunk_steps(chunk: Any) -> int:
    """T of a chunk, the leading axis of its arrays."""
    return int(jax.tree.leaves(chunk)[0].shape[0])


def begin(border: AnyBorder, params: Any, state: Any, chunk: Any, most: int | None = None) -> Carried:
    """What is carried into the first chunk.

    Args:
        border: the border.
        params: of the loss.
        state: before the first chunk.
        chunk: any chunk, or its shapes.
        most: chunks that there are before the last one, where that is known: a look-back keeps no more.
    """
    trace, count = None, jnp.zeros((), jnp.int32)
    if isinstance(border, Border):
        _check_memory(border, jax.eval_shape(border.start, params, state, chunk))
        trace = border.start(params, state, chunk)
    elif isinstance(border, Lookback):
        before = border.steps // chunk_steps(chunk) - 1
        before = before if most is None else min(before, most)
        copy = jax.tree.map(jnp.copy, state)  # whoever gives up its buffers gives up each once
        trace = Window(copy, jax.tree.map(lambda a: jnp.zeros((before, *a.shape), a.dtype), chunk))
    return Carried(state, trace, count)


def _check_memory(border: Border, trace: Any) -> None:
    """Raises for a trace that the machine does not hold, before anything of it is made."""
    needed = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(trace))
    device = jax.local_devices()[0]
    have = (device.memory_stats() or {}).get("bytes_limit", 0) if device.platform != "cpu" else 0
    if not have and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if have and 2 * needed > have:  # the one before and the one after a chunk
        raise ValueError(
            f"border: the trace of {type(border).__name__} would take {needed / 2**30:,.1f} GiB, twice, and there are "
            f"{have / 2**30:,.1f}; take SnAp1 or Lookback, fewer units, or a smaller batch."
        )


def across(where: str, loss_fn: Callable[..., Any], border: AnyBorder) -> Callable[..., Any]:
    """``loss_fn`` of a chunk as a function of what is `Carried` into it, which it also returns in the state's place.

    Args:
        where: opens error messages.
        loss_fn: ``(params, state, chunk) -> (loss, state)``, or with metrics as a third; with a key, it is called with
            a keyword argument ``key`` besides.
        border: the border.
    """
    inner = _stepwise(where, loss_fn) if isinstance(border, Immediate) else loss_fn

    def loss(params: Any, carried: Carried, chunk: Any, *, key: jax.Array | None = None) -> Any:
        state, trace, count = jax.lax.stop_gradient(carried)

        def call(params: Any, state: Any, chunk: Any, place: Any) -> Any:
            """One chunk; every place of a window has a key of its own."""
            keys = {} if key is None else {"key": jax.random.fold_in(key, place)}
            return loss_parts(where, inner(params, state, chunk, **keys), state)

        place, start = 0, state
        if isinstance(border, Lookback):
            place, start, trace = _again(call, params, state, trace, count, chunk)
        elif isinstance(border, Border):
            start = border.enter(params, state, trace, chunk)
            held = jax.lax.stop_gradient(params)
            trace = border.advance(held, state, trace, chunk, lambda p, s: call(p, s, chunk, 0)[1][0], count)
        found, (new, metrics) = call(params, start, chunk, place)
        return found, Carried(new, trace, count + 1), metrics

    return loss


def _again(
    call: Callable[..., Any], params: Any, state: Any, window: Window, count: Any, chunk: Any
) -> tuple[int, Any, Window]:
    """The chunks before run again: how many, the state after them, and the window of the next chunk."""
    old = jax.tree.leaves(window.chunks)
    before = old[0].shape[0] if old else 0
    if not before:
        return 0, state, Window(state, window.chunks)

    def earlier(carry: tuple[Any, Any], inputs: tuple[Any, Any]) -> tuple[tuple[Any, Any], None]:
        state, after_first = carry
        j, chunk = inputs
        new = call(params, state, chunk, j)[1][0]
        state = select(count - before + j >= 0, new, state)  # before the first chunk there is nothing
        return (state, select(j == 0, state, after_first)), None

    (start, after_first), _ = jax.lax.scan(earlier, (window.state,) * 2, (jnp.arange(before), window.chunks))
    shapes = (jax.tree.map(lambda a: a.shape[1:], window.chunks), jax.tree.map(lambda a: a.shape, chunk))
    if shapes[0] == shapes[1]:  # a shorter chunk can only be the last
        window = window._replace(
            chunks=jax.tree.map(lambda a, c: jnp.concatenate([a[1:], c[None]]), window.chunks, chunk)
        )
    return before, start, window._replace(state=jax.lax.stop_gradient(after_first))


def _stepwise(where: str, loss_fn: Callable[..., Any]) -> Callable[..., Any]:
    """The mean of the losses of single steps, each of which takes the state as given."""

    def loss(params: Any, state: Any, chunk: Any, **keys: jax.Array) -> Any:
        def one(state: Any, inputs: tuple[Any, Any]) -> tuple[Any, Any]:
            n, step = inputs
            state = jax.lax.stop_gradient(state)
            own = {name: jax.random.fold_in(key, n) for name, key in keys.items()}
            found = loss_fn(params, state, jax.tree.map(lambda a: a[None], step), **own)
            value, (state, metrics) = loss_parts(where, found, state)
            return state, (value, metrics)

        state, found = jax.lax.scan(one, state, (jnp.arange(chunk_steps(chunk)), chunk))
        value, metrics = jax.tree.map(lambda a: jnp.mean(a, axis=0), found)
        return value, state, metrics

    return loss
