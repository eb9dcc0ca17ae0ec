r"""A text as the trainer needs it: ids of train, valid and test, and contiguous streams over them.

A text is read twice, in blocks: once to count its symbols, once to write their ids into arrays of the
smallest type that holds them, allocated for all parts beforehand. So at most 256 symbols cost one byte of
memory a symbol, whatever the text's size.
"""

from __future__ import annotations

import codecs
import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from rnnjax.checks import check_choice, check_real, check_size, short
from rnnjax.kinds import public
from rnnjax.options import option
from rnnjax.text.documents import DocumentFinder
from rnnjax.text.sources import Tally, open_sources, read_symbols
from rnnjax.text.vocabulary import LEVELS, UNKNOWN, Vocabulary, check_unknown, count_symbols

__all__ = [
    "SPLITS",
    "Chunk",
    "Corpus",
    "Piece",
    "TextOptions",
    "chunk",
    "load_corpus",
    "num_chunks",
    "require_length",
    "split_pieces",
    "streams",
]

SPLITS = ("tail", "columns")


@dataclasses.dataclass(frozen=True)
class TextOptions:
    r"""Which text, and how to read and split it.

    `dataclasses.asdict` gives values that JSON can hold; `TextOptions(**values)` is the inverse.

    Args:
        paths: files (also gzip), directories, `"-"` for the standard input; none: the source of Python's
            standard library.
        level: `"char"`, `"byte"` or `"word"`.
        min_count: symbols that are rarer become the unknown symbol (not at the byte level).
        encoding: of the text (not at the byte level).
        glob: which files of a directory to read.
        split: `"tail"`: train, valid and test follow one another. `"columns"`: the text is cut into `rows`
            equal rows, and each row into its train, valid and test part, so that all parts are spread through
            the text; with `rows` equal to the batch size these are the splits of Karpathy's char-rnn.
        fractions: of train, valid and test; they sum to one, and some may be zero.
        document_separator: ends a document, so that the next symbol starts with a fresh state; None: the text
            is one whole. It also stands between two files (else a newline does), unless the first ends with
            it already.
        rows: of the split `"columns"`.

    Raises:
        ValueError: a value that is not allowed.
    """

    paths: tuple[str, ...] = ()
    level: str = option("char", "What a symbol of the text is.", "char|byte|word")
    min_count: int = option(1, "Rarer symbols become the unknown symbol.", "COUNT")
    encoding: str = option("utf-8", "Encoding of the text.", "NAME")
    glob: str = option("*", "Which files of a folder, for example '*.txt'.", "PATTERN")
    split: str = option("tail", "One part after the other, or spread through the text.", "|".join(SPLITS))
    fractions: tuple[float, float, float] = option(
        (0.9, 0.05, 0.05), "Shares of train, validation and test.", "TRAIN,VALID,TEST"
    )
    document_separator: str | None = option(
        None, "Text between documents; the state is reset after it. \\n stands for a newline.", "TEXT"
    )
    rows: int = 50

    def __post_init__(self) -> None:
        where = "TextOptions"
        for name in ("paths", "fractions"):  # JSON gives lists back
            value = getattr(self, name)
            if not isinstance(value, tuple | list):
                raise TypeError(f"{where}: {name} must be a tuple, got {short(value)}; write ({short(value)},).")
        if not all(isinstance(path, str | os.PathLike) for path in self.paths):
            raise TypeError(f"{where}: paths must be names of files or folders, got {short(self.paths)}.")
        object.__setattr__(self, "paths", tuple(map(os.fspath, self.paths)))
        check_choice(where, "level", self.level, LEVELS)
        check_choice(where, "split", self.split, SPLITS)
        for name in ("min_count", "rows"):
            object.__setattr__(self, name, check_size(where, name, getattr(self, name)))
        shares = tuple(check_real(where, "fractions", share, least=0.0, most=1.0) for share in self.fractions)
        if len(shares) != 3 or not abs(sum(shares) - 1) < 1e-6:
            raise ValueError(
                f"{where}: fractions must be three numbers from 0 that sum to 1, of train, valid and test, got "
                f"{short(self.fractions)}; use for example 0.9, 0.05, 0.05."
            )
        object.__setattr__(self, "fractions", shares)
        if not isinstance(self.glob, str) or not self.glob or self.glob.startswith("/") or "\0" in self.glob:
            raise ValueError(
                f"{where}: glob must be a pattern below the directory, got {short(self.glob)}; use for example '*.txt'."
            )
        separator = self.document_separator
        if separator is not None and (not isinstance(separator, str) or separator == ""):
            raise ValueError(
                f"{where}: document_separator must be a text that is not empty, got {short(separator)}; use None for a "
                "text that is one whole."
            )
        try:
            "".encode(self.encoding)
            codecs.getincrementaldecoder(self.encoding)("strict").decode(b"", final=True)
        except (LookupError, UnicodeError, ValueError, TypeError) as error:
            raise ValueError(
                f"{where}: encoding must be a text encoding of Python, got {short(self.encoding)}; use for example "
                "utf-8."
            ) from error


