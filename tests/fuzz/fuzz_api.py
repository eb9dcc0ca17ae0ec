"""Calls of the public API with arguments of every kind, most of them wrong, and what may be answered.

The documented answers of a call: a result, or a TypeError or ValueError of one sentence that begins with the name of
the function, of the class or of the network it is about. Everything else is a finding: an error from within JAX or
NumPy, an AttributeError, a warning, a call that takes longer than a minute.

    python -m tests.fuzz.fuzz_api --calls 2000 --seed 0
"""

from __future__ import annotations

import argparse
import atexit
import collections
import dataclasses
import functools
import inspect
import pathlib
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
import rnnjax.interop.files
from rnnjax import analysis, data, decoding, forecast, initializers, interop, online, testing, topologies
from rnnjax.cells import CELLS
from rnnjax.fit import OptimizerOptions, fit
from rnnjax.forecast.windows import Frames
from rnnjax.lm import baselines
from rnnjax.lm.evaluate import Dynamic, evaluate, evaluate_dynamic, evaluate_windows
from rnnjax.lm.model import LanguageModel
from rnnjax.lm.sample import generate
from rnnjax.text import TextOptions, Vocabulary, load_corpus

SECONDS = 60  # of the processor, of one call
KEY = jax.random.key(0)
GRU, LSTM = rnnjax.GRU(3), rnnjax.LSTM(3)
DIAGONAL, LEAKY = rnnjax.cells.DiagonalGRU(3), rnnjax.cells.LeakyRNN(3)


class Target(NamedTuple):
    """A function and arguments with which it works."""

    name: str
    call: Callable[..., Any]
    arguments: Mapping[str, Any]


class Finding(NamedTuple):
    target: str
    arguments: str
    what: str


@dataclasses.dataclass(frozen=True)
class _Listed:
    """A cell that is none: its fields cannot be hashed."""

    hidden_size: int = 3
    sizes: tuple[Any, ...] = ()
    __hash__ = None  # type: ignore[assignment]


# What stands in the place of an argument. Sizes that are legal stay small: a fuzzer must not fill the memory.
WRONG: tuple[Callable[[], Any], ...] = (
    lambda: None,
    lambda: 0,
    lambda: 1,
    lambda: -1,
    lambda: 2,
    lambda: 2**40,
    lambda: -(2**70),
    lambda: 0.5,
    lambda: 1.5,
    lambda: -0.1,
    lambda: float("nan"),
    lambda: float("inf"),
    lambda: True,
    lambda: False,
    lambda: 1 + 2j,
    lambda: "no",
    lambda: "",
    lambda: b"x",
    lambda: (),
    lambda: [],
    lambda: {},
    lambda: (1, 2),
    lambda: [0.5],
    lambda: ["a"],
    lambda: [[1], [2, 3]],
    lambda: {"a": 1},
    lambda: object(),
    lambda: len,
    lambda: rnnjax.LSTM,
    lambda: GRU,
    lambda: LSTM,
    lambda: _Listed(),
    lambda: KEY,
    lambda: jax.random.split(KEY),
    lambda: np.int64(2),
    lambda: np.float32(0.5),
    lambda: np.bool_(True),
    lambda: np.zeros(0),
    lambda: np.array(2),
    lambda: np.arange(3),
    lambda: np.arange(6, dtype=np.uint8).reshape(3, 2),
    lambda: np.full((4, 2), 7, np.int8),
    lambda: np.full((4, 2), -3),
    lambda: np.ones((4, 2)),
    lambda: np.ones((4, 2, 3), np.float32),
    lambda: np.ones((2, 4, 3), np.float32),
    lambda: np.full((4, 2, 3), np.nan, np.float32),
    lambda: np.ones((4, 2, 3), np.complex64),
    lambda: np.ones((4, 2), bool),
    lambda: np.array(["a", "b"]),
    lambda: np.array([object()]),
    lambda: jnp.ones((4, 2, 3), jnp.bfloat16),
    lambda: jnp.zeros((), jnp.int32),
    lambda: jnp.ones((1, 1, 1, 1)),
    lambda: GRU.initial_state((2,)),
    lambda: LSTM.initial_state((5,)),
    lambda: GRU.init(KEY, 3),
    lambda: LSTM.init(KEY, 4),
)


