r"""Symbols: the vocabulary of a text, and the way between text and small integers.

One representation serves the three levels: a block of text is a sequence of symbols, which is a `str` for
characters, a `str` of code points below 256 for bytes (Latin-1 maps the two one to one), and a `list[str]`
for words.
"""

from __future__ import annotations

import codecs
import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rnnjax.checks import check_ids
from rnnjax.kinds import public

__all__ = [
    "LEVELS",
    "UNKNOWN",
    "HasItems",
    "StreamDecoder",
    "Vocabulary",
    "check_unknown",
    "code_points",
    "tokenize",
]

LEVELS = ("char", "byte", "word")
UNKNOWN = "\ufffd"

# Every character matches exactly one alternative, so the tokens joined are the text again. All alternatives
# are runs of one class (or single characters), so only the last token of a block can grow when the next block
# arrives.
_TOKEN = re.compile(r"\w+|\n+|[^\S\n]+|[^\w\s]")


class HasItems(Protocol):
    """Symbols with their counts: a dict, or counts of which not all are in memory."""

    def items(self) -> Iterable[tuple[str, int]]:
        """Every symbol with its count, once."""
        ...


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    r"""The symbols of a model: `symbols[i]` is the text of id `i`.

    Characters and words are sorted by code point, but for those that `extended` puts behind the others. Bytes are
    always all 256, written as the characters U+0000 to U+00FF. The unknown symbol, U+FFFD, exists at the character
    level only where `min_count` dropped something (a U+FFFD of the text is then the same symbol), at the word level
    always, at the byte level never.

    Args:
        level: `"char"`, `"byte"` or `"word"`.
        symbols: the distinct symbols.
        unknown: the id of the unknown symbol, or None.

    Raises:
        ValueError: unknown level, symbols repeated, or symbols that do not belong to the level.

    >>> vocabulary = Vocabulary("char", ("a", "b"))
    >>> vocabulary.encode("abba").tolist(), vocabulary.decode([1, 0])
    ([0, 1, 1, 0], 'ba')
    """

    level: str
    symbols: tuple[str, ...]
    unknown: int | None = None

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"level: must be one of {', '.join(LEVELS)}, got {self.level!r}; use one of them.")
        if len(set(self.symbols)) != len(self.symbols):
            raise ValueError("Vocabulary: symbols must be distinct, got a repeated one; remove the repetition.")
        if self.level == "byte" and self.symbols != _BYTES:
            raise ValueError(
                f"Vocabulary: a byte vocabulary must be the 256 characters U+0000 to U+00FF in order, "
                f"got {len(self.symbols)} symbols; build it with Vocabulary.from_counts('byte', {{}})."
            )
        if self.level == "char" and any(len(symbol) != 1 for symbol in self.symbols):
            raise ValueError("Vocabulary: symbols of level 'char' must be single characters; use level='word'.")
        if self.unknown is not None and not 0 <= self.unknown < len(self.symbols):
            raise ValueError(
                f"Vocabulary: unknown must be an id below {len(self.symbols)}, got {self.unknown}; use None "
                "for no such symbol."
            )

    def __len__(self) -> int:
        return len(self.symbols)

    @classmethod
    def from_counts(cls, level: str, counts: HasItems, min_count: int = 1, *, unknown: bool = False) -> Vocabulary:
        """The vocabulary of the symbols that occur at least `min_count` times (bytes: of all 256).

        Args:
            level: `"char"`, `"byte"` or `"word"`.
            counts: of symbols, a dict for example.
            min_count: of those that are kept.
            unknown: whether characters have the unknown symbol also where none is rare, for a text of which only the
                beginning was counted.
        """
        if level == "byte":
            return cls(level, _BYTES)
        kept, rare = set(), False
        for symbol, count in counts.items():
            if count >= min_count:
                kept.add(symbol)
            else:
                rare = True
        if level == "char" and not rare and not unknown:
            return cls(level, tuple(sorted(kept)))
        symbols = tuple(sorted(kept | {UNKNOWN}))
        return cls(level, symbols, symbols.index(UNKNOWN))

    def extended(self, counts: HasItems, min_count: int = 1) -> Vocabulary:
        """This vocabulary, with those symbols of another text behind it that it lacks; its own keep their ids.

        >>> Vocabulary("char", ("b", "x")).extended({"a": 2, "b": 5}).symbols
        ('b', 'x', 'a')
        """
        new = {symbol: count for symbol, count in counts.items() if symbol not in self._index}
        found = type(self).from_counts(self.level, new, min_count)
        symbols = self.symbols + tuple(symbol for symbol in found.symbols if symbol not in self._index)
        unknown = self.unknown
        if unknown is None and found.unknown is not None:
            unknown = symbols.index(UNKNOWN)
        return type(self)(self.level, symbols, unknown)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest of uint8, uint16 and int32 that holds every id."""
        return np.dtype(np.uint8 if len(self) <= 1 << 8 else np.uint16 if len(self) <= 1 << 16 else np.int32)

    @functools.cached_property
    def _index(self) -> dict[str, int]:
        return {symbol: i for i, symbol in enumerate(self.symbols)}

    @functools.cached_property
    def _codes(self) -> np.ndarray:
        return code_points("".join(self.symbols))

    @functools.cached_property
    def _table(self) -> np.ndarray:
        # One entry more than the largest code point: whatever lies beyond is clipped onto that -1.
        table = np.full(int(self._codes.max(initial=0)) + 2, -1, np.int32)
        table[self._codes] = np.arange(len(self))
        return table

    def lookup(self, symbols: Sequence[str], unknown: str = "replace") -> np.ndarray:
        r"""Ids of a block of symbols.

        Args:
            symbols: as `read_symbols` yields them: a `str` (char, byte) or a list of tokens (word).
            unknown: as in `encode`.

        Returns:
            int32 `[N]`; with `unknown="skip"`, -1 marks the symbols that are not in the vocabulary.
        """
        if isinstance(symbols, str):
            ids: np.ndarray = self._table.take(code_points(symbols), mode="clip")
        else:
            ids = np.fromiter(map(self._index.get, symbols, itertools.repeat(-1)), np.int32, len(symbols))
        missing = ids < 0
        if unknown == "skip" or not missing.any():
            return ids
        if unknown == "error" or self.unknown is None:
            self.require_known(symbols[i] for i in np.flatnonzero(missing).tolist())
        ids[missing] = self.unknown
        return ids

    def require_known(self, symbols: Iterable[str]) -> None:
        """Raises the ValueError that names those of `symbols` that are not in the vocabulary, if any."""
        missing = sorted(set(symbols) - self._index.keys())
        if missing:
            some = ", ".join(f"{symbol!r} ({_code_names(symbol)})" for symbol in missing[:8])
            more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
            raise ValueError(
                f"Vocabulary: every symbol must be one of the {len(self)} of the vocabulary, got "
                f"{some}{more}; "
                "remove them, leave them out with unknown='skip', or use a model trained at the byte "
                "level."
            )

    @public
    def encode(self, text: str | bytes, unknown: str = "replace") -> np.ndarray:
        r"""The ids of a text.

        Args:
            text: characters, or bytes in UTF-8 (at the byte level: any bytes; a `str` is taken in UTF-8).
            unknown: what becomes of a symbol that is not in the vocabulary: `"replace"`, the unknown symbol,
                an error where the vocabulary has none; `"skip"`, left out; `"error"`, always an error.

        Returns:
            Ids `[N]` of type `dtype`.

        Raises:
            ValueError: symbols that are not in the vocabulary (named), or bytes that are not UTF-8.
        """
        check_unknown(unknown)
        if self.level == "byte":
            raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
            return np.frombuffer(raw, np.uint8).copy()
        if isinstance(text, bytes):
            try:
                text = text.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"Vocabulary.encode: bytes must be UTF-8, got {text[error.start]:#04x} at byte "
                    f"{error.start}; pass a str, or use the byte level."
                ) from error
        ids = self.lookup(tokenize(text) if self.level == "word" else text, unknown)
        return ids[ids >= 0].astype(self.dtype)

    def decode(self, ids: npt.ArrayLike) -> str:
        """The text of ids `[N]`; bytes that are not UTF-8 become U+FFFD."""
        if self.level == "byte":
            return self.decode_bytes(ids).decode("utf-8", "replace")
        array = check_ids("Vocabulary.decode", ids, len(self))
        if self.level == "char":
            return self._codes[array].astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
        return "".join(map(self.symbols.__getitem__, array.tolist()))

    def decode_bytes(self, ids: npt.ArrayLike) -> bytes:
        """The text of ids `[N]` in UTF-8; at the byte level the very bytes."""
        if self.level == "byte":
            return check_ids("Vocabulary.decode", ids, len(self)).astype(np.uint8).tobytes()
        return self.decode(ids).encode("utf-8", "surrogatepass")

    def to_json(self) -> dict[str, Any]:
        """A plain dict for `json.dump`; `from_json` is the inverse."""
        return {"level": self.level, "symbols": list(self.symbols), "unknown": self.unknown}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Vocabulary:
        """The vocabulary that `to_json` wrote."""
        try:
            return cls(data["level"], tuple(data["symbols"]), data["unknown"])
        except KeyError as error:
            raise ValueError(
                f"Vocabulary.from_json: level, symbols and unknown must be there, got no {error}; "
                f"pass what Vocabulary.to_json returned."
            ) from error


class StreamDecoder:
    r"""Decodes ids as they come, and never returns part of a code point.

    The pushed pieces and the flushed rest joined are `vocabulary.decode` of all ids.

    >>> decoder = StreamDecoder(Vocabulary.from_counts("byte", {}))
    >>> decoder.push([0xC3]), decoder.push([0xA9]), decoder.flush()
    ('', 'é', '')
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: npt.ArrayLike) -> str:
        """The code points that ids `[N]` complete."""
        if self._vocabulary.level == "byte":
            return self._decoder.decode(self._vocabulary.decode_bytes(ids))
        return self._vocabulary.decode(ids)

    def flush(self) -> str:
        """What is left: U+FFFD where the ids ended within a code point, else nothing."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def tokenize(text: str) -> list[str]:
    r"""Cuts a text into words, runs of newlines, runs of other whitespace, and single other characters.

    The tokens joined are the text again.

    >>> tokenize("if a:\n\n  b")
    ['if', ' ', 'a', ':', '\n\n', '  ', 'b']
    """
    return _TOKEN.findall(text)


def check_unknown(unknown: str) -> None:
    """Raises the ValueError of a treatment of unknown symbols that does not exist."""
    if unknown not in ("replace", "skip", "error"):
        raise ValueError(f"unknown: must be 'replace', 'skip' or 'error', got {unknown!r}; use one of them.")


def code_points(text: str) -> np.ndarray:
    """The code points of a text, unsigned integers `[N]`."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _code_names(symbol: str) -> str:
    return " ".join(f"U+{ord(character):04X}" for character in symbol[:8])


_BYTES = tuple(map(chr, range(256)))
