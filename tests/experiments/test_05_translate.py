"""Text goes in and comes back, dates and sums are right, perplexity counts as it says, and bad data is a sentence."""

import datetime
import gzip
import importlib
import math

import jax
import numpy as np
import pytest

from experiments.common import DataError

text, tasks, multi30k, model = (
    importlib.import_module(f"experiments.05_translate.{name}") for name in ("text", "tasks", "multi30k", "model")
)


def test_tokens_join_to_what_they_were():
    line = "a man's (blue-grey) hat, isn't it?"
    assert text.tokenize(line) == ["a", "man", "'s", "(", "blue-grey", ")", "hat", ",", "isn", "'t", "it", "?"]
    assert text.join(text.tokenize(line)) == line


def test_vocabulary_and_padding():
    vocabulary = text.Vocabulary.of([["b", "a", "b"], ["c", "a", "b"]], min_count=2)
    assert vocabulary.tokens[2:] == ("b", "a") and vocabulary.folded == 1
    assert vocabulary.encode(["a", "c", "b"]) == [3, text.UNKNOWN, 2, text.STOP]
    assert vocabulary.decode([2, 3, text.STOP, 2]) == ["b", "a"]
    pairs = text.make_pairs([["a"], ["b", "b", "a"]], [["b", "c"], []], vocabulary, vocabulary)
    assert pairs.sources.tolist() == [[3, 0, -1, -1], [2, 2, 3, 0]] and pairs.source_lengths.tolist() == [2, 4]
    assert pairs.targets.tolist() == [[2, 1, 0], [0, -1, -1]] and pairs.longest.tolist() == [3, 4]
    assert text.trim(pairs, 3).sources.shape == (2, 3)


def test_dates_say_their_day():
    day = datetime.date(2005, 2, 28)  # a Monday
    said = [tasks.make_date(day, form).source for form in tasks.DATE_FORMS]
    assert said == [
        "monday, february 28, 2005",
        "the twenty-eighth of february two thousand and five",
        "february the twenty-eighth, two thousand and five",
        "28th february 2005",
        "feb 28 2005",
        "on monday the twenty-eighth of february in the year two thousand and five",
        "the 28th day of february, 2005",
        "2005, february the 28th",
        "two thousand and five, feb 28",
        "the day after february the twenty-seventh, two thousand and five",
        "the last day of february two thousand and five",
    ]
    assert {tasks.make_date(day, form).target for form in tasks.DATE_FORMS} == {"2005-02-28"}


def test_examples_are_right_and_parts_share_nothing():
    rng = np.random.default_rng(0)
    about: dict = {"train": set(), "test": set()}
    for part, found in about.items():
        for example in tasks.make_examples(rng, part, 200, 200):
            if example.kind == "date":
                day = datetime.date.fromisoformat(example.target)
                assert tasks.make_date(day, example.form) == example
                assert "last day" not in example.form or (day + datetime.timedelta(1)).day == 1
                found.add(example.target)
            elif example.kind == "sum in digits":
                numbers = example.source.removeprefix("add ").removeprefix("how much is ").removesuffix(" ?")
                for sign in (" plus ", " added to ", " to "):
                    if sign in numbers:
                        pair = sorted(map(value_of, numbers.split(sign)))
                        break
                assert int(example.target) == sum(pair)
                found.add("+".join(map(str, pair)))
            else:
                assert example.source.endswith(" in words") and 0 <= value_of(example.target) <= 1998
        assert all(tasks.part_of(one) == part for one in found)
    assert len(about["train"]) > 250 and not about["train"] & about["test"]


SMALL = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
SMALL += "seventeen eighteen nineteen"
TENS = {word: 20 + 10 * i for i, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split())}


def value_of(words):
    """A number in words, read from left to right."""
    total = current = 0
    for word in words.replace("-", " ").replace(",", "").split():
        if word == "thousand":
            total, current = current * 1000, 0
        elif word == "hundred":
            current *= 100
        elif word != "and":
            current += TENS[word] if word in TENS else SMALL.split().index(word)
    return total + current


def write(folder, name, lines):
    (folder / name).write_bytes(gzip.compress(b"".join(line + b"\n" for line in lines)))


