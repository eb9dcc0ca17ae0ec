"""The language model: symbols in, a distribution over the next symbol out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rnnjax.cell import AffineCell
from rnnjax.checks import check_choice, check_kind, check_real
from rnnjax.engines.affine.recurrence import plan_of
from rnnjax.engines.choice import is_floating
from rnnjax.initializers import Glorot
from rnnjax.kinds import check_fields
from rnnjax.networks import (
    Stack,
    activation_regularization,
    drop_connect,
    dropout,
)
from rnnjax.networks.masks import check_rate
from rnnjax.networks.stack import StackParams, StackState
from rnnjax.online import Read
from rnnjax.promotion import promoting
from rnnjax.text.corpus import Chunk
from rnnjax.topologies.parts import with_dropout
from rnnjax.unroll import unroll

__all__ = ["LMParams", "LanguageModel"]

_MAX_LOGITS = 2**23  # numbers in a block of logits that nobody keeps: 32 MB of float32
_MAX_TRAINED = 2**26  # the same in training, where a block costs its matmul once more: 256 MB


class LMParams(NamedTuple):
    """Parameters of `LanguageModel`; None where the model has no such part."""

    embedding: jax.Array | None  # [V, E]
    stack: StackParams
    w_out: jax.Array | None  # [H, V]; None when the embedding is used for the output too
    b_out: jax.Array  # [V]


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    r"""A stack of recurrent cells that predicts the next symbol (Mikolov et al., 2010; Graves, 2013).

        x_t          = one_hot(s_t)  or  embedding[s_t]
        state_t, y_t = stack.step(drop_connect(params.stack), state_{t-1}, dropout(x_t))
        logits_t     = dropout(y_t) @ w_out + b_out         (w_out = embedding.T when tied)
        nats         = mean_t -log softmax(logits_t)[s_{t+1}]
        loss         = nats + ar * mean dropout(y_t)^2 + tar * mean (y_t - y_{t-1})^2

    With ``tie``, ``locked``, ``weight_dropout``, ``ar`` and ``tar`` it is the AWD-LSTM (Merity et al., 2018), which
    `rnnjax.fit.averaged` trains.

    Args:
        vocab_size: V.
        stack: the recurrent layers.
        embed_size: E, or 0 for one-hot inputs.
        tie: whether the output weights are the embedding's (Press and Wolf, 2017); E must equal the top layer's H.
        dropout: rate on the embedding, between the layers (of a stack whose own rate is zero) and on the output. Only
            where a key is passed: without one the model is evaluated, and nothing dropped.
        embed_dropout: another rate on the embedding; None for the same.
        locked: False draws masks anew for every step; True one a call and example, see `rnnjax.networks.dropout`
            (Gal and Ghahramani, 2016).
        weight_dropout: rate on the matrices ``w_hh`` of all layers, one mask a call, where a key is passed.
        ar: factor of `rnnjax.networks.activation_regularization`, of the outputs after their dropout.
        tar: factor of its temporal form, of the outputs before it.
        dtype: of the matmuls: ``"float32"``, or ``"bfloat16"`` with float32 parameters, accumulation and state.

    Raises:
        ValueError: for sizes below one, rates outside [0, 1), factors below zero, a tie without a fitting embedding,
            ``weight_dropout`` for layers of which none has a ``w_hh``, or another dtype.

    >>> import jax, rnnjax
    >>> model = LanguageModel(vocab_size=5, stack=rnnjax.Stack((rnnjax.LSTM(8),)))
    >>> params = model.init(jax.random.key(0))
    >>> state, logits = model.logits(params, model.initial_state((2,)), jax.numpy.zeros((7, 2), int))
    >>> logits.shape
    (7, 2, 5)
    """

    vocab_size: int
    stack: Stack
    embed_size: int = 0
    tie: bool = False
    dropout: float = 0.0
    dtype: str = "float32"
    embed_dropout: float | None = None
    locked: bool = False
    weight_dropout: float = 0.0
    ar: float = 0.0
    tar: float = 0.0

    def __post_init__(self) -> None:
        check_kind("LanguageModel", "stack", self.stack, Stack, "a Stack")
        check_fields(self, least={"embed_size": 0}, rates=("dropout", "weight_dropout"))
        if (rate := self.embed_dropout) is not None:
            object.__setattr__(self, "embed_dropout", check_rate("LanguageModel", "embed_dropout", rate))
        for name in ("ar", "tar"):
            check_real("LanguageModel", name, getattr(self, name), least=0.0)
        if self.weight_dropout:
            shapes = jax.eval_shape(lambda: self.stack.init(jax.random.key(0), self.embed_size or self.vocab_size))
            drop_connect(None, shapes, self.weight_dropout)  # raises where there is nothing to drop
        if self.tie and self.embed_size != self.stack.hidden_size:
            raise ValueError(
                f"LanguageModel: tied weights need embed_size = hidden_size = {self.stack.hidden_size}, "
                f"got embed_size {self.embed_size}."
            )
        check_choice("LanguageModel", "dtype", self.dtype, ("float32", "bfloat16"))

    @property
    def random(self) -> bool:
        """Whether a key changes anything."""
        return bool(self.dropout or self.embed_dropout or self.weight_dropout)

    def init(self, key: jax.Array) -> LMParams:
        """New float32 parameters; the output starts near the uniform distribution."""
        key_embedding, key_stack, key_out = jax.random.split(key, 3)
        size = self.stack.hidden_size
        embedding = None
        if self.embed_size:
            scale = 1.0 / self.embed_size**0.5 if self.tie else 1.0
            embedding = scale * jax.random.normal(key_embedding, (self.vocab_size, self.embed_size))
        return LMParams(
            embedding=embedding,
            stack=self.stack.init(key_stack, self.embed_size or self.vocab_size),
            w_out=None if self.tie else Glorot()(key_out, (size, self.vocab_size)),
            b_out=jnp.zeros((self.vocab_size,)),
        )

    def initial_state(self, batch_shape: tuple[int, ...] = ()) -> StackState:
        """The state before the first symbol."""
        return self.stack.initial_state(batch_shape)

    def logits(
        self,
        params: LMParams,
        state: StackState,
        symbols: jax.Array,
        *,
        resets: jax.Array | None = None,
        key: jax.Array | None = None,
        implementation: str | None = None,
    ) -> tuple[StackState, jax.Array]:
        """Unnormalised log-probabilities of what follows each symbol.

        Args:
            params: from `init`.
            state: from `initial_state`, or carried over.
            symbols: int ``[T, *batch]``.
            resets: bool ``[T, *batch]``, see `rnnjax.unroll`.
            key: switches dropout on; one a call.
            implementation: of the layers, see `rnnjax.unroll`.

        Returns:
            The state after the last symbol, and logits ``[T, *batch, V]``.
        """
        state, _, dropped = self._run(params, state, symbols, resets, key, implementation)
        return state, self._readout(params, dropped)

    def _run(
        self,
        params: LMParams,
        state: StackState,
        symbols: jax.Array,
        resets: jax.Array | None,
        key: jax.Array | None,
        implementation: str | None = None,
    ) -> tuple[StackState, jax.Array, jax.Array]:
        """The state, and what the layers return before and after its dropout."""
        keys = [None] * 4 if key is None else list(jax.random.split(key, 4))
        drop = functools.partial(dropout, locked=self.locked, resets=resets)
        low = self._low(params)
        rate = 0.0 if key is None else self.dropout if self.embed_dropout is None else self.embed_dropout
        if not rate and self._folds(symbols.size):
            low = _folded(low)
        xs = self._inputs(low, symbols)
        if rate and low.embedding is not None:
            xs = drop(keys[0], xs, rate)
        stack, layers = self.stack, low.stack
        if key is not None:
            if self.locked and not stack.dropout:
                stack = dataclasses.replace(stack, locked=True)
            stack = with_dropout(stack, self.dropout)
            layers = drop_connect(keys[3], layers, self.weight_dropout) if self.weight_dropout else layers
        state, ys = unroll(stack, layers, state, xs, resets=resets, key=keys[1], implementation=implementation)
        return state, ys, drop(keys[2], ys, self.dropout)

    def _readout(self, params: LMParams, ys: jax.Array) -> jax.Array:
        """Logits ``[..., V]``."""
        w_out: Any = params.embedding.T if params.embedding is not None and self.tie else params.w_out
        logits = jnp.matmul(ys.astype(self.dtype), w_out.astype(self.dtype), preferred_element_type=jnp.float32)
        return promoting(jnp.add)(logits, params.b_out)

    def _losses(self, params: LMParams, ys: jax.Array, targets: jax.Array) -> jax.Array:
        """The cross-entropy of every prediction, ``[T, B]``.

        Logits of a large vocabulary are made in blocks of time, on the way back once more, so that of a chunk of any
        length no more than 256 MB of them, or those of one step, exist at a time.
        """

        def nats(now: tuple[jax.Array, jax.Array]) -> jax.Array:
            ys, targets = now
            return optax.softmax_cross_entropy_with_integer_labels(self._readout(params, ys), targets)

        most = max(1, _MAX_TRAINED // max(1, targets[:1].size * self.vocab_size))
        if len(ys) <= most:
            return nats((ys, targets))
        losses: jax.Array = jax.lax.map(jax.checkpoint(nats), (ys, targets), batch_size=most)
        return losses

    def map_logits(
        self,
        params: LMParams,
        state: StackState,
        symbols: jax.Array,
        readout: Callable[..., Any],
        *others: jax.Array,
        resets: jax.Array | None = None,
    ) -> tuple[StackState, Any]:
        """``readout(logits, *others)`` of all steps, with the logits of only so many of them at a time as memory bears.

        Logits ``[T, B, V]`` of a large vocabulary, and one-hot inputs of that size, would fill gigabytes. They are made
        in blocks of time, at most 32 MB each (or one step, where that is more), and the state goes from block to block.

        Args:
            params: from `init`.
            state: from `initial_state`, or carried over.
            symbols: int ``[T, *batch]``.
            readout: a function of logits ``[t, *batch, V]`` and the same steps of ``others``, to arrays ``[t, ...]``.
            *others: arrays ``[T, ...]``.
            resets: bool ``[T, *batch]``.

        Returns:
            The state after the last symbol, and the readout of all T steps.
        """

        def block(state: StackState, xs: Any) -> tuple[StackState, Any]:
            symbols, resets, others = xs
            state, logits = self.logits(params, state, symbols, resets=resets)
            return state, readout(logits, *others)

        steps, xs = symbols.shape[0], (symbols, resets, others)
        most = max(1, _MAX_LOGITS // max(1, symbols[:1].size * self.vocab_size))
        if steps <= most:
            return block(state, xs)
        size = next(n for n in range(most, 0, -1) if steps % n == 0)
        state, found = jax.lax.scan(block, state, jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), xs))
        return state, jax.tree.map(lambda x: x.reshape(steps, *x.shape[2:]), found)

    def read(self, params: LMParams, chunk: Chunk) -> Read:
        """What the layers read in a chunk, for a border that follows them: ``SnAp1(model.stack, model.read)``."""
        low = self._low(params)
        return Read(low.stack, self._inputs(low, chunk.inputs), chunk.resets)

    def _folds(self, count: int) -> bool:
        """Whether so many symbols go through ``embedding @ w_ih`` of the first layer, made once, as one-hot vectors.

        The values are the same, ``one_hot(s) @ (embedding @ w_ih) = embedding[s] @ w_ih``; so it is done where it takes
        fewer multiplications: V E + N V times G H in place of N E. Short of rounding, that is: in bfloat16 the product
        would be rounded once more. An update of V = 65, E = 128, two AMD EPYC cores, milliseconds before / with it:
        one LSTM of 512, 64 steps of 32: 45.0 / 38.6; two of 128, 50 steps of 50: 14.0 / 10.9.
        """
        cell: Any = self.stack.cells[0]
        size, vocab = self.embed_size, self.vocab_size
        if self.dtype != "float32" or type(self.stack) is not Stack or vocab * (size + count) >= count * size:
            return False
        if not is_floating(cell, AffineCell):
            return False
        plan = plan_of(cell, size, None, None)
        params = plan.treedef.unflatten(plan.template)
        return params.w_ih is not None and hasattr(params, "_replace")  # nothing else reads it, and it can be replaced

    def _low(self, params: LMParams) -> Any:
        """Matrices in the dtype of the matmuls."""
        return jax.tree.map(lambda w: w.astype(self.dtype) if w.ndim > 1 else w, params)

    def _inputs(self, low: Any, symbols: jax.Array) -> jax.Array:
        """``[T, *batch, V or E]``."""
        if low.embedding is None:
            return jax.nn.one_hot(symbols, self.vocab_size, dtype=self.dtype)
        embedded: jax.Array = low.embedding[symbols]
        return embedded

    def loss(
        self, params: LMParams, state: StackState, chunk: Chunk, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, StackState, dict[str, jax.Array]]:
        """What is minimised on a chunk, the state at its end, and ``nats``, the mean cross-entropy; for `rnnjax.tbptt`.

        The loss is ``nats`` a symbol, and the penalties ``ar`` and ``tar`` where there are any.
        """
        state, ys, dropped = self._run(params, state, chunk.inputs, chunk.resets, key)
        nats = self._losses(params, dropped, chunk.targets).mean()
        loss = nats
        if self.ar:
            loss += self.ar * activation_regularization(dropped)
        if self.tar:
            loss += self.tar * activation_regularization(ys, temporal=True, resets=chunk.resets)
        return loss, state, {"nats": nats}

    def losses(self, params: LMParams, state: StackState, chunk: Chunk) -> tuple[StackState, jax.Array]:
        """The state at the end of a chunk, and the cross-entropy of every prediction, ``[T, B]``, without dropout."""
        state, ys, _ = self._run(params, state, chunk.inputs, chunk.resets, None)
        return state, self._losses(params, ys, chunk.targets)


def _folded(low: Any) -> Any:
    """The same model without an embedding: its product with the first layer's ``w_ih`` is that layer's instead."""
    first, *others = low.stack.layers
    first = first._replace(w_ih=low.embedding @ first.w_ih)
    return low._replace(embedding=None, stack=low.stack._replace(layers=(first, *others)))
