"""Beam search: the likeliest continuations, several of them side by side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.checks import check_ints, check_real, check_size
from rnnjax.decoding.steps import Rules, Step, StepInfo, call, first_symbols, inspect_step, make_rules
from rnnjax.kinds import public

__all__ = ["Beams", "beam_search", "normalize_length"]


class Beams(NamedTuple):
    """The `num_best` = N best of each row, the best first; where there are fewer, scores are minus infinity."""

    tokens: jax.Array  # int32 [B, N, max_len]; behind the end the first stop symbol
    lengths: jax.Array  # int32 [B, N]: symbols up to the end, the stop symbol included
    finished: jax.Array  # bool [B, N]: whether a stop symbol was the end, not max_len
    log_probs: jax.Array  # [B, N]: log-probability of tokens[:length] under the model, in nats
    scores: jax.Array  # [B, N]: log_probs with the length penalty


def normalize_length(log_probs: Any, lengths: Any, length_penalty: float) -> jax.Array:
    r"""The score of a sequence of n symbols (Wu et al., 2016).

        score = log_prob / ((5 + n) / 6) ** length_penalty

    Args:
        log_probs: any shape, in nats.
        lengths: n, of the same shape; a stop symbol counts.
        length_penalty: 0 for the log-probability itself; the larger, the better long sequences fare.

    >>> float(normalize_length(-2.0, 7, 1.0))
    -1.0
    """
    log_probs = jnp.asarray(log_probs)
    return log_probs / ((5 + jnp.asarray(lengths).astype(log_probs.dtype)) / 6) ** length_penalty


@public(but=("step",))
def beam_search(
    step: Step,
    state: Any,
    start: Any,
    *,
    max_len: int,
    beam_size: int = 4,
    num_best: int | None = None,
    length_penalty: float = 0.0,
    stop: int | Iterable[int] | None = None,
    min_len: int = 0,
    banned: int | Iterable[int] | None = None,
) -> Beams:
    r"""The best sequences that a search of K = `beam_size` finds (Graves, 2012; Sutskever et al., 2014), compiled.

        candidates = log_probs[k] + log_softmax(logits[k])[v]       of every live sequence k and every symbol v
        live       = the K likeliest candidates                     among equals the earlier k, then the lower v

    Those of the K that end in a stop symbol leave the beam; of all that did, the N = `num_best` with the best scores,
    ``log_prob / ((5 + n) / 6) ** length_penalty``, are kept. At `max_len` the live ones join them. A row is done as
    soon as nothing live can get among its N best: since log-probabilities only fall, a live sequence will never score
    above ``log_prob / ((5 + max_len) / 6) ** length_penalty``. A smaller N therefore ends earlier, with the same best.
    A beam of one is `greedy`; one that no candidate falls out of finds the best of all sequences.

    Memory: K states a row, two integers for each step and beam, and nothing else that grows with `max_len`. The beam is
    an axis of `jax.vmap` around the step, which therefore sees B rows as ever: what `functools.partial` binds or a
    function captures, such as an encoder's memory ``[T, B, H]``, is there once for all beams of a row, and never
    copied. The same holds for a leaf of the state that the step hands back as it is, whatever its axes.

    Args:
        step: `(state, symbols [B]) -> (state, logits [B, V])`, as for `greedy`, which says when it is compiled.
        state: before the first step; a pytree whose leaves are `[B, ...]`.
        start: what the first step reads, an id or ids `[B]`; it is no part of the tokens.
        max_len: symbols of a sequence at most.
        beam_size: K.
        num_best: N, at most K; None for K.
        length_penalty: 0 for none; Wu et al. use 0.2 to 1.
        stop: the id that ends a sequence, or several; None for none.
        min_len: symbols of a sequence at least, the stop symbol included: none comes before.
        banned: an id that never comes, or several.

    Returns:
        See `Beams`. Log-probabilities are the model's own, `log_softmax(logits)`, whatever is banned. A sequence after
        which the logits are NaN ends nowhere, and is not among the best.

    Raises:
        ValueError: for a number out of range, an unknown id, no symbol left, or a step that changes the state's shapes.
        TypeError: for what is of another kind.

    >>> table = jnp.log(jnp.array([[0.1, 0.6, 0.3], [0.3, 0.3, 0.4], [0.1, 0.8, 0.1]]))
    >>> def step(state, symbols):  # a Markov chain has no state
    ...     return state, table[symbols]
    >>> beams = beam_search(step, (), jnp.array([1]), max_len=3, beam_size=2, stop=0)
    >>> beams.tokens.tolist(), beams.lengths.tolist()
    ([[[0, 0, 0], [2, 1, 2]]], [[1, 3]])
    >>> jnp.exp(beams.log_probs).round(3)
    Array([[0.3  , 0.128]], dtype=float32)
    """
    where = "beam_search"
    rules = make_rules(where, max_len, min_len, stop, banned)
    beam_size = check_size(where, "beam_size", beam_size)
    num_best = beam_size if num_best is None else check_size(where, "num_best", num_best)
    if num_best > beam_size:
        raise ValueError(f"{where}: num_best must be at most beam_size = {beam_size}, got {num_best}.")
    length_penalty = check_real(where, "length_penalty", length_penalty, least=0)
    settings = (rules, beam_size, num_best, length_penalty)
    start = check_ints(where, "start symbols", start)
    return call(where, _search, step, state, start, settings=settings)


class _Best(NamedTuple):
    """Of the sequences that have left the beam those to return, `[B, N]`, the best first."""

    scores: jax.Array
    log_probs: jax.Array
    lengths: jax.Array
    slots: jax.Array  # where in the beam the last symbol lies
    finished: jax.Array


def _search(
    step: Step, state: Any, start: Any, rules: Rules, beam_size: int, num_best: int, length_penalty: float
) -> Beams:
    first = first_symbols("beam_search", state, start)
    info = inspect_step("beam_search", step, state, first)
    rules.check("beam_search", info.vocab_size)
    rows, K = len(first), beam_size
    step_beams, states = _over_beams(step, state, info, K)
    limit = jnp.int32(rules.max_len)

    def searching(carry: Any) -> jax.Array:
        t, _, _, log_probs, *_ = carry
        return (t < limit) & (log_probs != -jnp.inf).any()

    def advance(carry: Any) -> Any:
        t, states, symbols, log_probs, tokens, parents, best = carry
        states, logits = step_beams(states, symbols)
        symbols, from_, log_probs = _choose(rules, t, logits, log_probs)
        stops = rules.stops(symbols)
        leaving = stops | (t + 1 == limit)
        best = _merge(best, leaving, stops, log_probs, t + 1, length_penalty)
        log_probs = jnp.where(leaving, -jnp.inf, log_probs)
        reachable = normalize_length(log_probs.max(axis=1), limit, length_penalty)  # [B]
        log_probs = jnp.where((best.scores[:, -1] >= reachable)[:, None], -jnp.inf, log_probs)
        if K > 1:
            states = [jax.vmap(lambda leaf, at: leaf[at])(leaf, from_) for leaf in states]
        write = jax.lax.dynamic_update_index_in_dim
        return t + 1, states, symbols, log_probs, write(tokens, symbols, t, 0), write(parents, from_, t, 0), best

    none, nothing = jnp.full((rows, num_best), -jnp.inf, info.dtype), jnp.zeros((rows, num_best), jnp.int32)
    carry = (
        jnp.int32(0),
        states,
        jnp.repeat(first[:, None], K, axis=1),  # [B, K]
        jnp.full((rows, K), -jnp.inf, info.dtype).at[:, 0].set(0),  # one sequence, not K equal ones
        jnp.zeros((rules.max_len, rows, K), jnp.int32),
        jnp.zeros((rules.max_len, rows, K), jnp.int32),
        _Best(none, none, nothing, nothing, nothing.astype(bool)),
    )
    *_, tokens, parents, best = jax.lax.while_loop(searching, advance, carry)

    def back(slots: jax.Array, at: Any) -> tuple[jax.Array, jax.Array]:
        t, symbols, parents = at
        inside = t < best.lengths
        symbols = jnp.where(inside, jnp.take_along_axis(symbols, slots, axis=1), rules.pad)
        return jnp.where(inside, jnp.take_along_axis(parents, slots, axis=1), slots), symbols

    _, found = jax.lax.scan(back, best.slots, (jnp.arange(rules.max_len), tokens, parents), reverse=True)
    return Beams(jnp.moveaxis(found, 0, -1), best.lengths, best.finished, best.log_probs, best.scores)


def _over_beams(step: Step, state: Any, info: StepInfo, beam_size: int) -> tuple[Any, list[jax.Array]]:
    """The step for leaves `[B, K, ...]` of those parts of the state that change, and these leaves."""
    leaves = jax.tree.leaves(state)
    structure: Any = jax.tree.structure(state)
    states = [leaf for leaf, same in zip(leaves, info.constant) if not same]

    def one(states: list[jax.Array], symbols: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        changing = iter(states)
        now = [leaf if same else next(changing) for leaf, same in zip(leaves, info.constant)]
        after, logits = step(structure.unflatten(now), symbols)
        after = [leaf for leaf, same in zip(jax.tree.leaves(after), info.constant) if not same]
        return after, logits.astype(info.dtype)

    states = [jnp.repeat(jnp.expand_dims(leaf, 1), beam_size, axis=1) for leaf in states]
    return jax.vmap(one, in_axes=1, out_axes=1), states


def _choose(
    rules: Rules, t: jax.Array, logits: jax.Array, log_probs: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The K likeliest continuations of logits `[B, K, V]`: symbols, beams that they continue, log-probabilities."""
    rows, K, vocab_size = logits.shape
    gained = jax.nn.log_softmax(logits)
    # Compared from the best one on, so that long sequences do not round differences away.
    most = log_probs.max(axis=1, keepdims=True)
    behind = log_probs - jnp.where(most == -jnp.inf, 0, most)
    # A single beam compares the logits themselves, as `greedy` does.
    totals = rules.allow(t, logits if K == 1 else behind[..., None] + gained)
    # Whatever became of an empty beam's state, and what a model cannot say anything about.
    totals = jnp.where((log_probs[..., None] == -jnp.inf) | jnp.isnan(totals), -jnp.inf, totals)
    totals, at = jax.lax.top_k(totals.reshape(rows, K * vocab_size), K)
    beams, symbols = at // vocab_size, at % vocab_size
    found = jnp.take_along_axis(log_probs, beams, axis=1)
    found += jnp.take_along_axis(gained.reshape(rows, -1), at, axis=1)
    return symbols.astype(jnp.int32), beams.astype(jnp.int32), jnp.where(totals == -jnp.inf, -jnp.inf, found)


def _merge(
    best: _Best, leaving: jax.Array, stops: jax.Array, log_probs: jax.Array, length: jax.Array, length_penalty: float
) -> _Best:
    """The best of those that were, and those that leave the beam `[B, K]` at this length."""
    rows, K = leaving.shape
    scores = jnp.where(leaving, normalize_length(log_probs, length, length_penalty), -jnp.inf)
    slots = jnp.broadcast_to(jnp.arange(K, dtype=jnp.int32), (rows, K))
    # A beam that is empty leaves a score of minus infinity behind, which must not bring its length along.
    new = _Best(scores, scores, jnp.where(scores == -jnp.inf, 0, length), slots, stops & (scores != -jnp.inf))
    new = new._replace(log_probs=jnp.where(scores == -jnp.inf, -jnp.inf, log_probs))
    both = jax.tree.map(lambda old, new: jnp.concatenate([old, new], axis=1), best, new)
    _, at = jax.lax.top_k(both.scores, best.scores.shape[1])
    return jax.tree.map(lambda leaf: jnp.take_along_axis(leaf, at, axis=1), both)
