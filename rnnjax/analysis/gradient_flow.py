"""How far a gradient reaches back in time, and what a cut between chunks takes from it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.analysis.flat import flatten_state, state_parts, trajectory, widen_start
from rnnjax.cell import Cell, batch_shape, describe
from rnnjax.checks import check_size, short
from rnnjax.engines.scan import select
from rnnjax.kinds import public
from rnnjax.promotion import as_wide, compute_dtype
from rnnjax.unroll import unroll

__all__ = ["GradientFlow", "GradientLost", "gradient_flow", "gradient_lost", "kept_share"]

Loss = Callable[[jax.Array], jax.Array]  # ys [T, *batch, H] -> losses [T, *batch]
_MOST_TIMES = 16


class GradientFlow(NamedTuple):
    """What `gradient_flow` measures: NumPy arrays, K lags, N fields of states and M layers."""

    lags: np.ndarray  # [K]: 1, 2, .. K steps
    norm: np.ndarray  # [K], |dL_t / d state_{t-k}|, the mean over t and the batch
    typical: np.ndarray  # [K], its geometric mean, which no single large one decides; 0 as soon as one is 0
    names: tuple[str, ...]  # N: "L1.h", "L1.c", "L2.h", ..
    by_name: np.ndarray  # [K, N], the mean norm of the gradient of each field of each layer
    by_layer: np.ndarray  # [K, M], of all fields of each layer together
    times: np.ndarray  # the steps t whose losses were followed back
    chunk_len: int | None  # where the chunks of truncated backpropagation cut, as it was passed in
    lost: float | None  # share of ``norm``, summed over the lags, that the cuts take; see `kept_share`


class GradientLost(NamedTuple):
    """What `gradient_lost` measures on the parameters' gradient."""

    share: float  # |g - g_cut| / |g|
    cosine: float  # of the angle between the two
    norm: float  # |g|, of backpropagation through all T steps
    norm_cut: float  # |g_cut|