class Corpus(NamedTuple):
    r"""A text in three parts.

    `train`, `valid`, `test` are ids `[n]` of `vocabulary.dtype`. In documents mode `*_starts` are the sorted
    positions (int64) of the symbols that start a document, that is, come right after a separator; where a
    part begins is one of them. Otherwise they are None. `sha256` and `n_bytes` are those of the bytes read
    (decompressed), `n_symbols` is the sum of the parts, `documents` their number (None without a separator),
    `n_unknown` how many symbols became the unknown one. `notes` are sentences on what is unusual about the text.
    """

    vocabulary: Vocabulary
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    train_starts: np.ndarray | None
    valid_starts: np.ndarray | None
    test_starts: np.ndarray | None
    sha256: str
    sources: str
    n_symbols: int
    n_bytes: int
    documents: int | None = None
    n_unknown: int = 0
    notes: tuple[str, ...] = ()


class Piece(NamedTuple):
    """Symbols `start` to `stop` of the text belong to `part`: 0 train, 1 valid, 2 test."""

    part: int
    start: int
    stop: int


class Chunk(NamedTuple):
    r"""Time-major symbols `[T, B]`; `targets` are one symbol further on.

    `resets` (bool `[T, B]`, None without documents) marks the inputs *before* which the state is to be reset.
    Before an epoch's first chunk the caller resets the whole state besides.
    """

    inputs: Any
    targets: Any
    resets: Any = None


