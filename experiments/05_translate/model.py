"""The encoder and decoder, their training, and what they are measured by."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rnnjax
from rnnjax import decoding, fit, topologies
from rnnjax.data import ShuffledBatches
from rnnjax.fit.progress import Outcome

from .text import PADDING, STOP, UNKNOWN, Pairs, trim

__all__ = ["Perplexity", "Setting", "attended", "make_model", "perplexity", "train", "translate"]

CELLS = {"gru": rnnjax.GRU, "lstm": rnnjax.LSTM}


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sizes of a model and of its training."""

    cell: str = "gru"
    layers: int = 1
    hidden_size: int = 256
    embed_size: int = 256
    score: Literal["additive", "dot", "general"] = "general"
    # "after": the decoder unrolls at full speed, and its softmax is one matmul for all steps.
    attend: Literal["before", "after", "feed"] = "after"
    dropout: float = 0.3
    batch_size: int = 64
    lr: float = 2e-3
    epochs: float | None = 8  # exactly one of the two
    steps: int | None = None
    num_buckets: int = 6
    evals: int = 8
    eval_batch: int = 128
    eval_round: int = 10  # evaluation pads to multiples of this, for few compilations


def make_model(setting: Setting, num_sources: int, num_targets: int, attention: bool) -> topologies.EncoderDecoder:
    """Both directions of the source, half as wide each, and a decoder with or without attention."""
    cell, n = CELLS[setting.cell], setting.layers
    outer = tuple(cell(setting.hidden_size) for _ in range(n))
    return topologies.EncoderDecoder(
        rnnjax.Bidirectional(tuple(cell(setting.hidden_size // 2) for _ in range(n))),
        rnnjax.Stack(outer) if n > 1 else outer[0],
        num_targets,
        vocab_size=num_sources,
        embed_size=setting.embed_size,
        output_embed_size=setting.embed_size,
        attention=topologies.Attention(setting.score, setting.attend) if attention else None,
        dropout=setting.dropout,
    )


def train(
    model: topologies.EncoderDecoder,
    setting: Setting,
    pairs: Pairs,
    valid: Pairs,
    *,
    seed: int,
    report: Callable[[dict[str, Any]], None],
    folder: pathlib.Path | None = None,
) -> Outcome:
    """Fits the pairs; the parameters of the evaluation with the lowest loss on ``valid``."""
    key_init, key_data, key_fit = jax.random.split(jax.random.key(seed), 3)
    batches = ShuffledBatches(
        pairs, setting.batch_size, key=key_data, lengths=pairs.longest, num_buckets=setting.num_buckets, trim=trim
    )

    def loss_fn(params: Any, batch: Pairs, *, key: jax.Array) -> jax.Array:
        outputs = _apply(model, params, batch, key=key)
        return topologies.softmax_loss(outputs, batch.targets.T, lengths=batch.target_lengths)

    def evaluate(params: Any) -> dict[str, float]:
        found = perplexity(model, params, valid, setting)
        return {"loss": math.log(found.of_all), "perplexity": found.of_all}

    options = fit.OptimizerOptions("adamw", lr=setting.lr, warmup=0.01)
    return fit.fit(
        loss_fn,
        jax.jit(model.init)(key_init),
        options.make_optimizer(),
        batches,
        steps=setting.steps,
        epochs=setting.epochs,
        evaluate=evaluate,
        evals=setting.evals,
        key=key_fit,
        learning_rate=options.learning_rate,
        report=report,
        folder=folder,
        resume=folder is not None,
    )


class Perplexity(NamedTuple):
    """Of the symbols of the targets, the stop at the end of each counted."""

    of_all: float  # an unknown word is one symbol like any other
    of_known: float  # unknown words are left out
    of_spelled: float  # an unknown word has an even share of that symbol's probability
    symbols: int
    unknown: float  # share of the symbols


def perplexity(
    model: topologies.EncoderDecoder, params: Any, pairs: Pairs, setting: Setting, folded: int = 1
) -> Perplexity:
    """Exponential of the mean loss a symbol, targets given.

    Args:
        model: which.
        params: its own.
        pairs: held-out ones.
        setting: of the evaluation.
        folded: how many words of the training part count as unknown, among whom ``of_spelled`` shares.
    """
    sums = np.zeros(4)
    for batch, _ in _groups(pairs, setting):
        sums += np.asarray(_nll(model, params, batch), np.float64)
    nll, symbols, nll_unknown, unknown = sums
    return Perplexity(
        of_all=math.exp(nll / symbols),
        of_known=math.exp((nll - nll_unknown) / max(symbols - unknown, 1)),
        of_spelled=math.exp((nll + unknown * math.log(max(folded, 1))) / symbols),
        symbols=int(symbols),
        unknown=float(unknown / symbols),
    )


def translate(
    model: topologies.EncoderDecoder,
    params: Any,
    pairs: Pairs,
    setting: Setting,
    *,
    beam_size: int = 1,
    length_penalty: float = 0.0,
    max_len: int = 50,
) -> list[list[int]]:
    """Symbols that the model writes for each source, without stop; the unknown word is never written."""
    found: list[list[int]] = [[] for _ in pairs.sources]
    options = {"stop": STOP, "banned": UNKNOWN, "max_len": max_len}
    for batch, rows in _groups(pairs, setting):
        source = _encode(model, params, batch)
        step, state = model.stepper(params, source), model.start(params, source)
        if beam_size == 1:
            tokens = decoding.greedy(step, state, model.start_symbol, **options).tokens
        else:
            search = {"beam_size": beam_size, "num_best": 1, "length_penalty": length_penalty}
            tokens = decoding.beam_search(step, state, model.start_symbol, **search, **options).tokens[:, 0]
        for row, symbols in zip(rows, np.asarray(tokens).tolist()):
            found[row] = symbols[: symbols.index(STOP)] if STOP in symbols else symbols
    return found


def attended(
    model: topologies.EncoderDecoder, params: Any, source: Sequence[int], written: Sequence[int]
) -> np.ndarray:
    """How much of each symbol of a source ``[T_in]`` went into each that was written: ``[T_out, T_in]``."""
    sources, targets = (jnp.asarray(symbols)[:, None] for symbols in (source, written))
    return np.asarray(_align(model, params, sources, targets)[1])[:, 0]


@functools.partial(jax.jit, static_argnums=0)
def _align(model: topologies.EncoderDecoder, params: Any, sources: jax.Array, targets: jax.Array) -> Any:
    return model.align(params, sources, targets)


def _apply(model: topologies.EncoderDecoder, params: Any, batch: Pairs, key: jax.Array | None = None) -> jax.Array:
    return model.apply(
        params,
        batch.sources.T,  # time is axis 0 from here on
        batch.targets.T,
        lengths=batch.source_lengths,
        target_lengths=batch.target_lengths,
        key=key,
    )


@functools.partial(jax.jit, static_argnums=0)
def _encode(model: topologies.EncoderDecoder, params: Any, batch: Pairs) -> topologies.encoder_decoder.Source:
    return model.encode(params, batch.sources.T, lengths=batch.source_lengths)


@functools.partial(jax.jit, static_argnums=0)
def _nll(model: topologies.EncoderDecoder, params: Any, batch: Pairs) -> jax.Array:
    """Sums over the batch: nats, symbols, and both for the unknown word."""
    targets = batch.targets.T
    log_p = jax.nn.log_softmax(_apply(model, params, batch))
    nll = -jnp.take_along_axis(log_p, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    counts = targets != PADDING
    unknown = targets == UNKNOWN
    return jnp.stack([jnp.sum(counts * nll), jnp.sum(counts), jnp.sum(unknown * nll), jnp.sum(unknown)])


def _groups(pairs: Pairs, setting: Setting) -> Any:
    """Full batches of similar lengths with the rows they came from; the last one is filled up with nothing."""
    order, size = np.argsort(pairs.longest, kind="stable"), setting.eval_batch
    for first in range(0, len(order), size):
        rows = order[first : first + size]
        length = -(-int(pairs.longest[rows].max()) // setting.eval_round) * setting.eval_round
        empty = (size - len(rows), length)
        padded = [_fit(array[rows], empty, length) for array in pairs]
        yield Pairs(*padded), rows


def _fit(array: np.ndarray, empty: tuple[int, int], length: int) -> np.ndarray:
    if array.ndim == 1:
        return np.concatenate([array, np.zeros(empty[0], array.dtype)])
    wide = np.full((len(array) + empty[0], length), PADDING, array.dtype)
    array = array[:, :length]
    wide[: len(array), : array.shape[1]] = array
    return wide
