"""Ids in files: the same as in memory, whatever the blocks; checked, made again, by several processes at once."""

import dataclasses
import json
import os
import signal
import stat
import sys
import time

import numpy as np
import pytest

from rnnjax.cli import reading as progress
from rnnjax.fit import checkpoint as checkpoints
from rnnjax.fit.optimizers import OptimizerOptions
from rnnjax.lm.options import BudgetOptions, ModelOptions, RunConfig, TrainOptions
from rnnjax.lm.run import RunPaths
from rnnjax.lm.train import train
from rnnjax.text import encoding, reading, sources, stored
from rnnjax.text.corpus import Corpus, TextOptions, load_corpus
from rnnjax.text.encoding import count_symbols
from rnnjax.text.vocabulary import Vocabulary

sys.path.insert(0, os.path.dirname(__file__))
from children import context

# Two and four bytes a character, Windows' line ends, a byte order mark within, words that cross any block.
TEXT = "\ufeffder Fluß 😀\r\nab--cd--\ufeff--né €x\n\n" + "Wort".join("äé😀 -\r\n") + "a--b " * 20
ARRAYS = ("train", "valid", "test", "train_starts", "valid_starts", "test_starts")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A folder of its own, and every text goes there; files are never too new to be trusted."""
    monkeypatch.setenv("RNNJAX_TEXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(reading, "IN_MEMORY", 0)
    monkeypatch.setattr(stored, "_IN_DOUBT", -(10**18))
    return tmp_path / "cache"


def in_memory(options, monkeypatch, **more):
    with monkeypatch.context() as patch:
        patch.setattr(reading, "IN_MEMORY", 1 << 30)
        return load_corpus(options, cache=False, **more)


def assert_same(found: Corpus, expected: Corpus):
    for name in ARRAYS:
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None) == (b is None)
        if b is not None:
            np.testing.assert_array_equal(a, b, strict=True)
    assert found._replace(**dict.fromkeys((*ARRAYS, "notes"))) == expected._replace(**dict.fromkeys((*ARRAYS, "notes")))


def files_of(folder, text=TEXT):
    """Three files, cut within a character."""
    folder.mkdir()
    data = text.encode()
    for name, part in (("a", data[:40]), ("b", data[40:90]), ("c", data[90:])):
        (folder / name).write_bytes(part.decode("utf-8", "ignore").encode())
    return str(folder)


@pytest.mark.parametrize("block", [1, 3, 1 << 18])
@pytest.mark.parametrize("level", ["char", "byte", "word"])
def test_ids_in_a_file_are_those_in_memory(tmp_path, monkeypatch, cache, level, block):
    monkeypatch.setattr(encoding, "_MOST_WORDS", 3)
    paths = (files_of(tmp_path / "text"),)
    (tmp_path / "text" / "b.gz").write_bytes(b"")  # an empty one between
    for more in (
        {"fractions": (0.6, 0.2, 0.2)},
        {"document_separator": "--", "min_count": 2},
        {"split": "columns", "rows": 3, "document_separator": "\n"},
    ):
        options = TextOptions(paths, level=level, **more)
        with monkeypatch.context() as patch:
            patch.setattr(sources, "_BLOCK_BYTES", 1 << 18)
            expected = in_memory(options, monkeypatch)
        monkeypatch.setattr(sources, "_BLOCK_BYTES", block)
        first, again = load_corpus(options), load_corpus(options)
        temporary = load_corpus(options, cache=False)
        for found in (first, again, temporary):
            assert_same(found, expected)
            assert found.train.dtype == found.vocabulary.dtype and not found.train.flags.writeable
        assert [note for note in first.notes if " are kept, 0 MB." in note] and again.notes == expected.notes
        # With the vocabulary known, as `rnnjax eval` asks.
        assert_same(load_corpus(options, vocabulary=expected.vocabulary), expected)


def test_counts_that_are_written_out_are_exact(monkeypatch):
    words = [f"w{i}" for i in np.random.default_rng(0).integers(0, 50, 2000)]
    expected = {word: words.count(word) for word in set(words)}
    monkeypatch.setattr(encoding, "_MOST_WORDS", 7)
    monkeypatch.setattr(encoding, "_RUN", 3)
    counts = count_symbols([words[i : i + 9] for i in range(0, len(words), 9)])
    assert len(counts._runs) > 5
    for _ in range(2):
        assert sorted(counts.items()) == sorted(expected.items())
    assert Vocabulary.from_counts("word", counts, 45) == Vocabulary.from_counts("word", expected, 45)


def reads(monkeypatch):
    """Counts how many passes through a text are made from now on."""
    passes, original = [], sources._read_text

    def read(*arguments):
        passes.append(None)
        return original(*arguments)

    monkeypatch.setattr(sources, "_read_text", read)
    return passes


def test_a_text_is_read_once_and_again_when_it_has_changed(tmp_path, monkeypatch, cache):
    path = tmp_path / "text"
    path.write_text(TEXT * 3)
    options = TextOptions((str(path),))
    first = load_corpus(options)
    passes = reads(monkeypatch)
    for more in ({}, {"unknown": "skip"}, {"vocabulary": first.vocabulary}):
        assert_same(load_corpus(options, **more), first)
    fractions = dataclasses.replace(options, fractions=(0.5, 0.25, 0.25))
    np.testing.assert_array_equal(load_corpus(fractions).train, first.train[: first.n_symbols // 2])
    assert not passes
    # The same size, and the same time of its last change.
    times = path.stat()
    path.write_text(TEXT * 2 + TEXT.replace("a", "é")[: len(TEXT)])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert_same(load_corpus(options), in_memory(options, monkeypatch))
    assert len(passes) == 4  # two of each
    # The first text again, by its contents: counted, and not written.
    path.write_text(TEXT * 3)
    passes.clear()
    assert_same(load_corpus(options), first)
    assert len(passes) == 1


def test_a_change_at_the_time_of_reading_is_in_doubt(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(stored, "_IN_DOUBT", 2_000_000_000)
    path = tmp_path / "text"
    path.write_text(TEXT)
    load_corpus(TextOptions((str(path),)))
    passes = reads(monkeypatch)
    load_corpus(TextOptions((str(path),)))
    assert len(passes) == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "longer", "remove", "header", "no header", "quiet"])
def test_a_damaged_file_is_noticed_and_made_again(tmp_path, monkeypatch, cache, damage):
    path = tmp_path / "text"
    path.write_text(TEXT)
    options = TextOptions((str(path),), document_separator="--")
    expected = in_memory(options, monkeypatch)
    load_corpus(options)
    (ids,) = cache.glob("*.ids")
    header = ids.with_suffix(".json")
    data, times = ids.read_bytes(), ids.stat()
    if damage in ("flip", "quiet"):
        ids.write_bytes(data[:5] + bytes([data[5] ^ 1]) + data[6:])
    if damage == "quiet":  # with the time of its last change as before
        os.utime(ids, ns=(times.st_atime_ns, times.st_mtime_ns))
    if damage == "cut":
        ids.write_bytes(data[:-1])
    if damage == "longer":
        ids.write_bytes(data + b"\0")
    if damage == "remove":
        ids.unlink()
    if damage == "header":
        header.write_text(header.read_text().replace('"count": ', '"count": 1'))
    if damage == "no header":
        header.unlink()
    found = load_corpus(options)
    assert_same(found, expected)
    said = [note for note in found.notes if "were damaged, and are made again" in note]
    assert len(said) == (damage != "no header")
    assert load_corpus(options).notes == expected.notes


def test_a_file_that_was_only_touched_is_checked_and_kept(tmp_path, monkeypatch, cache):
    (tmp_path / "text").write_text(TEXT)
    options = TextOptions((str(tmp_path / "text"),))
    first = load_corpus(options)
    (ids,) = cache.glob("*.ids")
    os.utime(ids)
    stages = []
    passes = reads(monkeypatch)
    for _ in range(2):
        assert_same(load_corpus(options, report=lambda reading: stages.append(reading.stage)), first)
    assert stages == ["checking"] and not passes


def test_only_the_owner_may_read_it(tmp_path, cache):
    (tmp_path / "text").write_text(TEXT)
    load_corpus(TextOptions((str(tmp_path / "text"),)))
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in cache.iterdir()} == {0o600}


def test_a_folder_that_cannot_be_used(tmp_path, monkeypatch, cache):
    (tmp_path / "text").write_text(TEXT)
    options = TextOptions((str(tmp_path / "text"),))
    expected = in_memory(options, monkeypatch)
    cache.write_text("a file")
    found = load_corpus(options)
    assert_same(found, expected)
    assert any("in a temporary file, as" in note and str(cache) in note for note in found.notes)
    cache.unlink()
    cache.mkdir()
    cache.chmod(0o777)
    assert any("others can write to it" in note for note in load_corpus(options).notes)
    cache.chmod(0o700)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10}))
    with pytest.raises(OSError, match=r"need 0\.00 GB, and .* has 0\.00 GB of room; make some, or name another"):
        load_corpus(options)
    assert not list(cache.iterdir())


def test_what_is_not_used_goes(tmp_path, monkeypatch, cache):
    path = tmp_path / "text"
    path.write_text(TEXT)
    load_corpus(TextOptions((str(path),)))
    old = time.time() - 40 * 86400
    for file in cache.iterdir():
        os.utime(file, (old, old))
    foreign = [".profile", "package.json", "notes.ids", "0123abcd.json"]  # the folder may be one that holds more
    half = [".ids-half", f".{'0' * 40}.seen.json.half"]
    for name in foreign + half:
        (cache / name).write_bytes(b"x")
        os.utime(cache / name, (old, old))
    path.write_text(TEXT * 2)
    load_corpus(TextOptions((str(path),)))
    assert [path.name for path in cache.glob("*.ids") if path.name != "notes.ids"] == [f"{_only_header(cache)}.ids"]
    assert all((cache / name).exists() for name in foreign) and not any((cache / name).exists() for name in half)


def _only_header(cache):
    (header,) = (path for path in cache.glob("*.json") if len(path.name) == 45)
    return header.stem


def _load(folder, path, die, barrier):
    os.environ["RNNJAX_TEXT_CACHE"] = str(folder)
    reading.IN_MEMORY, stored._IN_DOUBT = 0, -(10**18)
    sources._BLOCK_BYTES = 50
    if die:
        original = stored.Sink.put

        def put(sink, at, ids):
            original(sink, at, ids)
            if at > 100:
                os.kill(os.getpid(), signal.SIGKILL)

        stored.Sink.put = put
    barrier.wait()
    corpus = load_corpus(TextOptions((str(path),)))
    os._exit(0 if corpus.notes and int(corpus.train.sum(dtype=np.int64)) > 0 else 3)


@pytest.mark.parametrize("die", [True, False])
def test_processes_at_once_and_killed(tmp_path, monkeypatch, cache, die):
    """Two write at the same time, or are killed while they do: what is found afterwards is whole."""
    path = tmp_path / "text"
    path.write_text(TEXT)
    expected = in_memory(TextOptions((str(path),)), monkeypatch)
    barrier = context.Barrier(2)
    both = [context.Process(target=_load, args=(cache, path, die, barrier)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [-signal.SIGKILL if die else 0] * 2
    assert bool(list(cache.glob("*.ids"))) is not die
    found = load_corpus(TextOptions((str(path),)))
    assert_same(found, expected)
    assert (found.notes != expected.notes) is die
    assert_same(load_corpus(TextOptions((str(path),))), expected)
    assert json.loads(next(cache.glob("*.seen.json")).read_text())["name"]


def test_a_folder_of_many_files_is_opened_file_by_file(tmp_path, monkeypatch, cache):
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(400):
        (folder / f"{i:03}.txt").write_text(f"file {i}\n")
    opened, original = [], sources.Source.blocks

    def blocks(source, tally=None):
        opened.append(1)
        assert sum(opened) == 1
        yield from original(source, tally)
        opened.append(-1)

    monkeypatch.setattr(sources.Source, "blocks", blocks)
    found = load_corpus(TextOptions((str(folder),), glob="*.txt", fractions=(1, 0, 0)))
    assert found.vocabulary.decode(found.train) == "".join(f"file {i}\n" for i in range(400))


def test_a_word_without_end_is_refused(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(sources, "LONGEST_WORD", 100)
    monkeypatch.setattr(sources, "_BLOCK_BYTES", 16)
    (tmp_path / "text").write_text("x" * 200)
    with pytest.raises(ValueError, match="a word must have at most 100 characters, got one that begins with 'xxx"):
        load_corpus(TextOptions((str(tmp_path / "text"),), level="word"))


def test_how_far_it_is(tmp_path, cache):
    (tmp_path / "text").write_text(TEXT)
    size = (tmp_path / "text").stat().st_size
    seen = []
    load_corpus(TextOptions((str(tmp_path / "text"),)), report=seen.append)
    assert [one.stage for one in seen] == ["counting", "encoding", "checking"]
    assert [(one.done, one.total) for one in seen[:2]] == [(size, size)] * 2


def test_training_is_the_same_to_the_bit(tmp_path, monkeypatch, cache):
    """Parameters, losses and samples after 12 updates, with evaluations, from a file and from memory."""
    (tmp_path / "text").write_text(TEXT * 4)
    options = TextOptions((str(tmp_path / "text"),), document_separator="--", fractions=(0.7, 0.2, 0.1))
    config = RunConfig(
        options,
        ModelOptions(hidden=5, embed=3),
        OptimizerOptions(),
        TrainOptions(batch_size=2, chunk_len=7, evals=2, log_every=4, sample_length=9),
        BudgetOptions(steps=12),
    )
    kept = []
    for corpus in (in_memory(options, monkeypatch), load_corpus(options), load_corpus(options, cache=False)):
        folder = tmp_path / f"run{len(kept)}"
        outcome = train(config, RunPaths(folder), corpus)
        arrays = checkpoints.load(checkpoints.find_checkpoints(folder / "checkpoints")[-1].path)[0]
        samples = (folder / "samples.txt").read_text()
        kept.append((outcome.valid_loss, outcome.test_loss, samples, {name: a.tobytes() for name, a in arrays.items()}))
    assert kept[0] == kept[1] == kept[2]


def test_progress_is_shown_for_what_takes_long(tmp_path, monkeypatch, capsys, cache):
    (tmp_path / "text").write_text(TEXT)
    options = TextOptions((str(tmp_path / "text"),))
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    progress.read_text(options)
    assert capsys.readouterr().err == ""  # a small text
    monkeypatch.setattr(progress, "_WORTH", 0)
    progress.read_text(options, cache=False, quiet=True)
    assert capsys.readouterr().err == ""
    progress.read_text(options, cache=False)
    (line,) = capsys.readouterr().err.splitlines()  # the next one would come after 30 seconds
    assert line.startswith("counting the symbols of the text: 0.00 of 0.00 GB, ") and line.endswith(" 0:00 left")
