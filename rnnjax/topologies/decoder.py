"""A decoder: a cell that writes a sequence, reading what it or somebody else wrote before."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cell import Cell, describe, wide_dtype
from rnnjax.checks import check_ints, check_real, check_size, is_traced, shape_of
from rnnjax.network import Network, leaves
from rnnjax.networks import dropout
from rnnjax.promotion import as_wide
from rnnjax.topologies.attention import Attention, AttentionParams, Memory
from rnnjax.topologies.parts import (
    Dense,
    Reader,
    affine,
    init_dense,
    judged_steps,
    length_mask,
    split_key,
    with_dropout,
)
from rnnjax.unroll import unroll

__all__ = ["NOTHING", "Decoder", "DecoderParams", "DecoderState"]

NOTHING = -1  # the symbol before the first one; it reads as zeros


class DecoderParams(NamedTuple):
    """Parameters of the part that writes; None where the model has no such part."""

    embedding: jax.Array | None  # [O, E], of the symbols that it reads
    cell: Any  # of the cell's init
    attention: AttentionParams | None
    mix: Any  # Dense: w [M + H, H], of "after" and "feed"
    head: Dense  # w [H, O] or, with "before", [H + M, O]


class DecoderState(NamedTuple):
    """What a decoder hands from step to step; every leaf has the batch axis first."""

    cell: Any  # of the cell
    carried: Any  # with attention "before": the last output; "feed": the last u; else None


@dataclasses.dataclass(frozen=True)
class Decoder:
    """What `OneToMany` and `EncoderDecoder` share: all but where the state and the memory come from."""

    owner: str
    cell: Cell
    output_size: int
    outputs: Literal["symbols", "numbers"]
    embed_size: int
    dropout: float
    attention: Attention | None = None
    memory_size: int = 0
    feed: Literal["previous", "zeros"] = "previous"

    @classmethod
    def of(cls, model: Any, cell: Cell, **more: Any) -> Decoder:
        """The decoder of a model, from the fields that all models that write have."""
        sizes = (model.output_size, model.outputs, model.output_embed_size, model.dropout)
        return cls(type(model).__name__, cell, *sizes, **more)

    def __post_init__(self) -> None:
        if self.embed_size and (self.outputs == "numbers" or self.feed == "zeros"):
            raise ValueError(
                f"{self.owner}: output_embed_size is for symbols that are fed back, got {self.embed_size} with "
                f"outputs={self.outputs!r} and feed={self.feed!r}; leave it out."
            )
        _ = self.reader

    @property
    def reader(self) -> Reader:
        """Of what the decoder reads: its own outputs, or nothing."""
        if self.feed == "zeros":
            return Reader(self.owner, 1, None, 0)
        if self.outputs == "numbers":
            return Reader(self.owner, self.output_size, None, 0)
        return Reader(self.owner, None, self.output_size, self.embed_size)

    def init(self, key: jax.Array, dtype: Any) -> DecoderParams:
        """New parameters, each part from a key of its own."""
        key_embedding, key_cell, key_attention, key_mix, key_head = jax.random.split(key, 5)
        width = size = self.cell.hidden_size
        wide, attention, mix = self.reader.size, None, None
        if self.attention is not None:
            attention = self.attention.init(key_attention, size, self.memory_size, dtype)
            if self.attention.attend == "before":
                wide, width = wide + self.memory_size, size + self.memory_size
            else:
                mix = init_dense(key_mix, self.memory_size + size, size, dtype)
                wide += size if self.attention.attend == "feed" else 0
        return DecoderParams(
            embedding=self.reader.init(key_embedding, dtype),
            cell=self.cell.init(key_cell, wide, dtype),
            attention=attention,
            mix=mix,
            head=init_dense(key_head, width, self.output_size, dtype),
        )

    def start(self, params: DecoderParams, state: Any) -> DecoderState:
        """The state before the first step, from one of the cell."""
        rows, dtype = jax.tree.leaves(state)[0].shape[0], wide_dtype(params)
        nothing = jnp.zeros((rows, self.cell.hidden_size), dtype)
        if self.attention is None or self.attention.attend == "after":
            return DecoderState(state, None)
        if self.attention.attend == "feed":
            return DecoderState(state, nothing)
        h = getattr(leaves(self.cell, state)[-1].part, "h", nothing)
        return DecoderState(state, h.astype(dtype) if h.shape == nothing.shape else nothing)

    def step(
        self,
        params: DecoderParams,
        state: DecoderState,
        inputs: jax.Array,
        memory: Memory | None,
        key: jax.Array | None = None,
    ) -> tuple[DecoderState, jax.Array, jax.Array | None]:
        """One step from symbols ``[R]`` or numbers ``[R, O]``: the next state, outputs and attention's weights."""
        keys, dtype = split_key(self.owner, key, 3), wide_dtype(params)
        rows = jax.tree.leaves(state)[0].shape[0]
        x = self._read(params, inputs, (rows,), keys[0])
        if x.shape != (rows, self.reader.size):
            what = f"[{rows}]" if self.outputs == "symbols" else f"[{rows}, {self.output_size}]"
            raise ValueError(
                f"{self.owner}.step: its input must have shape {what}, as the state has rows, "
                f"got {describe(jnp.asarray(inputs))}."
            )
        if self.attention is None or params.attention is None or memory is None:
            cell, y = self._step_cell(params, state.cell, x, keys[1])
            return DecoderState(cell, None), affine(params.head, dropout(keys[2], y, self.dropout)), None
        carried, attend = state.carried, self.attention.attend
        if attend == "before":
            context, weights = self.attention.read(params.attention, memory, carried)
            cell, y = self._step_cell(params, state.cell, _join(x, context), keys[1])
            seen, carried = _join(y, context), y.astype(dtype)
        else:
            cell, y = self._step_cell(params, state.cell, _join(x, carried) if attend == "feed" else x, keys[1])
            context, weights = self.attention.read(params.attention, memory, y)
            seen = self._mix(params, context, y)
            carried = seen if attend == "feed" else None
        return DecoderState(cell, carried), affine(params.head, dropout(keys[2], seen, self.dropout)), weights

    def _read(self, params: DecoderParams, inputs: jax.Array, axes: tuple[int, ...], key: Any) -> jax.Array:
        if self.feed == "zeros":
            return jnp.zeros((*axes, 1), wide_dtype(params))
        return self.reader.read(params.embedding, inputs, wide_dtype(params), self.dropout, key)

    def _mix(self, params: DecoderParams, context: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.tanh(affine(params.mix, _join(context, y)))

    def _step_cell(self, params: DecoderParams, state: Any, x: jax.Array, key: Any) -> tuple[Any, jax.Array]:
        if key is None or not isinstance(self.cell, Network):
            return self.cell.step(params.cell, state, x)
        state, ys = unroll(with_dropout(self.cell, self.dropout), params.cell, state, x[None], key=key)
        return state, ys[0]

    def run(
        self,
        params: DecoderParams,
        state: DecoderState,
        memory: Memory | None,
        targets: Any,
        *,
        steps: int | None,
        lengths: jax.Array | None,
        sampling: Any,
        key: jax.Array | None,
        **options: Any,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Outputs ``[T, B, O]`` and weights ``[T, B, T_in]``; teacher forcing, own outputs, or a mixture."""
        rows, dtype = jax.tree.leaves(state)[0].shape[0], wide_dtype(params)
        given, coins = self._given(targets, steps, rows, dtype, lengths), None
        keys = split_key(self.owner, key, 2)
        if targets is None:
            sampling = 1.0
        sampling = check_real(self.owner, "sampling", sampling, least=0, most=1, traced=True)
        if is_traced(sampling) or 0 < sampling < 1:
            if key is None:
                raise ValueError(f"{self.owner}: sampling={describe(sampling)} throws coins, and needs key=.")
            coins = jax.random.bernoulli(keys[0], sampling, given.shape[:2])
        elif sampling == 1:
            coins = jnp.ones(given.shape[:2], bool)
        valid = None
        if lengths is not None:
            name, most = "lengths of the outputs", given.shape[0]
            lengths = check_ints(self.owner, name, lengths, low=0, high=most, shape=(rows,))
            valid = length_mask(lengths, most)
            given = jnp.where(as_wide(valid, given.ndim), given, self._nothing((), dtype).astype(given.dtype))
            coins = None if coins is None else coins & valid
        waits = self.attention is not None and self.attention.attend != "after"
        if waits or (coins is not None and self.feed == "previous"):
            outputs, weights = self._one_by_one(params, state, memory, given, coins, valid, keys[1])
        else:
            outputs, weights = self._at_once(params, state, memory, given, lengths, keys[1], options)
        if valid is not None:
            outputs = jnp.where(valid[..., None], outputs, jnp.zeros((), outputs.dtype))
            weights = None if weights is None else jnp.where(valid[..., None], weights, jnp.zeros((), weights.dtype))
        return outputs, weights

    def _nothing(self, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """What stands before the first output."""
        return jnp.full(shape, NOTHING, jnp.int32) if self.outputs == "symbols" else jnp.zeros(shape, dtype)

    def _given(self, targets: Any, steps: int | None, rows: int, dtype: Any, lengths: Any) -> jax.Array:
        """What the steps read under teacher forcing: the targets, one step late."""
        if (targets is None) == (steps is None):
            raise ValueError(
                f"{self.owner}: exactly one of targets (teacher forcing) and steps (on its own) must be given, "
                f"got {'both' if steps is not None else 'neither'}."
            )
        inner = () if self.outputs == "symbols" else (self.output_size,)
        if targets is None:
            return self._nothing((check_size(self.owner, "steps", steps, least=0), rows, *inner), dtype)
        if self.outputs == "symbols":
            judge = judged_steps(lengths, shape_of(targets))
            targets = check_ints(
                self.owner, "targets", targets, low=0, high=self.output_size - 1, but=NOTHING, judge=judge
            )
        targets = jnp.asarray(targets)
        if targets.ndim != 2 + len(inner) or targets.shape[1:] != (rows, *inner):
            axes = ", ".join(map(str, ("T", rows, *inner)))
            raise ValueError(f"{self.owner}: targets must have shape [{axes}], got {describe(targets)}.")
        targets = targets if self.outputs == "symbols" else targets.astype(dtype)
        first = self._nothing((1, rows, *inner), dtype).astype(targets.dtype)
        return jnp.concatenate([first, targets])[: targets.shape[0]]

    def _at_once(
        self,
        params: DecoderParams,
        state: DecoderState,
        memory: Memory | None,
        given: jax.Array,
        lengths: jax.Array | None,
        key: jax.Array | None,
        options: dict[str, Any],
    ) -> tuple[jax.Array, jax.Array | None]:
        keys, weights = split_key(self.owner, key, 3), None
        xs = self._read(params, given, given.shape[:2], keys[0])
        network = self.cell if key is None else with_dropout(self.cell, self.dropout)
        _, ys = unroll(network, params.cell, state.cell, xs, key=keys[1], lengths=lengths, **options)
        if self.attention is not None and params.attention is not None and memory is not None:
            context, weights = self.attention.read_all(params.attention, memory, ys)
            ys = self._mix(params, context, ys)
        return affine(params.head, dropout(keys[2], ys, self.dropout)), weights

    def _one_by_one(
        self,
        params: DecoderParams,
        state: DecoderState,
        memory: Memory | None,
        given: jax.Array,
        coins: jax.Array | None,
        valid: jax.Array | None,
        key: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array | None]:
        keys = None if key is None else jax.random.split(key, given.shape[0])

        def advance(carry: tuple[DecoderState, jax.Array], now: Any) -> Any:
            (old, own), (inputs, coin, valid, key) = carry, now
            if coin is not None:
                inputs = jnp.where(as_wide(coin, inputs.ndim), own, inputs)
            state, outputs, weights = self.step(params, old, inputs, memory, key)
            if valid is not None:  # in the padding it could grow without bounds, and a gradient become NaN
                state = jax.tree.map(lambda new, old: jnp.where(as_wide(valid, new.ndim), new, old), state, old)
            own = outputs.argmax(-1).astype(own.dtype) if self.outputs == "symbols" else outputs
            return (state, own), (outputs, weights)

        own = self._nothing(given.shape[1:], wide_dtype(params)).astype(given.dtype)
        _, (outputs, weights) = jax.lax.scan(advance, (state, own), (given, coins, valid, keys))
        return outputs, weights


def _join(*parts: jax.Array) -> jax.Array:
    return jnp.concatenate(parts, axis=-1)
