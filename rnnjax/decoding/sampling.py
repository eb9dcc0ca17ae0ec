"""One continuation for every row: the likeliest symbol each time, or a drawn one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.checks import check_ints, check_key, describe, is_traced
from rnnjax.decoding.adjust import check_settings, draw
from rnnjax.decoding.steps import Rules, Step, call, first_symbols, inspect_step, make_rules
from rnnjax.kinds import public

__all__ = ["Decoded", "greedy", "sample"]


class Decoded(NamedTuple):
    """What was decoded, a row for each row of the state."""

    tokens: jax.Array  # int32 [B, max_len]; behind the end the first stop symbol
    lengths: jax.Array  # int32 [B]: symbols up to the end, the stop symbol included
    finished: jax.Array  # bool [B]: whether a stop symbol ended the row, not max_len
    log_probs: jax.Array  # [B]: log-probability of tokens[:length] under the model, in nats


@public(but=("step",))
def greedy(
    step: Step,
    state: Any,
    start: Any,
    *,
    max_len: int,
    stop: int | Iterable[int] | None = None,
    min_len: int = 0,
    banned: int | Iterable[int] | None = None,
) -> Decoded:
    r"""The likeliest symbol, again and again, compiled.

        state, logits = step(state, symbols)
        symbols       = argmax(logits)            among equals the lowest id

    Ends when every row has stopped. Bind parameters, an encoder's memory and the like to the step by
    `functools.partial`: what it binds may change without a new compilation; the arrays that a plain function captures
    may change too, but each call outside of `jax.jit` compiles anew. Both work within `jit` and `vmap`.

    Args:
        step: `(state, symbols [B]) -> (state, logits [B, V])`, a pure function that treats every row alone.
        state: before the first step; a pytree whose leaves are `[B, ...]`.
        start: what the first step reads, an id or ids `[B]`; it is no part of the tokens.
        max_len: symbols of a row at most.
        stop: the id that ends a row, or several; None for none.
        min_len: symbols of a row at least, the stop symbol included: none comes before.
        banned: an id that never comes, or several.

    Returns:
        See `Decoded`. Log-probabilities are the model's own, `log_softmax(logits)`, whatever is banned. A row whose
        logits leave no symbol (NaN, or minus infinity for all that may come) ends before it, with a log-probability of
        NaN.

    Raises:
        ValueError: for a number out of range, an unknown id, no symbol left, or a step that changes the state's shapes.
        TypeError: for what is of another kind.

    >>> table = jnp.log(jnp.array([[0.1, 0.6, 0.3], [0.2, 0.2, 0.6], [0.5, 0.4, 0.1]]))
    >>> def step(state, symbols):  # a Markov chain has no state
    ...     return state, table[symbols]
    >>> decoded = greedy(step, (), jnp.array([1, 2]), max_len=4, stop=0)
    >>> decoded.tokens.tolist(), decoded.lengths.tolist()
    ([[2, 0, 0, 0], [0, 0, 0, 0]], [2, 1])
    >>> jnp.exp(decoded.log_probs)
    Array([0.3, 0.5], dtype=float32)
    """
    where = "greedy"
    rules = make_rules(where, max_len, min_len, stop, banned)
    start = check_ints(where, "start symbols", start)
    return call(where, _decode, step, state, start, None, (), settings=(where, rules, 0.0, 0, 1.0))


@public(but=("step", "key"))
def sample(
    step: Step,
    state: Any,
    start: Any,
    *,
    key: jax.Array,
    max_len: int,
    temperature: float | jax.Array = 1.0,
    top_k: int | jax.Array = 0,
    top_p: float | jax.Array = 1.0,
    stop: int | Iterable[int] | None = None,
    min_len: int = 0,
    banned: int | Iterable[int] | None = None,
) -> Decoded:
    r"""Draws one symbol after the other, compiled.

        state, logits = step(state, symbols)
        symbols       ~ softmax(adjust_logits(logits, temperature, top_k, top_p))

    Every symbol has a key of its own, from its row's key and its place, so a row depends neither on those beside it nor
    on `max_len`. Several samples of each row: `jax.vmap` over keys, which shares what the step binds or captures.

    Args:
        step: see `greedy`, as for all that is not here.
        state: before the first step.
        start: what the first step reads.
        key: for this call only: one, of which row b uses `jax.random.fold_in(key, b)`, or keys `[B]` of the rows.
        max_len: symbols of a row at most.
        temperature: see `adjust_logits`, as for the next two; 0 is `greedy`. Traced values are arguments of the
            program, others are part of it.
        top_k: 0 for all.
        top_p: 1 for all.
        stop: the id that ends a row, or several.
        min_len: symbols of a row at least.
        banned: an id that never comes, or several.

    Returns:
        See `Decoded`. Log-probabilities are the model's own, not those of the adjusted distribution. Rows without a
        symbol to draw are treated as by `greedy`.

    Raises:
        ValueError: as `greedy`, and for keys that are not one or B.
        TypeError: for what is of another kind.

    >>> table = jnp.log(jnp.array([[0.1, 0.6, 0.3], [0.2, 0.2, 0.6], [0.5, 0.4, 0.1]]))
    >>> def step(state, symbols):
    ...     return state, table[symbols]
    >>> decoded = sample(step, (), jnp.array([1, 2]), key=jax.random.key(0), max_len=4, stop=0, top_k=2)
    >>> decoded.tokens.shape, bool((decoded.log_probs < 0).all())
    ((2, 4), True)
    """
    where = "sample"
    rules = make_rules(where, max_len, min_len, stop, banned)
    numbers = check_settings(where, temperature, top_k, top_p)
    key = check_key(where, key, several=True)
    # What is traced is an argument of the program, and stands in its place as None.
    fixed = (None if is_traced(number) else number for number in numbers)
    traced = tuple(number for number in numbers if is_traced(number))
    start = check_ints(where, "start symbols", start)
    return call(where, _decode, step, state, start, key, traced, settings=(where, rules, *fixed))


def _decode(
    step: Step,
    state: Any,
    start: Any,
    key: jax.Array | None,
    traced: tuple[jax.Array, ...],
    where: str,
    rules: Rules,
    *fixed: Any,
) -> Decoded:
    rest = iter(traced)
    temperature, top_k, top_p = (next(rest) if number is None else number for number in fixed)
    symbols = first_symbols(where, state, start)
    info = inspect_step(where, step, state, symbols)
    rules.check(where, info.vocab_size)
    rows = len(symbols)
    keys = None if key is None else _row_keys(where, key, rows)

    def unfinished(carry: Any) -> jax.Array:
        t, *_, done, _ = carry
        return (t < rules.max_len) & ~done.all()

    def advance(carry: Any) -> Any:
        t, state, symbols, tokens, lengths, log_probs, done, finished = carry
        state, logits = step(state, symbols)
        logits = logits.astype(info.dtype)
        at = None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, t)
        symbols = draw(at, rules.allow(t, logits), temperature=temperature, top_k=top_k, top_p=top_p)
        gained = jnp.take_along_axis(jax.nn.log_softmax(logits), symbols[:, None], axis=1)[:, 0]
        nothing = symbols < 0  # no symbol is left to draw from such logits: the row ends here
        gained = jnp.where(nothing, jnp.nan, gained)
        # A row that is done goes on in vain, until all are.
        symbols = jnp.where(done | nothing, rules.pad, symbols)
        return (
            t + 1,
            state,
            symbols,
            jax.lax.dynamic_update_index_in_dim(tokens, symbols, t, 0),
            lengths + (~done & ~nothing).astype(jnp.int32),
            log_probs + jnp.where(done, jnp.zeros((), gained.dtype), gained),
            done | nothing | rules.stops(symbols),
            finished | (~done & ~nothing & rules.stops(symbols)),
        )

    carry = (
        jnp.int32(0),
        state,
        symbols,
        jnp.full((rules.max_len, rows), rules.pad, jnp.int32),
        jnp.zeros((rows,), jnp.int32),
        jnp.zeros((rows,), info.dtype),
        jnp.zeros((rows,), bool),
        jnp.zeros((rows,), bool),
    )
    *_, tokens, lengths, log_probs, _, finished = jax.lax.while_loop(unfinished, advance, carry)
    return Decoded(tokens.T, lengths, finished, log_probs)


def _row_keys(where: str, key: jax.Array, rows: int) -> jax.Array:
    if key.dtype == jnp.uint32:
        key = jax.random.wrap_key_data(key)
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
    if key.shape != (rows,):
        raise ValueError(f"{where}: key must be one key or keys [B] with B = {rows}, got {describe(key)}.")
    return key
