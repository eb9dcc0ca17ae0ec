"""One sequence to another: an encoder that reads, and a decoder that writes."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cell import Cell, state_like, wide_dtype
from rnnjax.checks import short
from rnnjax.kinds import check_fields, public
from rnnjax.network import free_state, output_shape
from rnnjax.topologies.attention import Attention, Memory
from rnnjax.topologies.bridge import ContextState, ContextStateParams
from rnnjax.topologies.decoder import NOTHING, Decoder, DecoderParams, DecoderState
from rnnjax.topologies.parts import Reading, check_network, flat, run_options, split_key, with_dropout
from rnnjax.unroll import unroll

__all__ = ["EncoderDecoder", "EncoderDecoderParams", "Source"]


class EncoderDecoderParams(NamedTuple):
    """Parameters of `EncoderDecoder`; None where the model has no such part."""

    embedding: jax.Array | None  # [V, E], of the source
    encoder: Any  # of the encoder's init
    bridge: ContextStateParams | None
    decoder: DecoderParams


class Source(NamedTuple):
    """What the decoder needs to know of a source sequence; see `EncoderDecoder.encode`."""

    state: Any  # of the decoder's cell, before its first step
    memory: Memory | None  # with attention


@dataclasses.dataclass(frozen=True)
class EncoderDecoder(Reading):
    r"""Delayed many-to-many: reads a whole sequence, then writes another (Sutskever et al., 2014; Cho et al., 2014).

        memory, final = encoder(dropout(source))                        over the valid steps, see `unroll`
        state_0       = final                                           with bridge="copy"
                        tanh(concat(final) @ w + b)                     with bridge="affine", for every leaf
        x_t           = what was written at t - 1
        state', y     = decoder.step(params.decoder.cell, state, dropout(x_t))
        output_t      = dropout(y) @ w + b

    and with an `Attention` the decoder also reads the memory, as described there. ``concat(final)`` holds all numbers
    of the encoder's final state that are free to be anything: of all layers and both directions.

    Outputs are logits of O symbols, which are read again by a table of ``output_embed_size`` or as one-hot vectors, or
    O numbers, which are read as they are. Before the first one stands nothing: the symbol -1, or zeros. Where an end is
    to be written, a symbol of the vocabulary stands for it.

    For a search `encode` runs once; `start` and `step` hand on a state without the memory, so a beam gathers and
    repeats small arrays only: B times K rows of a state read the memory of B sources (see `Attention.read`).

    Args:
        encoder: a cell, also a `Stack`, or a `Bidirectional` network.
        decoder: a cell, also a `Stack`.
        output_size: O: symbols, or numbers a step.
        input_size: I, for sources that are numbers ``[T_in, B, I]``.
        vocab_size: V, in its place for sources that are symbols, int ``[T_in, B]``.
        embed_size: E of these; 0 for one-hot vectors.
        outputs: ``"symbols"`` or ``"numbers"``.
        output_embed_size: of the table that reads symbols written before; 0 for one-hot vectors.
        bridge: ``"affine"``, or ``"copy"`` where encoder and decoder have states of the same shape.
        attention: None, or an `Attention`.
        dropout: rate on the embeddings, between the layers and before the head, new for every element; only active
            where a key is passed.

    Raises:
        ValueError: for sizes below one, a rate outside [0, 1), an unknown choice, not exactly one of input_size and
            vocab_size, a copy between different states, or a decoder whose features are images.
        TypeError: if encoder or decoder are none, or the attention is none.

    >>> import jax, jax.numpy as jnp, rnnjax
    >>> model = rnnjax.topologies.EncoderDecoder(
    ...     rnnjax.Bidirectional((rnnjax.GRU(4),)), rnnjax.LSTM(6), output_size=5, vocab_size=7,
    ...     attention=rnnjax.topologies.Attention("additive"))
    >>> params = model.init(jax.random.key(0))
    >>> symbols, targets, lengths = jnp.ones((9, 2), int), jnp.ones((3, 2), int), jnp.array([9, 4])
    >>> model.apply(params, symbols, targets, lengths=lengths).shape
    (3, 2, 5)
    >>> _, weights = model.align(params, symbols, targets, lengths=lengths)
    >>> weights.shape, bool((weights[:, 1, 4:] == 0).all())
    ((3, 2, 9), True)
    """

    encoder: Any
    decoder: Cell
    output_size: int
    input_size: int | None = None
    vocab_size: int | None = None
    embed_size: int = 0
    outputs: Literal["symbols", "numbers"] = "symbols"
    output_embed_size: int = 0
    bridge: Literal["affine", "copy"] = "affine"
    attention: Attention | None = None
    dropout: float = 0.0
    start_symbol = NOTHING

    def __post_init__(self) -> None:
        check_network("EncoderDecoder", "encoder", self.encoder, both=True)
        if self.attention is not None and not isinstance(self.attention, Attention):
            raise TypeError(f"EncoderDecoder: attention must be an Attention or None, got {short(self.attention)}.")
        check_network("EncoderDecoder", "decoder", self.decoder, flat=True)
        check_fields(self, least={"embed_size": 0, "output_embed_size": 0}, rates=("dropout",))
        _ = self._decoder, self._reader
        if self.bridge == "copy":
            nets: tuple[Any, Any] = self.encoder, self.decoder
            (structure, reads), (other, writes) = map(state_like, nets)
            if structure != other or [leaf.shape for leaf in reads] != [leaf.shape for leaf in writes]:
                raise ValueError(
                    "EncoderDecoder: with bridge='copy' the states of encoder and decoder must have the same "
                    f"structure and shapes, got {short(self.encoder)} and {self.decoder!r}; take bridge='affine'."
                )
        if self.attention is not None:
            self.attention.check_sizes(self.decoder.hidden_size, self._decoder.memory_size)

    @property
    def _bridge(self) -> ContextState:
        return ContextState(self.decoder, "tanh")

    @property
    def _decoder(self) -> Decoder:
        memory_size = math.prod(output_shape(self.encoder, 1))
        return Decoder.of(self, self.decoder, attention=self.attention, memory_size=memory_size)

    @public
    def init(self, key: jax.Array, dtype: Any = jnp.float32) -> EncoderDecoderParams:
        """New parameters, each part from a key of its own."""
        key_embedding, key_encoder, key_bridge, key_decoder = jax.random.split(key, 4)
        bridge = None
        if self.bridge == "affine":
            state = jax.eval_shape(lambda: _flat(self.encoder, self.encoder.initial_state((1,))))
            bridge = self._bridge.init(key_bridge, state.shape[-1], dtype)
        return EncoderDecoderParams(
            embedding=self._reader.init(key_embedding, dtype),
            encoder=self.encoder.init(key_encoder, self._reader.size, dtype),
            bridge=bridge,
            decoder=self._decoder.init(key_decoder, dtype),
        )

    @public
    def encode(
        self,
        params: EncoderDecoderParams,
        xs: jax.Array,
        *,
        lengths: jax.Array | None = None,
        key: jax.Array | None = None,
        **options: Any,
    ) -> Source:
        """Reads the source, once for as many steps of the decoder as there will be.

        Args:
            params: from `init`.
            xs: ``[T_in, B, I]`` of numbers, or int ``[T_in, B]`` of symbols.
            lengths: int ``[B]``; what stands in the padding is neither read nor attended to, and reaches no gradient.
            key: switches dropout on; one a call.
            **options: ``implementation`` and ``remat`` of `unroll`.

        Returns:
            The decoder's first state and, with attention, the memory.

        Raises:
            ValueError: as `unroll` does.
            TypeError: if symbols are not integers, or as `unroll` does.
        """
        reader, keys, dtype = self._reader, split_key("EncoderDecoder", key, 2), wide_dtype(params)
        xs = reader.read(params.embedding, xs, dtype, self.dropout, keys[0], lengths)
        encoder = self.encoder if key is None else with_dropout(self.encoder, self.dropout)
        run_options("EncoderDecoder", options)
        state, ys = unroll(encoder, params.encoder, None, xs, lengths=lengths, key=keys[1], **options)
        if params.bridge is not None:
            state = self._bridge.apply(params.bridge, _flat(self.encoder, state), dtype)
        if self.attention is None or params.decoder.attention is None:
            return Source(state, None)
        return Source(state, self.attention.memory(params.decoder.attention, flat(encoder, ys), lengths=lengths))

    @public
    def start(self, params: EncoderDecoderParams, source: Source) -> DecoderState:
        """The state before the first step; every leaf has the batch axis first, and none holds the memory."""
        return self._decoder.start(params.decoder, source.state)

    @public
    def step(
        self, params: EncoderDecoderParams, state: DecoderState, symbols: jax.Array, source: Source
    ) -> tuple[DecoderState, jax.Array]:
        """One step.

        Args:
            params: from `init`.
            state: of R rows, from `start` or an earlier step. R may be a multiple of the B sources: row r reads
                source ``r // (R / B)``, as after ``jnp.repeat(leaf, R // B, axis=0)`` of every leaf of the state.
            symbols: what was written before, int ``[R]`` or numbers ``[R, O]``; ``start_symbol`` (or zeros) at first.
            source: from `encode`.

        Returns:
            The next state, and logits or numbers ``[R, O]``.

        Raises:
            ValueError: if there are not as many symbols as rows of the state, or R is no multiple of B.
            TypeError: if symbols are not integers.
        """
        state, outputs, _ = self._decoder.step(params.decoder, state, symbols, source.memory)
        return state, outputs

    def stepper(
        self, params: EncoderDecoderParams, source: Source
    ) -> Callable[[DecoderState, jax.Array], tuple[DecoderState, jax.Array]]:
        """``step(state, symbols)``, as a search takes it."""
        return functools.partial(self.step, params, source=source)

    @public
    def apply(
        self,
        params: EncoderDecoderParams,
        xs: jax.Array,
        targets: jax.Array | None = None,
        *,
        steps: int | None = None,
        lengths: jax.Array | None = None,
        target_lengths: jax.Array | None = None,
        sampling: float | jax.Array = 0.0,
        key: jax.Array | None = None,
        **options: Any,
    ) -> jax.Array:
        """The outputs of all steps; those at t are the prediction of ``targets[t]``.

        Args:
            params: from `init`.
            xs: ``[T_in, B, I]`` of numbers, or int ``[T_in, B]`` of symbols.
            targets: int ``[T_out, B]`` of symbols, or numbers ``[T_out, B, O]``: step t reads ``targets[t - 1]``. They
                may be anything in the padding.
            steps: T_out, in place of targets: every step reads what the one before wrote, of symbols the likeliest.
            lengths: int ``[B]``, of the source.
            target_lengths: int ``[B]`` of the sequences to be written; outputs in the padding are zeros.
            sampling: the probability that a step reads what the one before wrote in place of the target, drawn for
                each step and row (scheduled sampling; Bengio et al., 2015). A schedule may pass an array. Gradients
                flow through numbers that are read again, and not through symbols.
            key: switches dropout on, and throws the coins of ``sampling``; one a call.
            **options: ``implementation`` and ``remat`` of `unroll`, for the encoder, and for the decoder where no step
                waits for the output of another.

        Returns:
            Logits or numbers ``[T_out, B, O]``.

        Raises:
            ValueError: for shapes that do not fit, not exactly one of targets and steps, a probability outside
                [0, 1], or one that needs a key and has none.
            TypeError: if symbols are not integers, or as `unroll` does.
        """
        written = {"steps": steps, "lengths": target_lengths, "sampling": sampling}
        return self._run(params, xs, targets, lengths, key, options, **written)[0]

    @public
    def align(
        self,
        params: EncoderDecoderParams,
        xs: jax.Array,
        targets: jax.Array | None = None,
        *,
        steps: int | None = None,
        lengths: jax.Array | None = None,
        target_lengths: jax.Array | None = None,
        sampling: float | jax.Array = 0.0,
        key: jax.Array | None = None,
        **options: Any,
    ) -> tuple[jax.Array, jax.Array]:
        """As `apply`, and which steps of the source each output attended to.

        Returns:
            ``[T_out, B, O]``, and weights ``[T_out, B, T_in]`` that sum to one over the valid steps of the source, or
            are zero where there is none, and in the padding of the targets.

        Raises:
            ValueError: if the model has no attention, or as `apply` does.
            TypeError: as `apply` does.
        """
        written = {"steps": steps, "lengths": target_lengths, "sampling": sampling}
        outputs, weights = self._run(params, xs, targets, lengths, key, options, **written)
        if weights is None:
            raise ValueError("EncoderDecoder.align: the model has no attention; make it with attention=Attention().")
        return outputs, weights

    def _run(
        self, params: EncoderDecoderParams, xs: jax.Array, targets: Any, read: Any, key: Any, options: Any, **more: Any
    ) -> tuple[jax.Array, jax.Array | None]:
        """Outputs and weights; ``read`` are the lengths of the sources, ``more`` is for `Decoder.run`."""
        keys = split_key("EncoderDecoder", key, 2)
        source = self.encode(params, xs, lengths=read, key=keys[0], **options)
        start, decoder = self.start(params, source), params.decoder
        return self._decoder.run(decoder, start, source.memory, targets, key=keys[1], **more, **options)


def _flat(network: Any, state: Any) -> jax.Array:
    """All numbers of a state ``[B, ...]`` that are free to be anything, side by side."""
    leaves = jax.tree.leaves(free_state("EncoderDecoder", network, state))
    return jnp.concatenate([leaf.reshape(leaf.shape[0], math.prod(leaf.shape[1:])) for leaf in leaves], axis=-1)
