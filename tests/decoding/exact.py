"""What decoding must find, in NumPy and float64, symbol by symbol and sequence by sequence."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


def exact_probs(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float, banned: int | tuple[int, ...] | None
) -> np.ndarray:
    """Probabilities in float64, symbol by symbol from the likeliest on."""
    logits = np.array(logits, np.float64)
    if banned is not None:
        logits[np.array(banned)] = -np.inf
    order = np.argsort(-logits, kind="stable")
    if temperature == 0:
        return np.eye(len(logits))[order[0]]
    probs = np.exp((logits - logits.max()) / temperature)
    if top_k:
        probs[order[top_k:]] = 0
    probs /= probs.sum()
    kept, mass = [], 0.0
    for symbol in order:
        if mass >= top_p and kept:
            break
        kept.append(symbol)
        mass += probs[symbol]
    nucleus = np.zeros_like(probs)
    nucleus[kept] = probs[kept]
    return nucleus / nucleus.sum()


class Net(NamedTuple):
    """A small tanh network whose logits depend on all symbols so far."""

    embedding: np.ndarray  # [V, H]
    w: np.ndarray  # [H, H]
    w_out: np.ndarray  # [H, V]


def make_net(vocab_size: int, hidden_size: int = 5, seed: int = 0, scale: float = 0.7) -> Net:
    rng = np.random.default_rng(seed)
    shapes = (vocab_size, hidden_size), (hidden_size, hidden_size), (hidden_size, vocab_size)
    return Net(*((scale * rng.standard_normal(shape)).astype(np.float32) for shape in shapes))


def log_probs_after(net: Net, h: np.ndarray, start: int, symbols: tuple[int, ...]) -> np.ndarray:
    """Log-probabilities `[V]` of what follows the symbols."""
    h = np.asarray(h, np.float64)
    for symbol in (start, *symbols):
        h = np.tanh(net.embedding[symbol].astype(np.float64) + h @ net.w.astype(np.float64))
    logits = h @ net.w_out.astype(np.float64)
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def log_prob(net: Net, h: np.ndarray, start: int, symbols: tuple[int, ...]) -> float:
    """Of a sequence, as the sum over its places."""
    return sum(log_probs_after(net, h, start, symbols[:t])[symbol] for t, symbol in enumerate(symbols))


def all_sequences(
    vocab_size: int, max_len: int, stop: tuple[int, ...] = (), min_len: int = 0, banned: tuple[int, ...] = ()
) -> Iterator[tuple[int, ...]]:
    """Every sequence that decoding may return: it ends with its first stop symbol, or at max_len."""
    for length in range(1, max_len + 1):
        for symbols in itertools.product(range(vocab_size), repeat=length):
            stops = [symbol in stop for symbol in symbols]
            ends = stops[-1] and length >= min_len
            if (
                not any(stops[:-1])
                and not set(symbols) & set(banned)
                and (ends or (length == max_len and not stops[-1]))
            ):
                yield symbols


def ranked(net: Net, h: np.ndarray, start: int, sequences: list, alpha: float) -> list[tuple[float, float, tuple]]:
    """All of them as (score, log-probability, symbols), the best first."""
    found = [(log_prob(net, h, start, symbols), symbols) for symbols in sequences]
    scored = [(value / ((5 + len(symbols)) / 6) ** alpha, value, symbols) for value, symbols in found]
    return sorted(scored, reverse=True)
