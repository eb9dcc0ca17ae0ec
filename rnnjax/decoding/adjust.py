"""The distribution that the next symbol is drawn from, and the draw."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.checks import check_real, check_size, describe, is_traced, short
from rnnjax.kinds import public

__all__ = ["NOTHING", "adjust_logits", "check_settings", "draw", "symbol_ids"]

NOTHING = -1  # the symbol of a row that has none to draw


@public
def adjust_logits(
    logits: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    top_k: int | jax.Array = 0,
    top_p: float | jax.Array = 1.0,
    banned: int | Iterable[int] | None = None,
) -> jax.Array:
    r"""The distribution that is sampled from; what is left out gets minus infinity.

    In this order: `banned` goes; `logits / temperature`; the `top_k` likeliest stay; of those, renormalised, the
    fewest likeliest stay whose probabilities sum to `top_p` or more, at least one (Holtzman et al., 2020). Among
    equal logits the lower id counts as the likelier.

    Args:
        logits: `[..., V]`, floating.
        temperature: 1e-6 or above; 0 leaves the likeliest symbol only. It may be traced, as the next two, so that one
            compiled program serves all values; then nobody checks them.
        top_k: 0 for all.
        top_p: in (0, 1], 1 for all.
        banned: an id that is never drawn, or several.

    Returns:
        Logits `[..., V]`, not normalised.

    Raises:
        ValueError: for a number out of range, all symbols banned, or a row whose largest logit is not finite (traced
            logits give a row without a finite number).
        TypeError: if an id is no integer, or the logits are not floating.

    >>> adjust_logits(jnp.log(jnp.array([0.5, 0.3, 0.2])), top_p=0.7) > -jnp.inf
    Array([ True,  True, False], dtype=bool)
    """
    temperature, top_k, top_p = check_settings("adjust_logits", temperature, top_k, top_p)
    return _adjust("adjust_logits", logits, temperature, top_k, top_p, banned)


def _adjust(where: str, logits: Any, temperature: Any, top_k: Any, top_p: Any, banned: Any) -> jax.Array:
    logits = jnp.asarray(logits)
    if not logits.ndim or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(f"{where}: logits must be floating, of shape [..., V], got {describe(logits)}.")
    vocab_size = logits.shape[-1]
    ids = symbol_ids(where, "banned", banned, vocab_size)
    if len(ids) == vocab_size:
        raise ValueError(f"{where}: a symbol must be left to draw, got all {vocab_size} of them banned.")
    if ids:
        logits = jnp.where(np.isin(np.arange(vocab_size), ids), jnp.full((), -jnp.inf, logits.dtype), logits)
    top = logits.max(axis=-1, keepdims=True)
    if not is_traced(top) and top.size and not bool(jnp.isfinite(top).all()):
        raise ValueError(
            f"{where}: logits must hold no NaN or infinity, and minus infinity at most for some symbols of a row that "
            f"are not banned, got {describe(logits)} with a largest one of {float(top[~jnp.isfinite(top)][0]):g}."
        )
    cold = temperature == 0
    # Never above 0, so that nothing overflows.
    divisor = jnp.where(cold, 1, temperature).astype(logits.dtype) if is_traced(cold) else temperature or 1.0
    scaled = (logits - top) / divisor
    if not is_traced((temperature, top_k, top_p)) and not cold and not 0 < top_k < vocab_size and top_p == 1:
        return scaled
    order = jnp.argsort(logits, axis=-1, descending=True, stable=True)
    rank = jnp.argsort(order, axis=-1)
    most = jnp.where(jnp.asarray(top_k) > 0, top_k, vocab_size)
    scaled = jnp.where(rank < jnp.where(cold, 1, most), scaled, -jnp.inf)
    probs = jax.nn.softmax(jnp.take_along_axis(scaled, order, axis=-1), axis=-1)
    enough = (jnp.cumsum(probs, axis=-1) - probs >= top_p) & (jnp.asarray(top_p) < 1)  # those before it suffice
    return jnp.where(jnp.take_along_axis(enough, rank, axis=-1), -jnp.inf, scaled)


@public
def draw(
    keys: jax.Array | None,
    logits: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    top_k: int | jax.Array = 0,
    top_p: float | jax.Array = 1.0,
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
        int32 `[B]`. Where logits are traced, a row that has no symbol to draw (NaN, or minus infinity for all that are
        not banned) gets -1.

    Raises:
        ValueError: for a number out of range, all symbols banned, a row of concrete logits whose largest is not finite,
            or not a key for each row above temperature 0.
        TypeError: if an id is no integer, or the logits are not floating.

    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> draw(keys, jnp.array([[0.0, 9.0, 0.0], [0.0, 0.0, 9.0]]), top_k=1).tolist()
    [1, 2]
    """
    temperature, top_k, top_p = check_settings("draw", temperature, top_k, top_p)
    logits = jnp.asarray(logits)
    if logits.ndim != 2:
        raise ValueError(f"draw: logits must have shape [B, V], got {describe(logits)}.")
    if not is_traced(temperature) and temperature == 0:
        left = _adjust("draw", logits, 1.0, 0, 1.0, banned)
        symbols = jnp.argmax(left, axis=-1)
    elif keys is None:
        raise ValueError(f"draw: keys must be given at temperature {describe(temperature)}, got None; 0 needs none.")
    else:
        single = jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)  # an old key is a row of numbers
        if (keys.shape if single else keys.shape[:-1]) != logits.shape[:1]:
            raise ValueError(
                f"draw: keys must be keys [B] with B = {len(logits)}, one for each row, got {describe(keys)}; "
                "jax.random.split makes them."
            )
        left = _adjust("draw", logits, temperature, top_k, top_p, banned)
        symbols = jax.vmap(jax.random.categorical)(keys, left)
    possible = jnp.isfinite(left.max(axis=-1))
    return jnp.where(possible, symbols, NOTHING).astype(jnp.int32)


