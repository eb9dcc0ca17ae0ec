r"""Unbiased online recurrent optimisation: the influence of all parameters as one product of two vectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.kinds import check_kinds
from rnnjax.online.borders import send
from rnnjax.promotion import compute_dtype

__all__ = ["UORO", "Product"]


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
