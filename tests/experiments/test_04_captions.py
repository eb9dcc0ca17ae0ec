"""Pictures and captions fit each other, names are split and counted right, and bad data ends with one sentence."""

import gzip
import importlib
import itertools
import math
import struct

import numpy as np
import pytest

from experiments.common import DataError
from rnnjax.lm.baselines import witten_bell_log_probs

data, ngram, captioner = (
    importlib.import_module(f"experiments.04_captions.{name}") for name in ("data", "ngram", "captioner")
)


def test_number_words_of_every_language():
    by_hand = {  # as dictionaries have them
        "en": {7: "seven", 40: "forty", 99: "ninety-nine"},
        "de": {7: "sieben", 16: "sechzehn", 21: "einundzwanzig"},
        "fr": {21: "vingt et un", 71: "soixante et onze", 80: "quatre-vingts", 97: "quatre-vingt-dix-sept"},
        "es": {16: "dieciséis", 31: "treinta y uno"},
        "it": {21: "ventuno", 28: "ventotto", 33: "trentatré"},
        "da": {21: "enogtyve", 50: "halvtreds", 73: "treoghalvfjerds"},
    }
    for row, (code, words) in zip(data.captions(), by_hand.items()):
        assert code == list(data.LANGUAGES)[data.captions().index(row)] and len(set(row)) == 100
        assert {number: row[number] for number in words} == words


def pixels_that_tell(count=40, size=4):
    """Images whose every pixel is a thousandth of their number, and labels."""
    labels = (np.arange(count) * 7 % 10).astype(np.int32)
    return data.Images(np.ones((count, size, size), np.float32) * np.arange(1, count + 1)[:, None, None] / 1000, labels)


def test_caption_says_what_the_picture_shows():
    images = pixels_that_tell()
    characters = data.Characters(text for row in data.captions() for text in row)
    pictures = data.Pictures(images, characters, 64, seed=(3,))
    batch, again, other = pictures(5), pictures(5), pictures(6)
    assert all((one == two).all() for one, two in zip(batch, again)) and (batch.numbers != other.numbers).any()
    for picture, language, symbols, length, number in zip(*batch):
        left, right = (images.labels[round(float(half) * 1000) - 1] for half in (picture[0, 0], picture[3, 7]))
        assert number == 10 * left + right and (picture[:, :4] == picture[0, 0]).all()
        assert characters.decode(symbols) == data.captions()[language][number]
        assert symbols[length - 1] == data.STOP and (symbols[length:] == data.PADDING).all()
    assert data.seen()[batch.languages, batch.numbers].all()
    mixed = data.Pictures(images, characters, 512, seed=(3,), unseen=True)(0)
    assert 0.02 < 1 - data.seen()[mixed.languages, mixed.numbers].mean() < 0.25
    assert data.seen().any(axis=0).all()  # every number is captioned in some language


def test_moved_digits_are_the_digit_elsewhere():
    images = data.Images(np.arange(1, 10, dtype=np.float32).reshape(1, 3, 3), np.array([5], np.int32))
    characters = data.Characters("abc")
    found = {half.tobytes() for half in data.Pictures(images, characters, 1, (0,), shift=1)._moved(
        np.random.default_rng(0), np.zeros(300, int))}  # fmt: skip
    wide = np.pad(images.pixels[0], 1)
    assert found == {wide[i : i + 3, j : j + 3].tobytes() for i, j in itertools.product(range(3), repeat=2)}


def test_measure_tells_misread_from_misspelled():
    seen, unseen = data.seen()[0], ~data.seen()[0]
    shown, hidden = np.flatnonzero(seen)[:4], np.flatnonzero(unseen)[:1]
    numbers = np.concatenate([shown, hidden])
    batch = data.Batch(np.zeros((5, 2, 4)), np.zeros(5, int), np.zeros((5, 3)), np.zeros(5), numbers)
    words = data.captions()[0]
    found = captioner.measure([words[shown[0]], words[shown[0]], "fortyfour", words[shown[3]], words[hidden[0]]], batch)
    assert found["exact_match"] == 0.5 and found["another_number"] == 0.25 and found["no_number"] == 0.25
    assert found["exact_match_unseen_in_language"] == 1 and found["by_language"]["English"] == 0.5


