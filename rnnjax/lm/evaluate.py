"""How well a model predicts a text: mean nats a symbol, with the state carried through or cold in every window.

The text stays on the host as small integers; the device sees one window `[T, B]` at a time, always of the same
shape, so that memory does not grow with the text and one compiled function serves all of it. Of a large vocabulary
the logits of a few steps exist at a time (`LanguageModel.map_logits`).

In dynamic evaluation the parameters follow the text that they have read (Krause et al., 2018): every window is
predicted first, and counted; then one step of gradient descent on it follows, which the next window is predicted with.
No symbol is ever used before it is predicted.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from rnnjax.checks import check_ids, check_real, check_size, check_starts
from rnnjax.fit import devices
from rnnjax.fit.processes import on_host
from rnnjax.kinds import public
from rnnjax.lm.model import LanguageModel, LMParams
from rnnjax.networks.stack import StackState
from rnnjax.text.corpus import Chunk
from rnnjax.text.windows import windows

__all__ = ["Dynamic", "Evaluation", "evaluate", "evaluate_dynamic", "evaluate_windows"]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A loss over `count` predictions, in nats a symbol."""

    loss: float
    count: int

    @property
    def bpc(self) -> float:
        """Bits a symbol."""
        return self.loss / math.log(2)

    @property
    def perplexity(self) -> float:
        """The size of a uniform choice that is as hard; infinity where a float cannot hold it."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


@public
def evaluate(
    model: LanguageModel,
    params: LMParams,
    ids: np.ndarray,
    *,
    streams: int = 1,
    window: int = 256,
    warmup: int = 256,
    starts: np.ndarray | None = None,
    limit: int | None = None,
    mesh: Mesh | None = None,
) -> Evaluation:
    r"""The loss of every prediction of a text but its first symbol, the state carried through the whole text.

        loss = mean_t -log p(ids[t + 1] | ids[0], ..., ids[t])        t = 0, ..., n - 2

    With one stream that is exact. More streams cut the text into as many contiguous pieces that run side by side.
    Each of them reads the `warmup` symbols before its piece first, without counting them; what it misses is what
    the model remembers for longer than that. A piece that reaches back to the start of the text is exact.

    Args:
        model: the model.
        params: its parameters.
        ids: integers `[n]`, from 0 to V - 1.
        streams: B, pieces.
        window: T, steps of one call on the device.
        warmup: steps that a piece begins early.
        starts: positions where a document starts, sorted: there the state is reset.
        limit: count at most so many predictions, from the start of the text; None for all.
        mesh: of devices that share the streams (`rnnjax.fit.devices.make_mesh`), on which the parameters lie; the
            result is the same but for rounding. Every process of it evaluates, and has the result.

    Raises:
        ValueError: for less than two symbols, an id outside of the vocabulary, starts that are not sorted positions, or
            a size out of range.
        TypeError: if ids or starts are not integers.

    >>> import jax, rnnjax
    >>> model = LanguageModel(vocab_size=3, stack=rnnjax.Stack((rnnjax.GRU(4),)))
    >>> result = evaluate(model, model.init(jax.random.key(0)), np.array([0, 1, 2, 1, 0], np.uint8))
    >>> result.count, result.loss < 2
    (4, True)
    """
    length = len(ids) if np.ndim(ids) else 0
    if limit is not None and np.ndim(ids) == 1:  # what lies beyond is not read
        ids = ids[: check_size("evaluate", "limit", limit) + 1]
    ids, predictions = _check("evaluate", model, ids, streams=streams, window=window)
    warmup, starts = check_size("evaluate", "warmup", warmup, least=0), check_starts("evaluate", starts, length)
    rows = streams if mesh is None else -(-streams // mesh.size) * mesh.size  # with some that do not count
    state = devices.place(mesh, model.initial_state((rows,)), devices.CARRY.state)
    total, count = 0.0, 0
    cut: dict[str, Any] = {"streams": streams, "window": window, "warmup": warmup, "starts": starts}
    for at, counted, resets in windows(0, predictions, **cut, where="evaluate"):
        if rows > streams:
            at, resets = (np.pad(a, ((0, 0), (0, rows - streams)), "edge") for a in (at, resets))
        state, losses = _score(model, params, state, ids, at, resets, mesh)
        total += float(losses[:, :streams].sum(where=counted, dtype=np.float64))
        count += int(counted.sum())
    return Evaluation(total / count, count)


@public
def evaluate_windows(
    model: LanguageModel, params: LMParams, ids: np.ndarray, *, window: int, batch_size: int = 64
) -> Evaluation:
    """The loss where every `window` predictions start cold, from the initial state; the last window may be shorter.

    Above `evaluate` by what the carried state is worth. `batch_size` windows run side by side.

    Raises:
        ValueError: for less than two symbols, an id outside of the vocabulary, or a size below one.
        TypeError: if the ids are not integers.
    """
    ids, predictions = _check("evaluate", model, ids, window=window, batch_size=batch_size)
    window = min(window, predictions)
    batch_size = min(batch_size, -(-predictions // window))
    total = 0.0
    fresh = model.initial_state((batch_size,))
    for first in range(0, predictions, window * batch_size):
        at = first + np.arange(batch_size) * window + np.arange(window)[:, None]
        counted = at < predictions
        _, losses = _score(model, params, fresh, ids, at, np.zeros(at.shape, bool))
        total += float(losses.sum(where=counted, dtype=np.float64))
    return Evaluation(total / predictions, predictions)


def _score(
    model: LanguageModel,
    params: LMParams,
    state: StackState,
    ids: np.ndarray,
    at: np.ndarray,
    resets: np.ndarray,
    mesh: Mesh | None = None,
) -> tuple[StackState, np.ndarray]:
    """The state after the symbols at the positions `at`, and the nats of their successors; padding outside."""
    own = devices.own_rows(mesh, at.shape[1])
    here = np.clip(at[:, own], 0, len(ids) - 2)
    window = (ids[here].astype(np.int32), ids[here + 1].astype(np.int32), resets[:, own])
    state, losses = _losses(model, params, state, *devices.place_rows(mesh, window, at.shape[1]), mesh=mesh)
    return state, np.asarray(on_host(losses))


@functools.partial(jax.jit, static_argnames=("model", "mesh"))
def _losses(
    model: LanguageModel,
    params: LMParams,
    state: StackState,
    inputs: jax.Array,
    targets: jax.Array,
    resets: jax.Array,
    mesh: Mesh | None = None,
) -> tuple[StackState, jax.Array]:
    def run(params: LMParams, state: StackState, *window: jax.Array) -> tuple[StackState, jax.Array]:
        inputs, targets, resets = window
        return model.map_logits(params, state, inputs, _nats, targets, resets=resets)

    rows = (devices.CARRY.state, *(devices.CHUNK,) * 3)
    split = devices.over_rows(mesh, run, (PartitionSpec(), *rows), rows[:2])
    found: tuple[StackState, jax.Array] = split(params, state, inputs, targets, resets)
    return found


def _nats(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), targets)


def _check(where: str, model: LanguageModel, ids: np.ndarray, **sizes: int) -> tuple[np.ndarray, int]:
    """The ids, and the number of predictions."""
    ids = check_ids(where, ids, model.vocab_size)
    if len(ids) < 2:
        raise ValueError(f"{where}: ids must hold at least two symbols, got {len(ids)}; use a longer text.")
    for name, size in sizes.items():
        check_size(where, name, size)
    return ids, len(ids) - 1


_BLOCK = 64  # windows of one call on the device


@dataclasses.dataclass(frozen=True)
class Dynamic:
    r"""How the parameters follow the text, with ``g`` the gradient of the mean loss of a window.

        s      = mean of g^2 over the windows so far
        params = params - lr * g / (sqrt(s) + epsilon) + decay * (trained params - params)

    The paper takes ``s`` from the training text; here it is that of the text itself, so that nothing else is needed.

    Args:
        lr: the step of a parameter whose gradient is as large as ever.
        decay: the share of the way back to what was trained, a window.
        window: symbols between two steps.
        epsilon: for parameters that hardly have a gradient.

    Raises:
        ValueError: for numbers out of range.
    """

    lr: float = 2e-4
    decay: float = 1e-3
    window: int = 32
    epsilon: float = 1e-4

    def __post_init__(self) -> None:
        where = "Dynamic"
        object.__setattr__(self, "lr", check_real(where, "lr", self.lr, least=0.0))
        object.__setattr__(self, "decay", check_real(where, "decay", self.decay, least=0.0, most=1.0))
        object.__setattr__(self, "window", check_size(where, "window", self.window))
        object.__setattr__(self, "epsilon", check_real(where, "epsilon", self.epsilon, above=0.0))


@public
def evaluate_dynamic(
    model: LanguageModel,
    params: LMParams,
    ids: np.ndarray,
    *,
    options: Dynamic = Dynamic(),
    starts: np.ndarray | None = None,
) -> Evaluation:
    """The loss of every prediction of a text but its first symbol, by parameters that follow it; one stream.

    Args:
        model: the model.
        params: what it was trained to; they are left as they are.
        ids: integers `[n]`, from 0 to V - 1.
        options: how they follow.
        starts: positions where a document starts, sorted: there the state is reset, and the parameters go on.

    Raises:
        ValueError: for less than two symbols, an id outside of the vocabulary, or starts that are not sorted positions.
        TypeError: if ids or starts are not integers.

    >>> import jax, rnnjax
    >>> model = LanguageModel(vocab_size=3, stack=rnnjax.Stack((rnnjax.GRU(4),)))
    >>> text = np.tile(np.array([0, 1, 2, 1], np.uint8), 100)
    >>> found = evaluate_dynamic(model, model.init(jax.random.key(0)), text, options=Dynamic(lr=1e-1))
    >>> found.count, found.loss < 1
    (399, True)
    """
    ids, count = _check("evaluate_dynamic", model, ids)
    starts = check_starts("evaluate_dynamic", starts, len(ids))
    size = options.window * _BLOCK
    carry = (params, jax.tree.map(jnp.zeros_like, params), model.initial_state((1,)), jnp.zeros((), jnp.float32))
    total = 0.0
    cut: dict[str, Any] = {"streams": 1, "window": size, "warmup": 0, "starts": starts}
    for at, counted, resets in windows(0, count, **cut, where="evaluate_dynamic"):
        at = np.minimum(at, count - 1)
        arrays = (ids[at].astype(np.int32), ids[at + 1].astype(np.int32), resets, counted)
        block = tuple(np.reshape(a, (_BLOCK, options.window, 1)) for a in arrays)
        carry, losses = _follow(model, options, params, carry, block)
        total += float(np.sum(np.asarray(losses), dtype=np.float64))
    return Evaluation(total / count, count)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _follow(model: LanguageModel, options: Dynamic, trained: LMParams, carry: Any, block: Any) -> Any:
    def window(carry: Any, inputs: Any) -> Any:
        params, squares, state, n = carry
        symbols, targets, resets, counted = inputs

        def loss(params: LMParams) -> Any:
            new, losses = model.losses(params, state, Chunk(symbols, targets, resets))
            losses = losses * counted
            return jnp.sum(losses) / jnp.maximum(jnp.sum(counted), 1), (new, jnp.sum(losses))

        (_, (new, summed)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        n = n + 1
        squares = jax.tree.map(lambda s, g: s + (g * g - s) / n, squares, gradient)
        params = jax.tree.map(
            lambda p, g, s, p0: p - options.lr * g / (jnp.sqrt(s) + options.epsilon) + options.decay * (p0 - p),
            params, gradient, squares, trained,
        )  # fmt: skip
        return (params, squares, new, n), summed

    return jax.lax.scan(window, carry, block)
