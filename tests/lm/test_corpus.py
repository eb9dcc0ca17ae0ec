"""Corpora, splits, documents and streams against plain Python loops."""

import dataclasses
import gzip
import hashlib
import json
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnjax.text.corpus import (
    TextOptions,
    chunk,
    load_corpus,
    num_chunks,
    require_length,
    split_pieces,
    streams,
)
from rnnjax.text.vocabulary import UNKNOWN, Vocabulary, tokenize

FRACTIONS = st.sampled_from(
    [(0.9, 0.05, 0.05), (0.9, 0.1, 0.0), (0.8, 0.0, 0.2), (1.0, 0, 0), (0, 1, 0), (0.7, 0.2, 0.1)]
)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr("rnnjax.text.sources._BLOCK_BYTES", 3)


def corpus_of(tmp_path, text, vocabulary=None, unknown="replace", **options):
    path = tmp_path / "text"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_corpus(TextOptions(paths=(str(path),), **options), vocabulary=vocabulary, unknown=unknown)


def joined(corpus):
    return "".join(corpus.vocabulary.decode(part) for part in (corpus.train, corpus.valid, corpus.test))


def starts_by_split(symbols, separator):
    """Positions of the symbols that begin at or after each separator's end, the first symbol included."""
    at, offsets = 0, []
    for symbol in symbols:
        offsets.append(at)
        at += len(symbol)
    ends = [match.end() for match in re.finditer(re.escape(separator), "".join(symbols))]
    found = {next((i for i, offset in enumerate(offsets) if offset >= end), None) for end in [0, *ends]}
    return sorted(found - {None})


@given(st.integers(1, 2000), FRACTIONS, st.integers(1, 60), st.sampled_from(["tail", "columns"]))
def test_splits_are_partitions(num_symbols, fractions, rows, split):
    pieces = split_pieces(num_symbols, TextOptions(split=split, fractions=fractions, rows=rows))
    covered = [i for piece in pieces for i in range(piece.start, piece.stop)]
    assert covered == list(range(num_symbols))
    sizes = [sum(p.stop - p.start for p in pieces if p.part == part) for part in range(3)]
    slack = 1 if split == "tail" else 2 * rows + 1  # rounding of every row, and what the rows leave over
    for size, fraction in zip(sizes, fractions, strict=True):
        assert abs(size - fraction * num_symbols) <= slack
        assert fraction > 0 or size == 0


def test_tail_split_of_tiny_shakespeare_length():
    pieces = split_pieces(1_115_394, TextOptions(fractions=(0.9, 0.1, 0.0)))
    assert [piece.stop - piece.start for piece in pieces] == [1_003_854, 111_540]


def test_columns_are_those_of_char_rnn(tmp_path):
    # Karpathy: the text as rows, the first columns of all rows for training, the next ones for validation.
    text = bytes(np.random.default_rng(0).integers(0, 256, 4 * 20, dtype=np.uint8))
    corpus = corpus_of(tmp_path, text, level="byte", split="columns", rows=4, fractions=(0.5, 0.25, 0.25))
    rows = np.frombuffer(text, np.uint8).reshape(4, 20)
    np.testing.assert_array_equal(streams(corpus.train, 4), rows[:, :10])
    np.testing.assert_array_equal(streams(corpus.valid, 4), rows[:, 10:15])
    np.testing.assert_array_equal(streams(corpus.test, 4), rows[:, 15:])


