"""Pictures of two digits side by side, their captions in several languages, and surnames of a language."""

import dataclasses
import functools
import gzip
import pathlib
import struct
import unicodedata
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from num2words import num2words

from experiments.common import DataError

__all__ = [
    "LANGUAGES",
    "STOP",
    "UNKNOWN",
    "Batch",
    "Characters",
    "Images",
    "Pictures",
    "bundled_digits",
    "captions",
    "mnist_digits",
    "read_idx",
    "read_names",
    "seen",
    "split_names",
]

STOP, UNKNOWN, PADDING = 0, 1, -1
LANGUAGES = {"en": "English", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "da": "Danish"}


class Characters:
    """Symbols 0 (stop) and 1 (any character that the training part lacks), then the characters."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.characters = tuple(sorted({character for text in texts for character in text}))
        self._ids = {character: i + 2 for i, character in enumerate(self.characters)}

    def __len__(self) -> int:
        return len(self.characters) + 2

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Symbols ``[N, T]`` with a stop and then padding, and lengths ``[N]`` that count the stop."""
        lengths = np.array([len(text) + 1 for text in texts], np.int32)
        symbols = np.full((len(texts), lengths.max(initial=1)), PADDING, np.int32)
        for row, text in zip(symbols, texts):
            row[: len(text) + 1] = [*(self._ids.get(character, UNKNOWN) for character in text), STOP]
        return symbols, lengths

    def decode(self, symbols: Iterable[int]) -> str:
        """Characters before the first stop; a question mark for the unknown one."""
        found = []
        for symbol in symbols:
            if symbol == STOP:
                break
            found.append(self.characters[symbol - 2] if symbol > UNKNOWN else "?")
        return "".join(found)


class Images(NamedTuple):
    """Digits: float32 ``[N, S, S]`` between 0 and 1, and labels ``[N]``."""

    pixels: np.ndarray
    labels: np.ndarray


