r"""What crosses the border of a chunk: the protocol, and the borders that carry no trace.

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
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from rnnjax.cell import batch_shape, cast_like
from rnnjax.checks import check_size
from rnnjax.engines.scan import select
from rnnjax.network import start_state

__all__ = ["Border", "Cut", "Immediate", "Lookback", "Read", "Reader", "each_step", "flatten_rows", "read_with", "send"]


class Read(NamedTuple):
    """What a cell reads in a chunk."""

    params: Any  # of the cell
    xs: jax.Array  # [T, *batch, I]
    resets: jax.Array | None = None  # bool [T, *batch]
    lengths: jax.Array | None = None  # int [*batch]


Reader = Callable[[Any, Any], Read]  # (params, chunk) -> Read; params are those of the loss


def read_with(reader: Reader | None, params: Any, chunk: Any) -> Read:
    """What the reader finds; without one the parameters are the cell's, and the chunk is its input."""
    return Read(params, chunk) if reader is None else reader(params, chunk)


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


def flatten_rows(cell: Any, state: Any) -> jax.Array:
    """A state with any batch axes as ``[B, S]``."""
    rows = math.prod(batch_shape(cell, state))
    return jnp.concatenate([leaf.reshape(rows, -1) for leaf in jax.tree.leaves(state)], axis=1)


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