def test_pairs_are_read(tmp_path):
    write(tmp_path, "val.de.gz", [b"Ein Hut .", "Größe".encode()])
    write(tmp_path, "val.en.gz", [b"A hat. ", b"Size"])
    assert multi30k.read_pairs(tmp_path, "valid") == [("Ein Hut .", "A hat."), ("Größe", "Size")]


@pytest.mark.parametrize(
    ("german", "english", "sentence"),
    [
        ([b"a", b"b", b"c"], [b"a", b"b"], r"val.en.gz, line 3: needs a sentence, as val.de.gz has one"),
        ([b"a"], [b"a", b"b"], r"val.de.gz, line 2: needs a sentence, as val.en.gz has one"),
        ([b"a", b" "], [b"a", b"b"], r"val.de.gz, line 2: needs a sentence, got an empty line"),
        ([b"a"], [b"\xff"], r"val.en.gz, line 1: must be UTF-8"),
        ([], [], r"val.de.gz: needs at least one sentence"),
    ],
)
def test_bad_pairs(tmp_path, german, english, sentence):
    write(tmp_path, "val.de.gz", german)
    write(tmp_path, "val.en.gz", english)
    with pytest.raises(DataError, match=sentence):
        multi30k.read_pairs(tmp_path, "valid")


def test_damaged_and_missing_files(tmp_path):
    with pytest.raises(DataError, match="there is no such file"):
        multi30k.read_lines(tmp_path / "val.de.gz")
    write(tmp_path, "val.de.gz", [bytes([65 + i % 26 for i in range(j, j + 30)]) for j in range(200)])
    whole = (tmp_path / "val.de.gz").read_bytes()
    for content in (whole[: len(whole) // 2], b"no gzip"):
        (tmp_path / "val.de.gz").write_bytes(content)
        with pytest.raises(DataError, match="cannot be unpacked"):
            multi30k.read_lines(tmp_path / "val.de.gz")


def test_perplexity_counts_each_symbol_once_and_greedy_follows_the_logits():
    setting = model.Setting(hidden_size=4, embed_size=3, eval_batch=4, eval_round=4)
    network = model.make_model(setting, 6, 5, attention=True)
    params, apply = jax.jit(network.init)(jax.random.key(0)), jax.jit(network.apply)
    vocabulary = text.Vocabulary(("<stop>", "<unknown>", "a", "b", "c"), {"a": 2, "b": 3, "c": 4}, 7)
    sources, targets = [["a"], ["b", "c", "a"]], [["b", "z"], ["a"]]
    pairs = text.make_pairs(sources, targets, vocabulary, vocabulary)
    found = model.perplexity(network, params, pairs, setting, folded=7)
    nll, unknown = [], []
    for source, target in zip(sources, targets):  # one at a time, without padding
        symbols = vocabulary.encode(target)
        logits = apply(params, np.array(vocabulary.encode(source))[:, None], np.array(symbols)[:, None])
        log_p = np.asarray(logits, np.float64)[:, 0]
        log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
        for t, symbol in enumerate(symbols):
            nll.append(-log_p[t, symbol])
            unknown.append(symbol == text.UNKNOWN)
    nll, unknown = np.array(nll), np.array(unknown)
    assert found.symbols == 5 and math.isclose(found.unknown, 1 / 5)
    assert math.isclose(found.of_all, math.exp(nll.mean()), rel_tol=1e-5)
    assert math.isclose(found.of_known, math.exp(nll[~unknown].mean()), rel_tol=1e-5)
    assert math.isclose(found.of_spelled, math.exp((nll.sum() + math.log(7)) / 5), rel_tol=1e-5)
    weights = model.attended(network, params, vocabulary.encode(sources[1]), [2, 0])
    assert weights.shape == (2, 4) and np.allclose(weights.sum(axis=1), 1)
    # What is written is the likeliest symbol of each step but for the unknown word.
    for source, symbols in zip(sources, model.translate(network, params, pairs, setting, max_len=3)):
        wanted = [*symbols, text.STOP][:3]
        given = np.array([*wanted, 0, 0][:3])[:, None]
        logits = np.array(apply(params, np.array(vocabulary.encode(source))[:, None], given))[:, 0]
        logits[:, text.UNKNOWN] = -np.inf
        assert logits.argmax(-1)[: len(wanted)].tolist() == wanted
