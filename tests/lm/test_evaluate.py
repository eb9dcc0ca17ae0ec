"""Losses of a text against a loop that reads it symbol by symbol."""

import json
import pathlib
import re
import sys
from typing import Any

import jax
import numpy as np
import pytest

import rnnjax
from rnnjax.lm.evaluate import Evaluation, _losses, evaluate, evaluate_windows
from rnnjax.lm.model import LanguageModel, LMParams
from tests.lm import tiny_run

V = 20
MODEL = LanguageModel(V, rnnjax.Stack((rnnjax.LSTM(8), rnnjax.GRU(6))))
PARAMS = tiny_run.strong(MODEL.init(jax.random.key(0)))
IDS = np.random.default_rng(0).integers(V, size=61).astype(np.uint8)
STARTS = np.array([0, 5, 6, 40])
STEP = jax.jit(MODEL.logits)


def loop(params: LMParams, ids: np.ndarray, starts: np.ndarray | None = None) -> np.ndarray:
    """Nats of `ids[1:]`, one call of the model a symbol."""
    state, losses = MODEL.initial_state((1,)), []
    for t in range(len(ids) - 1):
        if starts is not None and t in starts:
            state = MODEL.initial_state((1,))
        state, logits = STEP(params, state, np.array([[ids[t]]], np.int32))
        losses.append(-tiny_run.log_softmax(logits)[0, 0, ids[t + 1]])
    return np.array(losses)


@pytest.fixture(scope="module")
def carried() -> np.ndarray:
    return loop(PARAMS, IDS)


def test_the_past_matters_in_this_model(carried: np.ndarray) -> None:
    cold = np.concatenate([loop(PARAMS, IDS[t : t + 2]) for t in range(len(IDS) - 1)])
    assert np.abs(cold - carried).max() > 0.1


@pytest.mark.parametrize("window", [1, 7, 60, 256])
def test_one_stream_is_the_loop(carried: np.ndarray, window: int) -> None:
    for count in (1, 2, 3, 17, 44, 59):
        part = evaluate(MODEL, PARAMS, IDS, window=window, limit=count)
        assert part.loss == pytest.approx(carried[:count].mean(), rel=2e-5)
    result = evaluate(MODEL, PARAMS, IDS, window=window)
    assert result.count == 60
    assert result.loss == pytest.approx(carried.mean(), rel=1e-5)


def test_documents_start_with_a_fresh_state(carried: np.ndarray) -> None:
    expected = loop(PARAMS, IDS, STARTS)
    assert np.abs(expected - carried).max() > 0.1
    for streams in (1, 3):
        result = evaluate(MODEL, PARAMS, IDS, streams=streams, window=7, starts=STARTS)
        assert result.loss == pytest.approx(expected.mean(), rel=1e-5)


@pytest.mark.parametrize("streams", [2, 7, 60, 64])
@pytest.mark.parametrize("starts", [None, STARTS])
def test_streams_that_warm_up_from_the_beginning_are_one_stream(streams: int, starts: np.ndarray | None) -> None:
    expected = evaluate(MODEL, PARAMS, IDS, starts=starts)
    result = evaluate(MODEL, PARAMS, IDS, streams=streams, window=16, warmup=1000, starts=starts)
    assert result.count == expected.count
    assert result.loss == pytest.approx(expected.loss, rel=1e-5)


@pytest.mark.parametrize("warmup", [0, 3])
def test_short_warmup_starts_the_pieces_so_much_earlier(warmup: int) -> None:
    # 60 predictions in 4 pieces of 15; the piece from 15 b begins `warmup` symbols before, with a fresh state.
    pieces = [loop(PARAMS, IDS[max(0, 15 * b - warmup) : 15 * b + 16])[-15:] for b in range(4)]
    result = evaluate(MODEL, PARAMS, IDS, streams=4, window=8, warmup=warmup)
    assert result.loss == pytest.approx(np.mean(pieces), rel=1e-5)


def test_limit_counts_the_first_predictions(carried: np.ndarray) -> None:
    result = evaluate(MODEL, PARAMS, IDS, limit=33, streams=2, window=8)
    assert result.count == 33
    assert result.loss == pytest.approx(carried[:33].mean(), rel=1e-5)
    assert evaluate(MODEL, PARAMS, IDS, limit=1000).count == 60


@pytest.mark.parametrize(("window", "batch_size"), [(1, 64), (16, 2), (20, 64), (100, 1)])
def test_cold_windows(window: int, batch_size: int) -> None:
    windows = [loop(PARAMS, IDS[first : first + window + 1]) for first in range(0, 60, window)]
    result = evaluate_windows(MODEL, PARAMS, IDS, window=window, batch_size=batch_size)
    assert result.count == 60
    assert result.loss == pytest.approx(np.concatenate(windows).mean(), rel=1e-5)


def test_one_compilation_serves_texts_of_any_length() -> None:
    evaluate(MODEL, PARAMS, IDS, streams=3, window=9)
    before = sys.modules["rnnjax.lm.evaluate"]._losses._cache_size()
    for size in (2, 20, 61):
        for starts in (None, STARTS[STARTS < size]):
            evaluate(MODEL, PARAMS, IDS[:size].astype(np.int32), streams=3, window=9, starts=starts)
        evaluate_windows(MODEL, PARAMS, IDS[:size], window=9, batch_size=3)
    assert sys.modules["rnnjax.lm.evaluate"]._losses._cache_size() == before


