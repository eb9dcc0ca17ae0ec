"""A text without an end: read once, in constant memory, held out in part; compared with the text as a whole."""

import dataclasses
import json
import os
import signal
import sys
import threading
import time

import numpy as np
import pytest

from rnnjax.cli import start
from rnnjax.cli.interactive import converse
from rnnjax.fit import checkpoint as checkpoints
from rnnjax.fit.optimizers import OptimizerOptions
from rnnjax.lm import batches as live
from rnnjax.lm.batches import CorpusBatches, LiveBatches, Validation
from rnnjax.lm.options import BudgetOptions, ModelOptions, StreamOptions, TrainOptions
from rnnjax.text import live as reading
from rnnjax.text.corpus import TextOptions, load_corpus
from rnnjax.text.live import LiveText
from rnnjax.text.vocabulary import UNKNOWN, Vocabulary, tokenize

sys.path.insert(0, os.path.dirname(__file__))
from children import Running
from tiny_run import rnnjax

TEXT = "der Fluß 😀\r\nab--cd--né €x\n" * 20
TINY = "--hidden 8 --embed 4 --batch-size 3 --chunk-len 5 --evals 2 --log-every 3 --sample-length 8 --lr 0.01".split()


@pytest.fixture
def pipe(tmp_path):
    """The name of a pipe, and a function that writes into it beside the test."""
    path, threads = tmp_path / "pipe", []
    os.mkfifo(path)

    def write(*pieces, pause=0.0):
        def work():
            with path.open("wb") as file:
                for piece in pieces:
                    file.write(piece)
                    file.flush()
                    time.sleep(pause)

        threads.append(threading.Thread(target=work))
        threads[-1].start()

    yield str(path), write
    for thread in threads:
        thread.join(60)


@pytest.mark.parametrize("block", [1, 3, 1000])
@pytest.mark.parametrize("level", ["char", "byte", "word"])
def test_symbols_and_documents_are_those_of_the_whole(monkeypatch, pipe, level, block):
    monkeypatch.setattr(reading, "_BLOCK_BYTES", block)
    path, write = pipe
    write(("\ufeff" + TEXT).encode())
    text = LiveText(path, level, "utf-8", "--", room=50)
    vocabulary = text.learn(60, 1)
    found = [text.take(7) for _ in range(3)]
    while len((found := [*found, text.take(11)])[-1].ids):
        pass
    whole = ("\ufeff" if level == "byte" else "") + TEXT
    symbols = {"char": list(whole), "word": tokenize(whole), "byte": list(whole.encode().decode("latin-1"))}[level]
    if level != "byte":
        assert set(vocabulary.symbols) == {*symbols[:60], UNKNOWN}
    assert text.symbols_read == len(symbols)
    index = {symbol: i for i, symbol in enumerate(vocabulary.symbols)}
    assert np.concatenate([one.ids for one in found]).tolist() == [
        index.get(symbol, vocabulary.unknown) for symbol in symbols
    ]
    ends = np.cumsum([len(symbol) for symbol in symbols])
    joined, starts, at = "".join(symbols), {0}, 0
    while (at := joined.find("--", at)) >= 0:
        at += 2
        starts.add(int(np.searchsorted(ends - [len(symbol) for symbol in symbols], at)))
    expected = sorted(start for start in starts if start < len(symbols))
    assert np.flatnonzero(np.concatenate([one.starts for one in found])).tolist() == expected


def test_bytes_that_are_no_text(pipe):
    path, write = pipe
    write(b"ab\xffcd" * 10)
    with pytest.raises(ValueError, match=r"stream: .*pipe must be utf-8 text, got what is not within bytes 0 to 50"):
        LiveText(path, "char", "utf-8", None, room=1000).learn(10, 1)


def test_standard_input_that_is_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match=r"stream: standard input cannot be read: it is closed\."):
        LiveText("-", "char", "utf-8", None, room=1000).learn(10, 1)
    with pytest.raises(ValueError, match=r"load_corpus: standard input must be open, got one that is closed"):
        load_corpus(TextOptions(("-",)))
    with pytest.raises(ValueError, match=r"--interactive: standard input must be open, got one that is closed"):
        converse(None, None, None, 1, "", "error")


