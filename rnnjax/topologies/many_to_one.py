"""One answer to a whole sequence, how it is read from all steps, and its degenerate case, one answer to one input."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cell import compute_dtype, describe, matmul, wide_dtype
from rnnjax.initializers import Glorot
from rnnjax.kinds import check_fields, public
from rnnjax.network import output_shape
from rnnjax.networks import Bidirectional, dropout
from rnnjax.networks.bidirectional import BidirectionalParams
from rnnjax.promotion import as_wide, promoting
from rnnjax.topologies.parts import (
    Dense,
    Reading,
    affine,
    check_network,
    flat,
    init_dense,
    masked_softmax,
    run_options,
    split_key,
    valid_steps,
    with_dropout,
)
from rnnjax.unroll import unroll

__all__ = [
    "ManyToOne",
    "ManyToOneParams",
    "OneToOne",
    "Pooling",
    "PoolingParams",
    "init_pooling",
    "pool",
]


class ManyToOneParams(NamedTuple):
    """Parameters of `ManyToOne` and `OneToOne`; None where the model has no such part."""

    embedding: jax.Array | None  # [V, E]
    network: Any  # of the network's init
    pooling: PoolingParams | None
    head: Dense  # w [F, O], b [O]


@dataclasses.dataclass(frozen=True)
class ManyToOne(Reading):
    r"""Reads a sequence and answers once: classification or regression of sequences.

        x_t      = embedding[s_t],  one_hot(s_t)  or the numbers themselves
        ys       = network(dropout(x))                     over the valid steps, see `unroll`
        features = pool(ys)                                last, mean, max or attention, see `pool`
        output   = dropout(features) @ w + b

    With ``pooling="last"`` a unidirectional network is read at its last valid step, and a `Bidirectional` one where
    each direction has read everything: forward at the last valid step, backward at step 0. A network whose features
    are images, as those of `ConvLSTM`, answers from all their numbers at once.

    Args:
        network: a cell, also a `Stack`, or a `Bidirectional` network.
        output_size: O: classes, or numbers of a regression.
        input_size: I, for inputs that are numbers ``[T, *batch, I]``.
        vocab_size: V, in its place for inputs that are symbols, int ``[T, *batch]``.
        embed_size: E of the symbols; 0 for one-hot vectors.
        pooling: ``"last"``, ``"mean"``, ``"max"`` or ``"attention"``.
        dropout: rate on the embedding, between the layers and before the head, new for every element; only active
            where a key is passed.

    Raises:
        ValueError: for sizes below one, a rate outside [0, 1), an unknown pooling, or not exactly one of input_size
            and vocab_size.
        TypeError: if the network is none.

    >>> import jax, jax.numpy as jnp, rnnjax
    >>> model = rnnjax.topologies.ManyToOne(rnnjax.GRU(8), output_size=3, vocab_size=5, embed_size=4)
    >>> params = model.init(jax.random.key(0))
    >>> model.apply(params, jnp.zeros((7, 2), int), lengths=jnp.array([7, 3])).shape
    (2, 3)
    """

    network: Any
    output_size: int
    input_size: int | None = None
    vocab_size: int | None = None
    embed_size: int = 0
    pooling: Pooling = "last"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_network("ManyToOne", "network", self.network, both=True)
        check_fields(self, least={"embed_size": 0}, rates=("dropout",))
        _ = self._reader

    @public
    def init(self, key: jax.Array, dtype: Any = jnp.float32) -> ManyToOneParams:
        """New parameters, each part from a key of its own."""
        key_embedding, key_network, key_pooling, key_head = jax.random.split(key, 4)
        size = math.prod(output_shape(self.network, 1))
        return ManyToOneParams(
            embedding=self._reader.init(key_embedding, dtype),
            network=self.network.init(key_network, self._reader.size, dtype),
            pooling=init_pooling(key_pooling, size, dtype) if self.pooling == "attention" else None,
            head=init_dense(key_head, size, self.output_size, dtype),
        )

    @public
    def features(
        self,
        params: ManyToOneParams,
        xs: jax.Array,
        *,
        lengths: jax.Array | None = None,
        valid: jax.Array | None = None,
        key: jax.Array | None = None,
        **options: Any,
    ) -> jax.Array:
        """The vector that the head reads, ``[*batch, F]``; arguments as of `apply`, with the first of its two keys."""
        reader = self._reader
        keys = split_key("ManyToOne", key, 2)
        xs = reader.read(params.embedding, xs, wide_dtype(params), self.dropout, keys[0], lengths, valid)
        options = run_options("ManyToOne.apply", options) | {"lengths": lengths, "valid": valid, "key": keys[1]}
        network = self.network if key is None else with_dropout(self.network, self.dropout)
        if self.pooling != "last" or not isinstance(network, Bidirectional):
            _, ys = unroll(network, params.network, None, xs, **options)
            return pool(flat(network, ys), self.pooling, lengths=lengths, valid=valid, params=params.pooling)
        return _ends(network, params.network, xs, options)

    @public
    def apply(
        self,
        params: ManyToOneParams,
        xs: jax.Array,
        *,
        lengths: jax.Array | None = None,
        valid: jax.Array | None = None,
        key: jax.Array | None = None,
        **options: Any,
    ) -> jax.Array:
        """The answer to each sequence.

        Args:
            params: from `init`.
            xs: ``[T, *batch, I]`` of numbers, or int ``[T, *batch]`` of symbols.
            lengths: int ``[*batch]``; a row of length 0 is answered from zeros. What stands in the padding reaches
                no output and no gradient.
            valid: bool ``[T, *batch]``: steps that are not set, on the left or in between, are padding, see `unroll`.
            key: switches dropout on; one a call.
            **options: ``implementation`` and ``remat`` of `unroll`.

        Returns:
            Logits or numbers ``[*batch, O]``.

        Raises:
            ValueError: as `unroll` does.
            TypeError: if symbols are not integers, or as `unroll` does.
        """
        keys = split_key("ManyToOne", key, 2)
        pooled = self.features(params, xs, lengths=lengths, valid=valid, key=keys[0], **options)
        return affine(params.head, dropout(keys[1], pooled, self.dropout))


def _ends(network: Bidirectional, params: BidirectionalParams, xs: jax.Array, options: dict[str, Any]) -> jax.Array:
    """What each direction of the top layer puts out once it has read all, ``[*batch, F]``."""
    top = network
    if network.merge != "concat":  # the directions are needed one by one, so the top layer runs by itself
        keys = split_key("ManyToOne", options["key"], 3)
        if len(network.layers) > 1:
            below = dataclasses.replace(network, layers=network.layers[:-1])
            lower = BidirectionalParams(params.layers[:-1])
            _, xs = unroll(below, lower, None, xs, **{**options, "key": keys[0]})
            xs = dropout(keys[1], xs, network.dropout)
        top, params = Bidirectional((network.layers[-1],)), BidirectionalParams(params.layers[-1:])
        options = {**options, "key": keys[2]}
    _, ys = unroll(top, params, None, xs, **options)
    width, shape = output_shape(top.layers[-1][0], 1)[-1], output_shape(top, 1)
    lengths, valid = options["lengths"], options["valid"]  # for every pixel, where the features are images
    if lengths is not None:
        lengths = jnp.broadcast_to(as_wide(jnp.asarray(lengths), ys.ndim - 2), ys.shape[1:-1])
    if valid is not None:
        valid = jnp.broadcast_to(as_wide(jnp.asarray(valid), ys.ndim - 1), ys.shape[:-1])
    forward = pool(ys[..., :width], "last", lengths=lengths, valid=valid)
    if valid is not None:  # the backward direction has read all where the sequence begins
        backward = pool(jnp.flip(ys[..., width:], 0), "last", valid=jnp.flip(valid, 0))
    else:
        backward = ys[0, ..., width:] if ys.shape[0] else jnp.zeros((*ys.shape[1:-1], shape[-1] - width), ys.dtype)
    pooled = network.merged(forward, backward)
    batch = pooled.shape[: pooled.ndim - len(shape)]
    return pooled.reshape(*batch, math.prod(pooled.shape[len(batch) :]))


@dataclasses.dataclass(frozen=True)
class OneToOne(Reading):
    r"""One input, one answer: a recurrent network that has nothing to remember, which is a feedforward one.

        _, y   = network.step(params.network, state_0, dropout(x))
        output = dropout(y) @ w + b

    It is `ManyToOne` of sequences of one step, and there to complete the five: what a recurrent network costs and
    does where there is no time, next to the same network with time.

    Args:
        network: a cell, also a `Stack`.
        output_size: O.
        input_size: I, for inputs that are numbers ``[*batch, I]``.
        vocab_size: V, in its place for inputs that are symbols, int ``[*batch]``.
        embed_size: E of the symbols; 0 for one-hot vectors.
        dropout: as in `ManyToOne`.

    Raises:
        ValueError: for sizes below one, a rate outside [0, 1), or not exactly one of input_size and vocab_size.
        TypeError: if the network is no cell.

    >>> import jax, jax.numpy as jnp, rnnjax
    >>> model = rnnjax.topologies.OneToOne(rnnjax.Elman(8), output_size=3, input_size=2)
    >>> model.apply(model.init(jax.random.key(0)), jnp.ones((5, 2))).shape
    (5, 3)
    """

    network: Any
    output_size: int
    input_size: int | None = None
    vocab_size: int | None = None
    embed_size: int = 0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_network("OneToOne", "network", self.network)
        check_fields(self, least={"embed_size": 0}, rates=("dropout",))
        _ = self._reader

    @property
    def _model(self) -> ManyToOne:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return ManyToOne(**fields)

    @public
    def init(self, key: jax.Array, dtype: Any = jnp.float32) -> ManyToOneParams:
        """New parameters, each part from a key of its own."""
        return self._model.init(key, dtype)

    @public
    def apply(self, params: ManyToOneParams, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """The answer to each input.

        Args:
            params: from `init`.
            x: ``[*batch, I]`` of numbers, or int ``[*batch]`` of symbols.
            key: switches dropout on; one a call.

        Returns:
            Logits or numbers ``[*batch, O]``.

        Raises:
            ValueError: as `unroll` does.
            TypeError: if symbols are not integers, or as `unroll` does.
        """
        return self._model.apply(params, jnp.asarray(x)[None], key=key)


Pooling = Literal["last", "mean", "max", "attention"]


class PoolingParams(NamedTuple):
    """Parameters of pooling by attention over F features."""

    w: jax.Array  # [F, F]
    b: jax.Array  # [F]
    v: jax.Array  # [F]


def init_pooling(key: jax.Array, size: int, dtype: Any = jnp.float32) -> PoolingParams:
    """New parameters of pooling by attention over F = ``size`` features; ``v`` starts at zero, and so as the mean."""
    return PoolingParams(Glorot()(key, (size, size), dtype), jnp.zeros((size,), dtype), jnp.zeros((size,), dtype))


@public
def pool(
    ys: jax.Array, pooling: Pooling, *, lengths: jax.Array | None = None, valid: jax.Array | None = None,
    params: PoolingParams | None = None,
) -> jax.Array:  # fmt: skip
    r"""The outputs of all valid steps as one vector; zeros for a row without any.

        last:       ys[the last valid t]
        mean:       sum_t ys[t] / (how many they are)
        max:        max_t ys[t]
        attention:  a = softmax_t(tanh(ys[t] @ w + b) @ v),   sum_t a_t * ys[t]        (Yang et al., 2016)

    Args:
        ys: ``[T, *batch, F]``. What stands in the padding, also NaN, reaches neither the result nor a gradient.
        pooling: one of these names.
        lengths: int ``[*batch]``: steps at and past them are padding.
        valid: bool ``[T, *batch]``, in any pattern: so are steps that are not set. With neither every step is valid.
        params: for ``"attention"``, from `init_pooling`.

    Returns:
        ``[*batch, F]``.

    Raises:
        ValueError: for an unknown name, attention without parameters, or shapes that do not fit.
        TypeError: if the lengths are not integers.

    >>> ys = jnp.array([[1.0, 2.0], [5.0, 9.0]])[..., None]  # [T, B, F]
    >>> pool(ys, "mean", lengths=jnp.array([2, 1])).tolist()
    [[3.0], [2.0]]
    """
    ys = jnp.asarray(ys)
    if ys.ndim < 2:
        raise ValueError(f"pool: ys must have shape [T, *batch, F], got {describe(ys)}.")
    batch = list(ys.shape[1:-1])
    if lengths is None and valid is None:
        lengths = jnp.full(batch, ys.shape[0])
    counts = valid_steps("pool", "ys", ys.shape, lengths, valid, named="valid")
    if counts is None or counts.ndim != ys.ndim - 1:
        name, given = ("lengths", lengths) if valid is None else ("valid", valid)
        raise ValueError(f"pool: {name} must have the batch axes of ys, {batch}, got {describe(given)}.")
    if not ys.shape[0]:
        return jnp.zeros(ys.shape[1:], ys.dtype)
    zero = jnp.zeros((), ys.dtype)
    ys = jnp.where(as_wide(counts, ys.ndim), ys, zero)
    if pooling == "last":
        time = as_wide(jnp.arange(ys.shape[0]), counts.ndim)
        index = as_wide(jnp.max(jnp.where(counts, time, 0), axis=0), ys.ndim - 1)[None]
        return jnp.take_along_axis(ys, index, axis=0)[0]  # row 0 of an empty one is zeros
    wide = ys.astype(compute_dtype(ys.dtype))
    number = as_wide(counts.sum(0), ys.ndim - 1)
    if pooling == "mean":
        return (wide.sum(0) / jnp.maximum(number, 1).astype(wide.dtype)).astype(ys.dtype)
    if pooling == "max":
        top = jnp.where(as_wide(counts, ys.ndim), ys, jnp.full((), -jnp.inf, ys.dtype)).max(0)
        return jnp.where(number > 0, top, zero)
    if params is None:
        raise ValueError("pool: pooling='attention' needs params, from init_pooling(key, F).")
    keys = jnp.tanh(promoting(jnp.add)(matmul(ys, params.w, wide.dtype), params.b.astype(wide.dtype)))
    weights = masked_softmax(matmul(keys, params.v, wide.dtype), counts, axis=0)  # [T, *batch]
    return (weights[..., None] * wide).sum(0).astype(ys.dtype)
