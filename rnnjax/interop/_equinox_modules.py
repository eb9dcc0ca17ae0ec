"""The modules that `rnnjax.interop.equinox` makes; apart from it, since this imports Equinox."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax

from rnnjax.interop._hosts import feature_axes, floating, run_layer, start

__all__ = ["EquinoxCell", "EquinoxLayer"]


class _Held(eqx.Module):
    """A cell and its parameters."""

    params: Any
    cell: Any = eqx.field(static=True)

    def initial_state(self, batch_shape: tuple[int, ...] = ()) -> Any:
        """The state before the first step."""
        return start(self.cell, self.params, batch_shape)


class EquinoxCell(_Held):
    """See `rnnjax.interop.equinox_cell`."""

    def __call__(self, x: jax.Array, state: Any, *, key: Any = None) -> tuple[Any, jax.Array]:
        """One step: the next state and the output; ``key`` is not used."""
        return self.cell.step(self.params, state, floating("EquinoxCell: x", x, feature_axes(self.cell)))


class EquinoxLayer(_Held):
    """See `rnnjax.interop.equinox_layer`."""

    reverse: bool = eqx.field(static=True)
    implementation: str | None = eqx.field(static=True)
    remat: Any = eqx.field(static=True)

    def __call__(
        self,
        xs: jax.Array,
        state: Any = None,
        *,
        lengths: jax.Array | None = None,
        resets: jax.Array | None = None,
        key: Any = None,
    ) -> tuple[Any, jax.Array]:
        """All steps: the final state and the outputs; ``key`` is not used."""
        options = {"reverse": self.reverse, "implementation": self.implementation, "remat": self.remat}
        return run_layer(self.cell, self.params, state, xs, time_major=True, lengths=lengths, resets=resets, **options)
