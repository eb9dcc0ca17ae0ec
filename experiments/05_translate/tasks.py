"""The embedded tasks: dates in words to ISO form, and sums in words to digits or to words.

Every example belongs to a part by what it is about, a day or an unordered pair of numbers: what is held out was seen
in no form at all.
"""

import calendar
import datetime
import re
import zlib
from typing import NamedTuple

import numpy as np
from num2words import num2words

__all__ = ["KINDS", "Example", "make_date", "make_examples", "make_sum", "part_of", "tokens_of"]

KINDS = ("date", "sum in digits", "sum in words")
FIRST, LAST = datetime.date(1900, 1, 1).toordinal(), datetime.date(2099, 12, 31).toordinal()
LARGEST = 999
_TOKEN = re.compile(r"[a-z]+|[^\sa-z]")
DATE_FORMS = (
    "{weekday}, {month} {d}, {y}",
    "the {nth} of {month} {year}",
    "{month} the {nth}, {year}",
    "{d}{th} {month} {y}",
    "{mon} {d} {y}",
    "on {weekday} the {nth} of {month} in the year {year}",
    "the {d}{th} day of {month}, {y}",
    "{y}, {month} the {d}{th}",
    "{year}, {mon} {d}",
    "the day after {before}",
    "the last day of {month} {year}",
)
SUM_FORMS = ("{a} plus {b}", "{a} added to {b}", "add {a} to {b}", "how much is {a} plus {b} ?")


class Example(NamedTuple):
    """A source, what is to be written, and what it is about."""

    source: str
    target: str
    kind: str
    form: str


def tokens_of(text: str) -> list[str]:
    """Words, and every digit and sign alone.

    >>> tokens_of("the 4th of march, 1997")
    ['the', '4', 'th', 'of', 'march', ',', '1', '9', '9', '7']
    """
    return _TOKEN.findall(text)


def part_of(about: str) -> str:
    """The part of the data, the same for ever: a twentieth each is "valid" and "test".

    >>> [part_of(day) for day in ("1997-03-04", "1997-03-05")]
    ['train', 'train']
    """
    return {0: "test", 1: "valid"}.get(zlib.crc32(about.encode()) % 20, "train")


def make_date(day: datetime.date, form: str) -> Example:
    """A day in one of `DATE_FORMS`.

    >>> make_date(datetime.date(1996, 3, 1), "the day after {before}")[:2]
    ('the day after february the twenty-ninth, nineteen ninety-six', '1996-03-01')
    """
    if "{before}" in form:
        before = make_date(day - datetime.timedelta(1), "{month} the {nth}, {year}").source
        return Example(form.format(before=before), day.isoformat(), "date", form)
    nth = num2words(day.day, to="ordinal_num")
    source = form.format(
        weekday=calendar.day_name[day.weekday()].lower(),
        month=calendar.month_name[day.month].lower(),
        mon=calendar.month_abbr[day.month].lower(),
        nth=num2words(day.day, to="ordinal"),
        year=num2words(day.year, to="year"),
        d=day.day,
        th=nth.lstrip("0123456789"),
        y=day.year,
    )
    return Example(source, day.isoformat(), "date", form)


def make_sum(a: int, b: int, form: str, words: bool) -> Example:
    """Two numbers in one of `SUM_FORMS`.

    >>> make_sum(47, 312, "{a} plus {b}", words=True)[:2]
    ('forty-seven plus three hundred and twelve in words', 'three hundred and fifty-nine')
    >>> make_sum(47, 312, "{a} plus {b}", words=False)[:2]
    ('forty-seven plus three hundred and twelve', '359')
    """
    source, total = form.format(a=num2words(a), b=num2words(b)), a + b
    if words:
        return Example(f"{source} in words", num2words(total), "sum in words", form)
    return Example(source, str(total), "sum in digits", form)


def make_examples(rng: np.random.Generator, part: str, dates: int, sums: int) -> list[Example]:
    """So many dates and sums of a part; half of the sums are asked for in words."""
    found: list[Example] = []
    while len(found) < dates:
        day = datetime.date.fromordinal(int(rng.integers(FIRST, LAST + 1)))
        form = DATE_FORMS[rng.integers(len(DATE_FORMS))]
        if "last day" in form:
            day = day.replace(day=calendar.monthrange(day.year, day.month)[1])
        if part_of(day.isoformat()) == part and not ("{before}" in form and day.toordinal() == FIRST):
            found.append(make_date(day, form))
    while len(found) < dates + sums:
        a, b = (int(n) for n in rng.integers(0, LARGEST + 1, 2))
        if part_of(f"{min(a, b)}+{max(a, b)}") == part:
            form = SUM_FORMS[rng.integers(len(SUM_FORMS))]
            found.append(make_sum(a, b, form, words=bool(len(found) % 2)))
    return found
