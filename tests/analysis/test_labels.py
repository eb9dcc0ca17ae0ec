"""Labels of a text against texts labelled by hand, Python's own tokenizer, and loops."""

import argparse
import dataclasses
import inspect
import io
import itertools
import textwrap
import tokenize
from pydoc_data.topics import topics

import numpy as np
import pytest

from rnnjax.analysis.labels import LABELS, Label, default_labels, label_from_name, label_text

SOURCE = textwrap.dedent(
    r'''
    """A docstring with a "quote", an apostrophe's tail, # no comment, and ( no bracket."""
    import re  # a comment with "quotes" and ' one

    EMPTY, LONG = "", """"begins with a quote \""" and 'goes on
    over lines' # still inside"""
    def f(x, y=(1, [2, {"a": ')'}])):
        """One."""
        s = rb"" + b'\x00\
    continued'
        s = r"raw \" end" + 'it\'s \\' '''
    + "'''three' \\''' quotes'''"
    + r"""
        return {x: [s, (y)], f"{x!r} {s:>{10}}": '#'}[
            0]  # last
"""
)


def marked(marks: str) -> list[int]:
    return [int(mark != ".") for mark in marks]


def spans(source: str, wanted: set[str]) -> np.ndarray:
    """What tokenize says: ones from the first quote (or #) to the character before the last."""
    lines = np.cumsum([0, *(len(line) for line in source.splitlines(keepends=True))])
    inside, opened = np.zeros(len(source), int), []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = tokenize.tok_name[token.type]
        start, stop = (lines[row - 1] + column for row, column in (token.start, token.end))
        if kind == "FSTRING_START":
            opened.append(start)
        elif kind == "FSTRING_END":
            start, kind = opened.pop(), "" if len(opened) > 1 else "STRING"
        if kind == "STRING" and "STRING" in wanted:
            inside[min(source.index(q, start) for q in "\"'" if q in source[start:stop]) : stop - 1] = 1
        if kind == "COMMENT" and "COMMENT" in wanted:
            inside[start:stop] = 1
    return inside


@pytest.mark.parametrize("module", ["a source of hard cases", "shlex", "string", "ast"])
def test_strings_and_comments_are_those_of_pythons_tokenizer(module):
    source = SOURCE
    if module.isidentifier():
        with open(__import__(module).__file__, encoding="utf-8") as file:
            source = file.read()
    compile(source, "source", "exec")
    for label, kind in (("quote", "STRING"), ("comment", "COMMENT")):
        expected = spans(source, {kind})
        wrong = np.flatnonzero(label_text(LABELS[label], source) != expected)
        assert expected.any() and not len(wrong), (label, source[wrong[0] - 40 : wrong[0] + 20])
    depth, expected = 0, []
    hidden = spans(source, {"STRING", "COMMENT"})
    for position, character in enumerate(source):
        # The closing quote is no bracket, so `hidden` is right wherever there is one.
        depth += 0 if hidden[position] else (character in "([{") - (character in ")]}")
        expected.append(depth)
    assert max(expected) > 1 and min(expected) == 0
    np.testing.assert_array_equal(label_text(LABELS["brackets"], source), expected)
    np.testing.assert_array_equal(label_text(LABELS["in_brackets"], source), np.array(expected) > 0)


def test_labels_by_hand():
    for name, text, marks in (
        ("quote", 'a \'b\' "c\\"d" e', "..11..11111..."),
        ("quote", 'x"""a"b"""y', ".111111111."[:3] + "111111" + ".."),
        ("quote", "don't\nno", "...11..."),  # a string of one quote ends with its line
        ("quote", "'ab", "111"),
        ("triple", "'a' '''b'''", "....111111."),
        ("comment", "a # b '\n'#'", "..11111...."),
        (
            "prose_quote",
            'He said "no, don\'t". Or “so”.',
            "........111111111.......111.."[:8] + "1" * 10 + "......" + "111..",
        ),
        ("prose_quote", 'a "b\n\nc "d" e', "..11....11..."),  # a paragraph ends it
        ("newline", "a\n\nb", ".11."),
        ("indenting", "  a b\n\t c", "11....11."),
        ("word", "a b2 _c,d", "1.1..1..1"),
        ("in_word", "a b2 _c,d", "1.11.11.1"),
        ("space", "a b\tc\n", ".1.1.."),
        ("vowel", "aBEy é", "1.1..."),
        ("digit", "a1٣", ".11"),
        ("uppercase", "aBÉ1", ".11."),
    ):
        assert len(text) == len(marks), (name, text)
        assert label_text(LABELS[name], text).astype(int).tolist() == marked(marks), (name, text)
    assert label_text(LABELS["brackets"], ")(a]]b[").tolist() == [0, 1, 1, 0, 0, 0, 1]  # never below zero


