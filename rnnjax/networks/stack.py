"""The stack of cells, with dropout, normalisation and residual connections between its layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cell import Cell
from rnnjax.checks import check_choice, check_kind, short
from rnnjax.kinds import check_fields, public
from rnnjax.network import (
    Controls,
    Visit,
    input_shape,
    network_initial_state,
    network_step,
    output_shape,
    part_controls,
)
from rnnjax.networks.masks import dropout
from rnnjax.promotion import compute_dtype, promoting

__all__ = [
    "NormParams",
    "Stack",
    "StackParams",
    "StackState",
    "check_layers",
    "init_norm",
    "normalize",
]


class StackParams(NamedTuple):
    """Parameters of `Stack`, one entry a layer."""

    layers: tuple[Any, ...]
    norms: tuple[Any, ...] = ()  # `NormParams` of what each layer sees, None for the first; empty without a norm


class StackState(NamedTuple):
    """State of `Stack`, one entry a layer."""

    layers: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Stack:
    r"""Cells on top of each other: itself a cell, so that it unrolls, stacks and trains like one.

        y_1 = cell_1(x)
        y_l = cell_l(norm_l(y_{l-1}))                with residual: y_l = y_{l-1} + cell_l(norm_l(y_{l-1}))
        y   = y_L

    where ``cell_l(x)`` is the output of ``state_l', y = cells[l].step(params.layers[l], state.layers[l], x)`` and
    ``norm_l`` is `normalize`, or nothing. The first layer brings the input to the width of the others: whatever I is,
    it has neither norm nor residual connection. The norm stands on the branch (pre-norm; Xiong et al., 2020), so the
    sum that runs from the bottom to the top (He et al., 2016) is never normalised, nor is ``y``.

    Dropout acts where `rnnjax.unroll` gets a ``key``; without one, and in ``step``, the stack is evaluated and nothing
    is dropped. It thins what a layer sees from the one below (Zaremba et al., 2014), after the norm; recurrent
    connections, residual connections and ``y`` are left alone. No two masks share a key that comes from the one.

    Args:
        cells: the layers, the first nearest to the input; any cells, of any sizes.
        residual: whether every layer but the first adds its output to what comes from below.
        norm: ``"layer"`` or ``"rms"`` normalises what every layer but the first sees.
        dropout: the share of each layer's outputs that the next layer does not see.
        locked: False draws a new mask for every step, example and unit; True one a sequence, see `dropout`.

    Raises:
        ValueError: if there is no cell, the norm is unknown, with ``residual`` a layer is not as wide as the first, or
            for a rate outside [0, 1).
        TypeError: if ``cells`` is not a tuple or list of cells.

    >>> import jax, rnnjax
    >>> stack = rnnjax.Stack((rnnjax.LSTM(8), rnnjax.GRU(4)))
    >>> params = stack.init(jax.random.key(0), input_size=3)
    >>> state, ys = rnnjax.unroll(stack, params, stack.initial_state((2,)), jax.numpy.ones((5, 2, 3)))
    >>> ys.shape
    (5, 2, 4)
    >>> deep = rnnjax.Stack((rnnjax.GRU(4),) * 3, residual=True, norm="rms")
    >>> [norm and norm.scale.shape for norm in deep.init(jax.random.key(0), input_size=3).norms]
    [None, (4,), (4,)]
    """

    cells: tuple[Cell, ...]
    _: dataclasses.KW_ONLY
    residual: bool = False
    norm: str | None = None
    dropout: float = 0.0
    locked: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.cells, tuple | list):
            raise TypeError(f"Stack: cells must be a tuple of cells, got {short(self.cells)}.")
        object.__setattr__(self, "cells", tuple(self.cells))
        if not self.cells:
            raise ValueError("Stack: cells must hold at least one cell, got none.")
        for cell in self.cells:
            check_kind("Stack", "every layer", cell, Cell, "a cell")
        check_choice("Stack", "norm", self.norm, ("layer", "rms", None))
        check_fields(self, rates=("dropout",))
        sizes = [cell.hidden_size for cell in self.cells]
        for depth, size in enumerate(sizes):
            if self.residual and size != sizes[0]:
                raise ValueError(
                    f"Stack: with residual=True cells[{depth}] must have hidden_size = {sizes[0]}, as cells[0] has, "
                    f"got {size}; make it as wide, or leave residual out."
                )

    @property
    def hidden_size(self) -> int:
        """The size of the top layer."""
        return self.cells[-1].hidden_size

    @public
    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> StackParams:
        """New parameters of every layer, each from a key of its own; norms start with gain one.

        Raises:
            ValueError: if a layer cannot read what the one below writes, since one of them has images as features.
        """
        sizes = [input_size, *(cell.hidden_size for cell in self.cells[:-1])]
        for below, above, size in zip(self.cells, self.cells[1:], sizes):
            written, read = output_shape(below, size), input_shape(above, below.hidden_size)
            if written != read:
                raise ValueError(
                    f"Stack.init: the output of {type(below).__name__} must have shape {list(read)}, which "
                    f"{type(above).__name__} above it reads, got {list(written)}; put layers that fit on each other."
                )
        keys = jax.random.split(key, len(self.cells))
        return StackParams(
            tuple(cell.init(k, size, dtype) for cell, k, size in zip(self.cells, keys, sizes, strict=True)),
            () if self.norm is None else (None, *(init_norm(self.norm, size, dtype) for size in sizes[1:])),
        )

    def parts(self, tree: Any) -> tuple[tuple[str, Cell, Any], ...]:
        """Every layer, by its number from the bottom."""
        layers = check_layers("Stack", len(self.cells), tree)
        return tuple((str(depth), *part) for depth, part in enumerate(zip(self.cells, layers, strict=True)))

    def join(self, parts: Sequence[Any]) -> StackState:
        """A state from those of the layers."""
        return StackState(tuple(parts))

    def thread(
        self,
        visit: Visit,
        params: StackParams,
        state: StackState,
        xs: jax.Array,
        controls: Controls,
        *,
        reverse: bool,
        key: jax.Array | None,
    ) -> tuple[StackState, jax.Array]:
        """From layer to layer; see `rnnjax.Network`."""
        self._check_norms(params)
        none, keys, states = (None,) * len(self.cells), self.keys(key), []
        both = (params.norms or none, none if keys is None else keys)
        layers = zip(self.parts(params), self.parts(state), part_controls(self, controls), *both, strict=True)
        for depth, ((_, _, p), (_, _, s), control, norm, own) in enumerate(layers):
            s, xs = self.layer(visit, depth, (p, norm, s), xs, control, reverse=reverse, keys=own)
            states.append(s)
        return self.join(states), xs

    def keys(self, key: jax.Array | None) -> jax.Array | None:
        """``[L, 2]`` keys: for each layer of what it sees from below, and of itself."""
        return None if key is None else jnp.swapaxes(jax.random.split(key, (2, len(self.cells))), 0, 1)

    def layer(
        self, visit: Visit, depth: int, part: Any, xs: jax.Array, controls: Controls, *, reverse: bool, keys: Any
    ) -> tuple[Any, jax.Array]:
        """One layer at ``xs`` from below; ``part`` holds its parameters, its norm and its state."""
        params, norm, state = part
        below = normalize(self.norm, norm, xs)
        if depth and keys is not None:
            resets = controls.restarts
            below = dropout(keys[0], below, self.dropout, locked=self.locked, resets=resets, reverse=reverse)
        within = None if keys is None else keys[1]
        state, ys = visit(self.cells[depth], params, state, below, controls, reverse=reverse, key=within)
        return state, xs + ys if self.residual and depth else ys

    def _check_norms(self, params: StackParams) -> None:
        norms, wanted = getattr(params, "norms", ()), 0 if self.norm is None else len(self.cells)
        if len(norms) != wanted:
            raise ValueError(
                f"Stack: params.norms must have {wanted} entries for norm={self.norm!r}, got {len(norms)}; take params "
                "that init of this stack makes."
            )

    step = network_step
    initial_state = network_initial_state


def check_layers(where: str, count: int, tree: Any, nothing: Any = None) -> tuple[Any, ...]:
    """The entries of parameters or of a state, one a layer; of None, ``nothing`` for each.

    Raises:
        ValueError: if there are not as many in ``layers`` as there are layers.
    """
    if tree is None:
        return (nothing,) * count
    layers: Any = getattr(tree, "layers", None)
    many = len(layers) if isinstance(layers, tuple | list) else None
    if many != count:
        got = f"{many} of them in {type(tree).__name__}" if many is not None else type(tree).__name__
        raise ValueError(
            f"{where}: parameters and states must have one entry a layer in layers, {count} here, got {got}; take "
            "those made for these layers."
        )
    return tuple(layers)


_EPSILON = 1e-5


class NormParams(NamedTuple):
    """Gain and shift of `normalize`."""

    scale: jax.Array  # [H]
    bias: jax.Array | None = None  # [H]; None for "rms"


def init_norm(norm: str | None, size: int, dtype: Any = jnp.float32) -> NormParams | None:
    """Gain one and shift zero for H = ``size`` features; None without a norm."""
    if norm is None:
        return None
    return NormParams(jnp.ones((size,), dtype), jnp.zeros((size,), dtype) if norm == "layer" else None)


@promoting
def normalize(norm: str | None, params: NormParams | None, x: jax.Array) -> jax.Array:
    r"""Layer normalisation (Ba et al., 2016), or that by the root mean square (Zhang and Sennrich, 2019).

        layer:  y = (x - mean(x)) / sqrt(var(x) + 1e-5) * scale + bias
        rms:    y = x / sqrt(mean(x^2) + 1e-5) * scale

    Mean and variance (divided by H) run over the last axis alone, so nothing passes from a step or an example to
    another. It computes in float32 or wider and returns the dtype of ``x``.

    Args:
        norm: ``"layer"``, ``"rms"``, or None, which returns ``x`` as it is.
        params: from `init_norm`.
        x: ``[..., H]``.

    >>> import jax.numpy as jnp
    >>> normalize("layer", init_norm("layer", 2), jnp.array([1.0, 3.0])).round(3).tolist()
    [-1.0, 1.0]
    """
    if norm is None or params is None:
        return x
    dtype = compute_dtype(x.dtype)
    wide = x.astype(dtype)
    if norm == "layer":
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    y = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + _EPSILON) * params.scale.astype(dtype)
    if params.bias is not None:
        y = y + params.bias.astype(dtype)
    return y.astype(x.dtype)