@pytest.mark.parametrize("level", ["char", "byte", "word"])
def test_load_corpus(tmp_path, small_blocks, level):
    text = "né 😀, or\n\n not to bé\n" * 3
    corpus = corpus_of(tmp_path, text, level=level)
    assert joined(corpus) == text
    symbols = {"char": list(text), "byte": list(text.encode()), "word": tokenize(text)}[level]
    n = corpus.n_symbols
    assert n == len(symbols) == sum(map(len, (corpus.train, corpus.valid, corpus.test)))
    assert len(corpus.train) == n * 9 // 10
    assert corpus.n_bytes == len(text.encode())
    assert corpus.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert corpus.sources == str(tmp_path / "text")
    assert corpus.train.dtype == np.uint8 and corpus.train_starts is None
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(text.encode()))
    again = load_corpus(TextOptions(paths=(str(packed),), level=level))
    assert again.sha256 == corpus.sha256 and again.vocabulary == corpus.vocabulary
    np.testing.assert_array_equal(again.train, corpus.train)


def test_default_corpus_is_the_standard_library():
    corpus = load_corpus()
    assert "standard library" in corpus.sources and corpus.n_bytes >= 4e6
    assert "import" in corpus.vocabulary.decode(corpus.train[:100_000])


def test_min_count_and_another_text(tmp_path):
    corpus = corpus_of(tmp_path, "aaaabbbbc", min_count=2, fractions=(1, 0, 0))
    assert joined(corpus) == "aaaabbbb" + UNKNOWN
    other = corpus_of(tmp_path, "abzab", corpus.vocabulary, fractions=(0, 1, 0))
    assert other.vocabulary is corpus.vocabulary and joined(other) == f"ab{UNKNOWN}ab" and len(other.valid) == 5
    assert joined(corpus_of(tmp_path, "abzab", corpus.vocabulary, "skip")) == "abab"
    with pytest.raises(ValueError, match="got 'z'"):
        corpus_of(tmp_path, "abzab", corpus.vocabulary, "error")
    with pytest.raises(ValueError, match="got 'z'"):
        corpus_of(tmp_path, "abzab", Vocabulary("char", ("a", "b")))
    with pytest.raises(ValueError, match="level must be that of the vocabulary, 'char', got 'byte'"):
        corpus_of(tmp_path, "a", corpus.vocabulary, level="byte")
    with pytest.raises(ValueError, match="unknown: must be"):
        corpus_of(tmp_path, "a", unknown="drop")