def test_positions_and_indentation_are_those_of_a_loop():
    text = "  ab c\n\n\tx\n   \n    y z  \nend  "
    position, indent, count, blanks, leading = [], [], 0, 0, True
    count = -1 + 1
    for character in text:
        if character == "\n":
            count, blanks, leading = 0, 0, True
        else:
            count += 1
            leading = leading and character in " \t"
            blanks += leading
        position.append(count)
        indent.append(blanks)
    assert label_text(LABELS["position"], text).tolist() == position
    assert label_text(LABELS["indent"], text).tolist() == indent


def test_documents_and_longer_symbols():
    text = "'a 'b #c"
    assert label_text(LABELS["quote"], text, starts=[0, 3]).astype(int).tolist() == marked("111" + "11111")
    assert label_text(LABELS["quote"], text).astype(int).tolist() == marked("111" + ".....")
    # Symbols "'a", " ", "'b", " #", "c": the value of each is that of its last character.
    assert label_text(LABELS["quote"], text, lengths=np.array([2, 1, 2, 2, 1])).tolist() == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_every_label_takes_any_text():
    for label, text in itertools.product(
        LABELS.values(), ("", "\n", "a", '"', '"""', "\\", "'\\", "é\udc80\U0001f600")
    ):
        assert len(label_text(label, text)) == len(text)


def test_labels_of_your_own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def after_e(text):\n    'After an e.'\n    return [c == 'e' for c in text]\n")
    label = label_from_name(f"{file}:after_e")
    assert label.description == "After an e." and label_text(label, "he e").tolist() == [False, True, False, True]
    number = Label("n", "", lambda text: np.arange(len(text)) / 2, binary=None)
    assert label_text(number, "abc").tolist() == [0, 0.5, 1]


def test_a_pattern_holds_inside_of_what_it_matches():
    text = "for x in y:\n    before(x)\nfor"
    found = label_text(label_from_name(r"re:\bfor\b"), text)
    assert "".join(c for c, flag in zip(text, found) if flag) == "forfor" and found[:3].all() and found[-3:].all()
    assert label_text(label_from_name("re:^ +"), text).sum() == 4  # every line begins anew
    assert not label_text(label_from_name("re:z*"), text).any()  # matches of nothing
    with pytest.raises(ValueError, match=r"'re:' must be re: and a regular expression, got an empty one"):
        label_from_name("re:")
    with pytest.raises(ValueError, match=r"'re:\(' must be re: and a regular expression, got what is none"):
        label_from_name("re:(")


@pytest.mark.parametrize("module", [argparse, tokenize, dataclasses])
def test_labels_that_suit_code_and_prose(module):
    code = {label.name for label in default_labels(inspect.getsource(module))}
    assert set(LABELS) - code == {"prose_quote"}
    prose = {label.name for label in default_labels("\n".join(line for line in topics["exceptions"].split("\n")))}
    assert set(LABELS) - prose == {"quote", "triple", "comment", "indent", "indenting"}
    assert default_labels("")[0].name == "prose_quote"


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="no label is called 'quot'; did you mean 'quote'"):
        label_from_name("quot")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        label_from_name("nowhere.py:f")
    file = tmp_path / "bad.py"
    file.write_text("1 +")
    with pytest.raises(ValueError, match="cannot be run, line 1: SyntaxError"):
        label_from_name(f"{file}:f")
    file.write_text("f = 3")
    with pytest.raises(ValueError, match="must have a function 'f'"):
        label_from_name(f"{file}:f")
    for function, message in (
        (lambda t: [1], "one finite number for each of 3"),
        (lambda t: [2, 0, 1], "must be 0 or 1"),
    ):
        with pytest.raises(ValueError, match=message):
            label_text(Label("x", "", function), "abc")