def test_bytes_that_are_no_text_later_are_unknown(monkeypatch, pipe):
    monkeypatch.setattr(reading, "_BLOCK_BYTES", 4)
    path, write = pipe
    write(b"abcd" * 3 + b"a\xffcd")
    text = LiveText(path, "char", "utf-8", None, room=4)
    vocabulary = text.learn(4, 1)
    assert vocabulary.symbols == (*"abcd", UNKNOWN)
    assert vocabulary.decode(text.take(100).ids) == "abcd" * 3 + f"a{UNKNOWN}cd"


def test_no_more_is_read_than_there_is_room_for(monkeypatch, pipe):
    monkeypatch.setattr(reading, "_BLOCK_BYTES", 10)
    path, write = pipe
    write(b"x" * 100_000)
    text = LiveText(path, "byte", "utf-8", None, room=30)
    text.learn(1, 1)
    for _ in range(100):
        assert len(text.take(7).ids) == 7
        assert text.ahead() <= 30 + 10 + 10
    while not text.full():
        time.sleep(0.01)
    while len(text.take(5000).ids):
        pass
    assert text.symbols_read == 100_000


def test_who_waits_can_give_up(pipe):
    path, write = pipe
    write(b"abc", b"def", pause=0.5)
    text = LiveText(path, "char", "utf-8", None, room=30)
    text.learn(2, 1)
    assert text.take(5, lambda: True) is None
    assert len(text.take(5).ids) == 5 and len(text.take(5).ids) == 1 and len(text.take(5).ids) == 0


def batches_of(pipe, data, **options):
    path, write = pipe
    write(data)
    text = LiveText(path, "byte", "utf-8", None, room=100)
    text.learn(1, 1)
    return LiveBatches(text, 2, 3, **{"held": 14, "seed": 0, **options})


def test_rows_go_on_from_chunk_to_chunk_and_begin_anew_with_a_segment(monkeypatch, pipe):
    """By hand: segments of 2 chunks of 3 symbols and the last target; the first of every four is held out."""
    monkeypatch.setattr(live, "SEGMENT", 2)
    monkeypatch.setattr(live, "HELD_OUT", 4)
    data = np.arange(7 * 9 + 6, dtype=np.uint8)
    batches = batches_of(pipe, data.tobytes())
    segments = data[: 7 * 9].reshape(9, 7)
    trained = [segments[i] for i in (1, 2, 3, 5, 6, 7)]
    step = 0
    for first in (0, 2, 4):
        rows = np.stack(trained[first : first + 2])
        for at in (0, 3):
            assert batches.more()
            chunk = batches.chunk(step, slice(0, 2))
            np.testing.assert_array_equal(chunk.inputs, rows[:, at : at + 3].T)
            np.testing.assert_array_equal(chunk.targets, rows[:, at + 1 : at + 4].T)
            np.testing.assert_array_equal(chunk.resets[1:], False)
            # The first symbol of all, which a document begins with, was held out.
            np.testing.assert_array_equal(chunk.resets[0], at == 0)
            again = batches.chunk(step, slice(1, 2))
            np.testing.assert_array_equal(again.inputs, chunk.inputs[:, 1:])
            step += 1
    assert {tuple(row) for row in batches.validation().ids.reshape(-1, 7)} <= {tuple(segments[i]) for i in (0, 4, 8)}
    assert batches.validation().starts.tolist() == [0, 7]
    # What is left, 6 symbols, does not fill two rows of a chunk.
    assert not batches.more() and not batches.more()


def test_the_end_of_the_text_fills_shorter_rows(monkeypatch, pipe):
    monkeypatch.setattr(live, "SEGMENT", 2)
    data = np.arange(7 + 7 + 4, dtype=np.uint8)  # one is held out
    batches = batches_of(pipe, data.tobytes())
    assert batches.more()
    rows = data[7:15].reshape(2, 4)
    chunk = batches.chunk(0, slice(0, 2))
    np.testing.assert_array_equal(chunk.inputs, rows[:, :3].T)
    np.testing.assert_array_equal(chunk.targets, rows[:, 1:].T)
    assert not batches.more()