@given(
    st.text("ab\n é", min_size=1, max_size=60),
    st.sampled_from(["\n", "\n\n", "aa", "aba", "é ", " "]),
    st.sampled_from(["char", "byte", "word"]),
    st.integers(1, 7),
)
def test_document_starts(tmp_path_factory, text, separator, level, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rnnjax.text.sources._BLOCK_BYTES", size)
        corpus = corpus_of(
            tmp_path_factory.mktemp("d"), text, level=level, document_separator=separator, fractions=(1, 0, 0)
        )
    symbols = tokenize(text) if level == "word" else list(text)
    if level == "byte":
        symbols = [chr(byte) for byte in text.encode()]
        separator = separator.encode().decode("latin-1")
    assert corpus.train_starts.dtype == np.int64 and corpus.valid_starts.size == 0
    assert corpus.train_starts.tolist() == starts_by_split(symbols, separator)


@pytest.mark.parametrize("split", ["tail", "columns"])
def test_document_starts_of_each_part(tmp_path, small_blocks, split):
    text = "".join(f"{i}|" for i in range(200))
    options = TextOptions(split=split, rows=7)
    corpus = corpus_of(tmp_path, text, document_separator="|", split=split, rows=7)
    expected, size = [[], [], []], [0, 0, 0]
    for part, start, stop in split_pieces(len(text), options):
        for i in range(start, stop):
            if i == start or text[i - 1] == "|":
                expected[part].append(size[part])
            size[part] += 1
    assert corpus.train_starts.tolist() == expected[0]
    assert corpus.valid_starts.tolist() == expected[1]
    assert corpus.test_starts.tolist() == expected[2]


def test_document_starts_count_only_what_is_kept(tmp_path, small_blocks):
    vocabulary = Vocabulary("char", ("a", "b", "|"))
    text = "xab|xxax|b|xx|a"
    corpus = corpus_of(tmp_path, text, vocabulary, "skip", document_separator="|", fractions=(1, 0, 0))
    assert joined(corpus) == "ab|a|b||a"
    assert corpus.train_starts.tolist() == [0, 3, 5, 7, 8]


@pytest.mark.parametrize(("text", "documents"), [("a|xx|b|", 2), ("xx|a|b", 2), ("a|b|xx", 2), ("xx|xx|a", 1)])
def test_documents_of_which_nothing_is_left_are_not_counted(tmp_path, small_blocks, text, documents):
    vocabulary = Vocabulary("char", ("a", "b"))
    corpus = corpus_of(tmp_path, text, vocabulary, "skip", document_separator="|", fractions=(1, 0, 0))
    assert corpus.documents == documents == len(corpus.train_starts)


def test_files_are_documents(tmp_path):
    for name, text in (("a", "one"), ("b", "two<e>"), ("c", "three")):
        (tmp_path / name).write_text(text)
    options = TextOptions(paths=(str(tmp_path),), document_separator="<e>", fractions=(1, 0, 0))
    corpus = load_corpus(options)
    assert joined(corpus) == "one<e>two<e>three"
    assert [joined(corpus)[i:][:2] for i in corpus.train_starts] == ["on", "tw", "th"]


@given(st.integers(2, 200), st.integers(1, 9), st.integers(1, 20), st.sets(st.integers(0, 199)))
def test_streams_equal_a_plain_loop(num_symbols, batch_size, chunk_len, starts):
    ids = np.random.default_rng(0).integers(0, 100, num_symbols).astype(np.uint8)
    row_len = num_symbols // batch_size
    if row_len < 2:
        with pytest.raises(ValueError, match="a longer text"):
            streams(ids, batch_size)
        return
    rows = streams(ids, batch_size)
    assert np.shares_memory(rows, ids)
    array = np.array(sorted(starts), np.int64)
    assert num_chunks(rows, chunk_len) == (row_len - 1) // chunk_len
    for k in range(num_chunks(rows, chunk_len)):
        inputs, targets, resets = chunk(rows, k * chunk_len, chunk_len, array)
        assert resets.dtype == bool
        assert np.shares_memory(inputs, ids) and np.shares_memory(targets, ids)
        for t in range(chunk_len):
            for b in range(batch_size):
                position = b * row_len + k * chunk_len + t
                assert inputs[t, b] == ids[position] and targets[t, b] == ids[position + 1]
                assert resets[t, b] == (position in starts)
    assert chunk(rows, 0, 1).resets is None


def test_a_reset_marks_the_first_symbol_of_a_document(tmp_path):
    corpus = corpus_of(tmp_path, "ab|cd|ef|gh|", document_separator="|", fractions=(1, 0, 0))
    inputs, targets, resets = chunk(streams(corpus.train, 1), 0, 11, corpus.train_starts)
    assert [corpus.vocabulary.symbols[i] for i in inputs[resets]] == ["a", "c", "e", "g"]
    # The separator predicts the next document's first symbol, and its own state is that of its document.
    assert corpus.vocabulary.decode(targets[np.roll(resets, -1)]).startswith("ceg")


@pytest.mark.parametrize(("cursor", "chunk_len"), [(-1, 2), (8, 2), (0, 10), (0, 0)])
def test_chunks_beyond_the_rows(cursor, chunk_len):
    rows = streams(np.arange(20), 2)
    chunk(rows, 7, 2)
    with pytest.raises(ValueError, match="chunk: cursor must be from 0 to"):
        chunk(rows, cursor, chunk_len)


@given(st.integers(0, 300), st.integers(1, 20), st.integers(1, 20))
def test_require_length_suggests_what_works(num_symbols, batch_size, chunk_len):
    if num_symbols >= batch_size * (chunk_len + 1):
        assert num_chunks(streams(np.zeros(num_symbols), batch_size), chunk_len) >= 1
        require_length(num_symbols, batch_size, chunk_len)
        return
    with pytest.raises(ValueError, match=f"valid: .* symbols are needed, got {num_symbols}; use ") as error:
        require_length(num_symbols, batch_size, chunk_len, "valid")
    message = str(error.value)
    if found := re.search(r"batch_size at most (\d+)", message):
        require_length(num_symbols, int(found[1]), chunk_len)
    if found := re.search(r"(?<!with )chunk_len at most (\d+)", message):
        require_length(num_symbols, batch_size, int(found[1]))
    if found := re.search(r"batch_size 1 with chunk_len at most (\d+)", message):
        require_length(num_symbols, 1, int(found[1]))
    assert "batch_size" in message.split("; use ")[1] or num_symbols < 2


def test_sizes_below_one():
    for batch_size, chunk_len in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="batch_size and chunk_len must be at least 1"):
            require_length(10, batch_size, chunk_len)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "letter"}, "TextOptions: level must be 'char', 'byte' or 'word', got 'letter'"),
        ({"split": "rows"}, "split must be 'tail' or 'columns', got 'rows'"),
        ({"min_count": 0}, "min_count must be at least 1, got 0"),
        ({"rows": 0}, "rows must be at least 1, got 0"),
        ({"fractions": (0.9, 0.2, 0.0)}, r"sum to 1, of train, valid and test, got \(0.9, 0.2, 0.0\)"),
        ({"fractions": (1.1, -0.1, 0.0)}, r"must lie in \[0, 1\], got 1\.1"),
        ({"fractions": (0.5, 0.5)}, "sum to 1, of train"),
        ({"fractions": (float("nan"), 0.5, 0.5)}, r"must lie in \[0, 1\], got nan"),
        ({"document_separator": ""}, "document_separator must be a text that is not empty"),
        ({"encoding": "utf-9"}, "encoding must be a text encoding of Python, got 'utf-9'"),
        ({"encoding": "hex"}, "encoding must be a text encoding of Python, got 'hex'"),
        ({"glob": ""}, "glob must be a pattern below the directory, got ''"),
        ({"glob": "/x/*"}, "glob must be a pattern below the directory"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message) as error:
        TextOptions(**options)
    assert "\n" not in str(error.value)


