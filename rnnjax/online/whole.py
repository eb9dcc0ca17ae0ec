"""The whole influence of the parameters on a state: exact, or one product of two vectors that is right in the mean."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cell import batch_shape, compute_dtype, widen
from rnnjax.kinds import check_kinds
from rnnjax.network import flatten_state, unflatten_state
from rnnjax.online.across import Reader, each_step, read_with, send

__all__ = ["RTRL", "UORO", "Product"]


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
        own = read_with(self, params, chunk).params
        rows, size = jax.eval_shape(functools.partial(_rows, self.cell), state).shape
        return jax.tree.map(lambda p: jnp.zeros((rows, size, *p.shape), compute_dtype(p.dtype)), own)

    def enter(self, params: Any, state: Any, trace: Any, chunk: Any) -> Any:
        """See `Border`."""
        cell = self.cell

        def contract(d_state: Any, trace: Any) -> Any:
            d = _rows(cell, d_state)  # [B, S]
            return jax.tree.map(lambda e: jnp.tensordot(d.astype(e.dtype), e, 2), trace)

        return send(contract, read_with(self, params, chunk).params, state, trace)

    def advance(self, params: Any, state: Any, trace: Any, chunk: Any, run: Any, n: Any) -> Any:
        """See `Border`."""
        del run, n
        read = read_with(self, params, chunk)
        cell = self.cell

        def one(params: Any, flat: jax.Array, x: jax.Array) -> jax.Array:
            new, _ = cell.step(params, unflatten_state(cell, flat), x)
            return flatten_state(cell, new)

        def forward(state: Any, trace: Any, x: jax.Array) -> tuple[Any, Any]:
            new, _ = cell.step(read.params, state, x)
            flat = _rows(cell, widen(state, compute_dtype(jax.tree.leaves(state)[0].dtype)))
            xs = x.reshape(flat.shape[0], *x.shape[len(batch_shape(cell, state)) :])
            by_params, by_state = jax.vmap(jax.jacrev(one, argnums=(0, 1)), in_axes=(None, 0, 0))(read.params, flat, xs)
            trace = jax.tree.map(
                lambda e, d: jnp.einsum("bij,bj...->bi...", by_state.astype(e.dtype), e) + d.astype(e.dtype),
                trace,
                by_params,
            )
            return new, trace

        return each_step(cell, forward, read, state, trace)


def _rows(cell: Any, state: Any) -> jax.Array:
    """A state with any batch axes as ``[B, S]``."""
    return flatten_state(cell, state).reshape(math.prod(batch_shape(cell, state)), -1)


class Product(NamedTuple):
    """The trace of `UORO`: ``E = state (outer) params``."""

    state: Any  # shaped as the state, all rows of the batch together
    params: Any  # shaped as the parameters of the loss


@dataclasses.dataclass(frozen=True, eq=False)
class UORO:
    r"""A random estimate of the whole influence that is right in the mean (Tallec and Ollivier, 2018).

        nu     = -1 or 1 at random, shaped as the state
        a      = (d s' / d s) @ E.state,    c = nu @ (d s' / d params)         one of each a chunk
        E'     = (r0 a + r1 nu) (outer) (E.params / r0 + c / r1)
        r0     = sqrt(|E.params| / |a|),    r1 = sqrt(|c| / |nu|)

    It asks nothing of the cell: it differentiates the loss's own step over a chunk, forwards and backwards, so it takes
    any network. The estimate is one vector for all rows of a batch, and noisy.

    Args:
        key: of the signs; every chunk has its own.
    """

    key: jax.Array

    def __post_init__(self) -> None:
        check_kinds(self)

    def start(self, params: Any, state: Any, chunk: Any) -> Product:
        """Zeros."""
        del chunk
        return Product(*jax.tree.map(jnp.zeros_like, (state, params)))

    def enter(self, params: Any, state: Any, trace: Product, chunk: Any) -> Any:
        """See `Border`."""
        del chunk

        def contract(d_state: Any, trace: Product) -> Any:
            scale = _dot(d_state, trace.state)
            return jax.tree.map(lambda leaf: (scale * leaf).astype(leaf.dtype), trace.params)

        return send(contract, params, state, trace)

    def advance(
        self, params: Any, state: Any, trace: Product, chunk: Any, run: Callable[[Any, Any], Any], n: Any
    ) -> Product:
        """See `Border`."""
        del chunk
        leaves, treedef = jax.tree.flatten(state)
        keys = jax.random.split(jax.random.fold_in(self.key, n), len(leaves))
        signs = [jax.random.rademacher(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
        nu = jax.tree.unflatten(treedef, signs)
        _, pull = jax.vjp(run, params, state)
        c, _ = pull(nu)
        # The transpose of u -> u @ J is v -> J @ v: forward mode for engines that have the reverse one alone.
        (a,) = jax.vjp(lambda u: pull(u)[1], nu)[1](trace.state)
        tiny = 1e-7
        r0 = jnp.sqrt((_norm(trace.params) + tiny) / (_norm(a) + tiny))
        r1 = jnp.sqrt((_norm(c) + tiny) / (_norm(nu) + tiny))
        product = Product(
            jax.tree.map(lambda x, y: (r0 * x + r1 * y).astype(x.dtype), a, nu),
            jax.tree.map(lambda x, y: (x / r0 + y / r1).astype(x.dtype), trace.params, c),
        )
        return jax.lax.stop_gradient(product)


def _dot(a: Any, b: Any) -> jax.Array:
    total = jnp.zeros(())
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        total = total + jnp.vdot(x, y, preferred_element_type=compute_dtype(x.dtype))
    return total


def _norm(tree: Any) -> jax.Array:
    return jnp.sqrt(_dot(tree, tree))