def test_the_state_does_not_cross_what_was_held_out(monkeypatch, pipe):
    """By hand: segments of 13, every second one held out; the second one and the rest of 11 are rows of 10."""
    monkeypatch.setattr(live, "SEGMENT", 4)
    monkeypatch.setattr(live, "HELD_OUT", 2)
    data = np.arange(3 * 13 + 11, dtype=np.uint8)
    batches, rows = batches_of(pipe, data.tobytes()), np.r_[data[13:26], data[39:50]][:20].reshape(2, 10)
    for step in range(3):
        chunk = batches.chunk(step, slice(0, 2))
        np.testing.assert_array_equal(chunk.inputs, rows[:, 3 * step : 3 * step + 3].T)
        # The rows begin, and the text goes on behind a gap.
        restarts = np.isin(chunk.inputs, [rows[0, 0], rows[1, 0], 39])
        np.testing.assert_array_equal(chunk.resets, restarts)
    assert restarts.sum() == 0 and not batches.more()


def test_every_segment_that_is_held_out_is_as_likely_in_the_reservoir(monkeypatch, tmp_path):
    """Four of twenty: each 200 times in a thousand, of which 33 is beyond two and a half standard deviations."""
    monkeypatch.setattr(live, "SEGMENT", 1)
    found = np.zeros(20)
    for seed in range(1000):
        batches = LiveBatches(None, 1, 1, held=8, seed=seed)
        for i in range(20):
            batches._hold(reading.Stretch(np.array([i, i]), np.zeros(2, bool)))
        found[batches.validation().ids[::2]] += 1
    assert found.sum() == 4000 and np.abs(found - 200).max() < 65


def test_a_given_text_is_evaluated_on_and_nothing_is_held_out(monkeypatch, pipe):
    monkeypatch.setattr(live, "SEGMENT", 1)
    valid = Validation(np.arange(3), None)
    batches = batches_of(pipe, bytes(range(16)), valid=valid)
    assert batches.validation() is valid
    np.testing.assert_array_equal(batches.chunk(0, slice(0, 2)).inputs, [[0, 4], [1, 5], [2, 6]])


def test_train_from_a_pipe_to_its_end_and_on(tmp_path, capsys, pipe):
    path, write = pipe
    write((TEXT * 9).encode(), b"zq")
    out = tmp_path / "run"
    arguments = [path, "--stream", "--vocabulary-symbols", 100, "--steps", 900, *TINY]
    result = rnnjax(capsys, "train", *arguments, "--out", out)
    assert result.code == 0, result.err
    assert "the stream has ended" in result.out and "what was held out of the stream" in " ".join(result.out.split())
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["kind"] == "train"][-1]
    assert last["read"] == len(TEXT) * 9 + 2 and last["behind"] < 3 * 6 and last["loss"] < 3
    # 14 segments of 321 symbols, one of them held out; the rest of the text fills shorter rows.
    steps = last["step"]
    assert 4 * 64 <= steps <= (len(TEXT) * 9 - 321) // 15
    assert [row for row in rows if row["kind"] == "eval"] and rows[-1]["reason"] == "data"
    # On: from where the stream is now, with the symbols that the run knows.
    write((TEXT * 3).encode())
    result = rnnjax(capsys, "train", "--resume", out, "--minutes", 10)
    assert result.code == 0, result.err
    assert "goes on from where it is now" in result.out
    assert checkpoints.find_checkpoints(out / "checkpoints")[-1].step > steps
    result = rnnjax(capsys, "eval", out)
    assert result.code == 2 and "is gone; name a text" in result.err


def test_the_validation_file_is_found_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    groups = TextOptions(), ModelOptions(), OptimizerOptions(), TrainOptions(), BudgetOptions(steps=1)
    values = {
        k: v for group in (*groups, StreamOptions(True, "held.txt")) for k, v in dataclasses.asdict(group).items()
    }
    assert start._config(values).stream.valid == str(tmp_path / "held.txt")
    assert start._config(values | {"valid": None}).stream.valid is None