@public
def gradient_flow(
    cell: Cell,
    params: Any,
    state: Any,
    xs: jax.Array,
    loss_fn: Loss,
    *,
    times: Sequence[int] | None = None,
    max_lag: int | None = None,
    chunk_len: int | None = None,
    resets: jax.Array | None = None,
) -> GradientFlow:
    r"""The gradient of a step's loss with respect to the state k steps before: where a network forgets.

        lambda_t(k) = d L_t / d state_{t-k}
        lambda_t(1) = (d y_t / d state_{t-1})^T  d L_t / d y_t
        lambda_t(k) = (d state_{t-k+1} / d state_{t-k})^T  lambda_t(k-1)

    ``state_t`` is what step t hands to step t + 1: all layers, with every field (h and c of an LSTM). So lag 1 is the
    state that step t starts from, a gradient of a layer's state is the one with all other layers' states held, and what
    a cut after step t - k removes is exactly ``lambda_t(k)``. It shrinks or grows about exponentially with k if the
    Jacobians do (Bengio et al., 1994; Pascanu et al., 2013).

    One backward scan follows all chosen t at once. Each vector is scaled to norm one after every step and its logarithm
    summed, so lags far beyond the range of float32 come out right.

    Args:
        cell: any cell, also a `Stack`.
        params: its parameters.
        state: the state before the first step.
        xs: ``[T, *batch, I]``.
        loss_fn: from ``ys [T, *batch, H]`` to losses ``[T, *batch]``, where a step's loss depends on the output of
            that step alone. Anything that comes after the cell (output weights, targets) belongs in it.
        times: the steps t, counted from 0, and any number of them; by default up to 16 of the second half.
        max_lag: K; by default, and at most, one more than the first of ``times``: all the way to the start.
        chunk_len: chunks of truncated backpropagation whose cuts shall be marked and counted.
        resets: bool ``[T, *batch]``, see `rnnjax.unroll`; no gradient passes one.

    Returns:
        `GradientFlow`. All is computed in float32 (float64 for a float64 state), whatever the parameters have.

    Raises:
        ValueError: for shapes, times, lags or a chunk length that do not fit.
        TypeError: for a state of integers.

    >>> import jax, jax.numpy as jnp, rnnjax
    >>> cell = rnnjax.Elman(4, activation="relu", recurrent_init=rnnjax.initializers.Identity(0.5))
    >>> params = cell.init(jax.random.key(0), input_size=1)._replace(w_ih=jnp.ones((1, 4)))
    >>> flow = gradient_flow(cell, params, cell.initial_state((2,)), jnp.ones((6, 2, 1)), lambda ys: ys[..., 0],
    ...                      times=[5], chunk_len=2)
    >>> flow.norm.round(6).tolist()  # one half for every step back
    [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625]
    """
    where = "gradient_flow"
    state, xs = widen_start(where, cell, state, xs)
    chosen = _check_times(times, xs.shape[0])
    first = int(chosen.min())
    name = "max_lag, up to the first of times,"
    max_lag = check_size(where, name, first + 1 if max_lag is None else max_lag, most=first + 1)
    if chunk_len is not None:
        check_size(where, "chunk_len", chunk_len)
    states, ys = trajectory(cell, params, state, xs, resets=resets)
    cotangents = _cotangents(where, loss_fn, ys, len(batch_shape(cell, state)), "sum")
    start, stop = first + 1 - max_lag, int(chosen.max()) + 1  # the steps that are passed
    window = jax.tree.map(lambda leaf: leaf[start:stop], (states, xs, resets))
    logs = _follow_back(cell, params, *window, cotangents[chosen], jnp.asarray(chosen - start))  # [T', n, *batch, 1+N]
    table = np.asarray(logs, np.float64)
    rows = chosen[None, :] - start - np.arange(max_lag)[:, None]  # of lag k + 1 and time t
    table = table[rows, np.arange(len(chosen))].reshape(max_lag, -1, table.shape[-1])  # [K, n * batch, 1+N]
    parts, lags = state_parts(cell), np.arange(1, max_lag + 1)
    layers = [[p.layer == layer for p in parts] for layer in sorted({p.layer for p in parts})]
    with np.errstate(invalid="ignore"):  # NaN in the sequence is NaN in the result, without a warning
        by_layer = [np.logaddexp.reduce(2 * table[..., 1:], axis=-1, where=own, initial=-np.inf) / 2 for own in layers]
    norm, *by_layer = (_mean(logs) for logs in (table[..., 0], *by_layer))
    lost = None
    if chunk_len is not None:
        lost = float(np.sum(norm * (1 - kept_share(lags, chunk_len))) / np.sum(norm)) if norm.any() else 0.0
    return GradientFlow(
        lags=lags,
        norm=norm,
        typical=_exp(table[..., 0].mean(axis=1)),
        names=tuple(part.name for part in parts),
        by_name=_mean(table[..., 1:]),
        by_layer=np.stack(by_layer, axis=-1),
        times=chosen,
        chunk_len=chunk_len,
        lost=lost,
    )


