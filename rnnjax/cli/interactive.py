"""``rnnjax sample --interactive``: lines in, lines out, with one state all along."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np

from rnnjax.cli.output import echo
from rnnjax.lm.sample import Session
from rnnjax.text.shown import shown
from rnnjax.text.vocabulary import Vocabulary

__all__ = ["converse"]


def converse(session: Session, vocabulary: Vocabulary, prime: np.ndarray, length: int, stop: str, unknown: str) -> None:
    """Answers every line of standard input with one of standard output, which is there before the next one is read."""
    if sys.stdin is None:
        raise ValueError("--interactive: standard input must be open, got one that is closed; write lines into it.")
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    session.read(prime)
    for line in _lines(terminal):
        try:
            session.read(np.concatenate([vocabulary.encode(line, unknown), vocabulary.encode("\n", "skip")]))
        except ValueError as error:
            echo(str(error), err=True)  # the session goes on
            sys.stdout.write("\n")
        else:
            answer = "".join(session.write(length, stop))
            sys.stdout.write((shown(answer) if terminal else answer.replace("\n", " ")) + "\n")
        sys.stdout.flush()


def _lines(terminal: bool) -> Iterator[str]:
    while True:
        if terminal:
            sys.stderr.write("> ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            return
        yield line.removesuffix("\n").removesuffix("\r")
