"""One input to a whole sequence."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cell import Cell, wide_dtype
from rnnjax.kinds import check_fields, public
from rnnjax.topologies.bridge import ContextState, ContextStateParams
from rnnjax.topologies.decoder import NOTHING, Decoder, DecoderParams, DecoderState
from rnnjax.topologies.parts import Reading, check_network, run_options, split_key

__all__ = ["OneToMany", "OneToManyParams"]


class OneToManyParams(NamedTuple):
    """Parameters of `OneToMany`; None where the model has no such part."""

    embedding: jax.Array | None  # [V, E], of the context
    start: ContextStateParams
    decoder: DecoderParams


@dataclasses.dataclass(frozen=True)
class OneToMany(Reading):
    r"""Writes a sequence from one input: a caption of an image, a name of a language, a curve of its parameters.

        state_0    = phi(dropout(context) @ w + b)                      for every leaf, see `ContextState`
        x_t        = what was written at t - 1, read as below;  with feed="zeros":  0
        state', y  = cell.step(params.decoder.cell, state, dropout(x_t))
        output_t   = dropout(y) @ w + b

    Outputs are logits of O symbols, which are read again by a table of ``output_embed_size`` or as one-hot vectors, or
    O numbers, which are read as they are. Before the first one stands nothing: the symbol -1, or zeros.

    Training shows the cell what it should have written (teacher forcing); `step` shows it what it is given, and so
    serves sampling and beam search; ``apply(..., steps=T)`` shows it its own outputs.

    Args:
        cell: the cell that writes, also a `Stack`.
        output_size: O: symbols, or numbers a step.
        input_size: C, for contexts that are numbers ``[B, C]``.
        vocab_size: V, in its place for contexts that are symbols, int ``[B]``.
        embed_size: E of these; 0 for one-hot vectors.
        outputs: ``"symbols"`` or ``"numbers"``.
        output_embed_size: of the table that reads symbols written before; 0 for one-hot vectors.
        feed: ``"previous"`` or ``"zeros"``; with the latter steps differ by the state alone.
        activation: phi, ``"tanh"`` or None for the identity.
        dropout: rate on the embeddings, between the layers and before the head, new for every element; only active
            where a key is passed.

    Raises:
        ValueError: for sizes below one, a rate outside [0, 1), an unknown choice, not exactly one of input_size and
            vocab_size, or a cell whose features are images.
        TypeError: if the cell is none.

    >>> import jax, jax.numpy as jnp, rnnjax
    >>> model = rnnjax.topologies.OneToMany(rnnjax.LSTM(8), output_size=5, input_size=3)
    >>> params = model.init(jax.random.key(0))
    >>> model.apply(params, jnp.ones((2, 3)), jnp.zeros((7, 2), int)).shape  # logits of the seven targets
    (7, 2, 5)
    >>> state = model.start(params, jnp.ones((2, 3)))
    >>> state, logits = model.step(params, state, jnp.full(2, model.start_symbol))
    """

    cell: Cell
    output_size: int
    input_size: int | None = None
    vocab_size: int | None = None
    embed_size: int = 0
    outputs: Literal["symbols", "numbers"] = "symbols"
    output_embed_size: int = 0
    feed: Literal["previous", "zeros"] = "previous"
    activation: Literal["tanh"] | None = "tanh"
    dropout: float = 0.0
    start_symbol = NOTHING

    def __post_init__(self) -> None:
        check_network("OneToMany", "cell", self.cell, flat=True)
        check_fields(self, least={"embed_size": 0, "output_embed_size": 0}, rates=("dropout",))
        _ = self._decoder, self._reader, self._start

    @property
    def _start(self) -> ContextState:
        return ContextState(self.cell, self.activation)

    @property
    def _decoder(self) -> Decoder:
        return Decoder.of(self, self.cell, feed=self.feed)

    @public
    def init(self, key: jax.Array, dtype: Any = jnp.float32) -> OneToManyParams:
        """New parameters, each part from a key of its own."""
        key_embedding, key_start, key_decoder = jax.random.split(key, 3)
        return OneToManyParams(
            embedding=self._reader.init(key_embedding, dtype),
            start=self._start.init(key_start, self._reader.size, dtype),
            decoder=self._decoder.init(key_decoder, dtype),
        )

    @public
    def start(self, params: OneToManyParams, context: jax.Array, *, key: jax.Array | None = None) -> DecoderState:
        """The state before the first step; every leaf has the batch axis first.

        Args:
            params: from `init`.
            context: ``[B, C]``, or int ``[B]`` of symbols.
            key: switches dropout of an embedded context on.

        Raises:
            ValueError: if the context has another size.
            TypeError: if symbols are not integers.
        """
        dtype = wide_dtype(params)
        context = self._reader.read(params.embedding, context, dtype, self.dropout, key)
        return self._decoder.start(params.decoder, self._start.apply(params.start, context, dtype))

    @public
    def step(self, params: OneToManyParams, state: DecoderState, symbols: jax.Array) -> tuple[DecoderState, jax.Array]:
        """One step.

        Args:
            params: from `init`.
            state: of B rows, from `start` or an earlier step.
            symbols: what was written before, int ``[B]`` or numbers ``[B, O]``; ``start_symbol`` (or zeros) at first.

        Returns:
            The next state, and logits or numbers ``[B, O]``.

        Raises:
            ValueError: if there are not as many symbols as rows of the state.
            TypeError: if symbols are not integers.
        """
        state, outputs, _ = self._decoder.step(params.decoder, state, symbols, None)
        return state, outputs

    def stepper(self, params: OneToManyParams) -> Callable[[DecoderState, jax.Array], tuple[DecoderState, jax.Array]]:
        """``step(state, symbols)``, as a search takes it."""
        return functools.partial(self.step, params)

    @public
    def apply(
        self,
        params: OneToManyParams,
        context: jax.Array,
        targets: jax.Array | None = None,
        *,
        steps: int | None = None,
        lengths: jax.Array | None = None,
        sampling: float | jax.Array = 0.0,
        key: jax.Array | None = None,
        **options: Any,
    ) -> jax.Array:
        """The outputs of all steps; those at t are the prediction of ``targets[t]``.

        Args:
            params: from `init`.
            context: ``[B, C]``, or int ``[B]`` of symbols.
            targets: int ``[T, B]`` of symbols, or numbers ``[T, B, O]``: step t reads ``targets[t - 1]``. They may be
                anything in the padding.
            steps: T, in place of targets: every step reads what the one before wrote, of symbols the likeliest.
            lengths: int ``[B]`` of the sequences to be written; outputs in the padding are zeros.
            sampling: the probability that a step reads what the one before wrote in place of the target, drawn for
                each step and row (scheduled sampling; Bengio et al., 2015). A schedule may pass an array. Gradients
                flow through numbers that are read again, and not through symbols.
            key: switches dropout on, and throws the coins of ``sampling``; one a call.
            **options: ``implementation`` and ``remat`` of `unroll`, where no step waits for the output of another.

        Returns:
            Logits or numbers ``[T, B, O]``.

        Raises:
            ValueError: for shapes that do not fit, not exactly one of targets and steps, a probability outside
                [0, 1], or one that needs a key and has none.
            TypeError: if symbols are not integers.
        """
        run_options("OneToMany.apply", options)
        keys = split_key("OneToMany", key, 2)
        state = self.start(params, context, key=keys[0])
        written: dict[str, Any] = {"steps": steps, "lengths": lengths, "sampling": sampling}
        outputs, _ = self._decoder.run(params.decoder, state, None, targets, key=keys[1], **written, **options)
        return outputs
