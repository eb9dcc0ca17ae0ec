"""Python source with a class for every character, from Python's own tokenizer."""

import builtins
import io
import itertools
import keyword
import token
import tokenize
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rnnjax.text.sources import stdlib_files

__all__ = ["CLASSES", "UNKNOWN", "Source", "encode", "label", "read_library", "vocabulary", "windows"]

CLASSES = (
    *("space", "keyword", "builtin", "definition", "attribute", "name"),
    *("number", "string", "docstring", "comment", "operator"),
)
PARTS = ("train", "valid", "test")
UNKNOWN = 0  # the id of every character that is rare in training
_LAYOUT = {tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
_BETWEEN = {tokenize.NL, tokenize.COMMENT}  # says nothing about where a statement begins or ends


class Source(NamedTuple):
    """One file."""

    name: str
    text: str
    labels: np.ndarray  # int8 [len(text)], places in CLASSES


class _Piece(NamedTuple):
    """A token, or a whole formatted string, which Python 3.12 and later cut into several tokens."""

    kind: int
    text: str
    start: int  # of its first character in the source
    stop: int


def _pieces(source: str) -> Iterator[_Piece]:
    starts = [0, *itertools.accumulate(len(line) for line in io.StringIO(source))]
    opened: list[int] = []
    for part in tokenize.generate_tokens(io.StringIO(source).readline):
        (row, column), (last, end) = part.start, part.end
        start, stop = starts[min(row - 1, len(starts) - 1)] + column, starts[min(last - 1, len(starts) - 1)] + end
        name = tokenize.tok_name[part.type]
        if name.endswith("STRING_START"):  # of f"" and, in later versions, t""
            opened.append(start)
        elif name.endswith("STRING_END"):
            first = opened.pop()
            if not opened:
                yield _Piece(tokenize.STRING, source[first:stop], first, stop)
        elif not opened:
            if part.type not in _LAYOUT and source[start:stop] != part.string:
                raise ValueError(f"label: tokenize puts {part.string!r} in line {row} where it is not.")
            yield _Piece(part.type, part.string, start, stop)


def label(source: str) -> np.ndarray:
    """The class of every character.

    A docstring is a string that is a statement by itself, wherever it stands; a definition is the name behind ``def``
    or ``class``, an attribute one behind a dot, a builtin one of Python's, unless it is one of these. Blanks,
    newlines and the backslash at the end of a line are space; quotes belong to their string, and all of an f-string
    does.

    Args:
        source: which ends its lines with newlines alone.

    Returns:
        int8 ``[len(source)]``, places in `CLASSES`.

    Raises:
        ValueError: if it is not Python.

    >>> "".join(CLASSES[i][0] for i in label("def f(x): return len(x.y) + 1  # one"))
    'kkksdonooskkkkkksbbbonoaososnssccccc'
    """
    labels = np.zeros(len(source), np.int8)
    try:
        pieces = list(_pieces(source))
    except (tokenize.TokenError, SyntaxError) as error:
        raise ValueError(f"label: must be Python, got {error}.") from error
    told = [piece for piece in pieces if piece.kind not in _BETWEEN]
    following = {piece.start: after.kind for piece, after in itertools.pairwise(told) if piece.kind == tokenize.STRING}
    before, begins = "", True
    for piece in pieces:
        if piece.kind in _LAYOUT:
            begins = begins or piece.kind == tokenize.NEWLINE
            before = ""
            continue
        if piece.kind == tokenize.COMMENT:
            kind = "comment"
        elif piece.kind == tokenize.STRING:
            alone = begins and following.get(piece.start) == tokenize.NEWLINE
            kind = "docstring" if alone else "string"
        elif piece.kind == tokenize.NUMBER:
            kind = "number"
        elif piece.kind == tokenize.OP and piece.text in token.EXACT_TOKEN_TYPES:
            kind = "operator"
        elif piece.kind != tokenize.NAME:
            raise ValueError(f"label: must be Python, got {piece.text!r} after {piece.start} characters.")
        elif keyword.iskeyword(piece.text):
            kind = "keyword"
        elif before in ("def", "class"):
            kind = "definition"
        elif before == ".":
            kind = "attribute"
        else:
            kind = "builtin" if hasattr(builtins, piece.text) else "name"
        labels[piece.start : piece.stop] = CLASSES.index(kind)
        if piece.kind != tokenize.COMMENT:
            before, begins = piece.text, False
    return labels


def read_library(max_bytes: int = 6_000_000, most: int = 40_000) -> tuple[dict[str, list[Source]], int]:
    """Files of the running Python's standard library, of each at most so many characters, by part.

    The files come in an order that is as good as shuffled; one of ten is held out whole, one of ten validates.

    Returns:
        The sources of ``train``, ``valid`` and ``test``, and how many files are left out as they are not Python.
    """
    parts: dict[str, list[Source]] = {name: [] for name in PARTS}
    left_out = 0
    for place, path in enumerate(stdlib_files(max_bytes)):
        text = path.read_text(encoding="utf-8")
        try:
            labels = label(text)
        except ValueError:
            left_out += 1
            continue
        if text:
            part = {0: "test", 5: "valid"}.get(place % 10, "train")
            parts[part].append(Source(path.name, text[:most], labels[:most]))
    return parts, left_out


def vocabulary(sources: Sequence[Source], min_count: int = 10) -> dict[str, int]:
    """Ids of the characters that are there so often, from 1."""
    characters, counts = np.unique(list("".join(source.text for source in sources)), return_counts=True)
    kept = characters[counts >= min_count].tolist()
    return {character: i for i, character in enumerate(kept, start=UNKNOWN + 1)}


def encode(text: str, known: dict[str, int]) -> np.ndarray:
    """Ids ``[len(text)]``."""
    return np.array([known.get(character, UNKNOWN) for character in text], np.int32)


def windows(
    sources: Sequence[Source], known: dict[str, int], size: int, margin: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Sources cut into windows: every character is labelled in exactly one of them.

    Args:
        sources: S files; no window holds characters of two of them.
        known: ids of characters.
        size: T.
        margin: characters at both ends of a window that are there to be read, and are labelled in the one before or
            behind; not at the ends of a file.

    Returns:
        Ids ``[N, T]`` and labels ``[N, T]``, both -1 where there is nothing, labels also in the margins.
    """
    ids, labels = [], []
    for source in sources:
        found, step = encode(source.text, known), size - 2 * margin
        for start in range(0, len(found), step):
            first = max(start - margin, 0)
            row = found[first : first + size]
            ids.append(np.pad(row, (0, size - len(row)), constant_values=-1))
            told = np.full(size, -1, np.int32)
            told[start - first : start - first + step] = _padded(source.labels[start : start + step], step)
            labels.append(told)
    return np.stack(ids), np.stack(labels)


def _padded(labels: np.ndarray, size: int) -> np.ndarray:
    return np.pad(labels.astype(np.int32), (0, size - len(labels)), constant_values=-1)