def _exp(logs: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # infinity is the answer
        return np.exp(logs)


def _mean(logs: np.ndarray) -> np.ndarray:
    """The arithmetic mean over axis 1 of what the logarithms stand for."""
    return _exp(logs).mean(axis=1)


@public
def kept_share(lags: np.ndarray, chunk_len: int) -> np.ndarray:
    r"""Share of the steps whose gradient still passes ``lags`` steps back when chunks of ``chunk_len`` cut it.

        kept(k) = max(0, 1 - k / chunk_len)

    A step at place p = 0, 1, .. of its chunk has p states before it that belong to the chunk; every place is as
    frequent. So truncation does not only end at ``chunk_len``: it takes from every lag.

    >>> import numpy as np
    >>> kept_share(np.array([1, 2, 4, 9]), 4).tolist()
    [0.75, 0.5, 0.0, 0.0]
    """
    return np.maximum(0.0, 1.0 - np.asarray(lags) / chunk_len)


@public
def gradient_lost(cell: Cell, params: Any, state: Any, xs: jax.Array, loss_fn: Loss, *, chunk_len: int) -> GradientLost:
    r"""What truncated backpropagation in chunks takes from the gradient of the parameters.

        g     = d mean_t L_t / d params     through all T steps
        g_cut = the same with the gradient cut after every chunk_len steps

    The states, and with them all losses, are those of the whole sequence in both, so all chunks run backwards at once,
    as a batch. This is `rnnjax.tbptt` with the parameters held.

    Args:
        cell: any cell.
        params: its parameters; what ``loss_fn`` brings along is held.
        state: the state before the first step.
        xs: ``[T, *batch, I]``; T need be no multiple of ``chunk_len``.
        loss_fn: as in `gradient_flow`.
        chunk_len: the length of a chunk.

    Returns:
        `GradientLost`.

    Raises:
        ValueError: for shapes or a chunk length that do not fit.
        TypeError: for a state of integers.

    >>> import jax, jax.numpy as jnp, rnnjax
    >>> cell = rnnjax.GRU(4)
    >>> params = cell.init(jax.random.key(0), input_size=1)
    >>> lost = gradient_lost(cell, params, cell.initial_state((2,)), jnp.ones((6, 2, 1)), lambda ys: ys[..., 0],
    ...                      chunk_len=6)
    >>> lost.share < 1e-6, round(lost.cosine, 5)
    (True, 1.0)
    """
    where = "gradient_lost"
    state, xs = widen_start(where, cell, state, xs)
    check_size(where, "chunk_len", chunk_len)
    states, ys = trajectory(cell, params, state, xs)
    cotangents = _cotangents(where, loss_fn, ys, len(batch_shape(cell, state)), "mean")
    dots = np.asarray(_compare(cell, params, states, xs, cotangents, min(chunk_len, xs.shape[0])), np.float64)
    norm, norm_cut, difference, product = *np.sqrt(dots[:3]), dots[3]
    return GradientLost(
        share=float(difference / norm) if norm else 0.0,
        cosine=float(product / (norm * norm_cut)) if norm and norm_cut else 0.0,
        norm=float(norm),
        norm_cut=float(norm_cut),
    )


@functools.partial(jax.jit, static_argnames="cell")
def _follow_back(cell, params, states, xs, resets, cotangents, times):
    """Logarithms of the norms of all gradients ``[T, n, *batch, 1 + N]``: the whole state's, then each part's."""
    parts = state_parts(cell)
    batch = batch_shape(cell, jax.tree.map(lambda leaf: leaf[0], states))

    def back(carry, inputs):
        vectors, scale = carry  # leaves [n, *batch, ...] of norm one, and the logarithms [n, *batch] of what they lack
        state, x, reset, t = inputs
        _, pull = jax.vjp(lambda s: cell.step(params, s, x), state)
        here = as_wide(times == t, cotangents.ndim)
        vectors = jax.vmap(lambda s, y: pull((s, y))[0])(vectors, jnp.where(here, cotangents, 0))
        if reset is not None:
            vectors = jax.vmap(lambda v: select(reset, jax.tree.map(jnp.zeros_like, v), v))(vectors)
        flat = jax.vmap(functools.partial(flatten_state, cell))(vectors)  # [n, *batch, D]
        norms = jnp.stack([_norm(flat), *(_norm(flat[..., p.start : p.stop]) for p in parts)], axis=-1)
        logs = scale[..., None] + jnp.log(norms)
        alive = norms[..., 0] > 0
        vectors = _divide(vectors, jnp.where(alive, norms[..., 0], 1))
        return (vectors, jnp.where(alive, logs[..., 0], 0)), logs

    n = cotangents.shape[0]
    zeros = jax.tree.map(lambda leaf: jnp.zeros((n, *leaf.shape[1:]), leaf.dtype), states)
    scale = jnp.zeros((n, *batch), jax.tree.leaves(states)[0].dtype)
    inputs = (states, xs, resets, jnp.arange(xs.shape[0]))
    return jax.lax.scan(back, (zeros, scale), inputs, reverse=True)[1]


def _divide(tree, by):
    """Every leaf ``[n, *batch, ...]`` by ``[n, *batch]``."""
    return jax.tree.map(lambda leaf: leaf / as_wide(by, leaf.ndim), tree)


def _norm(v):
    """The norm over the last axis; squares of numbers below 1e-19 would vanish in float32."""
    largest = jnp.max(jnp.abs(v), axis=-1)
    safe = jnp.where(largest > 0, largest, 1)
    return largest * jnp.sqrt(jnp.sum((v / safe[..., None]) ** 2, axis=-1))


@functools.partial(jax.jit, static_argnames=("cell", "chunk_len"))
def _compare(cell, params, states, xs, cotangents, chunk_len):
    """``|g|^2``, ``|g_cut|^2``, ``|g - g_cut|^2`` and ``g . g_cut``."""
    length = xs.shape[0]
    chunks = -(-length // chunk_len)

    def fold(a):  # [T, ...] -> [chunk_len, chunks, ...]; steps added at the end have no loss
        a = jnp.concatenate([a, jnp.zeros((chunks * chunk_len - length, *a.shape[1:]), a.dtype)])
        return jnp.moveaxis(a.reshape(chunks, chunk_len, *a.shape[1:]), 1, 0)

    def gradient(state, xs, cotangents):
        _, pull = jax.vjp(lambda p: unroll(cell, p, state, xs)[1], params)
        return jax.tree.map(lambda g: g.astype(compute_dtype(g.dtype)), pull(cotangents)[0])

    full = gradient(jax.tree.map(lambda leaf: leaf[0], states), xs, cotangents)
    starts = jax.tree.map(lambda leaf: leaf[:length:chunk_len], states)  # [chunks, *batch, ...]
    cut = gradient(starts, fold(xs), fold(cotangents))

    def dot(a, b):
        return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))

    difference = jax.tree.map(jnp.subtract, full, cut)
    return jnp.stack([dot(full, full), dot(cut, cut), dot(difference, difference), dot(full, cut)])


