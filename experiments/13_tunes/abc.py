"""Folk tunes in ABC notation: cut out of collections, and their bars counted."""

import fractions
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Bars", "bars", "collection", "duration", "read", "split"]

KEPT = "TMLK"  # fields of a tune that stay, in this order
Fraction = fractions.Fraction


class Bars(NamedTuple):
    """Full bars of a tune, and how many of them last as long as its metre says."""

    count: int
    valid: int


def collection(text: str) -> Iterator[str]:
    """The tunes of a file, each with its title, metre, unit and key, then its bars; comments and all else are dropped.

    >>> list(collection("X:1\\nT:Air\\nZ:who\\nM:2/4\\nL:1/8\\nK:G\\nGA Bc|d4|% end\\n\\nwords"))
    ['T:Air\\nM:2/4\\nL:1/8\\nK:G\\nGA Bc|d4|\\n']
    """
    for part in re.split(r"(?m)^X:", text)[1:]:
        fields: dict[str, str] = {}
        music: list[str] = []
        for line in part.splitlines()[1:]:
            line = line.split("%")[0].strip()
            if re.match(r"[A-Za-z]:", line):
                if not music and line[0] in KEPT and line[0] not in fields:
                    fields[line[0]] = re.sub(r"\s+", " ", line[2:]).strip()
            elif line and "K" in fields:
                music.append(re.sub(r"\s+", " ", line))
            elif music:
                break
        if music and "K" in fields and "M" in fields:
            fields.setdefault("L", "1/8")
            head = [f"{name}:{fields[name]}" for name in KEPT if name in fields]
            yield "\n".join([*head, *music]) + "\n"


def split(text: str) -> list[str]:
    """Tunes that a model wrote one after the other, with an empty line between two; the first and last may be cut."""
    return [part + "\n" for part in text.split("\n\n") if "K:" in part]


_SKIPPED = re.compile(r'"[^"]*"|![^!]*!|\{[^}]*\}|\[[A-Za-z]:[^\]]*\]')  # words, marks, grace notes, fields
_TOKEN = re.compile(
    r"(?P<bar>:*\|[\]|:]*(?:\[?\d)?|::)|(?P<tuplet>\((?P<p>\d)(?::(?P<q>\d?))?(?::(?P<r>\d?))?)"
    r"|(?P<note>\[[^\]|:]*\]|[_^=]*[A-Ga-g][,']*|[zx])(?P<length>\d*/*\d*)(?P<broken>[<>]*)"
)
_TUPLETS = {2: 3, 3: 2, 4: 3, 5: 2, 6: 2, 7: 2, 8: 3, 9: 2}


def duration(text: str) -> Fraction:
    """The factor behind a note.

    >>> [str(duration(text)) for text in ("", "3", "/", "3/2", "//")]
    ['1', '3', '1/2', '3/2', '1/4']
    """
    over, slashes, under = re.fullmatch(r"(\d*)(/*)(\d*)", text).groups()  # type: ignore[union-attr]
    if not slashes:
        return Fraction(int(over or 1))
    return Fraction(int(over or 1), int(under) if under else 2 ** len(slashes)) if under != "0" else Fraction(0)


def bars(tune: str) -> Bars:
    """Counts the full bars of a tune; what begins or ends a part may be short, and is not one of them.

    >>> bars("M:2/4\\nL:1/8\\nK:G\\nG|ABcd|e2f>g|a3|(3abcd2 e|f2g2|]\\n")
    Bars(count=4, valid=2)
    """
    fields = dict(re.findall(r"(?m)^([A-Z]):\s*(.*)$", tune))
    metre = {"C": "4/4", "C|": "2/2"}.get(fields.get("M", ""), fields.get("M", ""))
    unit = fields.get("L", "1/8")
    if not re.fullmatch(r"\d+/[1-9]\d*", metre) or not re.fullmatch(r"\d+/[1-9]\d*", unit):
        return Bars(0, 0)
    wanted = Fraction(metre) / Fraction(unit)
    music = _SKIPPED.sub("", "\n".join(line for line in tune.splitlines() if not re.match(r"[A-Z]:", line)))
    found: list[tuple[Fraction, bool, bool]] = []  # length, whether it begins a part, whether it ends one
    length, begins, left, factor, carry = Fraction(0), True, 0, Fraction(1), Fraction(1)
    for token in _TOKEN.finditer(music):
        if token["bar"]:
            plain = token["bar"] == "|"
            if length:
                found.append((length, begins, not plain))
                begins = not plain
            else:
                begins = begins or not plain
            length, left, carry = Fraction(0), 0, Fraction(1)
        elif token["tuplet"]:
            number = int(token["p"])
            factor = Fraction(int(token["q"] or _TUPLETS.get(number, number)), max(number, 1))
            left = int(token["r"] or number)
        else:
            own = duration(token["length"]) * carry
            if token["note"].startswith("[") and (inner := re.search(r"[A-Ga-gz][,']*(\d*/*\d*)", token["note"])):
                own *= duration(inner[1])
            carry, sign = Fraction(1), token["broken"]
            if sign:
                short = Fraction(1, 2 ** len(sign))
                own, carry = (own * (2 - short), short) if sign[0] == ">" else (own * short, 2 - short)
            length += own * factor if left else own
            left = max(0, left - 1)
    # Where a part begins or ends, an upbeat and the bar that it completes share the time of one.
    inner = [length for length, begins, ends in found if not (begins or ends)]
    return Bars(len(inner), sum(length == wanted for length in inner))


def read(folder: pathlib.Path) -> list[str]:
    """The tunes of all files of a folder."""
    found = []
    for path in sorted(folder.glob("*.abc")):
        found += list(collection(path.read_text(encoding="utf-8", errors="replace")))
    return found