def _loss(params: Any, batch: Any, *, key: Any = None) -> Any:
    """Of the caller, who sees by himself what a batch is."""
    if not isinstance(batch, Mapping) or "x" not in batch:
        raise TypeError(f"loss: batch must hold x, got {type(batch).__name__}.")
    if not isinstance(params, Mapping) or "w" not in params:
        raise TypeError(f"loss: params must hold w, got {type(params).__name__}.")
    return jnp.sum(params["w"] * batch["x"])


def forecasts() -> list[Target]:
    """Of series."""
    rows = [10 + np.sin(np.arange(30) * np.pi / 2), np.cos(np.arange(26.0))]
    model = forecast.Forecaster(GRU, forecast.StudentT(), season=4, context=8)
    params = model.init(KEY, horizon=3, features=forecast_features(rows, model))
    known = {"model": model, "params": params, "series": rows}
    table = {"day": np.arange(9), "sold": np.arange(9.0), "shop": ["a"] * 9, "price": np.ones(9), "kind": ["x"] * 9}
    past = {"history": rows[0], "horizon": 3, "season": 4}
    short = {"actual": rows[0][:3], "history": rows[0], "season": 4}
    return [
        Target("Series", forecast.Series, {"values": rows, "known": [np.ones((33, 1)), np.ones((29, 1))],
               "observed": [np.ones((30, 1)), np.ones((26, 1))], "static": np.zeros((2, 1), int), "clock": None,
               "names": ["a", "b"]}),
        Target("from_table", forecast.from_table, {"table": table, "target": "sold", "time": "day", "by": "shop",
               "known": ["price"], "observed": [], "static": ["kind"]}),
        Target("Forecaster", forecast.Forecaster, {"network": GRU, "head": forecast.Normal(), "season": 4,
               "direct": True, "context": 8, "lags": (1, 2), "scale": "mean_std", "embed_size": 2, "hidden_size": 3,
               "dropout": 0.1}),
        Target("fit", forecast.fit, {"model": model, "series": rows, "horizon": 3, "key": KEY, "steps": 1,
               "batch_size": 2, "origins": 2, "holdout": 3, "optimizer": OptimizerOptions(), "evals": 1,
               "patience": 0}),
        Target("sample", forecast.sample, {**known, "horizon": 2, "num_samples": 3, "key": KEY}),
        Target("quantiles", forecast.quantiles, {**known, "horizon": 2, "levels": (0.1, 0.5), "num_samples": 3,
               "key": KEY}),
        Target("backtest", forecast.backtest, {**known, "horizon": 2, "windows": 2, "levels": (0.1, 0.5, 0.9),
               "num_samples": 3, "key": KEY}),
        Target("surprise", forecast.surprise, known),
        Target("StudentT", forecast.StudentT, {}),
        Target("Quantiles", forecast.Quantiles, {"levels": (0.1, 0.5, 0.9)}),
        *(Target(name, getattr(forecast.baselines, name), past) for name in ("naive", "seasonal_naive", "drift",
                                                                             "naive2")),
        Target("find_season", forecast.baselines.find_season, {"rows": rows, "longest": 12}),
        Target("smape", forecast.metrics.smape, {"actual": rows[0], "forecast": rows[0]}),
        *(Target(name, getattr(forecast.metrics, name), {**short, "forecast": rows[0][3:6]})
          for name in ("mase", "rmsse")),
        Target("wql", forecast.metrics.wql, {"actual": rows[0][:3], "forecast": np.ones((2, 3)), "levels": (0.1, 0.5)}),
        Target("crps", forecast.metrics.crps, {"actual": rows[0][:3], "samples": np.ones((4, 3))}),
        Target("coverage", forecast.metrics.coverage, {"actual": rows[0], "lower": rows[0], "upper": rows[0]}),
    ]  # fmt: skip


def forecast_features(rows: Any, model: Any) -> int:
    """How many features the model reads of these series."""
    return int(Frames(forecast.Series(rows), model.seasons, 4).sizes["features"])


