"""Vocabulary, decoding and sources against plain Python."""

import codecs
import collections
import gzip
import hashlib
import io
import itertools
import json
import os
import random
import sys
import threading
import types

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnjax.text.encoding import count_symbols
from rnnjax.text.sources import Source, Tally, open_sources, read_symbols, stdlib_files
from rnnjax.text.vocabulary import LEVELS, UNKNOWN, StreamDecoder, Vocabulary, tokenize
from rnnjax.text.wide import unmarked, wide_encoding

BYTES = Vocabulary.from_counts("byte", {})
ANY_TEXT = st.text(st.characters(exclude_categories=[]))  # lone surrogates too


def vocabulary_of(level, text, min_count=1):
    return Vocabulary.from_counts(level, count_symbols([tokenize(text) if level == "word" else text]), min_count)


@given(ANY_TEXT)
def test_characters_round_trip(text):
    vocabulary = vocabulary_of("char", text)
    ids = vocabulary.encode(text, "error")
    assert vocabulary.symbols == tuple(sorted(set(text))) and vocabulary.unknown is None
    assert ids.tolist() == [sorted(set(text)).index(character) for character in text]
    assert vocabulary.decode(ids) == text
    assert vocabulary.decode_bytes(ids) == text.encode("utf-8", "surrogatepass")


@given(st.binary())
def test_bytes_round_trip(data):
    assert BYTES.encode(data).tolist() == list(data)
    assert BYTES.decode_bytes(list(data)) == data
    assert BYTES.decode(list(data)) == data.decode("utf-8", "replace")


@given(st.one_of(ANY_TEXT, st.text("ab_1 \t\n\r.,é\u2003")))
def test_words_round_trip(text):
    tokens = tokenize(text)
    assert "".join(tokens) == text
    assert all(token.isspace() or len(token) == 1 or token.replace("_", "a").isalnum() for token in tokens)
    vocabulary = vocabulary_of("word", text)
    assert vocabulary.unknown is not None
    assert vocabulary.decode(vocabulary.encode(text, "error")) == text


@given(st.one_of(st.binary(), st.text().map(str.encode)), st.lists(st.integers(0, 40)))
def test_stream_decoder_never_breaks_a_code_point(data, cuts):
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    decoder = StreamDecoder(BYTES)
    pieces = [decoder.push(list(data[i:j])) for i, j in itertools.pairwise(edges)]
    assert "".join(pieces) + decoder.flush() == data.decode("utf-8", "replace")


def test_stream_decoder_every_cut_of_every_code_point_length():
    text = "aé€😀\n"
    data = text.encode()
    for i in range(len(data) + 1):
        for j in range(i, len(data) + 1):
            decoder = StreamDecoder(BYTES)
            pieces = [decoder.push(list(part)) for part in (data[:i], data[i:j], data[j:])]
            assert "".join(pieces) == text and decoder.flush() == ""
            assert UNKNOWN not in "".join(pieces)
    decoder = StreamDecoder(BYTES)
    assert decoder.push([0xE2, 0x82]) == "" and decoder.flush() == UNKNOWN
    assert decoder.push([0x61]) == "a"  # the flush left nothing behind


def test_stream_decoder_of_other_levels():
    for level in ("char", "word"):
        vocabulary = vocabulary_of(level, "né 😀")
        decoder = StreamDecoder(vocabulary)
        assert "".join(decoder.push([i]) for i in vocabulary.encode("né 😀")) + decoder.flush() == "né 😀"


def test_min_count_and_the_unknown_symbol():
    vocabulary = vocabulary_of("char", "aaabbc", min_count=2)
    assert vocabulary.symbols == ("a", "b", UNKNOWN) and vocabulary.unknown == 2
    assert vocabulary.decode(vocabulary.encode("abcz")) == "ab" + 2 * UNKNOWN
    assert vocabulary.decode(vocabulary.encode("abcz", "skip")) == "ab"
    words = vocabulary_of("word", "to be or not to be", min_count=2)
    assert words.symbols == (" ", "be", "to", UNKNOWN)
    assert words.decode(words.encode("to see")) == f"to {UNKNOWN}"
    # A replacement character of the text shares the symbol.
    assert vocabulary_of("char", "aab" + 3 * UNKNOWN, min_count=2).symbols == ("a", UNKNOWN)


def test_unknown_characters_are_named():
    vocabulary = Vocabulary("char", ("a", "b"))
    for unknown in ("replace", "error"):
        with pytest.raises(ValueError, match=r"got 'é' \(U\+00E9\), '😀' \(U\+1F600\); .*unknown='skip'"):
            vocabulary.encode("a😀éb", unknown)
    assert vocabulary.encode("a😀éb", "skip").tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"got 'c'.* and 12 more;"):
        vocabulary.encode("cdefghijklmnopqrstuv")
    with pytest.raises(ValueError, match=r"got 0xff at byte 1; pass a str"):
        vocabulary.encode(b"a\xff")
    with pytest.raises(ValueError, match="unknown: must be"):
        vocabulary.encode("a", "drop")