def test_units() -> None:
    result = Evaluation(np.log(8.0), 5)
    assert result.bpc == pytest.approx(3.0)
    assert result.perplexity == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ids": IDS[:1]}, "at least two symbols, got 1"),
        ({"streams": 0}, "streams must be at least 1, got 0"),
        ({"window": 0}, "window must be at least 1"),
        ({"warmup": -1}, "warmup must be at least 0, got -1"),
        ({"limit": 0}, "limit must be at least 1"),
    ],
)
def test_errors(options: dict, message: str) -> None:
    ids = options.pop("ids", IDS)
    with pytest.raises(ValueError, match=message):
        evaluate(MODEL, PARAMS, ids, **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tiny_run.make_run(tmp_path_factory.mktemp("eval") / "run")


def test_command_on_the_splits_of_the_run(run: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = tiny_run.rnnjax(capsys, "eval", run, "--json", "--streams", 1)
    assert (result.code, result.err) == (0, "")
    found = {(r["text"], r["state"].split(",")[0]): r for r in json.loads(result.out)["results"]}
    assert found.keys() == {(text, state) for text in ("valid", "test") for state in ("carried", "cold")}
    # The same text given as a file of its own: the last fifth.
    (run.parent / "test.txt").write_text(tiny_run.TEXT[-found["test", "carried"]["count"] - 1 :], encoding="utf-8")
    result = tiny_run.rnnjax(capsys, "eval", run, run.parent / "test.txt", "--json", "--streams", 1)
    for row in json.loads(result.out)["results"]:
        assert row["loss"] == pytest.approx(found["test", row["state"].split(",")[0]]["loss"], rel=1e-6)


def test_command_counts_what_the_model_does_not_know(run: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign = run.parent / "foreign.txt"
    foreign.write_text("abcXYdefX", encoding="utf-8")
    result = tiny_run.rnnjax(capsys, "eval", run, foreign)
    assert result.code == 0
    assert "Symbols that the model does not know: 3; they were left out." in result.err
    assert "nats/char" in result.out and str(foreign) in result.out
    assert json.loads(tiny_run.rnnjax(capsys, "eval", run, foreign, "--json").out)["unknown_symbols"] == 3
    result = tiny_run.rnnjax(capsys, "eval", run, foreign, "--unknown", "error")
    assert result.code == 2 and "'X' (U+0058), 'Y' (U+0059)" in result.err


@pytest.mark.parametrize(
    ("option", "needs"),
    [("--warmup", "--streams above 1"), ("--dynamic-lr", "--dynamic"), ("--dynamic-decay", "--dynamic")],
)
def test_an_option_that_would_do_nothing_says_so(run: pathlib.Path, capsys, option: str, needs: str) -> None:
    result = tiny_run.rnnjax(capsys, "eval", run, option, 3)
    assert result.code == 2 and result.err == f"rnnjax: {option}: does nothing without {needs}; leave it out.\n"


def test_command_warns_of_a_text_that_changed(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny_run.make_run(tmp_path / "run")
    (run / "text.txt").write_text(tiny_run.TEXT + "abc", encoding="utf-8")
    result = tiny_run.rnnjax(capsys, "eval", run)
    assert result.code == 0 and result.err.startswith("rnnjax: warning: The text has changed since the training (")


SHAPES = (np.zeros((12, 2), np.int32), np.zeros((12, 2), np.int32), np.zeros((12, 2), bool))


@pytest.mark.parametrize("embed_size", [0, 6])
def test_blocks_of_logits_change_nothing(embed_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large vocabulary only a few steps have logits at a time; what is computed is the same."""
    model = LanguageModel(vocab_size=7, stack=rnnjax.Stack((rnnjax.GRU(5),)), embed_size=embed_size)
    params, ids = model.init(jax.random.key(0)), np.arange(60, dtype=np.uint8) % 7
    whole = evaluate(model, params, ids, streams=2, window=12, warmup=3, starts=np.array([0, 17, 40]))
    monkeypatch.setattr("rnnjax.lm.model._MAX_LOGITS", 4 * 2 * 7)  # four steps of two rows
    _losses.clear_cache()
    blocks = evaluate(model, params, ids, streams=2, window=12, warmup=3, starts=np.array([0, 17, 40]))
    np.testing.assert_allclose(blocks.loss, whole.loss, rtol=1e-6)
    traced = str(jax.make_jaxpr(_losses, static_argnums=0)(model, params, model.initial_state((2,)), *SHAPES))
    assert "4,2,7]" in traced and "12,2,7]" not in traced
    _losses.clear_cache()


@pytest.mark.parametrize(
    ("ids", "options", "kind", "sentence"),
    [
        ([0, 1, -1], {}, ValueError, "evaluate: ids must lie between 0 and 4, got values from -1 to 1."),
        ([0, 1, 5], {}, ValueError, "evaluate: ids must lie between 0 and 4, got values from 0 to 5."),
        ([0, 0.5, 1], {}, TypeError, "evaluate: ids must be integers, got f32[3]."),
        ([True, False], {}, TypeError, "evaluate: ids must be integers, got [True, False]."),
        ([0, 1, 2], {"starts": [99]}, ValueError, "evaluate: starts must lie between 0 and 2, got 99."),
        ([0, 1, 2], {"starts": [2, 0]}, ValueError, "evaluate: starts must be sorted, got [2, 0]."),
        ([0, 1, 2], {"window": 1.5}, TypeError, "evaluate: window must be an int, got 1.5."),
    ],
)
def test_ids_that_are_none(ids: list[float], options: dict[str, Any], kind: type[Exception], sentence: str) -> None:
    model = LanguageModel(vocab_size=5, stack=rnnjax.Stack((rnnjax.GRU(2),)))
    with pytest.raises(kind, match=f"^{re.escape(sentence)}$"):
        evaluate(model, model.init(jax.random.key(0)), ids, **options)  # type: ignore[arg-type]