@functools.cache
def targets() -> tuple[Target, ...]:
    """All functions, with arguments that work; made once."""
    gru, state = GRU.init(KEY, 3), GRU.initial_state((2,))
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2, 3)), jnp.float32)
    logits, labels = jnp.asarray(xs), np.array([[0, 1], [2, 0], [1, 1], [0, 2]])
    lengths, mask, resets = np.array([4, 2]), np.ones((4, 2), bool), np.zeros((4, 2), bool)
    padded = {"lengths": lengths, "mask": mask}
    found = []
    for name, kind in sorted(CELLS.items()):
        cell = kind(3, spatial_shape=(4,)) if name == "conv_lstm" else kind(3)
        found.append(Target(f"{kind.__name__}.init", cell.init, {"key": KEY, "input_size": 2, "dtype": jnp.float32}))
    for name, kind in sorted(CELLS.items()):
        options = {
            f.name: f.default for f in dataclasses.fields(kind) if f.name not in ("hidden_size", "spatial_shape")
        }
        if name == "conv_lstm":
            options["spatial_shape"] = (4,)
        found.append(Target(kind.__name__, kind, {"hidden_size": 3, **options}))
    for kind, options in (
        (initializers.Glorot, {"scale": 1.0}),
        (initializers.Uniform, {"scale": 1.0}),
        (initializers.Orthogonal, {"scale": 1.0}),
        (initializers.Chrono, {"max_lag": 9}),
        (topologies.Attention, {"score": "dot", "attend": "after", "size": None}),
        (topologies.ManyToOne, {"network": GRU, "output_size": 2, "vocab_size": 5, "embed_size": 2, "pooling": "mean"}),
        (topologies.ManyToMany, {"network": GRU, "output_size": 2, "input_size": 3, "dropout": 0.1}),
        (topologies.OneToOne, {"network": GRU, "output_size": 2, "input_size": 3, "dropout": 0.1}),
        (topologies.OneToMany, {"cell": GRU, "output_size": 3, "input_size": 3, "outputs": "symbols", "feed": "zeros"}),
        (
            topologies.EncoderDecoder,
            {"encoder": GRU, "decoder": LSTM, "output_size": 3, "vocab_size": 5, "bridge": "affine"},
        ),
        (
            LanguageModel,
            {"vocab_size": 5, "stack": rnnjax.Stack((GRU,)), "embed_size": 2, "dropout": 0.1, "dtype": "float32"},
        ),
    ):
        found.append(Target(kind.__name__, kind, options))
    one = topologies.ManyToOne(GRU, output_size=2, vocab_size=5)
    many = topologies.ManyToMany(GRU, output_size=2, vocab_size=5, embed_size=2)
    writer = topologies.OneToMany(GRU, output_size=3, input_size=3)
    pair = topologies.EncoderDecoder(GRU, GRU, output_size=3, vocab_size=5, attention=topologies.Attention())
    model = LanguageModel(vocab_size=5, stack=rnnjax.Stack((GRU,)))
    lm_params = model.init(KEY)
    symbols = np.array([[0, 1], [2, 3], [4, 0], [1, 2]])

    def step(state: Any, symbols: Any) -> Any:
        return state, jnp.take(jnp.eye(4), jnp.clip(symbols, 0, 3), axis=0)

    lstm, adam = LSTM.init(KEY, 3), optax.adam(0.1)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="rnnjax-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "text").write_text("abcabc" * 20, encoding="utf-8")
    rnnjax.save(folder / "kept", GRU, gru)
    letters = Vocabulary("char", ("a", "b", "c"), None)

    def in_chunks(params: Any, state: Any, xs: Any) -> Any:
        state, ys = rnnjax.unroll(GRU, params, state, xs)
        return jnp.mean(ys**2), state

    found += [
        Target("Stack.init", rnnjax.Stack((GRU,)).init, {"key": KEY, "input_size": 2, "dtype": jnp.float32}),
        Target("cell_from_name", rnnjax.cells.cell_from_name, {"spec": "lstm(forget_bias=2.0)", "hidden_size": 3}),
        Target("cell_from_repr", rnnjax.cells.registry.cell_from_repr, {"text": repr(LSTM)}),
        Target("implementations", rnnjax.implementations, {"cell": GRU}),
        Target("unroll", rnnjax.unroll, {"net": GRU, "params": gru, "state": state, "xs": xs, "lengths": lengths,
               "resets": resets, "reverse": False, "implementation": None, "remat": None}),
        Target("GRU.step", GRU.step, {"params": gru, "state": state, "x": xs[0]}),
        Target("check_cell", rnnjax.testing.check_cell, {"cell": GRU, "input_size": 3, "batch_size": 2}),
        Target("dropout", rnnjax.networks.dropout, {"key": KEY, "xs": xs, "rate": 0.5, "locked": True,
               "resets": resets}),
        Target("zoneout", rnnjax.networks.zoneout, {"key": KEY, "old": xs, "new": xs, "rate": 0.5, "expected": False}),
        Target("drop_connect", rnnjax.networks.drop_connect, {"key": KEY, "params": gru, "rate": 0.5}),
        Target("activation_regularization", rnnjax.networks.activation_regularization, {"ys": xs, "lengths": lengths,
               "temporal": True, "resets": resets}),
        Target("pool", topologies.many_to_one.pool, {"ys": xs, "pooling": "mean", "lengths": lengths}),
        Target("length_mask", topologies.parts.length_mask, {"lengths": lengths, "num_steps": 4}),
        Target("masked_mean", topologies.masked_mean, {"values": xs, **padded}),
        Target("softmax_loss", topologies.softmax_loss, {"logits": logits, "labels": labels, "label_smoothing": 0.1,
               "class_weights": np.ones(3), "ignore_label": None, **padded}),
        Target("binary_loss", topologies.binary_loss, {"logits": logits[..., 0], "labels": labels > 0, **padded}),
        Target("mse_loss", topologies.mse_loss, {"predictions": xs, "targets": xs, **padded}),
        Target("huber_loss", topologies.huber_loss, {"predictions": xs, "targets": xs, "delta": 1.0, **padded}),
        Target("accuracy", topologies.accuracy, {"logits": logits, "labels": labels, "top_k": 1, **padded}),
        Target("sequence_accuracy", topologies.sequence_accuracy, {"logits": logits, "labels": labels, **padded}),
        Target("ManyToOne.apply", one.apply, {"params": one.init(KEY), "xs": symbols, "lengths": lengths, "key": None}),
        Target("ManyToMany.apply", many.apply, {"params": many.init(KEY), "xs": symbols, "resets": resets,
               "key": None}),
        Target("ManyToMany.start", many.start, {"params": many.init(KEY), "batch_shape": (2,)}),
        Target("OneToMany.apply", writer.apply, {"params": writer.init(KEY), "context": xs[0], "targets": labels,
               "lengths": lengths, "sampling": 0.5, "key": KEY}),
        Target("EncoderDecoder.apply", pair.apply, {"params": pair.init(KEY), "xs": symbols, "targets": labels,
               "lengths": lengths, "target_lengths": lengths, "sampling": 0.0, "key": None}),
        Target("adjust_logits", decoding.adjust_logits, {"logits": xs, "temperature": 0.7, "top_k": 2, "top_p": 0.9,
               "banned": (0,)}),
        Target("draw", decoding.draw, {"keys": jax.random.split(KEY), "logits": xs[0], "temperature": 0.7,
               "banned": 1}),
        Target("greedy", decoding.greedy, {"step": step, "state": (), "start": [1, 2], "max_len": 3, "stop": 0,
               "min_len": 1, "banned": (3,)}),
        Target("sample", decoding.sample, {"step": step, "state": (), "start": [1, 2], "key": KEY, "max_len": 3,
               "temperature": 0.7, "top_k": 0, "top_p": 0.9}),
        Target("beam_search", decoding.beam_search, {"step": step, "state": (), "start": [1, 2], "max_len": 3,
               "beam_size": 2, "num_best": 1, "length_penalty": 0.5, "stop": 0}),
        Target("bucket_boundaries", data.batching.bucket_boundaries, {"lengths": [3, 1, 2], "num_buckets": 2}),
        Target("bucket_by_length", data.bucket_by_length, {"lengths": [3, 1, 2], "batch_size": 2, "num_buckets": 2,
               "boundaries": None, "seed": 0}),
        Target("pad_sequences", data.pad_sequences, {"sequences": [[1, 2], [3]], "indices": [0, 1], "seq_len": 3}),
        Target("pack_documents", data.pack_documents, {"documents": [[1, 2], [3]], "seq_len": 3, "num_rows": None,
               "keep_order": False}),
        Target("unpack_documents", data.unpack_documents, {"packed": data.pack_documents([[1, 2], [3]], seq_len=3),
               "ys": np.zeros((3, 1))}),
        Target("ShuffledBatches", data.ShuffledBatches, {"arrays": {"x": np.arange(6)}, "batch_size": 2, "key": KEY,
               "last": "drop"}),
        Target("evaluate", evaluate, {"model": model, "params": lm_params, "ids": np.arange(20) % 5,
               "streams": 2, "window": 4, "warmup": 2, "starts": [0, 7], "limit": 10}),
        Target("evaluate_windows", evaluate_windows, {"model": model, "params": lm_params,
               "ids": np.arange(20) % 5, "window": 4, "batch_size": 2}),
        Target("generate", lambda **given: list(generate(**given)), {"model": model, "params": lm_params,
               "prime_ids": [1, 2], "key": KEY, "length": 3, "temperature": 0.7, "top_k": 2, "count": 2, "banned": 0}),
        Target("state_size", analysis.flat.state_size, {"cell": GRU}),
        Target("flatten_state", analysis.flat.flatten_state, {"cell": GRU, "state": state}),
        Target("trajectory", analysis.trajectory, {"cell": GRU, "params": gru, "state": state, "xs": xs}),
        Target("step_jacobians", analysis.step_jacobians, {"cell": GRU, "params": gru, "state": state, "xs": xs}),
        Target("lyapunov_spectrum", analysis.lyapunov_spectrum, {"cell": GRU, "params": gru, "state": state, "xs": xs,
               "num_exponents": 2, "warmup": 1}),
        Target("kaplan_yorke_dimension", analysis.jacobians.kaplan_yorke_dimension,
               {"exponents": np.array([0.5, -1.0])}),
        Target("find_fixed_points", analysis.find_fixed_points, {"cell": GRU, "params": gru, "states": state,
               "x": xs[0, 0], "steps": 2, "polish_steps": 2, "tolerance": 1e-10, "group": 4}),
        Target("visited_states", analysis.fixed_points.visited_states, {"cell": GRU, "params": gru, "state": state,
               "xs": xs, "count": 3, "key": KEY, "noise": 0.1}),
        Target("record", analysis.record, {"cell": GRU, "params": gru, "state": state, "xs": xs}),
        Target("gradient_flow", analysis.gradient_flow, {"cell": GRU, "params": gru, "state": state, "xs": xs,
               "loss_fn": lambda ys: (ys**2).sum(-1), "max_lag": 2}),
        Target("label_from_name", analysis.label_from_name, {"name": "space"}),
        Target("to_cudnn", interop.to_cudnn, {"cell": LSTM, "params": lstm}),
        Target("from_cudnn", interop.from_cudnn, {"flat": interop.to_cudnn(LSTM, lstm), "input_size": 3,
               "hidden_size": 3, "num_layers": 1, "bidirectional": False}),
        Target("to_flax", interop.to_flax, {"cell": LSTM, "params": lstm, "optimized": True}),
        Target("from_flax", interop.from_flax, dict(zip(("module", "params"), interop.to_flax(GRU, gru)))
               | {"spatial_shape": None}),
        Target("to_torch", interop.to_torch, {"cell": GRU, "params": gru, "bias": True, "as_cell": False,
               "as_numpy": True}),
        Target("from_torch", interop.from_torch, {"source": interop.to_torch(GRU, gru, as_numpy=True), "kind": "gru",
               "prefix": None}),
        Target("from_torch_state", interop.from_torch_state, {"cell": GRU, "state": np.zeros((1, 2, 3))}),
        Target("to_torch_state", interop.to_torch_state, {"cell": GRU, "state": state, "as_numpy": True}),
        Target("to_keras", interop.to_keras, {"cell": GRU, "params": gru, "use_bias": True}),
        Target("to_haiku", interop.to_haiku, {"cell": LSTM, "params": lstm, "name": None}),
        Target("to_nnx", interop.to_nnx, {"cell": LSTM, "params": lstm, "optimized": False}),
        Target("from_nnx", interop.from_nnx, {"module": interop.to_nnx(LSTM, lstm)}),
        Target("to_equinox", interop.to_equinox, {"cell": GRU, "params": gru}),
        Target("from_equinox", interop.from_equinox, {"module": interop.to_equinox(GRU, gru)}),
        Target("nnx_layer", interop.nnx_layer, {"cell": GRU, "params": gru}),
        Target("equinox_cell", interop.equinox_cell, {"cell": GRU, "params": gru}),
        Target("equinox_layer", interop.equinox_layer, {"cell": GRU, "params": gru}),
        Target("save_torch", functools.partial(interop.files.save_torch, folder / "t"), {"cell": GRU, "params": gru}),
        Target("save_flax", functools.partial(interop.files.save_flax, folder / "f"), {"cell": GRU, "params": gru}),
        Target("export_cell", functools.partial(interop.export_cell, folder / "cell"), {"cell": GRU, "params": gru,
               "bake": True, "dtype": jnp.float32, "platforms": None}),
        Target("linen_cell", interop.linen_cell, {"cell": GRU, "param_dtype": jnp.float32, "name": "a"}),
        Target("linen_layer", interop.linen_layer, {"cell": GRU, "time_major": True, "reverse": False,
               "return_carry": False, "keep_order": False}),
        Target("save", functools.partial(rnnjax.save, folder / "saved"), {"cell": GRU, "params": gru}),
        Target("load", rnnjax.load, {"path": folder / "kept", "cell": GRU}),
        Target("make_problem", testing.problems.make_problem, {"cell": GRU, "input_size": 3, "batch": (2,),
               "seq_len": 4, "dtype": jnp.float32, "seed": 0}),
        Target("load_corpus", load_corpus, {"options": TextOptions((str(folder / "text"),)), "vocabulary": None,
               "unknown": "replace"}),
        Target("Vocabulary.encode", letters.encode, {"text": "abc", "unknown": "replace"}),
        Target("Vocabulary.decode", letters.decode, {"ids": [0, 1]}),
        Target("unigram", baselines.unigram, {"train": np.array([0, 1, 2]), "valid": np.array([1]), "vocab_size": 3}),
        Target("witten_bell", baselines.witten_bell, {"train": np.array([0, 1, 2]), "valid": np.array([1]),
               "vocab_size": 3, "order": 2, "max_symbols": 3}),
        Target("OptimizerOptions", OptimizerOptions, {"optimizer": "adam", "lr": 0.1, "schedule": "cosine",
               "warmup": 0.1, "clip": 1.0, "weight_decay": 0.0, "decay_from": 1}),
        Target("fit", fit, {"loss_fn": _loss,
               "params": {"w": jnp.ones(2)}, "optimizer": adam, "batches": lambda n: {"x": np.ones(2, np.float32)},
               "steps": 2, "evals": 1, "key": None, "patience": 0, "log_every": 1, "mode": "min"}),
        Target("tbptt", rnnjax.tbptt, {"loss_fn": in_chunks, "optimizer": adam, "params": gru,
               "opt_state": adam.init(gru), "state": state, "stream": xs, "chunk_len": 2, "border": online.Cut()}),
        Target("RTRL", online.RTRL, {"cell": GRU, "reader": None}),
        Target("SnAp1", online.SnAp1, {"cell": GRU, "reader": None}),
        Target("EProp", online.EProp, {"cell": GRU, "reader": None}),
        Target("UORO", online.UORO, {"key": KEY}),
        Target("Lookback", online.Lookback, {"steps": 4}),
        Target("card", rnnjax.card, {"cell": GRU, "input_size": 2, "batch_size": 3, "peak_flops": 1e9,
               "peak_bytes": 1e9}),
        Target("Newton", rnnjax.engines.Newton, {"max_iters": 3, "tolerance": 1e-3, "damping": 0.5}),
        Target("newton_report", analysis.newton_report, {"cell": DIAGONAL, "params": DIAGONAL.init(KEY, 3),
               "state": None, "xs": xs, "options": rnnjax.engines.Newton(max_iters=3)}),
        Target("Dynamic", Dynamic, {"lr": 0.1, "decay": 0.1, "window": 4, "epsilon": 0.1}),
        Target("evaluate_dynamic", evaluate_dynamic, {"model": model, "params": lm_params, "ids": np.arange(20) % 5,
               "options": Dynamic(window=4), "starts": [0, 7]}),
        Target("leaky_noise", rnnjax.cells.elman.leaky_noise, {"key": KEY, "cell": LEAKY, "params": LEAKY.init(KEY, 3),
               "xs": xs, "sigma": 0.1}),
        Target("nnx_cell", interop.nnx_cell, {"cell": GRU, "params": gru}),
        Target("from_haiku", interop.from_haiku, {"core": "LSTM", "params": {"lstm/linear":
               {"w": jnp.ones((7, 16)), "b": jnp.zeros(16)}}, "name": None, "spatial_shape": None}),
        *forecasts(),
        Target("start_state", rnnjax.network.start_state, {"net": GRU, "params": gru, "batch_shape": (2,)}),
    ]  # fmt: skip
    return tuple(found)