@pytest.mark.parametrize("level", LEVELS)
def test_json_round_trip(level):
    vocabulary = vocabulary_of(level, 'a "né"\n\t😀 aa aa\ud800', min_count=2 if level == "word" else 1)
    again = Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json())))
    assert again == vocabulary and hash(again) == hash(vocabulary)


def test_id_types():
    for size, dtype in (
        (1, np.uint8),
        (256, np.uint8),
        (257, np.uint16),
        (65536, np.uint16),
        (65537, np.int32),
    ):
        vocabulary = Vocabulary("char", tuple(map(chr, range(size))))
        assert vocabulary.dtype == dtype
        ids = vocabulary.encode(chr(size - 1))
        assert ids.dtype == dtype and ids.tolist() == [size - 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("letter", ("a",)), "level: must be one of char, byte, word, got 'letter'"),
        (("char", ("a", "a")), "symbols must be distinct"),
        (("char", ("ab",)), "must be single characters"),
        (("byte", ("a",)), "must be the 256 characters"),
        (("char", ("a",), 1), "unknown must be an id below 1, got 1"),
    ],
)
def test_vocabularies_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary(*arguments)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([-1], ValueError, r"must lie between 0 and 1, got -1"),
        ([2], ValueError, r"must lie between 0 and 1, got 2"),
        ([[0]], ValueError, r"must have shape \[n\], got i64\[1,1\]"),
        ([0.5], TypeError, r"must be integers, got \[0.5\]"),
        ([True], TypeError, r"must be integers, got \[True\]"),
        (None, TypeError, "must be integers, got None"),
    ],
)
def test_ids_that_cannot_be(ids, error, message):
    with pytest.raises(error, match=f"^Vocabulary.decode: ids {message}"):
        Vocabulary("char", ("a", "b")).decode(ids)


def test_a_key_is_no_ids():
    with pytest.raises(TypeError, match=r"^Vocabulary.decode: ids must be integers, got key<fry>\[\]"):
        Vocabulary("char", ("a", "b")).decode(jax.random.key(0))


def test_json_without_symbols():
    with pytest.raises(ValueError, match="got no 'symbols'"):
        Vocabulary.from_json({"level": "char"})


@given(st.lists(st.text("ab \né€😀"), min_size=1, max_size=4), st.sampled_from(LEVELS), st.integers(1, 5))
def test_reading_in_blocks_of_any_size(tmp_path_factory, texts, level, size):
    folder = tmp_path_factory.mktemp("blocks")
    sources = []
    for i, text in enumerate(texts):
        (folder / str(i)).write_bytes(text.encode())
        sources.append(Source(str(i), folder / str(i)))
    whole = ""
    for text in filter(None, texts):
        whole += ("\n" if whole and not whole.endswith("\n") else "") + text
    expected = list(whole)
    if level == "byte":
        expected = [chr(byte) for byte in whole.encode()]
    elif level == "word":
        expected = tokenize(whole)
    tally = Tally()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rnnjax.text.sources._BLOCK_BYTES", size)
        blocks = list(read_symbols(sources, level, tally=tally))
    assert [symbol for block in blocks for symbol in block] == expected
    assert dict(count_symbols(blocks).items()) == collections.Counter(expected)
    assert tally.sha256 == hashlib.sha256(whole.encode()).hexdigest() and tally.n_bytes == len(whole.encode())


def read(paths, glob="*", level="char", **options):
    with open_sources([str(path) for path in paths], glob) as (sources, described):
        return "".join("".join(block) for block in read_symbols(sources, level, **options)), described


def test_directories_are_read_in_sorted_order(tmp_path):
    for name in ("b.txt", "a.txt", "a/z.txt", "a/y.md", ".git/x.txt", "a/.hidden.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    text, described = read([tmp_path], "*.txt")
    assert text == "a/z.txt\na.txt\nb.txt" and described == f"{tmp_path} (3 files)"
    assert read([tmp_path])[0] == "a/y.md\na/z.txt\na.txt\nb.txt"
    assert read([tmp_path / "b.txt", tmp_path / "a.txt"], separator="<|>")[0] == "b.txt<|>a.txt"


def test_gzip_by_content_and_by_suffix(tmp_path):
    for name in ("a.gz", "a.bin"):
        (tmp_path / name).write_bytes(gzip.compress("né\n".encode()))
        assert read([tmp_path / name])[0] == "né\n"


def test_standard_input_and_pipes(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(gzip.compress("né".encode()))))
    assert read(["-"]) == ("né", "standard input")
    assert not sys.stdin.buffer.closed
    if hasattr(os, "mkfifo"):
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        writer = threading.Thread(target=pipe.write_text, args=("through",))
        writer.start()
        assert read([pipe]) == ("through", str(pipe))
        writer.join()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-be", "latin-1", "cp1252"])
def test_encodings(tmp_path, encoding):
    (tmp_path / "t").write_bytes("né\r\n".encode(encoding))
    assert read([tmp_path / "t"], encoding=encoding)[0] == "né\r\n"


