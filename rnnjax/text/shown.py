"""Text on a terminal: what would steer it is shown, not sent."""

from __future__ import annotations

import re

__all__ = ["shown"]

# Control characters but for the newline and the tab, marks that turn the direction of writing, and halves of surrogate
# pairs, which names of files may hold and no encoding has.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: str) -> str:
    r"""The text with a visible sign in the place of every character that steers a terminal.

    Control characters become the pictures that Unicode has for them, others their code.

    >>> shown("a\x1b[2Jb\x9b\u202e")
    'a␛[2Jb\\x9b\\u202e'
    """
    return _STEERING.sub(_sign, text)


def _sign(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code == 0x7F:
        return "\u2421"
    return chr(0x2400 + code) if code < 0x20 else f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