def _cotangents(where: str, loss_fn: Loss, ys: jax.Array, batch_axes: int, reduce: str) -> jax.Array:
    """``d L_t / d y_t`` for every step and example, or of their mean: the only place that knows the loss."""
    shape = ys.shape[: 1 + batch_axes]

    def total(ys):
        losses = loss_fn(ys)
        if jnp.shape(losses) != shape:
            raise ValueError(
                f"{where}: loss_fn must return one loss a step and example, of shape {list(shape)}, "
                f"got {describe(jnp.asarray(losses))}; leave out the mean."
            )
        return jnp.sum(losses) if reduce == "sum" else jnp.mean(losses)

    return jax.grad(total)(ys)


def _check_times(times: Sequence[int] | None, length: int) -> np.ndarray:
    if times is None:
        return np.unique(np.linspace(length // 2, length - 1, _MOST_TIMES).round().astype(int))
    chosen = np.asarray(times)
    if chosen.ndim != 1 or not chosen.size or not np.issubdtype(chosen.dtype, np.integer):
        raise ValueError(f"gradient_flow: times must be a list of steps, got {short(times)}.")
    if chosen.min() < 0 or chosen.max() >= length or len(np.unique(chosen)) != len(chosen):
        raise ValueError(
            f"gradient_flow: times must be different steps between 0 and T - 1 = {length - 1}, got {short(times)}."
        )
    return chosen
