"""What every topology is made of: a reader of its input, a network over time, and an affine map to the output."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cell import Cell, compute_dtype, matmul
from rnnjax.checks import check_ints, check_key, describe, did_you_mean, shape_of, short
from rnnjax.initializers import Glorot
from rnnjax.kinds import check_fields
from rnnjax.network import Network, input_shape, output_shape
from rnnjax.networks.masks import dropout
from rnnjax.promotion import promoting
from rnnjax.topologies.masks import judged_steps

__all__ = [
    "Dense",
    "Reader",
    "Reading",
    "affine",
    "check_network",
    "flat",
    "init_dense",
    "split_key",
    "with_dropout",
]


class Dense(NamedTuple):
    """Parameters of an affine map."""

    w: jax.Array  # [F, O]
    b: jax.Array  # [O]


def init_dense(key: jax.Array, size: int, output_size: int, dtype: Any) -> Dense:
    """Glorot weights and no bias."""
    return Dense(Glorot()(key, (size, output_size), dtype), jnp.zeros((output_size,), dtype))


@promoting
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
                f"got input_size={short(self.input_size)} and vocab_size={self.vocab_size!r}."
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
        self, table: jax.Array | None, xs: Any, dtype: Any, rate: float = 0.0, key: Any = None, lengths: Any = None,
        valid: Any = None,
    ) -> jax.Array:  # fmt: skip
        """``[...]`` symbols or ``[..., I]`` numbers to ``[..., size]``; with a key, dropout thins what a table holds.

        The symbol -1 is none at all and reads as zeros. Any other outside of 0 to V - 1 that counts is an error, and
        where it is traced it reads as NaN, so that it shows.
        """
        if self.vocab_size is None:
            xs = jnp.asarray(xs)
            if not jnp.issubdtype(xs.dtype, jnp.floating):
                raise TypeError(f"{self.owner}: inputs must be floating, got {describe(xs)}; symbols need vocab_size.")
            return xs
        judge = judged_steps(lengths, shape_of(xs), valid)
        xs = check_ints(self.owner, "symbols", xs, low=0, high=self.vocab_size - 1, but=-1, judge=judge)
        if table is None:
            ys = jax.nn.one_hot(xs, self.vocab_size, dtype=dtype)
            wrong = (xs >= self.vocab_size) | (xs < -1)
            return jnp.where(wrong[..., None], jnp.nan, ys)
        # An index below zero would count from behind.
        ys = table.at[jnp.where(xs < 0, self.vocab_size, xs)].get(mode="fill", fill_value=jnp.nan)
        return dropout(key, jnp.where((xs == -1)[..., None], jnp.zeros((), table.dtype), ys), rate)


class Reading:
    """A model that reads numbers (``input_size``) or symbols (``vocab_size``, ``embed_size``)."""

    input_size: int | None
    vocab_size: int | None
    embed_size: int

    @property
    def _reader(self) -> Reader:
        return Reader(type(self).__name__, self.input_size, self.vocab_size, self.embed_size)


def check_network(owner: str, name: str, network: Any, *, both: bool = False, flat: bool = False) -> None:
    """Raises unless it is a cell or, with ``both``, any network; with ``flat`` its features are one axis."""
    usable = not isinstance(network, type) and isinstance(network, Cell | Network if both else Cell)
    if not usable:
        what = "a cell or a network" if both else "a cell"
        why = ", which needs the future" if isinstance(network, Network) else ""
        raise TypeError(f"{owner}: {name} must be {what}, got {short(network)}{why}.")
    if flat and len(input_shape(network, 1)) > 1:
        raise ValueError(f"{owner}: {name} must be a cell whose features are one axis, got {short(network)}.")


def run_options(where: str, options: dict[str, Any]) -> dict[str, Any]:
    """How a network runs: ``implementation`` and ``remat``; all else would change what is computed.

    Raises:
        TypeError: for another keyword.
    """
    known = ("implementation", "remat")
    for name in options:
        if name not in known:
            guess = did_you_mean(name, (*known, "lengths", "valid", "key")) or "."
            raise TypeError(f"{where}: options must be {' or '.join(known)}, got {name}={short(options[name])}{guess}")
    return options


def flat(network: Any, ys: jax.Array) -> jax.Array:
    """Outputs ``[..., F]`` of a network, its features on one axis."""
    inner = output_shape(network, 1)
    return ys.reshape(*ys.shape[: ys.ndim - len(inner)], math.prod(inner))


def with_dropout(network: Any, rate: float) -> Any:
    """The network with this rate in the place of every ``dropout`` in it that is zero; others keep what they have."""
    if not isinstance(network, Network) or not dataclasses.is_dataclass(network) or not rate:
        return network

    def spread(value: Any) -> Any:
        return tuple(map(spread, value)) if isinstance(value, tuple) else with_dropout(value, rate)

    values = {field.name: spread(getattr(network, field.name)) for field in dataclasses.fields(network)}
    if values.get("dropout") == 0:
        values["dropout"] = rate
    return dataclasses.replace(network, **values)  # type: ignore[type-var]


def split_key(where: str, key: jax.Array | None, count: int) -> list[Any]:
    """So many keys, or as many times None."""
    return [None] * count if key is None else list(jax.random.split(check_key(where, key), count))
