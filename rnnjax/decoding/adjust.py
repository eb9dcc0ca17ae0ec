"""The distribution that the next symbol is drawn from, and the draw."""

from __future__ import annotations

import operator
from collections.abc import Iterable

import jax
import jax.numpy as jnp

__all__ = ["adjust_logits", "check_settings", "draw", "symbol_ids"]


def adjust_logits(
    logits: jax.Array,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    banned: int | Iterable[int] | None = None,
) -> jax.Array:
    r"""The distribution that is sampled from; what is left out gets minus infinity.

    In this order: `banned` goes; `logits / temperature`; the `top_k` likeliest stay; of those, renormalised, the
    fewest likeliest stay whose probabilities sum to `top_p` or more, at least one (Holtzman et al., 2020). Among
    equal logits the lower id counts as the likelier.

    Args:
        logits: `[..., V]`.
        temperature: 1e-6 or above; 0 leaves the likeliest symbol only.
        top_k: 0 for all.
        top_p: in (0, 1], 1 for all.
        banned: an id that is never drawn, or several.

    Returns:
        Logits `[..., V]`, not normalised.

    Raises:
        ValueError: for a number out of range.
        TypeError: if an id is no integer.

    >>> adjust_logits(jnp.log(jnp.array([0.5, 0.3, 0.2])), top_p=0.7) > -jnp.inf
    Array([ True,  True, False], dtype=bool)
    """
    check_settings("adjust_logits", temperature, top_k, top_p)
    vocab_size = logits.shape[-1]
    for symbol in symbol_ids("adjust_logits", "banned", banned, vocab_size):
        logits = logits.at[..., symbol].set(-jnp.inf)
    if temperature == 0:
        top_k = 1
    else:
        logits = (logits - logits.max(axis=-1, keepdims=True)) / temperature  # never above 0: no overflow
    if not 0 < top_k < vocab_size and top_p == 1:
        return logits
    order = jnp.argsort(logits, axis=-1, descending=True, stable=True)
    rank = jnp.argsort(order, axis=-1)
    if 0 < top_k < vocab_size:
        logits = jnp.where(rank < top_k, logits, -jnp.inf)
    if top_p < 1:
        probs = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
        enough = jnp.cumsum(probs, axis=-1) - probs >= top_p  # those before it suffice
        logits = jnp.where(jnp.take_along_axis(enough, rank, axis=-1), -jnp.inf, logits)
    return logits


def draw(
    keys: jax.Array | None,
    logits: jax.Array,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    banned: int | Iterable[int] | None = None,
) -> jax.Array:
    r"""One symbol for each row, drawn from what `adjust_logits` leaves.

    Args:
        keys: `[B]`, one a row, so that no row depends on how many others there are; None will do at
            temperature 0.
        logits: `[B, V]`.
        temperature: see `adjust_logits`, as for the rest; 0 for the likeliest symbol.
        top_k: 0 for all.
        top_p: 1 for all.
        banned: an id that is never drawn, or several.

    Returns:
        int32 `[B]`.

    Raises:
        ValueError: for a number out of range, or no keys above temperature 0.
        TypeError: if an id is no integer.

    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> draw(keys, jnp.array([[0.0, 9.0, 0.0], [0.0, 0.0, 9.0]]), top_k=1).tolist()
    [1, 2]
    """
    if temperature == 0:
        symbols = jnp.argmax(adjust_logits(logits, banned=banned), axis=-1)
    elif keys is None:
        raise ValueError(f"draw: keys must be given at temperature {temperature:g}, got None; 0 needs none.")
    else:
        logits = adjust_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p, banned=banned)
        symbols = jax.vmap(jax.random.categorical)(keys, logits)
    return symbols.astype(jnp.int32)


def check_settings(where: str, temperature: float, top_k: int, top_p: float) -> None:
    """Raises unless `adjust_logits` takes these numbers."""
    if temperature != 0 and not 1e-6 <= temperature < float("inf"):
        raise ValueError(
            f"{where}: temperature must be at least 1e-6, or 0 for always the likeliest symbol, got {temperature:g}."
        )
    if top_k < 0:
        raise ValueError(f"{where}: top_k must be 0 (no limit) or a number of symbols, got {top_k}.")
    if not 0 < top_p <= 1:
        raise ValueError(f"{where}: top_p must be above 0 and at most 1 (no limit), got {top_p:g}.")


def symbol_ids(
    where: str, name: str, symbols: int | Iterable[int] | None, vocab_size: int | None = None
) -> tuple[int, ...]:
    """One id, several or none, as a tuple without repetitions, in the order given."""
    given = () if symbols is None else symbols
    try:
        ids = tuple(map(operator.index, given if isinstance(given, Iterable) else (given,)))
    except TypeError:
        raise TypeError(f"{where}: {name} must be a symbol's id, several of them or None, got {symbols!r}.") from None
    for i in ids:
        if i < 0 or (vocab_size is not None and i >= vocab_size):
            most = "0 or above" if vocab_size is None else f"from 0 to {vocab_size - 1}"
            raise ValueError(f"{where}: {name} must be ids {most}, got {i}.")
    return tuple(dict.fromkeys(ids))
