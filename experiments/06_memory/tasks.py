"""The two problems that only a memory solves, and digits read pixel by pixel."""

import math
import pathlib
from typing import Any, NamedTuple

import numpy as np

from experiments.idx_files import Digits, read_digits

__all__ = ["BLANK", "COPIED", "MARK", "SYMBOLS", "Pixels", "adding", "copy", "no_memory", "pixels", "read_pixels"]

SYMBOLS, COPIED = 8, 10  # kinds of symbols, and how many of them are to be repeated
BLANK, MARK = SYMBOLS, SYMBOLS + 1


def copy(rng: np.random.Generator, lag: int, batch_size: int) -> dict[str, np.ndarray]:
    """Ten symbols, ``lag - 1`` blanks, a mark, ten blanks; from the mark's successor on, the ten are to be said again.

    Returns:
        ``xs`` and ``labels``, int32 ``[lag + 20, B]``: the label is the blank until the ten symbols come.
    """
    symbols = rng.integers(0, SYMBOLS, (COPIED, batch_size), np.int32)
    xs = np.full((lag + 2 * COPIED, batch_size), BLANK, np.int32)
    labels = xs.copy()
    xs[:COPIED], xs[COPIED + lag - 1], labels[-COPIED:] = symbols, MARK, symbols
    return {"xs": xs, "labels": labels}


def adding(rng: np.random.Generator, lag: int, batch_size: int) -> dict[str, np.ndarray]:
    """Numbers in [0, 1), two of them marked, one in each half; at the end their sum is to be said.

    Returns:
        ``xs`` float32 ``[lag, B, 2]``, the number and its mark, and ``labels`` float32 ``[B]``.
    """
    numbers = rng.random((lag, batch_size), np.float32)
    marks = np.zeros_like(numbers)
    rows = np.arange(batch_size)
    marks[rng.integers(0, lag // 2, batch_size), rows] = 1
    marks[rng.integers(lag // 2, lag, batch_size), rows] = 1
    return {"xs": np.stack([numbers, marks], axis=-1), "labels": (numbers * marks).sum(axis=0)}


def no_memory(task: str, lag: int) -> float:
    """The loss of the best answer that remembers nothing.

    For copy all but the last ten answers are known, and these ten are a guess among eight. For adding it is the
    variance of the sum of two numbers uniform in [0, 1): 1/6. (Le et al., 2015,
    give 0.1767.)

    >>> round(no_memory("copy", 100), 4), round(no_memory("adding", 100), 4)
    (0.1733, 0.1667)
    """
    return COPIED * math.log(SYMBOLS) / (lag + 2 * COPIED) if task == "copy" else 1 / 6


class Pixels(NamedTuple):
    """Images as sequences, with their classes."""

    xs: np.ndarray  # float32 [N, T], in [0, 1]
    labels: np.ndarray  # int32 [N]


def pixels(digits: Digits, *, pool: int, order: np.ndarray | None = None) -> Pixels:
    """Reads images row by row, after averaging squares of ``pool`` x ``pool`` pixels; ``order`` shuffles the steps."""
    count, height, width = digits.images.shape
    squares = digits.images.reshape(count, height // pool, pool, width // pool, pool)
    xs = (squares.mean(axis=(2, 4), dtype=np.float32) / 255).reshape(count, -1)
    return Pixels(xs if order is None else xs[:, order], digits.labels.astype(np.int32))


def read_pixels(
    folder: pathlib.Path, *, pool: int, permuted: bool, train: int, valid: int, test: int | None
) -> dict[str, Any]:
    """Training, validation and test sequences of MNIST; validation is cut from the end of the published training part.

    Args:
        folder: with the four files.
        pool: side of the squares that are averaged; 1 keeps all 784 pixels.
        permuted: whether all images are read in one fixed random order.
        train: images to train on, at most 60,000 less ``valid``.
        valid: images for early stopping.
        test: images of the test part; None takes all.
    """
    side = 28 // pool
    order = np.random.default_rng(42).permutation(side * side) if permuted else None
    known, held_out = read_digits(folder, "train"), read_digits(folder, "test")
    cut = len(known.labels) - valid
    return {
        "train": pixels(Digits(*(part[: min(train, cut)] for part in known)), pool=pool, order=order),
        "valid": pixels(Digits(*(part[cut:] for part in known)), pool=pool, order=order),
        "test": pixels(Digits(*(part[:test] for part in held_out)), pool=pool, order=order),
    }
