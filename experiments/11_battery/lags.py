"""Sequences in which something has to be remembered: each function draws a `Batch` of them."""

from typing import Any

import jax
import jax.numpy as jnp

from .batch import Batch

__all__ = [
    "arithmetic",
    "copy",
    "flip_flop",
    "lag",
    "noisy_lag",
    "order",
    "parity",
    "selective_copy",
    "spikes",
    "two_sequences",
]

LONGEST = 100  # lag of the two sequences


def _at_end(xs: jax.Array, targets: jax.Array) -> Batch:
    """One answer ``[B]`` or ``[B, O]``, at the last step."""
    steps, batch = xs.shape[:2]
    asked = jnp.zeros((steps, batch), bool).at[-1].set(True)
    return Batch(xs, jnp.broadcast_to(targets, (steps, *targets.shape)), asked)


def arithmetic(key: Any, steps: int, batch: int, *, product: bool) -> Batch:
    """Numbers in [0, 1) and two marks, one in each half; at the end the sum, or product, of what is marked."""
    keys = jax.random.split(key, 3)
    numbers = jax.random.uniform(keys[0], (steps, batch))
    first = jax.random.randint(keys[1], (batch,), 0, steps // 2)
    second = jax.random.randint(keys[2], (batch,), steps // 2, steps)
    marks = jax.nn.one_hot(first, steps, axis=0) + jax.nn.one_hot(second, steps, axis=0)
    a, b = (jnp.take_along_axis(numbers, at[None], 0)[0] for at in (first, second))
    return _at_end(jnp.stack([numbers, marks], -1), (a * b if product else a + b)[:, None])


def order(key: Any, steps: int, batch: int, *, places: tuple[tuple[float, float], ...]) -> Batch:
    """One of four distractors at every step, but X or Y at one step of each place, a share of the sequence.

    The class, at the end, is in which order they came.
    """
    keys = jax.random.split(key, 2 + len(places))
    symbols = jax.random.randint(keys[0], (steps, batch), 0, 4)
    which = jax.random.bernoulli(keys[1], 0.5, (len(places), batch)).astype(int)
    label = jnp.zeros(batch, int)
    for number, (low, high) in enumerate(places):
        at = jax.random.randint(keys[2 + number], (batch,), round(low * steps), round(high * steps))
        symbols = symbols.at[at, jnp.arange(batch)].set(4 + which[number])
        label = 2 * label + which[number]
    symbols = symbols.at[0].set(6).at[-1].set(7)
    return _at_end(jax.nn.one_hot(symbols, 8), label)


def lag(key: Any, steps: int, batch: int) -> Batch:
    """The two sequences (x, a1, ..., ap, x) and (y, a1, ..., ap, y), p = steps - 1 < 100; the next symbol is asked."""
    del key, batch  # there are two sequences
    between = jnp.broadcast_to(jnp.arange(2, steps + 1)[:, None], (steps - 1, 2))
    ends = jnp.arange(2)[None]
    symbols = jnp.concatenate([ends, between, ends])
    return Batch(jax.nn.one_hot(symbols[:-1], LONGEST + 1), symbols[1:], jnp.ones((steps, 2), bool))


def noisy_lag(key: Any, steps: int, batch: int, *, least: int, distractors: int) -> Batch:
    """b, then x or y, at least so many distractors, and e, which comes with a chance of 0.1; then it was x or y."""
    keys = jax.random.split(key, 3)
    which = jax.random.bernoulli(keys[0], 0.5, (batch,)).astype(int)
    symbols = jax.random.randint(keys[1], (steps, batch), 4, 4 + distractors)
    waits = jnp.floor(jnp.log(jax.random.uniform(keys[2], (batch,), minval=1e-6)) / jnp.log(0.9)).astype(int)
    end = jnp.minimum(2 + least + waits, steps - 1)
    symbols = symbols.at[0].set(2).at[1].set(which).at[end, jnp.arange(batch)].set(3)
    asked = jnp.arange(steps)[:, None] == end
    return Batch(jax.nn.one_hot(symbols, 4 + distractors), jnp.broadcast_to(which, (steps, batch)), asked)


def two_sequences(key: Any, steps: int, batch: int, *, informative: int) -> Batch:
    """Noise of variance 0.2, around 1 or -1 in the first few steps; which of the two, is asked at the end."""
    keys = jax.random.split(key)
    which = jax.random.bernoulli(keys[0], 0.5, (batch,))
    mean = jnp.where(jnp.arange(steps)[:, None] < informative, jnp.where(which, 1.0, -1.0), 0.0)
    return _at_end((mean + 0.2**0.5 * jax.random.normal(keys[1], (steps, batch)))[..., None], which.astype(int))


def copy(key: Any, gap: int, batch: int, *, copied: int, kinds: int) -> Batch:
    """Symbols, a gap of blanks, a mark; then the symbols are to be said again."""
    said = jax.random.randint(key, (copied, batch), 0, kinds)
    symbols = jnp.full((gap + 2 * copied, batch), kinds).at[:copied].set(said).at[gap + copied].set(kinds + 1)
    targets = jnp.zeros(symbols.shape, int).at[-copied:].set(said)
    return Batch(jax.nn.one_hot(symbols, kinds + 2), targets, jnp.zeros(symbols.shape, bool).at[-copied:].set(True))


def selective_copy(key: Any, length: int, batch: int, *, copied: int, kinds: int) -> Batch:
    """Symbols at random places among blanks; after a mark they are to be said again, in their order."""
    keys = jax.random.split(key)
    said = jax.random.randint(keys[0], (copied, batch), 0, kinds)
    places = jnp.argsort(jax.random.uniform(keys[1], (length, batch)), axis=0)[:copied]
    places = jnp.sort(places, axis=0)
    symbols = jnp.full((length + copied, batch), kinds).at[places, jnp.arange(batch)].set(said)
    symbols = symbols.at[length:].set(kinds + 1)
    targets = jnp.zeros(symbols.shape, int).at[length:].set(said)
    return Batch(jax.nn.one_hot(symbols, kinds + 2), targets, jnp.zeros(symbols.shape, bool).at[length:].set(True))


def flip_flop(key: Any, steps: int, batch: int, *, bits: int = 3, rate: float = 0.1) -> Batch:
    """Channels with rare pulses of 1 and -1; what is asked of each is its last pulse, 0 before the first."""
    keys = jax.random.split(key)
    signs = jnp.where(jax.random.bernoulli(keys[0], 0.5, (steps, batch, bits)), 1.0, -1.0)
    pulses = jnp.where(jax.random.bernoulli(keys[1], rate, signs.shape), signs, 0.0)

    def hold(state: jax.Array, pulse: jax.Array) -> tuple[jax.Array, jax.Array]:
        state = jnp.where(pulse == 0, state, pulse)
        return state, state

    held = jax.lax.scan(hold, jnp.zeros((batch, bits)), pulses)[1]
    return Batch(pulses, held, jnp.ones((steps, batch), bool))


def parity(key: Any, steps: int, batch: int) -> Batch:
    """Bits; at every step, whether the number of ones so far is odd."""
    bits = jax.random.bernoulli(key, 0.5, (steps, batch)).astype(int)
    targets = jnp.cumsum(bits, axis=0) % 2
    return Batch(2.0 * bits[..., None] - 1.0, targets, jnp.ones((steps, batch), bool))


def spikes(key: Any, steps: int, batch: int, *, shortest: int, kinds: int) -> Batch:
    """Spikes; at each, how many steps ago the one before it came, in units in which neighbours differ by 2 / kinds."""
    intervals = shortest + jax.random.randint(key, (steps // shortest, batch), 0, kinds)
    times = jnp.cumsum(intervals, axis=0)
    here = jnp.arange(steps)[:, None, None] == times[None]  # [T, N, B]
    asked = here.any(1)
    value = 2.0 * (intervals - shortest) / kinds - 1.0 + 1.0 / kinds
    first = jnp.arange(steps)[:, None] == 0
    return Batch((asked | first)[..., None].astype(float), jnp.sum(here * value, 1)[..., None], asked)
