"""Text of two or four bytes a character, which looks like text with a NUL beside every letter to who does not know."""

from __future__ import annotations

import codecs

import numpy as np

__all__ = ["HEAD", "check_wide", "unmarked", "wide_encoding"]

HEAD = 1 << 14  # bytes that tell
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_PLANES = (0, 1, 2, 3, 14, 15, 16)  # of Unicode, that are in use
_ORDERED = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
_EVEN, _ODD = slice(0, 4, 2), slice(1, 4, 2)


def wide_encoding(data: bytes) -> str:
    """UTF-16 or UTF-32 by the mark that a text begins with, or by `unmarked`; ``""`` for any other text."""
    return next((name for mark, name in _MARKS.items() if data.startswith(mark)), "") or unmarked(data)


def unmarked(data: bytes) -> str:
    r"""UTF-16 or UTF-32 by where its small bytes are, as far as bytes can tell; ``""`` for any other text.

    Of nearly every character of Europe, of Hebrew, Arabic and Hindi, UTF-16 has a byte up to 0x20, always on the same
    side, which is 0 for spaces, digits and line ends. Text of other encodings holds no NUL, and whatever separates its
    records by NULs has them on both sides, or letters among them. Chinese and Japanese are known by the NULs of their
    spaces and line ends alone, so only where nothing else could be meant: where the bytes are no UTF-8.

    Args:
        data: what a text begins with; more than the first 16 KiB is not looked at.

    >>> unmarked("hello world".encode("utf-16-le")), unmarked("Привет, мир".encode("utf-16-be"))
    ('utf-16-le', 'utf-16-be')
    >>> unmarked("hello".encode("utf-32-be")), unmarked(b"hello\nworld\n"), unmarked(b"a/b\0c.txt\0d/e.txt\0")
    ('utf-32-be', '', '')
    """
    part = data[: min(len(data), HEAD) // 4 * 4]
    if len(part) < 8 or 0 not in part:
        return ""
    units = np.frombuffer(part, np.uint8).reshape(-1, 4)
    zero = units == 0
    for name, low, plane, high in (("utf-32-le", 0, 2, 3), ("utf-32-be", 3, 1, 0)):
        if zero[:, high].all() and not zero[:, low].all() and np.isin(units[:, plane], _PLANES).all():
            return name
    upper = (units <= 0x20) | ((units >= 0xD8) & (units <= 0xDF)) | (units >= 0xFB)  # halves of pairs; forms and marks
    for name, lower, higher in (("utf-16-le", _EVEN, _ODD), ("utf-16-be", _ODD, _EVEN)):
        if zero[:, higher].mean() < 0.02:
            continue
        if upper[:, higher].mean() >= 0.9 and zero[:, lower].mean() < zero[:, higher].mean() / 2:
            return name
        if not zero[:, lower].any() and not _is_utf8(part):
            return name
    return ""


def _is_utf8(part: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")("strict").decode(part)
    except UnicodeError:
        return False
    return True


def check_wide(where: str, name: str, data: bytes, encoding: str, advice: str = "") -> None:
    """Raises for a text in UTF-16 or UTF-32 that is to be read by an encoding which makes other symbols of it.

    Args:
        where: the beginning of the sentence.
        name: of the text.
        data: what it begins with.
        encoding: by which it is to be read.
        advice: what to do; by default to pass the right encoding.

    Raises:
        ValueError: if every letter would have a NUL beside it, or have its bytes the wrong way round.
    """
    found = unmarked(data)
    asked = codecs.lookup(encoding).name
    if not found or asked == found or ("\0".encode(encoding) != b"\0" and asked not in _ORDERED):
        return
    advice = advice or f"pass encoding='{found}', or read any bytes with level='byte'"
    raise ValueError(f"{where}: {name} must be {encoding} text, got what looks like {found} without a mark; {advice}.")
