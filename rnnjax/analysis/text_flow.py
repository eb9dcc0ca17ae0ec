"""Gradient by lag of a model of symbols, along pieces of a text, and that model as a network that reads the symbols."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rnnjax.analysis.flat import state_size
from rnnjax.analysis.gradient_flow import GradientFlow, gradient_flow
from rnnjax.analysis.jacobians import LyapunovSpectrum, lyapunov_spectrum
from rnnjax.analysis.recording import OneHot, SymbolModel
from rnnjax.kinds import public
from rnnjax.network import Around, Visit, start_state

__all__ = [
    "Reader",
    "as_inputs",
    "symbol_gradient_flow",
    "symbol_lyapunov",
    "text_pieces",
]


@public
def text_pieces(ids: np.ndarray, length: int, count: int) -> np.ndarray:
    """Equally far apart pieces of a text of at least ``length`` symbols, ``[length, count]``.

    >>> text_pieces(np.arange(10), 4, 3).T.tolist()
    [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    """
    start = np.linspace(0, len(ids) - length, count).astype(int)
    return ids[start + np.arange(length)[:, None]].astype(np.int32)


@public
def symbol_gradient_flow(model: SymbolModel, pieces: np.ndarray, *, max_lag: int, chunk_len: int) -> GradientFlow:
    """`gradient_flow` of the loss of the next symbol.

    Args:
        model: a language model's cell, inputs and readout.
        pieces: symbols ``[T + 1, B]``; the last row is only predicted.
        max_lag: steps back.
        chunk_len: of the training, at which truncated backpropagation cuts.
    """
    targets = jnp.asarray(pieces[1:])

    @jax.checkpoint  # logits of all steps at once could be many, and again on the way back
    def one(now: tuple[jax.Array, jax.Array]) -> jax.Array:
        ys, targets = now
        logits = jnp.matmul(ys.astype(model.w_out.dtype), model.w_out, preferred_element_type=jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits + model.b_out, targets)

    def loss(ys: jax.Array) -> jax.Array:
        size = max(1, min(len(ys), 2**23 // (ys.shape[1] * model.w_out.shape[1])))
        losses: jax.Array = jax.lax.map(one, (ys, targets), batch_size=size)
        return losses

    state = start_state(model.cell, model.params, (pieces.shape[1],))
    cell, inputs = as_inputs(model, pieces[:-1])
    return gradient_flow(cell, model.params, state, inputs, loss, max_lag=max_lag, chunk_len=chunk_len)


@public
def symbol_lyapunov(model: SymbolModel, pieces: np.ndarray, *, count: int, warmup: int) -> LyapunovSpectrum:
    """`lyapunov_spectrum` along pieces of a text.

    Args:
        model: a language model's cell and inputs.
        pieces: symbols ``[T, B]``.
        count: of exponents, at most.
        warmup: first symbols, which are not counted.
    """
    cell, inputs = as_inputs(model, pieces)
    state, count = start_state(model.cell, model.params, (pieces.shape[1],)), min(count, state_size(model.cell))
    return lyapunov_spectrum(cell, model.params, state, inputs, num_exponents=count, warmup=warmup)


@dataclasses.dataclass(frozen=True)
class Reader(Around):
    """A cell whose inputs are symbols ``[*batch, 1]``; the one-hot vectors of all steps would be V numbers a symbol."""

    cell: Any
    table: OneHot

    def init(self, key: jax.Array, input_size: int = 1, dtype: Any = jnp.float32) -> Any:
        """The parameters of the cell inside."""
        del input_size
        return self.cell.init(key, self.table.size, dtype)

    def thread(
        self, visit: Visit, params: Any, state: Any, xs: jax.Array, controls: Any, *, reverse: bool, key: Any
    ) -> tuple[Any, jax.Array]:
        """Through the table, then the cell inside; see `rnnjax.Network`."""
        return visit(self.cell, params, state, self.table[xs[..., 0]], controls, reverse=reverse, key=key)


def as_inputs(model: SymbolModel, symbols: np.ndarray) -> tuple[Any, jax.Array]:
    """The cell and inputs ``[..., I]`` with which the model reads symbols ``[...]``, step by step in little memory.

    >>> import rnnjax
    >>> cell = rnnjax.GRU(4)
    >>> model = SymbolModel(cell, cell.init(jax.random.key(0), 3), OneHot(3), jnp.ones((4, 3)), jnp.zeros(3))
    >>> reader, xs = as_inputs(model, np.array([2, 0, 1]))
    >>> _, y = reader.step(model.params, reader.initial_state(), xs[0])
    >>> bool((y == cell.step(model.params, cell.initial_state(), jnp.array([0.0, 0.0, 1.0]))[1]).all())
    True
    """
    if isinstance(model.inputs, OneHot):
        return Reader(model.cell, model.inputs), jnp.asarray(symbols)[..., None]
    return model.cell, model.inputs[symbols]
