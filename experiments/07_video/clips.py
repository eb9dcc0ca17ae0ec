"""Clips of moving digits, with what is to be said of every frame."""

import pathlib
from typing import NamedTuple

import numpy as np

from experiments.idx_files import Digits, read_digits

__all__ = ["CANVAS", "MOVES", "SPRITE", "UNKNOWN", "Clips", "bundled", "from_mnist", "make_clips", "split"]

SPRITE, CANVAS = 8, 16  # pixels
MOVES = np.array([[0, -1], [0, 1], [-1, 0], [1, 0]])  # left, right, up, down, as (row, column) a frame
UNKNOWN = -1
TURN = 0.15  # probability that a digit turns between two frames


class Clips(NamedTuple):
    """Frames and their labels."""

    frames: np.ndarray  # float32 [T, B, CANVAS, CANVAS], in [0, 1]
    present: np.ndarray  # bool [T, B, 10]
    moves: np.ndarray  # int32 [T, B, 10]: from its place one frame before; UNKNOWN if it was not there


def bundled() -> Digits:
    """scikit-learn's 1,797 digits of 8 x 8 pixels.

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "clips: the digits come with scikit-learn, which is missing; pip install 'rnnjax[experiments]'."
        ) from error
    found = load_digits()
    return Digits(np.round(found.images * (255 / 16)).astype(np.uint8), found.target.astype(np.uint8))


def from_mnist(folder: pathlib.Path, part: str) -> Digits:
    """MNIST at the same size: without its two outer pixels, squares of 3 x 3 averaged."""
    images, labels = read_digits(folder, part)
    squares = images[:, 2:26, 2:26].reshape(len(images), SPRITE, 3, SPRITE, 3)
    small = squares.mean(axis=(2, 4), dtype=np.float32)
    # Averages of thin strokes are pale: as bright as the bundled ones.
    bright = np.minimum(255, 1.5 * small)
    return Digits(bright.astype(np.uint8), labels)


def split(digits: Digits, shares: tuple[float, ...], seed: int = 0) -> list[Digits]:
    """Cuts the images, shuffled, into parts that share none; what is left belongs to a last part."""
    order = np.random.default_rng(seed).permutation(len(digits.labels))
    cuts = np.cumsum(np.round(np.array(shares) * len(order)).astype(int))
    return [Digits(digits.images[part], digits.labels[part]) for part in np.split(order, cuts)]


def make_clips(rng: np.random.Generator, digits: Digits, num_frames: int, batch_size: int) -> Clips:
    """Clips of one or two digits of different kinds, which come, move a pixel a frame, turn, and go.

    A digit turns at random and where the edge of the canvas stops it. It comes within the first third of the frames,
    and leaves within the last third or stays.
    """
    frames = np.zeros((num_frames, batch_size, CANVAS, CANVAS), np.float32)
    present = np.zeros((num_frames, batch_size, 10), bool)
    moves = np.full((num_frames, batch_size, 10), UNKNOWN, np.int32)
    for clip in range(batch_size):
        for _ in range(rng.integers(1, 3)):
            which = rng.integers(len(digits.labels))
            kind = digits.labels[which]
            if present[:, clip, kind].any():  # of this kind there is one already
                continue
            begin = rng.integers(0, num_frames // 3 + 1)
            end = rng.integers(num_frames - num_frames // 3, num_frames + 1)
            path, turns = walk(rng, end - begin)
            present[begin:end, clip, kind] = True
            moves[begin + 1 : end, clip, kind] = turns
            image = digits.images[which] / np.float32(255)
            for frame, (row, column) in zip(range(begin, end), path):
                window = frames[frame, clip, row : row + SPRITE, column : column + SPRITE]
                np.maximum(window, image, out=window)
    return Clips(frames, present, moves)


def walk(rng: np.random.Generator, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Places ``[num_frames, 2]`` of a sprite's corner, and the index in `MOVES` of the move to each but the first."""
    room = CANVAS - SPRITE
    places, turns = [rng.integers(0, room + 1, 2)], []
    move = rng.integers(len(MOVES))
    for _ in range(num_frames - 1):
        if rng.random() < TURN:
            move = rng.integers(len(MOVES))
        possible = [k for k, step in enumerate(MOVES) if ((places[-1] + step >= 0) & (places[-1] + step <= room)).all()]
        if move not in possible:
            move = rng.choice(possible)
        places.append(places[-1] + MOVES[move])
        turns.append(move)
    return np.array(places), np.array(turns, np.int32)
