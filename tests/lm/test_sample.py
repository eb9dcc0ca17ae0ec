"""Sampling against exact probabilities and against a loop that reads the whole past for every symbol."""

import pathlib
import subprocess
import sys

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import strategies as st

import rnnjax
from rnnjax.lm import sample as sampling
from rnnjax.lm.model import LanguageModel, LMParams
from rnnjax.lm.sample import default_prime, generate, stream_text
from rnnjax.text.vocabulary import Vocabulary
from tests.decoding.exact import exact_probs
from tests.lm import tiny_run

V = 20
MODEL = LanguageModel(V, rnnjax.Stack((rnnjax.LSTM(8), rnnjax.GRU(6))))
PARAMS = tiny_run.strong(MODEL.init(jax.random.key(0)))
KEY = jax.random.key(7)
BYTES = Vocabulary.from_counts("byte", {})


def draw(params: LMParams = PARAMS, prime: np.ndarray | None = None, **options) -> np.ndarray:
    prime = np.array([3]) if prime is None else prime
    return np.concatenate(list(generate(MODEL, params, prime, **{"key": KEY, "length": 50, **options})), axis=1)


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.5, "banned": 4}, {"top_k": 5}, {"top_p": 0.6}, {"temperature": 1.5, "top_p": 0.9}]
)
def test_frequencies_are_the_probabilities(options: dict) -> None:
    # Without output weights every symbol has the same distribution, whatever came before.
    logits = np.random.default_rng(1).standard_normal(V).astype(np.float32)
    params = PARAMS._replace(w_out=jnp.zeros_like(PARAMS.w_out), b_out=jnp.array(logits))
    counts = np.bincount(draw(params, length=1500, count=4, block=500, **options).ravel(), minlength=V)
    exact = exact_probs(logits, **{"temperature": 1.0, "top_k": 0, "top_p": 1.0, "banned": None, **options})
    assert (counts[exact == 0] == 0).all()
    possible = exact > 0
    assert scipy.stats.chisquare(counts[possible], counts.sum() * exact[possible]).pvalue > 1e-3
    if options:  # the test would notice
        plain = exact_probs(logits, 1.0, 0, 1.0, None)[possible]
        assert scipy.stats.chisquare(counts[possible], counts.sum() * plain / plain.sum()).pvalue < 1e-6 or (
            "top_k" in options or "top_p" in options
        )


@pytest.mark.parametrize("prime_len", [1, 2, 257, 600])
@pytest.mark.parametrize("greedy", [False, True])
def test_symbols_follow_the_whole_past(prime_len: int, greedy: bool) -> None:
    prime = np.random.default_rng(prime_len).integers(V, size=prime_len).astype(np.uint8)
    text = draw(prime=prime, count=2, length=12, greedy=greedy)
    whole = np.concatenate([np.tile(prime, (2, 1)), text], axis=1).T.astype(np.int32)  # [T, 2]
    _, logits = MODEL.logits(PARAMS, MODEL.initial_state((2,)), whole[:-1])
    for sample in range(2):
        for t, row in enumerate(np.asarray(logits)[prime_len - 1 :, sample]):
            key = jax.random.fold_in(jax.random.fold_in(KEY, sample), t)
            expected = row.argmax() if greedy else jax.random.categorical(key, row)
            assert text[sample, t] == expected


def test_text_depends_on_neither_block_nor_count() -> None:
    expected = draw(count=3)
    assert expected.shape == (3, 50) and expected.dtype == np.int32
    assert (expected[0] != expected[1]).any()
    for block in (1, 7, 50, 64):
        np.testing.assert_array_equal(draw(count=3, block=block), expected)
    np.testing.assert_array_equal(draw(), expected[:1])
    assert (draw(key=jax.random.key(8)) != expected[:1]).any()
    np.testing.assert_array_equal(draw(greedy=True), draw(temperature=0.0, key=jax.random.key(8)))


def test_second_run_compiles_nothing() -> None:
    draw(temperature=0.9, top_p=0.8)
    before = sampling.draw_block._cache_size(), sampling.read_block._cache_size()
    draw(temperature=0.9, top_p=0.8, length=90, key=jax.random.key(1), prime=np.array([1]))
    assert (sampling.draw_block._cache_size(), sampling.read_block._cache_size()) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature must be at least 1e-6, or 0 .* got -1"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"top_p": 0.0}, "top_p must lie in"),
        ({"top_p": 1.1}, "top_p must lie in"),
        ({"length": 0}, "length must be at least 1"),
        ({"count": 0}, "count must be at least 1"),
        ({"prime": np.zeros(0, int)}, "the prime must hold at least one symbol"),
        ({"prime": np.array([V])}, "ids from 0 to 19, got ids from 20 to 20"),
    ],
)
def test_errors_come_at_once(options: dict, message: str) -> None:
    prime = options.pop("prime", np.array([0]))
    with pytest.raises(ValueError, match=message):  # before anything is drawn
        generate(MODEL, PARAMS, prime, **{"key": KEY, "length": 5, **options})


