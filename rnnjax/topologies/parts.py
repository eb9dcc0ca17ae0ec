"""What every topology is made of: a reader of its input, a network over time, and an affine map to the output."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cell import Cell, compute_dtype, describe, input_shape, matmul, output_shape
from rnnjax.checks import check_ints, check_key, shape_of
from rnnjax.initializers import Glorot
from rnnjax.kinds import check_fields
from rnnjax.networks import Bidirectional, Stack, dropout, start_state, unroll_bidirectional, unroll_stack
from rnnjax.topologies.masks import judged_steps
from rnnjax.unroll import unroll

__all__ = [
    "Dense",
    "Reader",
    "affine",
    "batch_of",
    "check_network",
    "directions",
    "features",
    "init_dense",
    "run_network",
    "split_key",
    "thin",
    "wide_dtype",
]


class Dense(NamedTuple):
    """Parameters of an affine map."""

    w: jax.Array  # [F, O]
    b: jax.Array  # [O]


def init_dense(key: jax.Array, size: int, output_size: int, dtype: Any) -> Dense:
    """Glorot weights and no bias."""
    return Dense(Glorot()(key, (size, output_size), dtype), jnp.zeros((output_size,), dtype))


def affine(params: Dense, x: jax.Array) -> jax.Array:
    """``x @ w + b`` in the dtype of the weights, accumulated and returned in float32 or wider."""
    dtype = compute_dtype(params.w.dtype)
    return matmul(x, params.w, dtype) + params.b.astype(dtype)


@dataclasses.dataclass(frozen=True)
class Reader:
    """Turns an input into numbers: floats as they are, symbols by a table or as one-hot vectors."""

    owner: str
    input_size: int | None
    vocab_size: int | None
    embed_size: int

    def __post_init__(self) -> None:
        if (self.input_size is None) == (self.vocab_size is None):
            raise ValueError(
                f"{self.owner}: exactly one of input_size (numbers) and vocab_size (symbols) must be given, "
                f"got input_size={self.input_size!r} and vocab_size={self.vocab_size!r}."
            )
        check_fields(self, self.owner, least={"embed_size": 0})
        if self.embed_size and self.vocab_size is None:
            raise ValueError(
                f"{self.owner}: embed_size is for symbols, got {self.embed_size} without vocab_size; "
                "leave it out, or pass vocab_size in place of input_size."
            )

    @property
    def size(self) -> int:
        """The numbers that one input becomes."""
        return self.embed_size or self.vocab_size or self.input_size or 0

    def init(self, key: jax.Array, dtype: Any) -> jax.Array | None:
        """The table ``[V, E]``, standard normal; None where there is none."""
        return jax.random.normal(key, (self.vocab_size or 0, self.embed_size), dtype) if self.embed_size else None

    def read(
        self, table: jax.Array | None, xs: Any, dtype: Any, rate: float = 0.0, key: Any = None, lengths: Any = None
    ) -> jax.Array:
        """``[...]`` symbols or ``[..., I]`` numbers to ``[..., size]``; with a key, dropout thins what a table holds.

        The symbol -1 is none at all and reads as zeros. Any other outside of 0 to V - 1 that counts is an error, and
        where it is traced it reads as NaN, so that it shows.
        """
        if self.vocab_size is None:
            return jnp.asarray(xs)
        judge = judged_steps(lengths, shape_of(xs))
        xs = check_ints(self.owner, "symbols", xs, low=0, high=self.vocab_size - 1, but=-1, judge=judge)
        if table is None:
            ys = jax.nn.one_hot(xs, self.vocab_size, dtype=dtype)
            wrong = (xs >= self.vocab_size) | (xs < -1)
            return jnp.where(wrong[..., None], jnp.full((), jnp.nan, dtype), ys)
        # An index below zero would count from behind.
        ys = table.at[jnp.where(xs < 0, self.vocab_size, xs)].get(mode="fill", fill_value=jnp.nan)
        return thin(key, jnp.where((xs == -1)[..., None], jnp.zeros((), table.dtype), ys), rate)


def check_network(owner: str, name: str, network: Any, *, both: bool = False, flat: bool = False) -> None:
    """Raises unless it is a cell or, with ``both``, a `Bidirectional`; with ``flat`` its features are one axis."""
    cell = isinstance(network, Cell) and not isinstance(network, type)
    if not cell and not (both and isinstance(network, Bidirectional)):
        what = "a cell or a Bidirectional network" if both else "a cell"
        why = ", which needs the future" if isinstance(network, Bidirectional) else ""
        raise TypeError(f"{owner}: {name} must be {what}, got {network!r}{why}.")
    if flat and hasattr(network, "input_shape"):
        raise ValueError(f"{owner}: {name} must be a cell whose features are one axis, got {network!r}.")


def directions(network: Any) -> tuple[Cell, ...]:
    """The cells that read the input: the network itself, or both of the first layer of a bidirectional one."""
    return network.layers[0] if isinstance(network, Bidirectional) else (network,)


def features(network: Any) -> tuple[int, tuple[int, ...]]:
    """The size of the last axis of one direction's outputs, and the shape of the whole network's for one example."""
    cells = network.layers[-1] if isinstance(network, Bidirectional) else (network,)
    shapes = [output_shape(cell, 1) for cell in cells]
    joined = len(shapes) == 2 and network.merge == "concat"
    last = sum(shape[-1] for shape in shapes) if joined else shapes[0][-1]
    return shapes[0][-1], (*shapes[0][:-1], last)


def batch_of(network: Any, shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    """The batch axes of one input of this shape, with the features of the network behind them."""
    return shape[: len(shape) - len(input_shape(directions(network)[0], size))]


def wide_dtype(params: Any) -> Any:
    """The dtype of states and outputs: float32, or wider where a parameter is."""
    leaves = [leaf.dtype for leaf in jax.tree.leaves(params) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.result_type(jnp.float32, *leaves)


def run_network(
    network: Any,
    params: Any,
    xs: jax.Array,
    size: int,
    *,
    state: Any = None,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
    **options: Any,
) -> tuple[Any, jax.Array]:
    """The final state and ``ys [T, *batch, F]`` of any network, its features flat; the state begins at the start."""
    if not jnp.issubdtype(xs.dtype, jnp.floating):
        raise TypeError(
            f"{type(network).__name__}: inputs must be floating, got {describe(xs)}; symbols need vocab_size."
        )
    if xs.ndim < 1 + len(input_shape(directions(network)[0], size)):
        raise ValueError(
            f"{type(network).__name__}: inputs must have shape [T, *batch, I] with I = {size}, got {describe(xs)}."
        )
    if state is None:
        state = start_state(network, params, batch_of(network, xs.shape[1:], size), wide_dtype(params))
    if isinstance(network, Bidirectional):
        state, ys = unroll_bidirectional(network, params, state, xs, dropout_rate=dropout_rate, key=key, **options)
    elif isinstance(network, Stack):
        state, ys = unroll_stack(network, params, state, xs, dropout_rate=dropout_rate, key=key, **options)
    else:
        state, ys = unroll(network, params, state, xs, **options)
    inner = features(network)[1]
    return state, ys.reshape(*ys.shape[: ys.ndim - len(inner)], math.prod(inner))


def split_key(where: str, key: jax.Array | None, count: int) -> list[Any]:
    """So many keys, or as many times None."""
    return [None] * count if key is None else list(jax.random.split(check_key(where, key), count))


def thin(key: jax.Array | None, x: jax.Array, rate: float) -> jax.Array:
    """Dropout where there is a key."""
    return x if key is None else dropout(key, x, rate)
