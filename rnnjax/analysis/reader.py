"""A model that reads symbols one-hot, as a network that makes the vectors of a step when it comes to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.analysis.recording import OneHot, SymbolModel
from rnnjax.network import Visit, network_initial_state, network_step

__all__ = ["Reader", "as_inputs"]


@dataclasses.dataclass(frozen=True)
class Reader:
    """A cell whose inputs are symbols ``[*batch, 1]``; the one-hot vectors of all steps would be V numbers a symbol."""

    cell: Any
    table: OneHot

    @property
    def hidden_size(self) -> int:
        """That of the cell inside."""
        size: int = self.cell.hidden_size
        return size

    def init(self, key: jax.Array, input_size: int = 1, dtype: Any = jnp.float32) -> Any:
        """The parameters of the cell inside."""
        del input_size
        return self.cell.init(key, self.table.size, dtype)

    def parts(self, tree: Any) -> tuple[tuple[str, Any, Any], ...]:
        """The cell inside, whose parameters and state are those of the whole."""
        return (("cell", self.cell, tree),)

    def join(self, parts: Sequence[Any]) -> Any:
        """The state of the cell inside."""
        (state,) = parts
        return state

    def thread(
        self, visit: Visit, params: Any, state: Any, xs: jax.Array, controls: Any, *, reverse: bool, key: Any
    ) -> tuple[Any, jax.Array]:
        """Through the table, then the cell inside; see `rnnjax.Network`."""
        return visit(self.cell, params, state, self.table[xs[..., 0]], controls, reverse=reverse, key=key)

    step = network_step
    initial_state = network_initial_state


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
