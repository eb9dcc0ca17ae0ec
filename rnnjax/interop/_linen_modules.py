"""The modules that `rnnjax.interop.flax_linen` makes; apart from it, since this imports flax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.serialization import from_state_dict, to_state_dict

from rnnjax.cell import param_shapes
from rnnjax.interop._hosts import feature_axes, floating, run_rnn

__all__ = ["LinenCell", "LinenLayer"]


class LinenCell(nn.RNNCellBase):
    """See `rnnjax.interop.linen_cell`."""

    cell: Any
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, carry: Any, inputs: jax.Array) -> tuple[Any, jax.Array]:
        """One step: the next carry and the output."""
        inputs = floating("LinenCell: inputs", inputs, self.num_feature_axes)
        return self.cell.step(_declare(self, inputs.shape[-1]), carry, inputs)

    @nn.nowrap
    def initialize_carry(self, rng: Any, input_shape: tuple[int, ...]) -> Any:
        """``cell.initial_state`` for inputs of this shape; ``rng`` is not used."""
        return self.cell.initial_state(tuple(input_shape[: -self.num_feature_axes]), self.param_dtype)

    @property
    def num_feature_axes(self) -> int:
        """How many axes of an input are features."""
        return feature_axes(self.cell)


class LinenLayer(nn.Module):
    """See `rnnjax.interop.linen_layer`."""

    cell: Any
    time_major: bool = False
    return_carry: bool = False
    reverse: bool = False
    keep_order: bool = False
    implementation: str | None = None
    remat: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array,
        *,
        initial_carry: Any = None,
        init_key: Any = None,
        seq_lengths: jax.Array | None = None,
        resets: jax.Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
    ) -> Any:
        """As ``flax.linen.RNN`` is called, and with ``resets``; ``init_key`` is not used."""
        inputs = floating("LinenLayer: inputs", inputs, 1 + feature_axes(self.cell))
        now = {"return_carry": return_carry, "time_major": time_major, "reverse": reverse, "keep_order": keep_order}
        return run_rnn(self, _declare(self, inputs.shape[-1]), inputs, initial_carry, seq_lengths, resets, now)


def _declare(module: Any, input_size: int) -> Any:
    """Declares a parameter for each field, and returns them all as the cell takes them."""
    cell, dtype = module.cell, module.param_dtype
    shapes = param_shapes(cell, input_size, dtype)
    made: list[Any] = []  # by one call of `init`, so that the fields come from one key and belong together

    def initializer(name: str, like: Any) -> Callable[[Any], Any]:
        def init(key: Any) -> Any:
            if not made:
                made.append(to_state_dict(cell.init(key, input_size, dtype)))
            return made[0][name]

        if module.has_variable("params", name):  # linen asks for nothing but its shape
            return lambda key: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
        return init

    fields = {name: module.param(name, initializer(name, like)) for name, like in to_state_dict(shapes).items()}
    return from_state_dict(shapes, fields)