def bundled_digits() -> dict[str, Images]:
    """The 1797 digits of 8 x 8 pixels that come with scikit-learn, the last fifth of them held out."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = Images((pixels.reshape(-1, 8, 8) / 16).astype(np.float32), labels.astype(np.int32))
    return _cut(images, {"train": 1257, "valid": 180, "test": 360})


def mnist_digits(folder: pathlib.Path) -> dict[str, Images]:
    """MNIST: the last 5,000 of the training part are for validation."""
    found = {}
    for part, stem in (("train", "train"), ("test", "t10k")):
        paths = [folder / f"{stem}-images-idx3-ubyte.gz", folder / f"{stem}-labels-idx1-ubyte.gz"]
        pixels, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
        if len(pixels) != len(labels):
            problem = f"needs one label an image, got {len(labels)} labels for the {len(pixels)} of {paths[0].name}"
            raise DataError(paths[1], None, problem)
        if labels.max(initial=0) > 9:
            at = int(np.argmax(labels > 9))
            raise DataError(paths[1], at + 1, f"needs a digit, got the label {labels[at]} (a line is an item here)")
        found[part] = Images(pixels.astype(np.float32) / 255, labels.astype(np.int32))
    train = found["train"]
    held_out = min(5_000, len(train.labels) // 2)
    return {**_cut(train, {"train": len(train.labels) - held_out, "valid": held_out}), "test": found["test"]}


def read_idx(path: pathlib.Path, ndim: int) -> np.ndarray:
    """An array of bytes in a gzip file of the idx format."""
    if not path.is_file():
        raise DataError(path, None, "there is no such file; the folder needs images and labels of train and t10k")
    try:
        content = gzip.decompress(path.read_bytes())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(path, None, f"cannot be unpacked ({error}); fetch the file again") from error
    if len(content) < 4 + 4 * ndim or content[:4] != bytes([0, 0, 8, ndim]):
        raise DataError(
            path, None, f"must be an idx file of bytes with {ndim} axes, got {content[:4].hex() or 'nothing'}"
        )
    shape = struct.unpack(f">{ndim}I", content[4 : 4 + 4 * ndim])
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * ndim)
    if len(values) != np.prod(shape):
        raise DataError(path, None, f"must hold {np.prod(shape)} bytes, got {len(values)}; fetch the file again")
    return values.reshape(shape)


def _cut(images: Images, sizes: Mapping[str, int]) -> dict[str, Images]:
    ends = np.cumsum(list(sizes.values()))
    return {
        name: Images(*(array[end - size : end] for array in images)) for (name, size), end in zip(sizes.items(), ends)
    }


@functools.cache
def captions() -> tuple[tuple[str, ...], ...]:
    """The numbers 0 to 99 in words, a row a language.

    >>> [row[47] for row in captions()][:3]
    ['forty-seven', 'siebenundvierzig', 'quarante-sept']
    """
    return tuple(tuple(num2words(n, lang=code) for n in range(100)) for code in LANGUAGES)


def seen() -> np.ndarray:
    """Which numbers are shown in training in which language: bool ``[L, 100]``, about nine out of ten."""
    hashes = [[zlib.crc32(f"{code}:{n}".encode()) for n in range(100)] for code in LANGUAGES]
    return np.array(hashes) % 10 != 0


class Batch(NamedTuple):
    """Pictures, the languages asked for, and captions."""

    pictures: np.ndarray  # [B, S, 2 S]
    languages: np.ndarray  # int [B]
    symbols: np.ndarray  # int [B, T]
    lengths: np.ndarray  # int [B]
    numbers: np.ndarray  # int [B]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Endless pictures of two digits each, moved by up to ``shift`` pixels; a pure function of the step.

    Args:
        images: digits of one part.
        characters: of the captions.
        batch_size: B.
        seed: of the draw.
        shift: how far a digit may be off its place, either way.
        unseen: also numbers in languages that training never shows them in.
    """

    images: Images
    characters: Characters
    batch_size: int
    seed: tuple[int, ...]
    shift: int = 0
    unseen: bool = False

    def __call__(self, step: int) -> Batch:
        """The batch of a step."""
        rng = np.random.default_rng([*self.seed, step])
        rows, numbers, languages = self._draw(rng)
        symbols, lengths = self._table
        at = languages * 100 + numbers
        halves = [self._moved(rng, rows[:, side]) for side in (0, 1)]
        return Batch(np.concatenate(halves, axis=2), languages, symbols[at], lengths[at], numbers)

    def _draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        found: list[tuple[np.ndarray, ...]] = []
        while sum(len(part[1]) for part in found) < self.batch_size:
            rows = rng.integers(0, len(self.images.labels), (self.batch_size, 2))
            numbers = self.images.labels[rows] @ np.array([10, 1])
            languages = rng.integers(0, len(LANGUAGES), self.batch_size).astype(np.int32)
            keep = np.full(self.batch_size, True) if self.unseen else seen()[languages, numbers]
            found.append((rows[keep], numbers[keep], languages[keep]))
        rows, numbers, languages = (np.concatenate(part)[: self.batch_size] for part in zip(*found))
        return rows, numbers, languages

    @functools.cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        return self.characters.encode([text for row in captions() for text in row])

    def _moved(self, rng: np.random.Generator, rows: np.ndarray) -> np.ndarray:
        pixels, shift = self.images.pixels[rows], self.shift
        if not shift:
            return pixels
        size = pixels.shape[1]
        padded = np.pad(pixels, ((0, 0), (shift, shift), (shift, shift)))
        down, right = rng.integers(0, 2 * shift + 1, (2, len(rows), 1)) + np.arange(size)
        return padded[np.arange(len(rows))[:, None, None], down[:, :, None], right[:, None, :]]


def read_names(folder: pathlib.Path) -> dict[str, list[str]]:
    """Different surnames of each language, from files ``Language.txt`` with one a line, in the order of the files.

    Raises:
        DataError: for a folder without such files, a line that is empty, and a file without lines or not in UTF-8.
    """
    paths = sorted(path for path in folder.glob("*.txt") if path.stem not in ("SOURCE", "README"))
    if not paths:
        raise DataError(folder, None, "needs files such as English.txt with a name a line, got none")
    names = {}
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            line = path.read_bytes()[: error.start].count(b"\n") + 1
            raise DataError(path, line, f"must be UTF-8, got {error.reason}; convert the file") from error
        for number, line in enumerate(lines, 1):
            if not line.strip():
                raise DataError(path, number, "needs a name, got an empty line; remove it")
        if len(lines) < 10:
            raise DataError(path, None, f"needs at least 10 names, got {len(lines)}")
        names[path.stem] = list(dict.fromkeys(unicodedata.normalize("NFC", line.strip()) for line in lines))
    return names


def split_names(names: Mapping[str, Sequence[str]], seed: int) -> dict[str, dict[str, list[str]]]:
    """Parts of every language: a tenth each "valid" and "test", the rest "train"; no name of a language is in two."""
    parts: dict[str, dict[str, list[str]]] = {"train": {}, "valid": {}, "test": {}}
    for number, (language, found) in enumerate(names.items()):
        order = np.random.default_rng([seed, number]).permutation(len(found))
        tenth = max(1, len(found) // 10)
        for part, rows in zip(("test", "valid", "train"), np.split(order, [tenth, 2 * tenth])):
            parts[part][language] = [found[row] for row in rows]
    return parts
