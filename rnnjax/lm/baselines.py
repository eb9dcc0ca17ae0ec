r"""What a model without a network reaches on the same split: the lines that a training run has to pass."""

from __future__ import annotations

import contextlib
import json
import lzma
import math
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from rnnjax.checks import check_ids, check_size
from rnnjax.kinds import public
from rnnjax.text.corpus import Corpus
from rnnjax.text.vocabulary import Vocabulary

__all__ = [
    "MAX_SYMBOLS",
    "Baselines",
    "compute_baselines",
    "read_baselines",
    "unigram",
    "witten_bell",
    "witten_bell_log_probs",
    "xz",
]

MAX_SYMBOLS = 20_000_000
MAX_VALID = 2_000_000
_BLOCK = 1 << 20
_XZ_DICTIONARY = 1 << 26


class Baselines(NamedTuple):
    """Nats per symbol on the first `valid_symbols` symbols of the validation part.

    `unigram` saw all of the training part, `xz` the end of it that fits into its dictionary, and `witten_bell`, which
    is of `order`, the last `train_symbols` symbols.
    """

    unigram: float
    witten_bell: float
    xz: float
    order: int
    train_symbols: int
    valid_symbols: int


@public
def compute_baselines(
    corpus: Corpus, *, order: int = 5, max_symbols: int = MAX_SYMBOLS, max_valid: int = MAX_VALID
) -> Baselines:
    """All of them; `xz` takes seconds per megabyte, so call the others alone for a first answer at once.

    Memory and time are bounded, whatever the length of the text: about 2 GB and ten minutes by default, besides one
    pass through the text.

    Args:
        corpus: the text.
        order: the n of the n-gram.
        max_symbols: of the training part, its last ones, that the n-gram sees.
        max_valid: of the validation part, its first ones, that are predicted.
    """
    vocab_size, valid = len(corpus.vocabulary), corpus.valid[:max_valid]
    return Baselines(
        unigram=unigram(corpus.train, valid, vocab_size),
        witten_bell=witten_bell(corpus.train, valid, vocab_size, order, max_symbols=max_symbols),
        xz=xz(corpus.train, valid, corpus.vocabulary),
        order=order,
        train_symbols=min(len(corpus.train), max_symbols),
        valid_symbols=len(valid),
    )