@public
def load_corpus(
    options: TextOptions | None = None, *, vocabulary: Vocabulary | None = None, unknown: str = "replace"
) -> Corpus:
    r"""Reads, encodes and splits a text.

    The vocabulary is built on the whole text, so that with `min_count=1` every symbol of every part has an
    id. Memory: the ids, and for each document 8 bytes; words also need their vocabulary.

    Args:
        options: which text and how; by default characters of the standard library's source.
        vocabulary: of a trained model, to read another text with; `options.min_count` plays no part then.
        unknown: what becomes of symbols that are not in it, as in `Vocabulary.encode`; or `"add"`: they get ids behind
            the others, where they are as frequent as `options.min_count`.

    Raises:
        FileNotFoundError: a missing path, or a directory without a match.
        ValueError: an empty text, bytes that are not in the encoding, corrupt gzip, unknown symbols.
    """
    options = TextOptions() if options is None else options
    add = unknown == "add"
    unknown = "replace" if add else unknown
    check_unknown(unknown)
    if vocabulary is not None and vocabulary.level != options.level:
        raise ValueError(
            f"load_corpus: level must be that of the vocabulary, {vocabulary.level!r}, got "
            f"{options.level!r}; change the level."
        )
    with open_sources(options.paths, options.glob) as (sources, described):

        def read(tally: Tally) -> Iterator[Sequence[str]]:
            separator = "\n" if options.document_separator is None else options.document_separator
            return read_symbols(sources, options.level, encoding=options.encoding, separator=separator, tally=tally)

        tally = Tally()
        counts = count_symbols(read(tally))
        if vocabulary is None:
            vocabulary = Vocabulary.from_counts(options.level, counts, options.min_count)
        elif add:
            vocabulary = vocabulary.extended(counts, options.min_count)
        elif unknown == "error" or (unknown == "replace" and vocabulary.unknown is None):
            vocabulary.require_known(counts)
        kept = counts.keys() if unknown != "skip" else counts.keys() & set(vocabulary.symbols)
        n_symbols = sum(counts[symbol] for symbol in kept)
        known = set(vocabulary.symbols) - ({UNKNOWN} if vocabulary.unknown is not None else set())
        n_unknown = 0 if unknown == "skip" else sum(counts[symbol] for symbol in kept - known)
        windows = options.level != "byte" and any("\r" in symbol for symbol in counts if symbol.isspace())
        nuls = 0 if options.level == "byte" else counts.get("\0", 0)
        del counts, kept, known
        if not n_symbols:
            raise ValueError(
                f"load_corpus: the text must hold at least one symbol, got none from {described}; name another text."
            )
        again = Tally()
        (train, valid, test), starts, documents = _fill(read(again), n_symbols, vocabulary, options, unknown)
        if again.sha256 != tally.sha256:
            raise ValueError(
                f"load_corpus: the text must not change while it is read, got a change in {described}; copy it first."
            )
    notes = []
    if windows:
        notes.append("Lines of this text end in \\r\\n, as Windows writes them; \\r is learned like any symbol.")
    if 5 * nuls > n_symbols:
        notes.append("Many characters of this text are NUL: it looks like UTF-16; try encoding='utf-16-le'.")
    if documents == 1:
        notes.append(f"The document separator {options.document_separator!r} does not occur: all is one document.")
    return Corpus(
        vocabulary,
        *(train, valid, test),
        *starts,
        tally.sha256,
        described,
        n_symbols,
        tally.n_bytes,
        documents,
        n_unknown,
        tuple(notes),
    )


def split_pieces(num_symbols: int, options: TextOptions) -> list[Piece]:
    """Cuts a text into the pieces of train, valid and test, in the order of the text, none of them empty."""
    rows = options.rows if options.split == "columns" else 1
    row_len = num_symbols // rows
    train, valid, _ = options.fractions
    # Rounded down, but not by the error of the sum of the fractions.
    cuts = int(round(train * row_len, 6)), int(round((train + valid) * row_len, 6))
    edges = [row * row_len + cut for row in range(rows) for cut in (0, *cuts)] + [num_symbols]
    last = max(part for part in range(3) if options.fractions[part] > 0)
    # What the rows leave over belongs to the last part that is not empty by intention.
    return [
        Piece(min(i % 3, last), start, stop)
        for i, (start, stop) in enumerate(itertools.pairwise(edges))
        if start < stop
    ]