def check_settings(where: str, temperature: Any, top_k: Any, top_p: Any) -> tuple[Any, Any, Any]:
    """The numbers that `adjust_logits` takes, in one form; raises for others. Traced ones are not judged."""
    temperature = check_real(where, "temperature", temperature, traced=True)
    if not is_traced(temperature) and temperature != 0 and temperature < 1e-6:
        raise ValueError(
            f"{where}: temperature must be at least 1e-6, or 0 for always the likeliest symbol, got {temperature:g}."
        )
    if not is_traced(top_k):
        top_k = check_size(where, "top_k", top_k, least=0)
    elif not jnp.issubdtype(top_k.dtype, jnp.integer) or top_k.ndim:
        raise TypeError(f"{where}: top_k must be an int, got {describe(top_k)}.")
    return temperature, top_k, check_real(where, "top_p", top_p, above=0, most=1, traced=True)


def symbol_ids(
    where: str, name: str, symbols: int | Iterable[int] | None, vocab_size: int | None = None
) -> tuple[int, ...]:
    """One id, several or none, as a tuple without repetitions, in the order given."""
    given: Any = () if symbols is None else symbols
    try:
        given = tuple(given) if isinstance(given, Iterable) and getattr(given, "ndim", None) != 0 else (given,)
        if any(isinstance(i, bool | np.bool_) or getattr(getattr(i, "dtype", None), "kind", "") == "b" for i in given):
            raise TypeError
        ids = tuple(map(operator.index, given))
    except (TypeError, ValueError):
        raise TypeError(
            f"{where}: {name} must be a symbol's id, several of them or None, got {short(symbols)}."
        ) from None
    for i in ids:
        if i < 0 or (vocab_size is not None and i >= vocab_size):
            most = "0 or above" if vocab_size is None else f"from 0 to {vocab_size - 1}"
            raise ValueError(f"{where}: {name} must be ids {most}, got {i}.")
    return tuple(dict.fromkeys(ids))