_SENTENCE = re.compile(r"^([\w.]+( \w+)?|initial_state|cell)(:| must| needs|\(\)).{8,}", re.S)


def verdict(error: BaseException) -> str:
    """What is wrong with an error; empty for one that is documented."""
    if isinstance(error, TimeoutError):
        return f"no answer in {SECONDS} seconds"
    text = str(error)
    ours = type(error).__module__.startswith("rnnjax") and isinstance(error, ValueError)
    if type(error) not in (TypeError, ValueError, FileNotFoundError) and not ours:
        return f"{type(error).__name__}: {text[:200]}"
    if not _SENTENCE.match(text) or "\n" in text:
        return f"{type(error).__name__} without a name: {text[:200]}"
    if "positional argument" in text or "keyword argument" in text:
        return ""  # Python's own sentence about a signature
    if re.search(r"jax|numpy|<function|traceback", text.split(":")[0], re.I) or not text.endswith((".", "?", ")")):
        return f"no sentence: {text[:200]}"
    return ""


def attempt(target: Target, rng: random.Random) -> Finding | None:
    """One call with one or two arguments of another kind."""
    names = list(target.arguments)
    changed = {name: rng.choice(WRONG)() for name in rng.sample(names, min(len(names), rng.choice((1, 1, 1, 2))))}
    shown = ", ".join(f"{name}={value!r:.60}" for name, value in changed.items()).replace("\n", " ")

    def late(*_: Any) -> None:
        raise TimeoutError

    before = {one: signal.signal(one, late) for one in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(60 * SECONDS)  # for what waits
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            jax.block_until_ready(target.call(**{**target.arguments, **changed}))
    except Exception as error:
        problem = verdict(error)
        if problem:
            where = traceback.extract_tb(error.__traceback__)[-1]
            return Finding(target.name, shown, f"{problem}  [{where.filename.rpartition('/')[2]}:{where.lineno}]")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for one, handler in before.items():
            signal.signal(one, handler)
    return None


def fuzz(calls: int, seed: int, only: str = "") -> list[Finding]:
    """So many calls; the same seed makes the same ones."""
    rng = random.Random(seed)
    chosen = [t for t in targets() if re.search(only, t.name)]
    return [found for _ in range(calls) if (found := attempt(rng.choice(chosen), rng)) is not None]


def check_targets(only: str = "") -> None:
    """Every target works with the arguments that it has, and has no others."""
    for target in (t for t in targets() if re.search(only, t.name)):
        jax.block_until_ready(target.call(**target.arguments))
        inspect.signature(target.call).bind(**target.arguments)


def main() -> None:
    """Prints what was found, and ends with 1 if anything was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="targets whose name has this regular expression")
    arguments = parser.parse_args()
    started = time.monotonic()
    check_targets(arguments.only)
    found = fuzz(arguments.calls, arguments.seed, arguments.only)
    for finding in found:
        print(f"{finding.target}({finding.arguments})\n    {finding.what}")
    counts = collections.Counter(finding.target for finding in found)
    print(f"{len(found)} findings in {arguments.calls} calls, {time.monotonic() - started:.0f} s. {dict(counts)}")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
