r"""A text as the trainer needs it: ids of train, valid and test, and contiguous streams over them.

A text is read twice, in blocks: once to count its symbols, once to write their ids, of the smallest type that holds
them, into an array in memory or, for a text that is not small, in a file (`rnnjax.text.reading`).
"""

from __future__ import annotations

import codecs
import dataclasses
import itertools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rnnjax.checks import check_choice, check_real, check_size, short
from rnnjax.kinds import public
from rnnjax.options import option
from rnnjax.text.encoding import Piece, part_of, part_starts
from rnnjax.text.reading import Reading, Recipe, read_ids
from rnnjax.text.sources import open_sources
from rnnjax.text.vocabulary import LEVELS, Vocabulary, check_unknown

__all__ = [
    "SPLITS",
    "Chunk",
    "Corpus",
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
    `n_unknown` how many symbols became the unknown one, `n_missing` how many the vocabulary lacks, replaced or left
    out. The arrays may be read-only. `notes` are sentences on what is unusual about the text.
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
    n_missing: int = 0
    notes: tuple[str, ...] = ()


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
    options: TextOptions | None = None,
    *,
    vocabulary: Vocabulary | None = None,
    unknown: str = "replace",
    cache: bool = True,
    report: Callable[[Reading], None] | None = None,
) -> Corpus:
    r"""Reads, encodes and splits a text of any size.

    The vocabulary is built on the whole text, so that with `min_count=1` every symbol of every part has an
    id. The ids of a text of more than 16 MiB of them do not stand in memory: they lie in a file, which is mapped, so
    that the parts are read-only arrays of which the system reads what is used. Words also need their vocabulary.

    Args:
        options: which text and how; by default characters of the standard library's source.
        vocabulary: of a trained model, to read another text with; `options.min_count` plays no part then.
        unknown: what becomes of symbols that are not in it, as in `Vocabulary.encode`; or `"add"`: they get ids behind
            the others, where they are as frequent as `options.min_count`.
        cache: keep that file for the next time, in the user's cache folder (`RNNJAX_TEXT_CACHE` names another); it is
            checked, and made again for a text that has changed. False: a temporary file that goes with the process.
        report: is told how far the reading is.

    Raises:
        FileNotFoundError: a missing path, or a directory without a match.
        ValueError: an empty text, bytes that are not in the encoding, corrupt gzip, unknown symbols.
        OSError: no room for the file.
    """
    options = TextOptions() if options is None else options
    check_unknown("replace" if unknown == "add" else unknown)
    if vocabulary is not None and vocabulary.level != options.level:
        raise ValueError(
            f"load_corpus: level must be that of the vocabulary, {vocabulary.level!r}, got "
            f"{options.level!r}; change the level."
        )
    with open_sources(options.paths, options.glob) as (sources, described):
        layout = None if options.split == "tail" else [options.rows, *options.fractions]
        recipe = Recipe(options.level, options.min_count, options.encoding, options.document_separator, layout, unknown)
        found = read_ids(
            sources, recipe, vocabulary, lambda count: split_pieces(count, options), described, cache, report
        )
    ids, starts, facts, vocabulary = found
    notes = list(facts.notes)
    if facts.windows:
        notes.append("Lines of this text end in \\r\\n, as Windows writes them; \\r is learned like any symbol.")
    if 5 * facts.nuls > facts.count:
        notes.append("Many characters of this text are NUL; read what is no text with level='byte'.")
    if facts.documents == 1:
        notes.append(f"The document separator {options.document_separator!r} does not occur: all is one document.")
    pieces = split_pieces(facts.count, options)
    train, valid, test = (part_of(ids, pieces, part) for part in range(3))
    train_starts, valid_starts, test_starts = (part_starts(starts, pieces, part) for part in range(3))
    return Corpus(
        vocabulary,
        *(train, valid, test),
        *(train_starts, valid_starts, test_starts),
        facts.sha256,
        described,
        facts.count,
        facts.n_bytes,
        facts.documents,
        facts.unknown,
        facts.missing,
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