def read_baselines(path: pathlib.Path) -> dict[str, float]:
    """The losses in a run's file of baselines that are numbers, in nats a symbol; none of a damaged or missing one."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        nats = json.loads(path.read_text(encoding="utf-8"))["nats"]
        return {k: float(v) for k, v in nats.items() if isinstance(v, int | float) and math.isfinite(v)}
    return {}


@public
def unigram(train: np.ndarray, valid: np.ndarray, vocab_size: int) -> float:
    r"""Cross-entropy of the symbol frequencies, each counted once more than it occurs.

    p(w) = (c(w) + 1) / (n + V)

    Args:
        train: ids `[n]`.
        valid: ids `[N]`.
        vocab_size: V.

    Returns:
        Nats per symbol of `valid`.

    Raises:
        ValueError: an empty part.

    >>> round(unigram(np.array([0, 0, 1]), np.array([0]), 2), 4)  # -ln(3/5)
    0.5108
    """
    train, valid = check_ids("unigram", train, vocab_size, "train"), check_ids("unigram", valid, vocab_size, "valid")
    _require_both(train, valid, "unigram")
    log_p = np.log((_counts(train, vocab_size) + 1) / (len(train) + vocab_size))
    return float(-(_counts(valid, vocab_size) @ log_p) / len(valid))


@public
def witten_bell(
    train: np.ndarray, valid: np.ndarray, vocab_size: int, order: int = 5, *, max_symbols: int = MAX_SYMBOLS
) -> float:
    """Nats per symbol under `witten_bell_log_probs`, of at most `max_symbols` of each text.

    It is trained on the last ones of `train`, and tried on the first ones of `valid`, so that its memory is bounded.
    """
    check_size("witten_bell", "max_symbols", max_symbols)
    train, valid = (check_ids("witten_bell", ids, vocab_size, n) for ids, n in ((train, "train"), (valid, "valid")))
    return float(-witten_bell_log_probs(train[-max_symbols:], valid[:max_symbols], vocab_size, order).mean())


@public
def witten_bell_log_probs(train: np.ndarray, valid: np.ndarray, vocab_size: int, order: int = 5) -> np.ndarray:
    r"""Log-probabilities under an interpolated Witten-Bell n-gram model.

    p(w | h) = (c(h, w) + N(h) p(w | h')) / (c(h) + N(h)), where N(h) is the number of distinct symbols seen
    after h, and h' is h without its first symbol; a context never seen gives p(w | h'). The recursion ends in
    1/V.

    On the characters of tiny Shakespeare (last tenth for validation) orders 1 to 6 give 3.347, 2.486, 2.049,
    1.774, 1.669 and 1.698 nats. About 60 bytes per training symbol are needed at a time (1.2 GB at
    `MAX_SYMBOLS`). `valid` stands alone: its first symbols have the shorter context.

    Args:
        train: ids `[n]`.
        valid: ids `[N]`.
        vocab_size: V.
        order: the n of n-gram: `order - 1` symbols of context.

    Returns:
        float64 `[N]`, nats.

    Raises:
        ValueError: an empty part, or an order below 1.

    Source: Witten and Bell (1991), The zero-frequency problem; Chen and Goodman (1998) for the recursion.
    """
    train, valid = (check_ids("witten_bell", ids, vocab_size, n) for ids, n in ((train, "train"), (valid, "valid")))
    _require_both(train, valid, "witten_bell")
    if order < 1:
        raise ValueError(f"witten_bell: order must be at least 1, got {order}; use 5 for four symbols of context.")
    probs = np.full(len(valid), 1.0 / vocab_size)
    # The contexts of the positions k, k+1, ... of each part, as ranks among the contexts seen in training, -1
    # for none.
    contexts = np.zeros(len(train), np.int64)
    valid_contexts = np.zeros(len(valid), np.int64)
    num_contexts = 1
    for k in range(min(order, len(train), len(valid))):
        # A symbol after its context, as one number; the distinct ones, sorted, stand context by context.
        grams, contexts, counts = np.unique(contexts * vocab_size + train[k:], return_inverse=True, return_counts=True)
        owners = grams // vocab_size
        followers = np.bincount(owners, minlength=num_contexts)  # N(h)
        totals = np.bincount(owners, weights=counts, minlength=num_contexts)  # c(h)

        known = valid_contexts >= 0
        keys = valid_contexts[known] * vocab_size + valid[k:][known]
        ranks = np.minimum(np.searchsorted(grams, keys), len(grams) - 1)
        seen = grams[ranks] == keys
        owner = valid_contexts[known]
        with_context = np.flatnonzero(known) + k
        distinct = followers[owner]
        # The last context of the text may have no follower: nothing is known about it.
        probs[with_context] = np.divide(
            seen * counts[ranks] + distinct * probs[with_context],
            totals[owner] + distinct,
            out=probs[with_context],
            where=distinct > 0,
        )
        # A symbol with its context is the context of the next one.
        valid_contexts = np.full(len(valid) - k, -1, np.int64)
        valid_contexts[known] = np.where(seen, ranks, -1)
        contexts, valid_contexts, num_contexts = contexts[:-1], valid_contexts[:-1], len(grams)
    return np.log(probs)


@public
def xz(train: np.ndarray, valid: np.ndarray, vocabulary: Vocabulary) -> float:
    r"""What `xz -9e` needs for the validation text once it has seen the training text, in nats per symbol.

    (size(xz(train + valid)) - size(xz(train))) * 8 * ln 2 / N

    The dictionary of `xz -9` is 64 MiB: only the last 64 MiB of the training text are given to it. The
    compressor takes up to 700 MB of memory and seconds per megabyte, and lets other threads run meanwhile.

    Args:
        train: ids `[n]`.
        valid: ids `[N]`.
        vocabulary: turns them into bytes.

    Raises:
        ValueError: an empty part.
    """
    _require_both(train, valid, "xz")
    start, size = len(train), 0
    while start > 0 and size < _XZ_DICTIONARY:
        stop, start = start, max(start - _BLOCK, 0)
        size += len(vocabulary.decode_bytes(train[start:stop]))
    alone, both = (_xz_size((train[start:], more), vocabulary) for more in (valid[:0], valid))
    return (both - alone) * 8 * math.log(2) / len(valid)


def _xz_size(parts: tuple[np.ndarray, ...], vocabulary: Vocabulary) -> int:
    compressor = lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME)
    size = sum(len(compressor.compress(vocabulary.decode_bytes(ids))) for part in parts for ids in _blocks(part))
    return size + len(compressor.flush())


def _counts(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    # Block by block: bincount makes an int64 copy of what it counts.
    counts = np.zeros(vocab_size, np.int64)
    for block in _blocks(ids):
        counts += np.bincount(block, minlength=vocab_size)
    return counts


def _blocks(ids: np.ndarray) -> Iterator[np.ndarray]:
    return (ids[start : start + _BLOCK] for start in range(0, len(ids), _BLOCK))


def _require_both(train: np.ndarray, valid: np.ndarray, where: str) -> None:
    if not len(train) or not len(valid):
        raise ValueError(
            f"{where}: train and valid must hold symbols, got {len(train)} and {len(valid)}; "
            f"use a longer text or larger fractions."
        )
