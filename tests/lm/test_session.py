"""A conversation: what is said and what is answered is one text, which the model has read as any other."""

import io
import string

import jax
import numpy as np
import pytest

import rnnjax
from rnnjax.lm.model import LanguageModel
from rnnjax.lm.sample import Session
from rnnjax.text.vocabulary import Vocabulary
from tests.lm import tiny_run

SYMBOLS = Vocabulary("char", tuple("\n " + string.ascii_lowercase[:6]))
MODEL = LanguageModel(len(SYMBOLS), rnnjax.Stack((rnnjax.LSTM(8), rnnjax.GRU(6))))
PARAMS = tiny_run.strong(MODEL.init(jax.random.key(0)))


@pytest.mark.parametrize(("length", "stop"), [(7, ""), (32, ""), (50, "a"), (40, "ab"), (90, "\n")])
def test_every_symbol_follows_all_that_was_said_and_written(length: int, stop: str) -> None:
    session = Session(MODEL, PARAMS, SYMBOLS, jax.random.key(1), temperature=0.0)
    transcript, written = "\n", []
    for said in ("a", "bcd ef" * 9, "fed", ""):
        session.read(SYMBOLS.encode(said))
        transcript += said
        answer = "".join(session.write(length, stop))
        assert len(answer) <= length and not (stop and stop in answer)
        answer += stop * (len(answer) < length)  # the stop is a part of the text, though it is not shown
        written += range(len(transcript), len(transcript) + len(answer))
        transcript += answer
    ids = np.full((420, 1), SYMBOLS.encode("\n")[0], np.int32)  # one length: one compilation
    ids[: len(transcript), 0] = SYMBOLS.encode(transcript)
    logits = np.asarray(MODEL.logits(PARAMS, MODEL.initial_state((1,)), ids)[1])[:, 0]
    for place in written:
        assert logits[place - 1, ids[place, 0]] > logits[place - 1].max() - 1e-3
    assert len(written) == 4 * length or (stop and stop in transcript)


def test_a_stop_that_is_long_or_comes_in_pieces_is_found(monkeypatch) -> None:
    """Of symbols that are given, in blocks of 32: the text before the first stop, whatever is drawn behind it."""
    text = "abcdef \nab" * 20

    def drawn(model, params, state, last, keys, first, size, *settings):
        ids = SYMBOLS.encode((text * 9)[first : first + size])
        return state, ids[-1:], ids[None]

    monkeypatch.setattr("rnnjax.lm.sample.draw_block", drawn)
    for stop in ("", "f \na", "\n", "ab" * 3, text[3:150], "abab", "x"):
        session = Session(MODEL, PARAMS, SYMBOLS, jax.random.key(1), temperature=0.0)
        pieces = list(session.write(190, stop))
        assert "".join(pieces) == (text[:190].partition(stop)[0] if stop else text[:190]), stop


def test_draws_differ_from_turn_to_turn_and_agree_from_session_to_session() -> None:
    def turns(seed: int) -> list[str]:
        session = Session(MODEL, PARAMS, SYMBOLS, jax.random.key(seed), temperature=3.0)
        return ["".join(session.write(40)) for _ in range(3)]

    assert turns(1) == turns(1) != turns(2) and len(set(turns(1))) == 3


def test_lines_in_lines_out(tmp_path, capsys, monkeypatch) -> None:
    folder = tiny_run.make_run(tmp_path / "run")
    monkeypatch.setattr("sys.stdin", io.StringIO("abc\nqed?\nde\r\n"))
    result = tiny_run.rnnjax(capsys, "sample", folder, "--interactive", "--length", 5, "--greedy")
    out, err = result.out, result.err
    first, second, third, rest = out.split("\n")
    assert rest == "" and second == "" and max(map(len, (first, third))) <= 5 and "'?'" in err
    monkeypatch.setattr("sys.stdin", io.StringIO("abc\nde\n"))
    again = tiny_run.rnnjax(capsys, "sample", folder, "--interactive", "--length", 5, "--greedy")
    assert again.err.startswith("seed ")
    assert again.out.split("\n") == [first, third, ""]  # a line that was refused left the state alone
    refused = tiny_run.rnnjax(capsys, "sample", folder, "--interactive", "--count", 2)
    assert refused.code == 2 and "one conversation" in refused.err
