r"""Labels of a text, made by programs: one number for every character, to hold the units of a network against.

A label says what a reader knows *after* the character, as the state of a network does: at an opening quote ``quote`` is
already one, at the closing quote zero again. A label may look ahead to decide that (a quote opens a string of three
quotes or of one), which a network cannot.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rnnjax.checks import did_you_mean
from rnnjax.kinds import check_kinds, public
from rnnjax.user_code import load_module

__all__ = ["LABELS", "Label", "default_labels", "label_from_name", "label_text", "varying"]


@dataclasses.dataclass(frozen=True)
class Label:
    """A property of a text.

    Attributes:
        name: by which the command line knows it.
        description: one line.
        function: text of n characters to n numbers.
        binary: whether the numbers are 0 and 1; None: look at them.
        closing: characters that end it where it holds, of which the model's probability says whether it knows.
    """

    name: str
    description: str
    function: Callable[[str], np.ndarray]
    binary: bool | None = True
    closing: str = ""

    def __post_init__(self) -> None:
        check_kinds(self)


# Comments and strings of Python. A backslash takes the next character with it, also in raw strings; a string of single
# quotes ends with its line even if nothing closes it, so that an apostrophe in a text does no lasting harm.
_TOKENS = re.compile(
    r"""
    \#[^\n]*
    | \"{3} [^"\\]* (?: (?: \\(?:.|\Z) | "(?!"") ) [^"\\]* )* ( \"{3} | \Z )
    | '{3} [^'\\]* (?: (?: \\(?:.|\Z) | '(?!'') ) [^'\\]* )* ( '{3} | \Z )
    | " [^"\\\n]* (?: \\(?:.|\Z) [^"\\\n]* )* ( " | (?=\n) | \Z )
    | ' [^'\\\n]* (?: \\(?:.|\Z) [^'\\\n]* )* ( ' | (?=\n) | \Z )
    """,
    re.VERBOSE | re.DOTALL,
)
# Prose: straight or typographic double quotes; a quotation ends with its paragraph at the latest.
_QUOTATIONS = re.compile(r'["“](?:[^"“”\n]|\n(?!\s*\n))*("|”|(?=\n)|(?=“)|\Z)')


def _spans(pattern: re.Pattern[str], text: str, wanted: Callable[[str], bool]) -> np.ndarray:
    """Ones from the first character of every match up to the one before its closing quote, where it has one."""
    inside = np.zeros(len(text), np.int8)
    for match in pattern.finditer(text):
        if wanted(match[0]):
            closed = match.lastindex is not None and bool(match[match.lastindex])
            inside[match.start() : match.end() - closed] = 1
    return inside


_quote = functools.partial(_spans, _TOKENS, wanted=lambda token: token[0] != "#")
_triple = functools.partial(_spans, _TOKENS, wanted=lambda token: token[:3] in ('"""', "'''"))
_comment = functools.partial(_spans, _TOKENS, wanted=lambda token: token[0] == "#")
_prose_quote = functools.partial(_spans, _QUOTATIONS, wanted=lambda token: True)


def _characters(text: str, test: Callable[[str], bool | int]) -> np.ndarray:
    """``test`` of every character, called once for each different one."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    table = np.zeros(int(codes.max(initial=0)) + 1, np.int8)
    for code in np.flatnonzero(np.bincount(codes.astype(np.int64))).tolist():
        table[code] = test(chr(code))
    return table[codes]


def _depth(text: str) -> np.ndarray:
    """Depth of brackets outside of strings and comments; never below zero, whatever is closed that was not opened."""
    step = _characters(text, lambda c: (c in "([{") - (c in ")]}")).astype(np.int32)
    step[(_quote(text) | _comment(text)) == 1] = 0
    depth = np.cumsum(step)
    return depth - np.minimum(np.minimum.accumulate(depth), 0) if len(text) else depth


def _position(text: str) -> np.ndarray:
    """Characters since the last newline, 0 at the newline itself."""
    at = np.arange(len(text))
    line = np.maximum.accumulate(np.where(_characters(text, lambda c: c == "\n") == 1, at, -1)) if len(text) else at
    return at - line


def _indent(text: str) -> np.ndarray:
    """Blanks at the start of the line, as many as have been read."""
    blank = _characters(text, lambda c: c in " \t")
    newline = _characters(text, lambda c: c == "\n") == 1
    others = np.cumsum((blank == 0) & ~newline)  # what has been read besides blanks and newlines ...
    position = _position(text)
    at = np.arange(len(text)) - position
    before = np.where(at >= 0, others[np.maximum(at, 0)], 0)  # ... up to the line's start
    count = np.cumsum((blank == 1) & (others == before))
    return np.where(newline, 0, count - np.where(at >= 0, count[np.maximum(at, 0)], 0))


def _word_start(text: str) -> np.ndarray:
    inside = _characters(text, lambda c: c.isalnum() or c == "_")
    return inside * (1 - np.concatenate([[0], inside[:-1]])).astype(np.int8) if len(text) else inside


_LABELS = (
    Label("quote", "inside a string of Python, from its opening quote", _quote, closing="\"'"),
    Label("triple", "inside a string of Python in three quotes", _triple, closing="\"'"),
    Label("comment", "inside a comment of Python, from #", _comment, closing="\n"),
    Label("prose_quote", "inside double quotes, straight or typographic, of prose", _prose_quote, closing='"”'),
    Label("brackets", "depth of brackets, outside of strings and comments", _depth, False, ")]}"),
    Label("in_brackets", "inside any brackets, outside of strings and comments", lambda t: _depth(t) > 0, True, ")]}"),
    Label("position", "characters since the last newline", _position, False, "\n"),
    Label("indent", "blanks at the start of the line, so far", _indent, False),
    Label(
        "indenting",
        "reading the blanks at the start of a line",
        lambda t: _indent(t) * (_indent(t) == _position(t)) > 0,
    ),
    Label("newline", "just after a newline", lambda t: _characters(t, lambda c: c == "\n")),
    Label("word", "the first character of a word or a number", _word_start),
    Label("in_word", "inside a word or a number", lambda t: _characters(t, lambda c: c.isalnum() or c == "_")),
    Label("space", "a blank", lambda t: _characters(t, lambda c: c in " \t")),
    Label("vowel", "a vowel", lambda t: _characters(t, lambda c: c.lower() in "aeiouäöü")),
    Label("digit", "a digit", lambda t: _characters(t, lambda c: c.isdigit())),
    Label("uppercase", "a capital letter", lambda t: _characters(t, lambda c: c.isupper())),
)
LABELS: dict[str, Label] = {label.name: label for label in _LABELS}


_CODE_ONLY = ("quote", "triple", "comment", "indent", "indenting")
_PROSE_ONLY = ("prose_quote",)
# A line of a program: it ends as statements do, begins with a word of a language, or assigns or calls something.
_CODE_LINE = re.compile(
    r"\s*(?:(?:def|class|import|from|for|while|if|elif|else|return|const|let|var|fn|func|int|void|use)\b.*[:;{(]\s*$"
    r"|import \w|from [\w.]+ import|return\b|\#|//|/\*|@\w|[\w.\[\]\"']+ *[-+*/|]?= *\S|[\w.]+\(.*\W$|.*[;{}]\s*$)"
)


@public
def default_labels(text: str) -> tuple[Label, ...]:
    """The labels of `LABELS` that suit a text, code or prose: quotes of Python in a novel would say nothing.

    The text is code if a third of its lines look like lines of a program. ``quote``, or ``prose_quote``, comes first.

    >>> [label.name for label in default_labels("He said so.")][:3]
    ['prose_quote', 'brackets', 'in_brackets']
    >>> [label.name for label in default_labels("x = f(1)")][:3]
    ['quote', 'triple', 'comment']
    """
    lines = [line for line in text[:200_000].splitlines() if line.strip()]
    is_code = 3 * sum(bool(_CODE_LINE.match(line)) for line in lines) >= len(lines) > 0
    foreign = _PROSE_ONLY if is_code else _CODE_ONLY
    return tuple(label for name, label in LABELS.items() if name not in foreign)


@public
def label_from_name(name: str) -> Label:
    r"""A label by its name.

    Args:
        name: one of `LABELS`; ``re:PATTERN``, which holds inside of what a regular expression matches (`re`, over
            several lines, ``.`` takes no newline); or ``path/to/file.py:function`` for a function of your own from a
            text to an array.

    Raises:
        ValueError: for an unknown name (it lists the known ones), a pattern that is none, or a file that cannot be run
            or has no such function.
        FileNotFoundError: if the file does not exist.

    >>> label_from_name("digit").function("a1b22").tolist()
    [0, 1, 0, 1, 1]
    >>> label_from_name(r"re:\bnot\b").function("do not, knot").tolist()
    [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    """
    if name in LABELS:
        return LABELS[name]
    if name.startswith("re:"):
        return _label_from_pattern(name)
    filename, colon, attribute = name.rpartition(":")
    if not colon or not filename.endswith(".py"):
        raise ValueError(
            f"label: no label is called {name!r}{did_you_mean(name, LABELS) or ';'} known: {', '.join(LABELS)}, "
            "re:PATTERN, or path/to/file.py:function."
        )
    function = getattr(load_module(filename, "label"), attribute, None)
    if not callable(function):
        raise ValueError(f"label: {filename!r} must have a function {attribute!r} from a text to an array, got none.")
    return Label(attribute, (function.__doc__ or "").strip().split("\n")[0], function, binary=None)


def _label_from_pattern(name: str) -> Label:
    if name == "re:":
        raise ValueError("label: 're:' must be re: and a regular expression, got an empty one, which matches nothing.")
    try:
        pattern = re.compile(name.removeprefix("re:"), re.MULTILINE)
    except re.error as error:
        raise ValueError(f"label: {name!r} must be re: and a regular expression, got what is none: {error}.") from error

    def inside(text: str) -> np.ndarray:
        found = np.zeros(len(text), np.int8)
        for match in pattern.finditer(text):
            found[match.start() : match.end()] = 1
        return found

    return Label(name, f"inside what {name.removeprefix('re:')} matches", inside)


def varying(labels: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Labels that take several values in both halves of a text, and the names of the others."""
    halves = {name: np.array_split(label.astype(np.float32), [len(label) // 2]) for name, label in labels.items()}
    known = {name: labels[name] for name, parts in halves.items() if all(len(part) and np.ptp(part) for part in parts)}
    return known, [name for name in labels if name not in known]


@public
def label_text(
    label: Label, text: str, *, starts: Sequence[int] | np.ndarray | None = None, lengths: np.ndarray | None = None
) -> np.ndarray:
    r"""The values of a label for a text, checked: bool ``[n]`` for a binary label, else float32 ``[n]``.

    Args:
        label: the label.
        text: n characters.
        starts: where documents start: the label sees each by itself.
        lengths: of symbols of more than one character that make up the text; the value of each is that of its last
            character, and n is their number.

    Raises:
        ValueError: if the function does not return one finite number for every character, or other numbers than 0 and
            1 for a binary label.

    >>> label_text(LABELS["quote"], "a = 'bc' # d").astype(int).tolist()
    [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0]
    >>> label_text(LABELS["brackets"], "f(x[0])").tolist()
    [0.0, 1.0, 1.0, 2.0, 2.0, 1.0, 0.0]
    """
    edges = sorted({0, *(int(s) for s in (() if starts is None else starts) if 0 < s < len(text)), len(text)})
    parts = []
    for start, stop in itertools.pairwise(edges):
        values = np.asarray(label.function(text[start:stop]))
        if values.shape != (stop - start,) or values.dtype.kind not in "biuf" or not np.isfinite(values).all():
            raise ValueError(
                f"label: {label.name} must return one finite number for each of {stop - start} characters, got "
                f"{values.dtype}{list(values.shape)}; correct its function."
            )
        parts.append(values)
    values = np.concatenate(parts) if parts else np.zeros(0)
    if lengths is not None:
        values = values[np.cumsum(lengths) - 1]
    flags = values.astype(bool)
    if label.binary is False or not np.array_equal(values, flags):
        if label.binary:
            raise ValueError(f"label: {label.name} is binary and must be 0 or 1, got {values.min()} to {values.max()}.")
        return values.astype(np.float32)
    return flags
