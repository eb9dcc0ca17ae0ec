r"""Real-time recurrent learning: the border of a chunk without any loss."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cell import batch_shape, compute_dtype, widen
from rnnjax.kinds import check_kinds
from rnnjax.online.borders import Reader, read_with, send
from rnnjax.online.rows import each_step, flatten_rows

__all__ = ["RTRL"]


@dataclasses.dataclass(frozen=True)
class RTRL:
    r"""The exact influence of every parameter on every entry of the state (Williams and Zipser, 1989).

        E' = (d s' / d s) @ E + d s' / d params           at every step, for every row of the batch
        d params += d_s0 @ E                              where a chunk begins

    The gradient of a chunk is then that of all steps since the stream began, up to what changing parameters in between
    does to it. A row holds S times P numbers, for S entries of the state and P parameters, and a step costs S times S
    times P: for small networks (H below about 64), and to judge other borders by.

    Args:
        cell: any cell with a ``step``, also a network.
        reader: ``(params, chunk) -> Read``: the cell's parameters among those of the loss, and what it reads in a
            chunk. None: the parameters are the cell's, and the chunk is ``xs``.

    A reset clears a row's influence; the padding behind a row's length leaves it alone.
    """

    cell: Any
    reader: Reader | None = None

    def __post_init__(self) -> None:
        check_kinds(self)

    def start(self, params: Any, state: Any, chunk: Any) -> Any:
        """Zeros: ``[B, S, *shape]`` for every parameter."""
        own = read_with(self.reader, params, chunk).params
        rows, size = _sizes(self.cell, state)
        return jax.tree.map(lambda p: jnp.zeros((rows, size, *p.shape), compute_dtype(p.dtype)), own)

    def enter(self, params: Any, state: Any, trace: Any, chunk: Any) -> Any:
        """See `Border`."""
        cell = self.cell

        def contract(d_state: Any, trace: Any) -> Any:
            d = flatten_rows(cell, d_state)  # [B, S]
            return jax.tree.map(lambda e: jnp.tensordot(d.astype(e.dtype), e, 2), trace)

        return send(contract, read_with(self.reader, params, chunk).params, state, trace)

    def advance(self, params: Any, state: Any, trace: Any, chunk: Any, run: Any, n: Any) -> Any:
        """See `Border`."""
        del run, n
        read = read_with(self.reader, params, chunk)
        cell, like = self.cell, jax.eval_shape(lambda: self.cell.initial_state(()))

        def one(params: Any, flat: jax.Array, x: jax.Array) -> jax.Array:
            leaves, offset = [], 0
            for leaf in jax.tree.leaves(like):
                size = math.prod(leaf.shape)
                leaves.append(flat[offset : offset + size].reshape(leaf.shape))
                offset += size
            new, _ = cell.step(params, jax.tree.unflatten(jax.tree.structure(like), leaves), x)
            return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(new)])

        def forward(state: Any, trace: Any, x: jax.Array) -> tuple[Any, Any]:
            new, _ = cell.step(read.params, state, x)
            flat = flatten_rows(cell, widen(state, compute_dtype(jax.tree.leaves(state)[0].dtype)))
            xs = x.reshape(flat.shape[0], *x.shape[len(batch_shape(cell, state)) :])
            by_params, by_state = jax.vmap(jax.jacrev(one, argnums=(0, 1)), in_axes=(None, 0, 0))(read.params, flat, xs)
            trace = jax.tree.map(
                lambda e, d: jnp.einsum("bij,bj...->bi...", by_state.astype(e.dtype), e) + d.astype(e.dtype),
                trace,
                by_params,
            )
            return new, trace

        return each_step(cell, forward, read, state, trace)


def _sizes(cell: Any, state: Any) -> tuple[int, int]:
    rows = math.prod(batch_shape(cell, state))
    return rows, sum(leaf.size for leaf in jax.tree.leaves(state)) // max(rows, 1)
