"""A reader and writer whose state is kept: it reads what one says, answers, and remembers both."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.lm.model import LanguageModel, LMParams
from rnnjax.lm.sample import default_prime, draw_block, read_block, sampler_settings
from rnnjax.text.vocabulary import StreamDecoder, Vocabulary

__all__ = ["Session"]

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
