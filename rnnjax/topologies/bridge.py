"""From a context to where a sequence starts: the bridge between an encoder, or a picture, and a decoder."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cell import Cell, check_size, compute_dtype, describe, matmul
from rnnjax.checks import check_choice
from rnnjax.initializers import Glorot, Initializer
from rnnjax.network import free_state
from rnnjax.networks.start import check_start
from rnnjax.promotion import promoting

__all__ = ["ContextState", "ContextStateParams"]


class ContextStateParams(NamedTuple):
    """Parameters of `ContextState`, both with the structure of a state; a leaf of a state has N numbers an example.

    Where a leaf is not free, both are None.
    """

    w: Any  # leaves [C, N]
    b: Any  # leaves [N]


@dataclasses.dataclass(frozen=True)
class ContextState:
    r"""An initial state that is an affine function of a context: an image's features, or what an encoder returns.

        leaf = phi(context @ w + b),  reshaped to [*batch, ...],  for every free leaf of the cell's state

    with ``phi`` the identity, or tanh as in the decoder of Cho et al. (2014). It is no cell but stands in front of one:
    ``init`` makes the parameters of this map alone, and ``apply`` the state for `rnnjax.unroll`. A reset within
    `unroll` restores the cell's own initial state, since it comes with no context.

    All leaves are free, unless a cell names the fields of its state that are in an attribute ``free_state``, as `SLSTM`
    does; the others are those of ``initial_state``, whatever the context.

    Args:
        cell: any cell with a state of floating dtypes, also a `Stack`.
        activation: ``"tanh"`` keeps every number of the state within (-1, 1), where the ``h`` of most cells lives;
            None leaves it as it is.
        kernel_init: initialiser of each ``w``, ``[C, N]``; ``b`` starts at zero.

    Raises:
        ValueError: for an unknown activation, or if ``free_state`` names what the state does not have, or nothing.
        TypeError: if ``cell`` is none, or has a state of integers.

    >>> import jax, jax.numpy as jnp, rnnjax
    >>> decoder = rnnjax.Stack((rnnjax.LSTM(4), rnnjax.GRU(4)))
    >>> start = rnnjax.topologies.bridge.ContextState(decoder, activation="tanh")
    >>> params = start.init(jax.random.key(0), context_size=3)
    >>> state = start.apply(params, jnp.ones((2, 3)))
    >>> state.layers[0].c.shape, params.w.layers[0].c.shape
    ((2, 4), (3, 4))
    """

    cell: Cell
    activation: Literal["tanh"] | None = None
    kernel_init: Initializer = Glorot()

    def __post_init__(self) -> None:
        check_start("ContextState", self.cell)
        check_choice("ContextState", "activation", self.activation, (None, "tanh"))

    def init(self, key: jax.Array, context_size: int, dtype: Any = jnp.float32) -> ContextStateParams:
        """New parameters for contexts of C = ``context_size`` numbers."""
        check_size("ContextState.init", "context_size", context_size)
        like = free_state("ContextState", self.cell, jax.eval_shape(self.cell.initial_state))
        structure: Any = jax.tree.structure(like)
        sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(like)]
        keys = jax.random.split(key, len(sizes))
        ws = [self.kernel_init(k, (context_size, size), dtype) for k, size in zip(keys, sizes, strict=True)]
        bs = [jnp.zeros((size,), dtype) for size in sizes]
        return ContextStateParams(structure.unflatten(ws), structure.unflatten(bs))

    def apply(self, params: ContextStateParams, context: jax.Array, dtype: Any = jnp.float32) -> Any:
        """The initial state for each context.

        Args:
            params: from `init`.
            context: ``[*batch, C]``.
            dtype: of the state; matmuls run in the dtype of the weights.

        Returns:
            A state of the cell, with leaves ``[*batch, ...]``.

        Raises:
            ValueError: if the context has another size.
        """
        context = jnp.asarray(context)
        size = jax.tree.leaves(params.w)[0].shape[0]
        if context.ndim < 1 or context.shape[-1] != size:
            raise ValueError(
                f"ContextState.apply: context must have shape [*batch, C] with C = {size} (from params.w), "
                f"got {describe(context)}."
            )

        def leaf(w: jax.Array | None, b: jax.Array, other: jax.Array) -> jax.Array:
            if w is None:
                return other
            wide = compute_dtype(dtype)
            z = promoting(jnp.add)(matmul(context, w, wide), b.astype(wide))
            z = jnp.tanh(z) if self.activation == "tanh" else z
            return z.reshape(other.shape).astype(dtype)

        others = self.cell.initial_state(context.shape[:-1], dtype)
        return jax.tree.map(leaf, params.w, params.b, others, is_leaf=lambda leaf: leaf is None)