@pytest.mark.parametrize("size", [1, 3, 4, 1 << 18])
def test_undecodable_bytes_are_located(tmp_path, monkeypatch, size):
    monkeypatch.setattr("rnnjax.text.sources._BLOCK_BYTES", size)
    path = tmp_path / "t"
    path.write_bytes("aé€".encode() + b"\xe2\x28a")
    with pytest.raises(ValueError, match=r"t must be utf-8 text, got 0xe2 at byte 6 \(inv.*encoding=.*level='byte'"):
        read([path])
    path.write_bytes(b"a\xe2\x82")  # ends within a code point
    with pytest.raises(ValueError, match=r"got 0xe2 at byte 1 \(unexpected end of data\);"):
        read([path])
    path.write_bytes(b"\x82\xa0\x82\xff")
    with pytest.raises(ValueError, match=r"must be shift_jis text, got 0x82 at byte 2 \("):
        read([path], encoding="shift_jis")
    path.write_bytes(b"abcd")
    with pytest.raises(ValueError, match="must be utf-16 text, got what is not: UTF-16 stream does not start with BOM"):
        read([path], encoding="utf-16")


WIDE = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")


@pytest.mark.parametrize(
    "text",
    [
        "He said: “no” — 😀\n",
        "Größe, 1 2\r\n",
        "Привет, мир\n",
        "שלום עולם\n",
        "नमस्ते दुनिया\n",
        "今天 天气 很好\n",
        "\n\t\n\n",
    ],
)
def test_wide_characters_are_known_without_a_mark(text):
    assert [unmarked((text * 9).encode(encoding)) for encoding in WIDE] == list(WIDE)
    for encoding in ("utf-8", "cp1251", "gb18030", "utf-16", "utf-32"):
        data = (text * 9).encode(encoding, "ignore")
        assert wide_encoding(data) == (encoding if encoding.startswith("utf-") and encoding != "utf-8" else "")


def test_records_between_nuls_are_no_wide_characters():
    rng = random.Random(0)
    for size in (0, 2, 3, 5, 7, 8):
        for _ in range(100):
            records = ("".join(rng.choices("abc é日/.\n", k=size or rng.randrange(12))) for _ in range(30))
            assert unmarked("\0".join(records).encode()) == ""
        assert unmarked(bytes(rng.randrange(256) for _ in range(4000))) == ""


@pytest.mark.parametrize("level", ["char", "word"])
def test_wide_characters_are_refused_and_read_where_they_are_named(tmp_path, level):
    path = tmp_path / "t"
    for encoding in WIDE:
        path.write_bytes("one fox.\nlazy dog.\n".encode(encoding))
        for other in ("utf-8", "latin-1", "cp1252"):
            sentence = (
                rf"t must be {other} text, got what looks like {encoding} without a mark; pass encoding='{encoding}'"
            )
            with pytest.raises(ValueError, match=sentence):
                read([path], encoding=other, level=level)
        assert read([path], encoding=encoding, level=level)[0] == "one fox.\nlazy dog.\n"
        assert len(read([path], level="byte")[0]) == path.stat().st_size
    path.write_bytes("one fox.\n".encode("utf-16-be"))
    with pytest.raises(ValueError, match="must be utf-16-le text, got what looks like utf-16-be"):
        read([path], encoding="utf-16-le", level=level)


def test_corrupt_gzip(tmp_path):
    whole = gzip.compress(os.urandom(1000))
    for name, data in (
        ("cut", whole[:-20]),
        ("name.gz", b"no gzip"),
        ("flipped", whole[:200] + bytes([whole[200] ^ 255]) + whole[201:]),
        ("stream", whole[:10] + b"\xff" * 50),
    ):
        (tmp_path / name).write_bytes(data)
        with open_sources([str(tmp_path / name)]) as (sources, _):
            with pytest.raises(ValueError, match=f"{name} must be a whole gzip file, got a corrupt one"):
                list(read_symbols(sources, "byte"))


def test_missing_paths(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        read([tmp_path / "none.txt"])
    assert str(error.value).startswith("load_corpus: a path must exist, got ") and "none.txt" in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"a file that matches '\*.txt', got none in .*; change glob=\."):
        read([tmp_path], "*.txt")


def test_standard_library():
    files = stdlib_files(300_000)
    sizes = [path.stat().st_size for path in files]
    assert sum(sizes) >= 300_000 > sum(sizes[:-1])
    assert stdlib_files(300_000) == files == stdlib_files(600_000)[: len(files)]
    assert len({path.parent for path in files}) > 1  # not the files of one folder
    for path in files:
        assert not {"test", "tests", "site-packages"} & set(path.parts[-3:])
        codecs.decode(path.read_bytes(), "utf-8")
    with open_sources([]) as (sources, described):
        assert described == f"Python {sys.version.split()[0]} standard library, {len(sources)} files"
        assert 4e6 <= sum(source.path.stat().st_size for source in sources) < 5e6


def test_no_standard_library(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"must have .py files, got none"):
        stdlib_files()
