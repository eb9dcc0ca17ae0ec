"""The modules that `rnnjax.interop.haiku` makes; apart from it, since this imports Haiku."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import haiku as hk
import jax

from rnnjax.cell import param_shapes
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

    def __init__(
        self,
        cell: Any,
        *,
        time_major: bool,
        reverse: bool,
        implementation: str | None,
        remat: Any,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name or type(cell).__name__.lower())
        self.cell = cell
        self.time_major = time_major
        self.options = {"reverse": reverse, "implementation": implementation, "remat": remat}

    def __call__(
        self, xs: jax.Array, state: Any = None, *, lengths: jax.Array | None = None, resets: jax.Array | None = None
    ) -> tuple[jax.Array, Any]:
        """All steps: the outputs and the final state."""
        xs = floating("HaikuLayer: xs", xs, 1 + feature_axes(self.cell))
        state, ys = run_layer(
            self.cell,
            _declare(self.cell, xs),
            state,
            xs,
            time_major=self.time_major,
            lengths=lengths,
            resets=resets,
            **self.options,
        )
        return ys, state


def _declare(cell: Any, inputs: jax.Array) -> Any:
    """Declares a parameter for each leaf, and returns them all as the cell takes them."""
    input_size, dtype = inputs.shape[-1], inputs.dtype
    shapes = param_shapes(cell, input_size, dtype)
    leaves, _ = jax.tree_util.tree_flatten_with_path(shapes)
    made: list[Any] = []  # by one call of `init`, so that the leaves come from one key and belong together

    def initializer(index: int) -> Callable[..., Any]:
        def init(shape: Any, dtype: Any) -> jax.Array:
            if not made:
                made.extend(jax.tree.leaves(cell.init(hk.next_rng_key(), input_size, dtype)))
            return made[index]

        return init

    parameters = [
        hk.get_parameter(jax.tree_util.keystr(path).lstrip("."), leaf.shape, leaf.dtype, init=initializer(index))
        for index, (path, leaf) in enumerate(leaves)
    ]
    return jax.tree.unflatten(jax.tree.structure(shapes), parameters)
