"""Text from a model: symbol by symbol on the device, block by block to the host, in constant memory."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.checks import check_ids, check_size
from rnnjax.decoding import draw
from rnnjax.decoding.adjust import check_settings, symbol_ids
from rnnjax.kinds import public
from rnnjax.lm.model import LanguageModel, LMParams
from rnnjax.networks.stack import StackState
from rnnjax.text.vocabulary import StreamDecoder, Vocabulary

__all__ = ["Session", "default_prime", "draw_block", "generate", "read_block", "sampler_settings", "stream_text"]

_PRIME_CHUNK = 256


@public
def generate(
    model: LanguageModel,
    params: LMParams,
    prime_ids: np.ndarray,
    *,
    key: jax.Array,
    length: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    greedy: bool = False,
    count: int = 1,
    first: int = 0,
    block: int = 32,
    banned: int | None = None,
) -> Iterator[np.ndarray]:
    r"""Samples what follows `prime_ids`.

    Every symbol has a key of its own, from its sample's number and its place, so a text does not depend on
    `block`, nor (but for the rounding of matmuls) on how many samples run beside it.

    Args:
        model: the model.
        params: its parameters.
        prime_ids: integers `[n]`, at least one, as many as one likes; see `default_prime`.
        key: used for this call only.
        length: symbols of each sample.
        temperature: see `rnnjax.decoding.adjust_logits`, as for the next two.
        top_k: 0 for all.
        top_p: 1 for all.
        greedy: always the likeliest symbol, the same as temperature 0.
        count: samples, drawn side by side.
        first: number of the first of them; those of another call with the same key have other numbers.
        block: symbols between two returns to the host.
        banned: an id that is never drawn; ``vocabulary.unknown`` keeps the unknown symbol out of the text.

    Returns:
        An iterator of int32 ``[count, n]`` with n = `block`, or less at the end.

    Raises:
        ValueError: for a number out of range, or no prime.
    """
    if greedy:
        temperature = 0.0
    settings = sampler_settings(model, temperature, top_k, top_p, banned)
    for name, size in (("length", length), ("count", count), ("block", block)):
        check_size("sample", name, size)
    check_size("sample", "first", first, least=0)
    prime_ids = check_ids("sample", prime_ids, None, "the prime")
    if not len(prime_ids):
        raise ValueError("sample: the prime must hold at least one symbol, got none; start from default_prime.")
    if prime_ids.max() >= model.vocab_size:
        raise ValueError(
            f"sample: the prime must be ids from 0 to {model.vocab_size - 1}, got ids from {np.min(prime_ids)} "
            f"to {np.max(prime_ids)}; encode it with the model's vocabulary."
        )
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(count))
    return _blocks(model, params, np.asarray(prime_ids), keys, length, block, settings)


def sampler_settings(
    model: LanguageModel, temperature: float, top_k: int, top_p: float, banned: int | None
) -> tuple[Any, ...]:
    """What `draw_block` draws by; raises the ValueError of a number out of range."""
    ids = symbol_ids("sample", "banned", banned, model.vocab_size)
    if len(ids) == model.vocab_size:
        raise ValueError(f"sample: a symbol must be left to draw, got all {len(ids)} of them banned.")
    return (*check_settings("sample", temperature, top_k, top_p), ids)


def _blocks(
    model: LanguageModel,
    params: LMParams,
    prime_ids: np.ndarray,
    keys: jax.Array,
    length: int,
    block: int,
    settings: tuple[Any, ...],
) -> Iterator[np.ndarray]:
    state = model.initial_state((1,))
    read = len(prime_ids) - 1  # the last symbol is the first input of the sampler
    for first in range(-(-read % _PRIME_CHUNK), read, _PRIME_CHUNK):
        # The first chunk is filled up from the left, and the reset at position 0 wipes out what that did.
        at = np.arange(first, first + _PRIME_CHUNK)[:, None]
        state = read_block(model, params, state, prime_ids[np.maximum(at, 0)].astype(np.int32), at == 0)
    count = len(keys)
    state = jax.tree.map(lambda leaf: jnp.repeat(leaf, count, axis=0), state)
    symbols = jnp.full((count,), int(prime_ids[-1]), jnp.int32)
    for done in range(0, length, block):
        state, symbols, drawn = draw_block(model, params, state, symbols, keys, done, block, settings)
        yield np.asarray(drawn)[:, : length - done]


@functools.partial(jax.jit, static_argnames="model")
def read_block(
    model: LanguageModel, params: LMParams, state: StackState, symbols: jax.Array, resets: jax.Array
) -> StackState:
    """The state after symbols `[T, B]`, of which those with a flag in `resets [T, B]` begin anew."""
    return model.map_logits(params, state, symbols, lambda logits: (), resets=resets)[0]


@functools.partial(jax.jit, static_argnums=(0, 6, 7))
def draw_block(
    model: LanguageModel,
    params: LMParams,
    state: StackState,
    symbols: jax.Array,
    keys: jax.Array,
    done: jax.Array,
    block: int,
    settings: tuple[Any, ...],
) -> tuple[StackState, jax.Array, jax.Array]:
    """The next `block` symbols of each sample, `[count, block]`; `symbols [count]` are the latest."""
    temperature, top_k, top_p, banned = settings

    def step(carry: tuple[StackState, jax.Array], t: jax.Array) -> tuple[tuple[StackState, jax.Array], jax.Array]:
        state, symbols = carry
        state, logits = model.logits(params, state, symbols[None])
        logits = logits[0].astype(jnp.float32)  # [count, V]
        now = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
        symbols = draw(now, logits, temperature=temperature, top_k=top_k, top_p=top_p, banned=banned)
        return (state, symbols), symbols

    (state, symbols), drawn = jax.lax.scan(step, (state, symbols), done + jnp.arange(block))
    return state, symbols, drawn.T


def default_prime(vocabulary: Vocabulary) -> np.ndarray:
    r"""Where to start without a prime, as ids ``[1]``: the newline, else the first symbol that is not the unknown one.

    >>> default_prime(Vocabulary("char", ("\n", "a"))).tolist()
    [0]
    """
    newline = vocabulary.lookup(["\n"] if vocabulary.level == "word" else "\n", "skip")
    others = (i for i in range(len(vocabulary)) if i != vocabulary.unknown)
    return newline if newline[0] >= 0 else np.array([next(others, 0)], np.int32)


def stream_text(vocabulary: Vocabulary, blocks: Iterable[np.ndarray], *, stop: str = "") -> Iterator[str]:
    r"""The text of one sample as its ids arrive; the pieces are never empty and never end within a code point.

    Args:
        vocabulary: decodes.
        blocks: ids `[n]`; once the text ends, no more of them are asked for.
        stop: the text ends before its first occurrence. What may be its beginning is held back until the next
            symbols tell. Empty for none.

    >>> vocabulary = Vocabulary("char", ("a", "b", "c"))
    >>> list(stream_text(vocabulary, [np.array([0, 1]), np.array([0, 1, 2, 0])], stop="bc"))
    ['a', 'ba']
    """
    decoder = StreamDecoder(vocabulary)
    pending = ""
    for ids in blocks:
        pending += decoder.push(ids)
        if stop and stop in pending:
            break
        size = next((n for n in range(min(len(stop) - 1, len(pending)), 0, -1) if pending.endswith(stop[:n])), 0)
        ready, pending = pending[: len(pending) - size], pending[len(pending) - size :]
        if ready:
            yield ready
    else:
        pending += decoder.flush()
    rest = pending.partition(stop)[0] if stop else pending
    if rest:
        yield rest


_SIZES = (256, 32, 4, 1)  # pieces in which a text is read: any length by four programs
_BLOCK = 32  # symbols that are drawn before the host looks at them


class Session:
    """A conversation with a model: `read` and `write` by turns, on one state.

    Args:
        model: the model.
        params: its parameters.
        vocabulary: of the model.
        key: for all draws of the session.
        temperature: see `rnnjax.lm.generate`, as for the next two.
        top_k: 0 for all.
        top_p: 1 for all.

    Raises:
        ValueError: for a number out of range.
    """

    def __init__(
        self,
        model: LanguageModel,
        params: LMParams,
        vocabulary: Vocabulary,
        key: jax.Array,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> None:
        self._settings = sampler_settings(model, temperature, top_k, top_p, vocabulary.unknown)
        self._model, self._params, self._vocabulary, self._keys = model, params, vocabulary, key[None]
        self._state = model.initial_state((1,))
        self._last = int(default_prime(vocabulary)[0])  # the latest symbol, which the state has not read yet
        self._drawn = 0

    def read(self, ids: np.ndarray) -> None:
        """Reads symbols."""
        *symbols, self._last = self._last, *map(int, ids)
        for size in _SIZES:
            while len(symbols) >= size:
                piece, symbols = np.array(symbols[:size], np.int32)[:, None], symbols[size:]
                resets = np.zeros(piece.shape, bool)
                self._state = read_block(self._model, self._params, self._state, piece, resets)

    def write(self, length: int, stop: str = "") -> Iterator[str]:
        """Up to ``length`` symbols, up to and without the first ``stop``, which counts as written all the same."""
        decoder, waiting = StreamDecoder(self._vocabulary), ""
        while length > 0:
            state, last, block = draw_block(
                self._model, self._params, self._state, jnp.array([self._last]), self._keys, self._drawn, _BLOCK,
                self._settings,
            )  # fmt: skip
            self._drawn += _BLOCK
            ids = np.asarray(block)[0, :length]
            length -= len(ids)
            taken, end = 0, -1
            for symbol in ids:
                before_it = max(0, len(waiting) - len(stop) + 1)
                waiting += decoder.push(np.array([symbol]))
                taken += 1
                if stop and (end := waiting.find(stop, before_it)) >= 0:
                    break
            if taken == _BLOCK:
                self._state, self._last = state, int(last[0])
            else:  # what was drawn behind the end was never written
                self.read(ids[:taken])
            if end >= 0:
                yield waiting[:end]
                return
            ready = len(waiting) - (len(stop) - 1 if stop else 0)  # what may be the beginning of the stop waits
            if ready > 0:
                yield waiting[:ready]
                waiting = waiting[ready:]
        rest = waiting + decoder.flush()
        if rest:
            yield rest