def _pause(name):
    """Standard input is a pipe on which nothing comes any more after a while."""
    sys.stdin = open(name, "rb+", buffering=0)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stream_on_which_nothing_comes_is_stopped_and_saved(tmp_path, number):
    import functools

    name = tmp_path / "pipe"
    os.mkfifo(name)
    keep = os.open(name, os.O_RDWR)
    out = tmp_path / "run"
    arguments = ["train", "-", "--stream", "--level", "byte", "--minutes", 30, *TINY, "--out", out]
    running = Running(tmp_path, arguments, functools.partial(_pause, str(name)))
    os.write(keep, (TEXT * 8).encode()[:6000])
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or '"step": 255' not in (out / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline and running.process.is_alive(), (tmp_path / "stderr").read_text()
        time.sleep(0.1)
    time.sleep(0.5)
    os.kill(running.process.pid, number)
    ended = running.wait(120)
    os.close(keep)
    assert ended.returncode == 0, ended
    assert "all is saved; go on with: rnnjax train --resume" in ended.stdout
    assert checkpoints.find_checkpoints(out / "checkpoints")[-1].step >= 255


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-", "--stream", "--epochs", 1], "--epochs: does not go together with --stream: a text without an end"),
        (["-", "--stream", "--split", "columns"], "--split: does not go together with --stream"),
        (["-", "--stream", "--fractions", "1,0,0"], "--fractions: does not go together with --stream"),
        (["-", "--stream", "--glob", "*.txt"], "--glob: does not go together with --stream"),
        (["-", "--stream", "--baselines"], "--baselines: does not go together with --stream"),
        (["-", "--stream", "--no-cache"], "--no-cache: does not go together with --stream"),
        (["-", "--stream", "--init-from", "x"], "--init-from: does not go together with --stream"),
        (["-", "--stream", "--distributed"], "--distributed: does not go together with --stream"),
        (["--stream"], "--stream: reads one text, - or the name of a pipe, got 0; name it."),
        (["-", "-", "--stream"], "--stream: reads one text, - or the name of a pipe, got 2; name it."),
        (["nowhere", "--stream"], "--stream: there is no nowhere; make it with mkfifo, or take - for standard input."),
        ([".", "--stream"], "--stream: . is a folder, which ends; leave --stream out."),
        (["-", "--stream", "--eval-symbols", 0], "--eval-symbols: must be at least 1 with --stream"),
        (["-", "--stream", "--valid", "nowhere"], "--valid: there is no file nowhere; give another, or leave it out."),
        (["-", "--stream", "--vocabulary-symbols", 0], "--vocabulary-symbols must be at least 1, got 0."),
        (["-", "--valid", "x"], "--valid: goes together with --stream; add it, or leave it out."),
        (["-", "--vocabulary-symbols", 5], "--vocabulary-symbols: goes together with --stream"),
    ],
)
def test_what_does_not_go_together(tmp_path, capsys, arguments, sentence):
    result = rnnjax(capsys, "train", *arguments, "--out", tmp_path / "run")
    assert result.code == 2 and sentence in " ".join(result.err.split()), result
    assert result.err.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "ended before its first symbol"),
        (b"abc", "18 symbols are needed at least"),
        (b"\xff" * 9, "utf-8 text"),
        ("words" * 9, "looks like utf-16-le without a mark; pass --encoding utf-16-le"),
    ],
)
def test_streams_that_are_too_short_or_no_text(tmp_path, capsys, pipe, data, sentence):
    path, write = pipe
    write(data if isinstance(data, bytes) else data.encode("utf-16-le"))
    result = rnnjax(capsys, "train", path, "--stream", *TINY, "--steps", 5, "--out", tmp_path / "run")
    assert result.code == 2 and sentence in result.err and result.err.count("\n") == 1, result


def test_the_vocabulary_always_has_an_unknown_symbol():
    assert Vocabulary.from_counts("char", {"a": 2}, unknown=True).unknown == 1


def test_whether_there_are_documents_is_known_without_taking_a_chunk(tmp_path, pipe):
    path, write = pipe
    write(b"abcabc" * 600)
    live = LiveText(path, "byte", "utf-8", None, room=1000)
    live.learn(10, 1)
    batches = LiveBatches(live, 2, 4, held=10, seed=0)
    assert batches.documents and batches.chunk(0, slice(0, 2)).resets is not None
    (tmp_path / "t").write_text("ab|ab" * 20)
    for separator in (None, "|"):
        corpus = load_corpus(TextOptions((str(tmp_path / "t"),), document_separator=separator))
        known = CorpusBatches(corpus, 2, 4)
        assert known.documents == (known.chunk(0, slice(0, 2)).resets is not None) == (separator is not None)
