"""The modules that `rnnjax.interop.flax_nnx` makes; apart from it, since this imports flax."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from rnnjax.interop._hosts import feature_axes, floating, run_rnn, start

__all__ = ["NnxCell", "NnxLayer"]


class _Held(nnx.Module):
    """A cell and its parameters, with an ``nnx.Param`` at every leaf."""

    def __init__(self, cell: Any, params: Any) -> None:
        self.cell = cell
        self.params = nnx.data(jax.tree.map(nnx.Param, params))

    def weights(self) -> Any:
        """The parameters as rnnjax has them."""
        return jax.tree.map(lambda leaf: leaf[...], self.params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


class NnxCell(_Held, nnx.RNNCellBase):
    """See `rnnjax.interop.nnx_cell`."""

    def __call__(self, carry: Any, inputs: jax.Array) -> tuple[Any, jax.Array]:
        """One step: the next carry and the output."""
        inputs = floating("NnxCell: inputs", inputs, self.num_feature_axes)
        return self.cell.step(self.weights(), carry, inputs)

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None) -> Any:
        """The state before the first step for inputs of this shape, or what ``carry_init`` draws for each leaf.

        Args:
            input_shape: ``(*batch, I)``.
            rngs: for ``carry_init``, which takes the stream ``carry``, as nnx's own cells do.
            carry_init: an initialiser ``(key, shape, dtype)`` for every leaf; None is the start of the cell.

        Raises:
            ValueError: if ``carry_init`` has no ``rngs``, or the shape has too few axes.
        """
        if len(input_shape) < self.num_feature_axes:
            raise ValueError(
                f"NnxCell.initialize_carry: input_shape must have at least {self.num_feature_axes} axes, got "
                f"{tuple(input_shape)}."
            )
        carry = start(self.cell, self.weights(), tuple(input_shape[: -self.num_feature_axes]))
        if carry_init is None:
            return carry
        if rngs is None:
            raise ValueError("NnxCell.initialize_carry: carry_init draws, and needs rngs, got None; pass nnx.Rngs(0).")
        return jax.tree.map(lambda leaf: carry_init(rngs.carry(), leaf.shape, leaf.dtype), carry)

    @property
    def num_feature_axes(self) -> int:
        """How many axes of an input are features."""
        return feature_axes(self.cell)


class NnxLayer(_Held):
    """See `rnnjax.interop.nnx_layer`."""

    def __init__(self, cell: Any, params: Any, **options: Any) -> None:
        super().__init__(cell, params)
        for name, value in options.items():
            setattr(self, name, value)

    def __call__(
        self,
        inputs: jax.Array,
        *,
        initial_carry: Any = None,
        seq_lengths: jax.Array | None = None,
        resets: jax.Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: Any = None,
    ) -> Any:
        """As ``flax.nnx.RNN`` is called, and with ``resets``; ``rngs`` is not used."""
        now = {"return_carry": return_carry, "time_major": time_major, "reverse": reverse, "keep_order": keep_order}
        return run_rnn(self, self.weights(), inputs, initial_carry, seq_lengths, resets, now)
