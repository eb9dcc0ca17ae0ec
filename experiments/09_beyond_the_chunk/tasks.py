"""Streams of which chunks are shorter than what has to be remembered, and the borders that are compared on them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import rnnjax
from rnnjax.online import RTRL, UORO, Cut, EProp, Immediate, Lookback, Read, SnAp1

KINDS = 8  # of symbols that are copied
SYMBOLS = 3  # that are copied


class Params(NamedTuple):
    """A cell and an affine readout."""

    cell: Any
    w_out: jax.Array  # [H, N]
    b_out: jax.Array  # [N]


def read(params: Params, chunk: Any) -> Read:
    """What the cell reads in a chunk."""
    return Read(params.cell, chunk["x"], chunk.get("resets"))


def borders(cell: Any, back: int) -> dict[str, Any]:
    """By name; the look-back goes ``back`` steps."""
    return {
        "cut": Cut(),
        "immediate": Immediate(),
        "look-back": Lookback(back),
        "e-prop": EProp(cell, read),
        "SnAp-1": SnAp1(cell, read),
        "RTRL": RTRL(cell, read),
        "UORO": UORO(jax.random.key(5)),
    }


def optimizer_of(border: Any) -> optax.GradientTransformation:
    """Adam, but RMSprop for immediate derivatives, as in the paper that recommends the pair."""
    step = optax.rmsprop(1e-3, decay=0.99) if isinstance(border, Immediate) else optax.adam(3e-3)
    return optax.chain(optax.clip_by_global_norm(1.0), step)


def echo(key: jax.Array, steps: int, batch: int, lag: int) -> dict[str, jax.Array]:
    """Random bits, and at every step the one that came ``lag`` steps before."""
    bits = jax.random.bernoulli(key, 0.5, (steps + lag, batch, 1)).astype(jnp.float32)
    return {"x": 2 * bits[lag:] - 1, "y": bits[:steps]}


def adding(key: jax.Array, sequences: int, batch: int, length: int) -> dict[str, jax.Array]:
    """Sequences one after the other, each of numbers and two marks, one in each half; the sum is asked at its end."""
    keys = jax.random.split(key, 3)
    numbers = jax.random.uniform(keys[0], (sequences, length, batch))
    half = length // 2
    marked = [
        jax.nn.one_hot(jax.random.randint(k, (sequences, batch), low, high), length, axis=1)
        for k, low, high in ((keys[1], 0, half), (keys[2], half, length))
    ]
    marks = marked[0] + marked[1]
    last = jnp.zeros((sequences, length, batch)).at[:, -1].set(1.0)
    total = last * jnp.sum(numbers * marks, axis=1, keepdims=True)
    return _stream(jnp.stack([numbers, marks], -1), total[..., None], last)


def copy(key: jax.Array, sequences: int, batch: int, length: int) -> dict[str, jax.Array]:
    """Sequences of symbols, blanks and a mark, after which the symbols are to be said again."""
    said = jax.random.randint(key, (sequences, SYMBOLS, batch), 0, KINDS)
    xs = jnp.full((sequences, length, batch), KINDS)
    xs = xs.at[:, :SYMBOLS].set(said).at[:, length - SYMBOLS].set(KINDS + 1)
    asked = jnp.zeros((sequences, length, batch)).at[:, -SYMBOLS:].set(1.0)
    labels = jnp.zeros((sequences, length, batch), int).at[:, -SYMBOLS:].set(said)
    return _stream(jax.nn.one_hot(xs, KINDS + 2), jax.nn.one_hot(labels, KINDS), asked)


def _stream(x: jax.Array, y: jax.Array, asked: jax.Array) -> dict[str, jax.Array]:
    """Sequences ``[N, T, B, ...]`` one after the other; each begins with a reset."""
    resets = jnp.zeros(asked.shape, bool).at[:, 0].set(True)
    arrays = {"x": x, "y": y, "asked": asked, "resets": resets}
    return {name: array.reshape(-1, *array.shape[2:]) for name, array in arrays.items()}


def no_memory(task: str) -> float:
    """The loss of the best guess of who remembers nothing, a step that is asked for."""
    return {"echo": float(jnp.log(2.0)), "adding": 1 / 6, "copy": float(jnp.log(KINDS))}[task]


def loss_of(cell: Any, task: str) -> Any:
    """The loss of a chunk, a mean over its steps."""

    def loss_fn(params: Params, state: Any, chunk: Any) -> tuple[jax.Array, Any]:
        state, ys = rnnjax.unroll(
            cell, params.cell, state, chunk["x"], resets=chunk.get("resets"), implementation="scan"
        )
        out = ys @ params.w_out + params.b_out
        if task == "echo":
            return optax.sigmoid_binary_cross_entropy(out, chunk["y"]).mean(), state
        if task == "adding":
            losses = jnp.sum((out - chunk["y"]) ** 2, -1)
        else:
            losses = optax.softmax_cross_entropy(out, chunk["y"])
        return jnp.mean(losses * chunk["asked"]), state

    return loss_fn
