"""Reads the files that MNIST comes in, and says in one sentence what is wrong with one."""

import gzip
import math
import pathlib
import zlib
from typing import NamedTuple

import numpy as np

from experiments.common import DataError

__all__ = ["Digits", "read_digits", "read_idx"]

_NAMES = {"train": "train", "test": "t10k"}


class Digits(NamedTuple):
    """Images and what they show."""

    images: np.ndarray  # uint8 [N, 28, 28]
    labels: np.ndarray  # uint8 [N], 0 to 9


def read_idx(path: pathlib.Path, axes: int) -> np.ndarray:
    """The bytes of an idx file, gzipped or not, as an array with so many axes.

    Raises:
        DataError: if the file is missing, damaged, of another type, or shorter or longer than it says.
    """
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error) as error:
        problem = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise DataError(path, None, f"{problem}; take the file as it was published") from error
    if len(data) < 4 + 4 * axes or data[:4] != bytes([0, 0, 8, axes]):
        raise DataError(path, None, f"must be an idx file of bytes with {axes} axes, got one that begins {data[:4]!r}")
    shape = tuple(int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes))
    if len(data) - 4 - 4 * axes != math.prod(shape):
        raise DataError(path, None, f"must hold {math.prod(shape)} bytes, got {len(data) - 4 - 4 * axes}")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


def read_digits(folder: pathlib.Path, part: str) -> Digits:
    """One part of MNIST, ``train`` or ``test``.

    Raises:
        DataError: if a file is damaged, or the images and the labels do not belong together.
    """
    image_path = folder / f"{_NAMES[part]}-images-idx3-ubyte.gz"
    label_path = folder / f"{_NAMES[part]}-labels-idx1-ubyte.gz"
    images, labels = read_idx(image_path, 3), read_idx(label_path, 1)
    if images.shape[1:] != (28, 28) or not len(images):
        raise DataError(image_path, None, f"must hold images of 28 x 28, got the shape {images.shape}")
    if len(images) != len(labels):
        raise DataError(label_path, None, f"must hold a label for each of {len(images)} images, got {len(labels)}")
    if labels.max() > 9:
        at = int(np.argmax(labels > 9))
        raise DataError(label_path, None, f"labels must be 0 to 9, got {labels[at]} at entry {at}")
    return Digits(images, labels)
