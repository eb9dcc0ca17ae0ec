"""The modules that `rnnjax.interop.haiku` makes; apart from it, since this imports Haiku."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import haiku as hk
import jax

from rnnjax.cell import named_leaves, param_shapes
from rnnjax.interop._hosts import feature_axes, floating, run_layer

__all__ = ["HaikuCore", "HaikuLayer"]


class HaikuCore(hk.RNNCore):
    """See `rnnjax.interop.haiku_core`."""

    def __init__(self, cell: Any, name: str | None = None) -> None:
        super().__init__(name=name or type(cell).__name__.lower())
        self.cell = cell

    def __call__(self, inputs: jax.Array, prev_state: Any) -> tuple[jax.Array, Any]:
        """One step: the output and the next state."""
        inputs = floating("HaikuCore: inputs", inputs, feature_axes(self.cell))
        state, y = self.cell.step(_declare(self.cell, inputs), prev_state, inputs)
        return y, state

    def initial_state(self, batch_size: int | None) -> Any:
        """``cell.initial_state`` for one batch axis, or none."""
        return self.cell.initial_state(() if batch_size is None else (batch_size,))


class HaikuLayer(hk.Module):
    """See `rnnjax.interop.haiku_layer`."""

    def __init__(self, cell: Any, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name or type(cell).__name__.lower())
        self.cell = cell
        self.options = options  # of `run_layer`

    def __call__(
        self, xs: jax.Array, state: Any = None, *, lengths: jax.Array | None = None, resets: jax.Array | None = None
    ) -> tuple[jax.Array, Any]:
        """All steps: the outputs and the final state."""
        xs = floating("HaikuLayer: xs", xs, 1 + feature_axes(self.cell))
        params = _declare(self.cell, xs)
        state, ys = run_layer(self.cell, params, state, xs, lengths=lengths, resets=resets, **self.options)
        return ys, state


def _declare(cell: Any, inputs: jax.Array) -> Any:
    """Declares a parameter for each leaf, and returns them all as the cell takes them."""
    input_size, dtype = inputs.shape[-1], inputs.dtype
    shapes = param_shapes(cell, input_size, dtype)
    made: list[Any] = []  # by one call of `init`, so that the leaves come from one key and belong together

    def initializer(index: int) -> Callable[..., Any]:
        def init(shape: Any, dtype: Any) -> jax.Array:
            if not made:
                made.extend(jax.tree.leaves(cell.init(hk.next_rng_key(), input_size, dtype)))
            return made[index]

        return init

    parameters = [
        hk.get_parameter(name, leaf.shape, leaf.dtype, init=initializer(index))
        for index, (name, leaf) in enumerate(named_leaves(shapes).items())
    ]
    return jax.tree.unflatten(jax.tree.structure(shapes), parameters)
