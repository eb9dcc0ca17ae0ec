"""The baselines against dictionaries, sums over the vocabulary, and measured numbers."""

import collections
import lzma
import math
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnjax.lm.baselines import compute_baselines, unigram, witten_bell, witten_bell_log_probs, xz
from rnnjax.text.corpus import TextOptions, load_corpus
from rnnjax.text.vocabulary import Vocabulary

SHAKESPEARE = pathlib.Path(__file__).parents[2].parent / "shared" / "data" / "tinyshakespeare" / "input.txt"


def witten_bell_by_dictionary(train, valid, vocab_size, order):
    followers = collections.defaultdict(collections.Counter)
    for i, symbol in enumerate(train):
        for k in range(min(order - 1, i) + 1):
            followers[tuple(train[i - k : i])][symbol] += 1

    def p(symbol, context):
        shorter = p(symbol, context[1:]) if context else 1 / vocab_size
        seen = followers.get(tuple(context))
        if seen is None:
            return shorter
        return (seen[symbol] + len(seen) * shorter) / (sum(seen.values()) + len(seen))

    return [p(symbol, valid[max(i - order + 1, 0) : i]) for i, symbol in enumerate(valid)]


IDS = st.lists(st.integers(0, 4), min_size=1, max_size=60)


@given(IDS, IDS, st.integers(1, 6), st.sampled_from([5, 7, 1000]), st.sampled_from([np.uint8, np.int32]))
def test_witten_bell_is_its_recursion(train, valid, order, vocab_size, dtype):
    got = np.exp(witten_bell_log_probs(np.array(train, dtype), np.array(valid, dtype), vocab_size, order))
    np.testing.assert_allclose(got, witten_bell_by_dictionary(train, valid, vocab_size, order), rtol=1e-12)


def test_witten_bell_with_words():
    rng = np.random.default_rng(0)
    train, valid = (np.minimum(rng.zipf(1.3, n), 70_000).astype(np.int32) - 1 for n in (3000, 300))
    got = witten_bell(train, valid, 70_000)
    expected = witten_bell_by_dictionary(train.tolist(), valid.tolist(), 70_000, 5)
    assert got == pytest.approx(-np.log(expected).mean(), rel=1e-12)


@given(IDS, st.lists(st.integers(0, 5), max_size=5), st.integers(1, 6))
def test_probabilities_sum_to_one(train, context, order):
    train = np.array(train, np.uint8)
    total = 0.0
    for symbol in range(6):  # 5 never occurs in training
        valid = np.array([*context, symbol], np.uint8)
        total += math.exp(witten_bell_log_probs(train, valid, 6, order)[-1])
    assert total == pytest.approx(1, rel=1e-12)
    assert sum(math.exp(-unigram(train, np.array([i]), 6)) for i in range(6)) == pytest.approx(1, rel=1e-12)


def test_training_on_the_last_symbols():
    rng = np.random.default_rng(0)
    train, valid = rng.integers(0, 9, 500).astype(np.uint8), rng.integers(0, 9, 50).astype(np.uint8)
    assert witten_bell(train, valid, 9, max_symbols=200) == witten_bell(train[-200:], valid, 9)
    assert witten_bell(train, valid, 9, max_symbols=200) != witten_bell(train, valid, 9)


def test_inputs_are_left_alone():
    train, valid = np.arange(9, dtype=np.uint8), np.arange(9, dtype=np.uint8)
    witten_bell_log_probs(train, valid, 9)
    assert train.tolist() == valid.tolist() == list(range(9))


@pytest.mark.parametrize("level", ["char", "byte"])
def test_xz_is_the_growth_of_the_archive(tmp_path, monkeypatch, level):
    monkeypatch.setattr("rnnjax.lm.baselines._BLOCK", 1000)
    text = "".join(f"{i * i} né\n" for i in range(3000))
    (tmp_path / "text").write_text(text, encoding="utf-8")
    corpus = load_corpus(TextOptions(paths=(str(tmp_path / "text"),), level=level))
    n_train, n_valid = len(corpus.train), len(corpus.valid)
    symbols = text.encode() if level == "byte" else text
    train, valid = symbols[:n_train], symbols[n_train : n_train + n_valid]
    if level == "char":
        train, valid = train.encode(), valid.encode()
    sizes = [len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) for data in (train, train + valid)]
    expected = (sizes[1] - sizes[0]) * 8 * math.log(2) / n_valid
    assert xz(corpus.train, corpus.valid, corpus.vocabulary) == pytest.approx(expected, rel=1e-12)
    # Beyond the dictionary, only the end of the training text counts.
    monkeypatch.setattr("rnnjax.lm.baselines._XZ_DICTIONARY", 1500)
    last = corpus.train[-2000:]
    assert xz(last, corpus.valid, corpus.vocabulary) == xz(corpus.train, corpus.valid, corpus.vocabulary) > expected


def test_compute_baselines(tmp_path):
    (tmp_path / "text").write_text("to be or not to be, that is the question\n" * 50)
    corpus = load_corpus(TextOptions(paths=(str(tmp_path / "text"),), level="word"))
    lines = compute_baselines(corpus, order=3, max_symbols=400)
    assert lines.order == 3 and lines.train_symbols == 400 < len(corpus.train)
    vocab_size = len(corpus.vocabulary)
    assert lines.witten_bell == witten_bell(corpus.train[-400:], corpus.valid, vocab_size, 3)
    assert lines.unigram == unigram(corpus.train, corpus.valid, vocab_size)
    assert lines.xz == xz(corpus.train, corpus.valid, corpus.vocabulary)
    assert lines.witten_bell < lines.unigram < math.log(vocab_size)


def test_empty_parts_and_orders():
    one, none = np.zeros(1, np.uint8), np.zeros(0, np.uint8)
    vocabulary = Vocabulary("char", ("a",))
    for train, valid in ((one, none), (none, one)):
        for call in (
            lambda a, b: unigram(a, b, 1),
            lambda a, b: witten_bell(a, b, 1),
            lambda a, b: xz(a, b, vocabulary),
        ):
            with pytest.raises(ValueError, match="train and valid must hold symbols, got"):
                call(train, valid)
    with pytest.raises(ValueError, match="order must be at least 1, got 0"):
        witten_bell(one, one, 1, 0)


@pytest.mark.skipif(not SHAKESPEARE.exists(), reason="tiny Shakespeare is not at ../shared/data/tinyshakespeare")
def test_measured_lines_of_tiny_shakespeare():
    corpus = load_corpus(TextOptions(paths=(str(SHAKESPEARE),), fractions=(0.9, 0.1, 0.0)))
    assert (len(corpus.train), len(corpus.valid), len(corpus.vocabulary)) == (1_003_854, 111_540, 65)
    assert unigram(corpus.train, corpus.valid, 65) == pytest.approx(3.347, abs=1e-3)
    assert witten_bell(corpus.train, corpus.valid, 65, 2) == pytest.approx(2.484, abs=3e-3)
    assert witten_bell(corpus.train, corpus.valid, 65, 5) == pytest.approx(1.669, abs=1e-3)