def test_default_prime() -> None:
    assert default_prime(BYTES).tolist() == [10]
    assert default_prime(Vocabulary("char", ("a", "b"))).tolist() == [0]
    assert default_prime(Vocabulary("word", ("<?>", "b"), unknown=0)).tolist() == [1]
    assert default_prime(Vocabulary("word", ("<?>", "\n"), unknown=0)).tolist() == [1]


@hypothesis.given(
    st.text("aab\nß😀", max_size=20), st.lists(st.integers(0, 60), max_size=6), st.text("aab\nß", max_size=3)
)
def test_streamed_text_is_the_text(text: str, cuts: list[int], stop: str) -> None:
    ids = BYTES.encode(text)
    pieces = list(stream_text(BYTES, np.split(ids, sorted(min(cut, len(ids)) for cut in cuts)), stop=stop))
    assert "".join(pieces) == (text.partition(stop)[0] if stop else text)
    assert all(pieces) and "\ufffd" not in "".join(pieces)


def test_stream_stops_asking_and_holds_nothing_back_longer_than_needed() -> None:
    asked = []

    def blocks():
        for text in ("ab", "c", "ca", "b."):
            asked.append(text)
            yield BYTES.encode(text)

    pieces = stream_text(BYTES, blocks(), stop="abca")
    assert next(pieces) == "abcca"[:4] and asked == ["ab", "c", "ca"]
    assert "".join(pieces) == "ab."
    assert "".join(stream_text(BYTES, blocks(), stop="cc")) == "ab" and asked[4:] == ["ab", "c", "ca"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tiny_run.make_run(tmp_path_factory.mktemp("sample") / "run")


def test_command_prints_the_text_and_nothing_else(run: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = tiny_run.rnnjax(capsys, "sample", run, "--length", 80, "--seed", 3)
    assert (first.code, first.err, len(first.out)) == (0, "", 80)
    assert tiny_run.rnnjax(capsys, "sample", run, "--length", 80, "--seed", 3).out == first.out
    stop = first.out[30:33]
    stopped = tiny_run.rnnjax(capsys, "sample", run, "--length", 80, "--seed", 3, "--stop", stop)
    assert stopped.out == first.out.partition(stop)[0]
    several = tiny_run.rnnjax(capsys, "sample", run, "--length", 80, "--seed", 3, "--count", 3)
    texts = several.out.split("\n" + "-" * 40 + "\n")
    assert texts[0] == first.out and len(texts) == 3 and len(set(texts)) == 3
    last = tiny_run.rnnjax(capsys, "sample", run, "--length", 80, "--seed", 3, "--checkpoint", "last")
    assert last.out != first.out


@pytest.mark.parametrize(("option", "value"), [("--temperature", 0.5), ("--top-k", 3), ("--top-p", 0.5)])
def test_who_draws_nothing_has_nothing_to_set(run: pathlib.Path, capsys, option: str, value: float) -> None:
    result = tiny_run.rnnjax(capsys, "sample", run, "--greedy", option, value)
    assert result.code == 2 and result.err.startswith(f"rnnjax: {option}: does not go together with --greedy"), result
    assert result.out == "" and result.err.count("\n") == 1


def test_command_says_the_seed_it_chose(run: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = tiny_run.rnnjax(capsys, "sample", run, "--length", 80)
    word, seed = first.err.split()
    assert word == "seed"
    assert tiny_run.rnnjax(capsys, "sample", run, "--length", 80, "--seed", seed).out == first.out


def test_command_goes_on_from_a_prime(run: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--length", 40, "--seed", 3)
    given = tiny_run.rnnjax(capsys, "sample", run, *options, "--prime", "abcabc").out
    assert given.startswith("abcabc") and len(given) == 46
    (run.parent / "prime.txt").write_text("abcabc", encoding="utf-8")
    assert tiny_run.rnnjax(capsys, "sample", run, *options, "--prime-file", run.parent / "prime.txt").out == given[6:]
    skipped = tiny_run.rnnjax(capsys, "sample", run, *options, "--prime", "abcXabc", "--unknown", "skip")
    assert skipped.out == "abcXabc" + given[6:]
    unknown = tiny_run.rnnjax(capsys, "sample", run, *options, "--prime", "abcXabc")
    assert (unknown.code, unknown.out) == (2, "") and "'X' (U+0058)" in unknown.err
    missing = tiny_run.rnnjax(capsys, "sample", run, *options, "--prime-file", run.parent / "none.txt")
    assert missing.code == 2 and "cannot be read (No such file or directory)" in missing.err
    (run.parent / "prime.txt").write_bytes(b"ab\xff")
    broken = tiny_run.rnnjax(capsys, "sample", run, *options, "--prime-file", run.parent / "prime.txt")
    assert broken.code == 2 and "must be utf-8 text" in broken.err
    nothing = tiny_run.rnnjax(capsys, "sample", run, *options, "--prime", "X", "--unknown", "skip")
    assert nothing.code == 2 and "got none" in nothing.err


def test_command_streams_and_ends_quietly_when_the_reader_leaves(run: pathlib.Path) -> None:
    code = "from rnnjax.cli import main; main()"
    command = [sys.executable, "-c", code, "sample", str(run), "--length", "100000000", "--seed", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert len(process.stdout.read(10)) == 10
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0