def require_length(num_symbols: int, batch_size: int, chunk_len: int, where: str = "train") -> None:
    """Raises the ValueError of a text that is too short for one chunk, with the sizes that would do."""
    if batch_size < 1 or chunk_len < 1:
        raise ValueError(
            f"{where}: batch_size and chunk_len must be at least 1, got {batch_size} and {chunk_len}; use 1 or more."
        )
    needed = batch_size * (chunk_len + 1)
    if num_symbols >= needed:
        return
    ways = [
        f"{name} at most {size}"
        for name, size in (
            ("batch_size", num_symbols // (chunk_len + 1)),
            ("chunk_len", num_symbols // batch_size - 1),
        )
        if size >= 1
    ]
    if not ways and num_symbols >= 2:
        ways = [f"batch_size 1 with chunk_len at most {num_symbols - 1}"]
    raise ValueError(
        f"{where}: batch_size * (chunk_len + 1) = {batch_size} * {chunk_len + 1} = {needed} symbols are "
        f"needed, got {num_symbols}; use {' or '.join([*ways, 'a longer text'])}."
    )


def streams(ids: np.ndarray, batch_size: int) -> np.ndarray:
    r"""Cuts ids `[n]` into contiguous rows, a view `[B, N]` with N = n // B; the remainder is dropped.

    >>> streams(np.arange(7), 2).tolist()
    [[0, 1, 2], [3, 4, 5]]
    """
    require_length(len(ids), batch_size, 1, "streams")
    row_len = len(ids) // batch_size
    return ids[: batch_size * row_len].reshape(batch_size, row_len)


def num_chunks(rows: np.ndarray, chunk_len: int) -> int:
    """Whole chunks in one epoch of streams `[B, N]`: (N - 1) // chunk_len."""
    return (rows.shape[1] - 1) // chunk_len


def chunk(rows: np.ndarray, cursor: int, chunk_len: int, starts: np.ndarray | None = None, first: int = 0) -> Chunk:
    r"""The chunk of streams `[B, N]` that begins at column `cursor`.

    Row b goes on where it ended in the chunk before.

    Args:
        rows: what `streams` returned, or some consecutive rows of it.
        cursor: the column of the first input: 0, chunk_len, 2 chunk_len, ...
        chunk_len: T.
        starts: document starts of the ids that `streams` was given, or None.
        first: the number of the first of these rows.

    Returns:
        A `Chunk` whose inputs and targets are views of `rows`.

    Raises:
        ValueError: a chunk that reaches beyond the rows.
    """
    batch_size, row_len = rows.shape
    if chunk_len < 1 or not 0 <= cursor < row_len - chunk_len:
        raise ValueError(
            f"chunk: cursor must be from 0 to N - 1 - chunk_len = {row_len - 1 - chunk_len} and chunk_len "
            f"at least 1, got cursor {cursor} and chunk_len {chunk_len}; start the next epoch at 0."
        )
    resets = None
    if starts is not None:
        resets = np.zeros((chunk_len, batch_size), bool)
        begin = (first + np.arange(batch_size)) * row_len + cursor
        bounds = np.searchsorted(starts, [begin, begin + chunk_len])
        for b, (low, high) in enumerate(bounds.T.tolist()):
            resets[starts[low:high] - begin[b], b] = True
    stop = cursor + chunk_len
    return Chunk(rows[:, cursor:stop].T, rows[:, cursor + 1 : stop + 1].T, resets)


def _fill(
    blocks: Iterator[Sequence[str]],
    n_symbols: int,
    vocabulary: Vocabulary,
    options: TextOptions,
    unknown: str,
) -> tuple[list[np.ndarray], tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None], int | None]:
    pieces = split_pieces(n_symbols, options)
    sizes = [sum(piece.stop - piece.start for piece in pieces if piece.part == part) for part in range(3)]
    parts = [np.empty(size, vocabulary.dtype) for size in sizes]
    filled = [0, 0, 0]
    separator = options.document_separator
    if separator is not None and options.level == "byte":
        separator = separator.encode("utf-8").decode("latin-1")
    finder = None if separator is None else DocumentFinder(separator)
    starts: list[np.ndarray] = []
    done, at = 0, 0  # symbols read; the piece that the next one belongs to
    for symbols in blocks:
        ids = vocabulary.lookup(symbols, unknown)
        known = ids >= 0
        if finder is not None:
            found = finder(symbols)
            if not known.all():
                found = np.concatenate(([0], np.cumsum(known)))[found]
            starts.append(found + done)
        ids = ids[known]
        while len(ids) and at < len(pieces):
            part, _, stop = pieces[at]
            here = ids[: stop - done]
            parts[part][filled[part] : filled[part] + len(here)] = here
            filled[part] += len(here)
            done += len(here)
            ids = ids[len(here) :]
            at += done == stop
    if finder is None:
        return parts, (None, None, None), None
    found = np.concatenate(starts)
    return parts, _split_starts(found, pieces), 1 + int(((found > 0) & (found < n_symbols)).sum())


def _split_starts(starts: np.ndarray, pieces: list[Piece]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # Where a piece begins, what came before it in its part did not come before it in the text: a document of
    # its own.
    found: list[list[np.ndarray]] = [[], [], []]
    size = [0, 0, 0]
    for part, start, stop in pieces:
        low, high = np.searchsorted(starts, [start + 1, stop])
        found[part].append(np.concatenate(([start], starts[low:high])) - start + size[part])
        size[part] += stop - start
    none = np.zeros(0, np.int64)
    train, valid, test = (np.unique(np.concatenate([none, *positions])) for positions in found)
    return train, valid, test
