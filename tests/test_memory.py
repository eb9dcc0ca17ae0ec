"""What must not grow with vocabulary times length, or with the number of series: bytes, of programs and of arrays."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import forecast
from rnnjax.analysis.gradient_flow import gradient_flow
from rnnjax.analysis.jacobians import _log_diagonals, lyapunov_spectrum
from rnnjax.analysis.recording import OneHot, SymbolModel
from rnnjax.analysis.text_flow import as_inputs, symbol_gradient_flow
from rnnjax.forecast import sampling
from rnnjax.lm import baselines
from rnnjax.lm import model as models
from rnnjax.lm.evaluate import Dynamic, _follow
from rnnjax.lm.model import LanguageModel
from rnnjax.online import RTRL
from rnnjax.online.across import begin
from rnnjax.text.corpus import Chunk

V, T, B = 4096, 128, 2  # 4 MB of float32 for the logits of a chunk
MODEL = LanguageModel(V, rnnjax.Stack((rnnjax.GRU(4),)), embed_size=4)


def chunk(vocab_size=V, steps=T):
    ids = np.random.default_rng(0).integers(vocab_size, size=(steps + 1, B)).astype(np.int32)
    return Chunk(ids[:-1], ids[1:], np.zeros((steps, B), bool))


def bytes_of(function, *arguments):
    """What a compiled program needs besides its arguments."""
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def test_training_makes_the_logits_of_a_large_vocabulary_in_blocks(monkeypatch):
    params, state = MODEL.init(jax.random.key(0)), MODEL.initial_state((B,))
    gradient = jax.value_and_grad(lambda params: MODEL.loss(params, state, chunk())[0])
    whole, wanted = bytes_of(gradient, params), jax.jit(gradient)(params)
    monkeypatch.setattr(models, "_MAX_TRAINED", 2**15)
    blocks, found = bytes_of(lambda p: gradient(p), params), jax.jit(lambda p: gradient(p))(params)
    assert whole > 4 * T * B * V > 3 * blocks
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), found, wanted)


def test_dynamic_evaluation_makes_them_in_blocks(monkeypatch):
    params = MODEL.init(jax.random.key(0))
    carry = (params, jax.tree.map(jnp.zeros_like, params), MODEL.initial_state((1,)), jnp.zeros(()))
    block = tuple(jnp.zeros((1, 256, 1), dtype) for dtype in (jnp.int32, jnp.int32, bool, bool))

    def follow(*given):
        return _follow.__wrapped__(MODEL, Dynamic(window=256), *given)

    whole = bytes_of(follow, params, carry, block)
    monkeypatch.setattr(models, "_MAX_TRAINED", 2**15)
    assert whole > 4 * 256 * V > 3 * bytes_of(lambda *given: follow(*given), params, carry, block)


def test_analyses_make_one_hot_vectors_step_by_step():
    """And what they find is what they find with all vectors at hand."""
    cell = rnnjax.Stack((rnnjax.GRU(3), rnnjax.LSTM(2)))
    rng = np.random.default_rng(1)
    params = cell.init(jax.random.key(0), 50)
    w_out, b_out = rng.normal(size=(2, 50)).astype(np.float32), rng.normal(size=50).astype(np.float32)
    model = SymbolModel(cell, params, OneHot(50), jnp.asarray(w_out), jnp.asarray(b_out))
    symbols = rng.integers(50, size=(24, 2)).astype(np.int32)
    reader, xs = as_inputs(model, symbols)
    state = cell.initial_state((2,))
    assert xs.nbytes == 4 * symbols.size
    found = lyapunov_spectrum(reader, params, state, xs, num_exponents=2)
    wanted = lyapunov_spectrum(cell, params, state, OneHot(50)[symbols], num_exponents=2)
    np.testing.assert_allclose(found.running, wanted.running, rtol=1e-5, atol=1e-6)

    flow = symbol_gradient_flow(model, symbols, max_lag=6, chunk_len=4)

    def loss(ys):
        logits = ys @ w_out + b_out
        targets = jax.nn.one_hot(symbols[1:], 50)
        return jax.nn.logsumexp(logits, -1) - (logits * targets).sum(-1)

    wanted = gradient_flow(cell, params, state, OneHot(50)[symbols[:-1]], loss, max_lag=6, chunk_len=4)
    assert flow.names == wanted.names
    np.testing.assert_allclose(flow.by_name, wanted.by_name, rtol=1e-4)

    large = SymbolModel(cell, cell.init(jax.random.key(0), V), OneHot(V), None, None)
    reader, xs = as_inputs(large, np.zeros((400, 2), np.int32))
    start = jnp.zeros((2, 7))
    program = _log_diagonals.lower(reader, large.params, start, xs, jax.random.key(0), 2).compile().memory_analysis()
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(large.params))
    assert program.temp_size_in_bytes + program.argument_size_in_bytes < 4 * weights + 4 * 400 * 2 * V // 10


def test_quantiles_are_taken_of_some_series_at_a_time(monkeypatch):
    data = [np.sin(np.arange(40) + n) for n in range(60)]
    model = forecast.Forecaster(rnnjax.GRU(3), forecast.Normal(), season=4, context=8)
    params = model.init(jax.random.key(0), horizon=5, features=3)
    options = {"horizon": 5, "num_samples": 2000, "key": jax.random.key(1)}
    monkeypatch.setattr(sampling, "_AT_ONCE", 6000)  # three series
    found = forecast.quantiles(model, params, data, **options)
    paths = forecast.sample(model, params, data, **options)
    np.testing.assert_allclose(found[:, 1], np.quantile(paths, 0.5, axis=1), rtol=1e-6)
    tracemalloc.start()
    try:
        forecast.quantiles(model, params, data, **options)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert paths.nbytes > 2 * peak


def test_a_baseline_reads_so_many_symbols_of_each_text():
    train, valid = np.zeros(300, np.uint8), np.arange(100_000) % 2
    wanted = baselines.witten_bell(train, valid[:50], 2, order=2)
    tracemalloc.start()
    try:
        assert baselines.witten_bell(train, valid, 2, order=2, max_symbols=50) == pytest.approx(
            baselines.witten_bell(train[-50:], valid[:50], 2, order=2)
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.isfinite(wanted) and peak < valid.nbytes


def test_a_trace_that_the_machine_does_not_hold_is_refused():
    cell = rnnjax.GRU(2048)
    like = jax.eval_shape(lambda: (cell.init(jax.random.key(0), 64), cell.initial_state((64,))))
    with pytest.raises(ValueError, match=r"^border: the trace of RTRL would take 6,\d+\.\d GiB, twice, and there are "):
        begin(RTRL(cell), *like, jax.ShapeDtypeStruct((8, 64, 64), jnp.float32))