def write_idx(path, values):
    shape = struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(bytes([0, 0, 8, values.ndim]) + shape + values.astype(np.uint8).tobytes()))


def write_mnist(folder, labels, images=20):
    for stem in ("train", "t10k"):
        write_idx(folder / f"{stem}-images-idx3-ubyte.gz", np.arange(images * 4).reshape(images, 2, 2))
        write_idx(folder / f"{stem}-labels-idx1-ubyte.gz", np.array(labels))


def test_mnist_is_read_and_cut(tmp_path):
    write_mnist(tmp_path, [*range(10), *range(10)])
    parts = data.mnist_digits(tmp_path)
    assert [len(parts[part].labels) for part in ("train", "valid", "test")] == [10, 10, 20]
    assert np.allclose(parts["valid"].pixels[0], np.arange(40, 44).reshape(2, 2) / 255)
    assert parts["test"].labels.tolist() == [*range(10), *range(10)]


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [([1] * 19, "needs one label an image, got 19 labels for the 20"), ([1] * 19 + [12], "line 20: needs a digit")],
)
def test_bad_mnist(tmp_path, labels, sentence):
    write_mnist(tmp_path, labels)
    with pytest.raises(DataError, match=sentence):
        data.mnist_digits(tmp_path)


def test_damaged_idx_files(tmp_path):
    path = tmp_path / "images.gz"
    with pytest.raises(DataError, match="there is no such file"):
        data.read_idx(path, 3)
    whole = gzip.compress(bytes([0, 0, 8, 1]) + struct.pack(">I", 5) + b"12345")
    for content, sentence in (
        (whole[:-9], "cannot be unpacked"),
        (b"plain", "cannot be unpacked"),
        (gzip.compress(b"\0\0\x0d\1" + bytes(9)), "idx file of bytes with 1 axes, got 00000d01"),
        (gzip.compress(bytes([0, 0, 8, 1]) + struct.pack(">I", 6) + b"12345"), "must hold 6 bytes, got 5"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=sentence):
            data.read_idx(path, 1)


def test_names_are_different_and_in_one_part_only(tmp_path):
    lines = [f"Name{i % 25}" for i in range(40)]
    (tmp_path / "Elvish.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "SOURCE.txt").write_text("\n\n")
    names = data.read_names(tmp_path)
    assert names == {"Elvish": [f"Name{i}" for i in range(25)]}
    parts = data.split_names(names, seed=0)
    assert [len(parts[part]["Elvish"]) for part in ("train", "valid", "test")] == [21, 2, 2]
    assert sorted(itertools.chain(*(part["Elvish"] for part in parts.values()))) == sorted(names["Elvish"])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"Ana\nBo\n \nCy\n", "Elvish.txt, line 3: needs a name, got an empty line"),
        (b"Ana\nBo\n", "needs at least 10 names, got 2"),
        (b"Ana\n\xff\n", "line 2: must be UTF-8"),
        (None, "needs files such as English.txt"),
    ],
)
def test_bad_names(tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "Elvish.txt").write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        data.read_names(tmp_path)


def test_witten_bell_by_hand_and_against_the_library():
    model = ngram.WittenBell([[2, 0], [2, 3, 0]], vocab_size=4, order=2)
    # After nothing: 0 0 2 2 3, three kinds in five. After 2: one 0, one 3.
    zero = (2 + 3 / 4) / 8
    assert math.isclose(model.probability(0, ()), zero)
    assert math.isclose(model.probability(0, (2,)), (1 + 2 * zero) / 4)
    assert math.isclose(model.probability(2, (-1,)), (2 + (2 + 3 / 4) / 8) / 3)
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 4, 300), rng.integers(0, 4, 30)
    for context in itertools.product(range(4), repeat=2):
        model = ngram.WittenBell([train.tolist()], 4, 3)
        assert math.isclose(sum(model.probability(symbol, context) for symbol in range(4)), 1)
    # One sequence: the library's own, which has no start symbol, agrees where the start is out of sight.
    expected = -witten_bell_log_probs(train, test, 4, 1).sum()
    assert math.isclose(ngram.WittenBell([train.tolist()], 4, 1).nll(test.tolist()), expected, rel_tol=1e-9)