def test_options_survive_json():
    options = TextOptions(paths=("a", "b"), fractions=(0.8, 0.2, 0.0), document_separator="\n\n")
    assert TextOptions(**json.loads(json.dumps(dataclasses.asdict(options)))) == options


@pytest.mark.parametrize("level", ["char", "byte", "word"])
def test_empty_text(tmp_path, level):
    with pytest.raises(ValueError, match=r"must hold at least one symbol, got none from .*text; name"):
        corpus_of(tmp_path, b"", level=level)


def test_a_text_that_changes_while_it_is_read(tmp_path, monkeypatch):
    from rnnjax.text import sources

    original, passes = sources._read_text, []

    def grow(*arguments):
        passes.append(None)
        if len(passes) == 2:
            (tmp_path / "text").write_text("abcab")
        return original(*arguments)

    monkeypatch.setattr(sources, "_read_text", grow)
    with pytest.raises(ValueError, match="must not change while it is read"):
        corpus_of(tmp_path, "abc")


@pytest.mark.parametrize(("level", "text"), [("char", "the quick brown fox\n"), ("byte", "né 😀"), ("char", "né 😀 €")])
def test_memory_stays_below_twice_the_text(tmp_path, level, text):
    size = 20_000_000
    path = tmp_path / "text"
    path.write_bytes(text.encode() * (size // len(text.encode())))
    load_corpus(TextOptions(paths=(str(path),), level=level, fractions=(1, 0, 0)))  # codecs and caches
    tracemalloc.start()
    corpus = load_corpus(TextOptions(paths=(str(path),), level=level, split="columns"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert corpus.n_bytes > 0.99 * size
    assert peak < corpus.n_symbols * corpus.train.itemsize + 16_000_000 < 2 * size
