"""Decoding: symbols out of a model, for a whole batch and compiled.

A model takes part by a step, `(state, symbols [B]) -> (state, logits [B, V])`, whose parameters are bound to it:

>>> import functools, jax, rnnjax
>>> cell = rnnjax.GRU(3)
>>> def step(params, state, symbols):
...     return cell.step(params, state, jax.nn.one_hot(symbols, 3))
>>> params = cell.init(jax.random.key(0), input_size=3)
>>> bound = functools.partial(step, params)
>>> beams = rnnjax.decoding.beam_search(bound, cell.initial_state((2,)), start=0, max_len=5, beam_size=4, stop=2)
>>> beams.tokens.shape
(2, 4, 5)

For a model with an encoder bind its memory too; the beams of a row share it.
"""

from rnnjax.decoding.adjust import adjust_logits, draw
from rnnjax.decoding.beam import beam_search
from rnnjax.decoding.sampling import greedy, sample

__all__ = [
    "adjust_logits",
    "beam_search",
    "draw",
    "greedy",
    "sample",
]
