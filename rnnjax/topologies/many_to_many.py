"""An answer at every step of a sequence."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cell import wide_dtype
from rnnjax.kinds import check_fields, public
from rnnjax.network import output_shape, start_state
from rnnjax.networks.masks import dropout
from rnnjax.promotion import as_wide
from rnnjax.topologies.parts import (
    Dense,
    Reading,
    affine,
    check_network,
    flat,
    init_dense,
    run_options,
    split_key,
    valid_steps,
    with_dropout,
)
from rnnjax.unroll import unroll

__all__ = ["ManyToMany", "ManyToManyParams"]


class ManyToManyParams(NamedTuple):
    """Parameters of `ManyToMany`; None where the model has no such part."""

    embedding: jax.Array | None  # [V, E]
    network: Any  # of the network's init
    head: Dense  # w [F, O], b [O]


@dataclasses.dataclass(frozen=True)
class ManyToMany(Reading):
    r"""Synced many-to-many: answers at every step, as for tags, frames, control or forecasts one step ahead.

        x_t      = embedding[s_t],  one_hot(s_t)  or the numbers themselves
        ys       = network(dropout(x))
        output_t = dropout(ys[t]) @ w + b

    With a cell ``output_t`` depends on nothing after step t, and the model also runs step by step: `start`, `step` and
    `advance` hand the state on, to act online, for `rnnjax.tbptt`, or to search with. With a `Bidirectional` network
    every output sees the whole row, and there is no step.

    Args:
        network: a cell, also a `Stack`, or a `Bidirectional` network.
        output_size: O: classes, or numbers.
        input_size: I, for inputs that are numbers ``[T, *batch, I]``.
        vocab_size: V, in its place for inputs that are symbols, int ``[T, *batch]``.
        embed_size: E of the symbols; 0 for one-hot vectors.
        dropout: rate on the embedding, between the layers (of a network whose own rate is zero) and before the head,
            new for every element. Only where a key is passed: without one the model is evaluated, and nothing dropped.

    Raises:
        ValueError: for sizes below one, a rate outside [0, 1), or not exactly one of input_size and vocab_size.
        TypeError: if the network is none.

    >>> import jax, jax.numpy as jnp, rnnjax
    >>> tagger = rnnjax.topologies.ManyToMany(rnnjax.Bidirectional((rnnjax.GRU(8),)), output_size=3, input_size=4)
    >>> params = tagger.init(jax.random.key(0))
    >>> tagger.apply(params, jnp.ones((7, 2, 4)), lengths=jnp.array([7, 3])).shape
    (7, 2, 3)
    """

    network: Any
    output_size: int
    input_size: int | None = None
    vocab_size: int | None = None
    embed_size: int = 0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_network("ManyToMany", "network", self.network, both=True)
        check_fields(self, least={"embed_size": 0}, rates=("dropout",))
        _ = self._reader

    @public
    def init(self, key: jax.Array, dtype: Any = jnp.float32) -> ManyToManyParams:
        """New parameters, each part from a key of its own."""
        key_embedding, key_network, key_head = jax.random.split(key, 3)
        size = math.prod(output_shape(self.network, 1))
        return ManyToManyParams(
            embedding=self._reader.init(key_embedding, dtype),
            network=self.network.init(key_network, self._reader.size, dtype),
            head=init_dense(key_head, size, self.output_size, dtype),
        )

    @public
    def apply(
        self,
        params: ManyToManyParams,
        xs: jax.Array,
        *,
        lengths: jax.Array | None = None,
        valid: jax.Array | None = None,
        resets: jax.Array | None = None,
        key: jax.Array | None = None,
        **options: Any,
    ) -> jax.Array:
        """The answer at every step, from the start of the network.

        Args:
            params: from `init`.
            xs: ``[T, *batch, I]`` of numbers, or int ``[T, *batch]`` of symbols.
            lengths: int ``[*batch]``; outputs in the padding are zeros, and what stands there in ``xs`` reaches no
                output and no gradient.
            valid: bool ``[T, *batch]``: steps that are not set, on the left or in between, are padding, see `unroll`.
            resets: bool ``[T, *batch]``: a set flag begins a new sequence in the row, see `unroll`.
            key: switches dropout on; one a call.
            **options: ``implementation`` and ``remat`` of `unroll`.

        Returns:
            Logits or numbers ``[T, *batch, O]``.

        Raises:
            ValueError: as `unroll` does.
            TypeError: if symbols are not integers, or as `unroll` does.
        """
        return self._run("apply", params, None, xs, key, options, lengths=lengths, valid=valid, resets=resets)[1]

    @public
    def start(self, params: ManyToManyParams, batch_shape: tuple[int, ...] = ()) -> Any:
        """The state before the first step; not with a `Bidirectional` network.

        Raises:
            TypeError: if the network is bidirectional.
        """
        check_network("ManyToMany.start", "network", self.network)
        return start_state(self.network, params.network, batch_shape, wide_dtype(params.network))

    @public
    def advance(
        self,
        params: ManyToManyParams,
        state: Any,
        xs: jax.Array,
        *,
        lengths: jax.Array | None = None,
        valid: jax.Array | None = None,
        resets: jax.Array | None = None,
        key: jax.Array | None = None,
        **options: Any,
    ) -> tuple[Any, jax.Array]:
        """As `apply`, from a state that `start` or an earlier call made, and with the state at the end in front.

        Raises:
            ValueError: as `unroll` does.
            TypeError: if the network is bidirectional, or as `apply` does.
        """
        check_network("ManyToMany.advance", "network", self.network)
        return self._run("advance", params, state, xs, key, options, lengths=lengths, valid=valid, resets=resets)

    @public
    def step(self, params: ManyToManyParams, state: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        """One step: ``x [*batch, I]`` or int ``[*batch]`` to the next state and the output ``[*batch, O]``.

        Raises:
            TypeError: if the network is bidirectional, or symbols are not integers.
        """
        check_network("ManyToMany.step", "network", self.network)
        x = self._reader.read(params.embedding, x, wide_dtype(params))
        state, y = self.network.step(params.network, state, x)
        return state, affine(params.head, flat(self.network, y))

    def _run(
        self, method: str, params: ManyToManyParams, state: Any, xs: jax.Array, key: jax.Array | None,
        options: dict[str, Any], **masks: Any,
    ) -> tuple[Any, jax.Array]:  # fmt: skip
        run_options(f"ManyToMany.{method}", options)
        reader, keys = self._reader, split_key("ManyToMany", key, 3)
        lengths, valid = masks["lengths"], masks["valid"]
        xs = reader.read(params.embedding, xs, wide_dtype(params), self.dropout, keys[0], lengths, valid)
        network = self.network if key is None else with_dropout(self.network, self.dropout)
        state, ys = unroll(network, params.network, state, xs, key=keys[1], **masks, **options)
        outputs = affine(params.head, dropout(keys[2], flat(network, ys), self.dropout))
        counts = valid_steps("ManyToMany", "outputs", outputs.shape, lengths, valid, named="valid")
        if counts is not None:
            outputs = jnp.where(as_wide(counts, outputs.ndim), outputs, jnp.zeros((), outputs.dtype))
        return state, outputs
