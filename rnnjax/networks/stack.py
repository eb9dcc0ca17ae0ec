"""The stack of cells, with dropout, normalisation and residual connections between its layers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cell import Cell, input_shape, output_shape, start_state
from rnnjax.engines import Controls, Engine, Job, register
from rnnjax.networks.norms import check_norm, init_norm, normalize
from rnnjax.networks.regularization import check_rate, locked_dropout
from rnnjax.networks.regularized import unroll_regularized
from rnnjax.unroll import run

__all__ = ["Stack", "StackParams", "StackState", "check_layers", "dropout", "unroll_layered", "unroll_stack"]


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

    Args:
        cells: the layers, the first nearest to the input; any cells, of any sizes.
        residual: whether every layer but the first adds its output to what comes from below.
        norm: ``"layer"`` or ``"rms"`` normalises what every layer but the first sees.

    Raises:
        ValueError: if there is no cell, the norm is unknown, or with ``residual`` a layer is not as wide as the first.
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
    residual: bool = False
    norm: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.cells, tuple | list):
            raise TypeError(f"Stack: cells must be a tuple of cells, got {self.cells!r}.")
        object.__setattr__(self, "cells", tuple(self.cells))
        if not self.cells:
            raise ValueError("Stack: cells must hold at least one cell, got none.")
        for cell in self.cells:
            if isinstance(cell, type) or not isinstance(cell, Cell):
                raise TypeError(f"Stack: every layer must be a cell, got {cell!r}.")
        check_norm("Stack", self.norm)
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

    @property
    def input_shape(self) -> Any:
        """The method of the first layer; there is none, as `hasattr` sees it, where that layer has none."""
        return self.cells[0].input_shape  # type: ignore[attr-defined]

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

    def initial_state(self, batch_shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> StackState:
        """The initial state of every layer."""
        return StackState(tuple(cell.initial_state(batch_shape, dtype) for cell in self.cells))

    def start_state(
        self, params: StackParams, batch_shape: tuple[int, ...] = (), dtype: Any = jnp.float32
    ) -> StackState:
        """The initial state of every layer, learned where the layer learns it."""
        _check_params("Stack", self, params)
        layers = zip(self.cells, params.layers, strict=True)
        return StackState(tuple(start_state(cell, p, batch_shape, dtype) for cell, p in layers))

    def step(self, params: StackParams, state: StackState, x: jax.Array) -> tuple[StackState, jax.Array]:
        """One step of all layers, from the first to the last."""
        return _ascend("Stack", self, params, state, x, lambda depth, cell, p, s, x: cell.step(p, s, x))


def _ascend(
    where: str, stack: Stack, params: StackParams, state: StackState, x: jax.Array, apply: Callable[..., Any]
) -> tuple[StackState, jax.Array]:
    """From layer to layer, for one step as for whole sequences: what ``apply(depth, cell, params, state, x)`` runs."""
    _check_params(where, stack, params)
    check_layers(where, len(stack.cells), state=state)
    norms = params.norms or (None,) * len(stack.cells)
    states = []
    for depth, (cell, p, s) in enumerate(zip(stack.cells, params.layers, state.layers, strict=True)):
        s, y = apply(depth, cell, p, s, normalize(stack.norm, norms[depth], x))
        x = x + y if stack.residual and depth else y
        states.append(s)
    return StackState(tuple(states)), x


def check_layers(where: str, count: int, **trees: Any) -> None:
    """Raises unless the given ``params`` or ``state`` have as many entries in ``layers`` as there are layers."""
    for name, tree in trees.items():
        layers = getattr(tree, "layers", None)
        many = len(layers) if isinstance(layers, tuple | list) else None
        if many != count:
            got = f"{many} of them" if many is not None else type(tree).__name__
            raise ValueError(
                f"{where}: {name}.layers must have one entry a layer, {count} here, got {got}; take {name} made for "
                "these layers."
            )


def _check_params(where: str, stack: Stack, params: Any) -> None:
    check_layers(where, len(stack.cells), params=params)
    norms, wanted = getattr(params, "norms", ()), 0 if stack.norm is None else len(stack.cells)
    if len(norms) != wanted:
        raise ValueError(
            f"{where}: params.norms must have {wanted} entries for norm={stack.norm!r}, got {len(norms)}; take params "
            "that init of this stack makes."
        )


def dropout(key: jax.Array, x: jax.Array, rate: float) -> jax.Array:
    r"""Inverted dropout (Srivastava et al., 2014): ``x * m / (1 - rate)`` with ``m ~ Bernoulli(1 - rate)`` a element.

    Args:
        key: used once; the mask is new for every element, so over ``[T, B, H]`` it is new at every step.
        x: any shape.
        rate: the share that is dropped, in [0, 1).

    Raises:
        ValueError: for a rate outside [0, 1).
    """
    check_rate("dropout", "rate", rate)
    if rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), jnp.zeros((), x.dtype))


def unroll_stack(
    stack: Stack,
    params: StackParams,
    state: StackState,
    xs: jax.Array,
    *,
    dropout_rate: float = 0.0,
    locked: bool = False,
    key: jax.Array | None = None,
    **options: Any,
) -> tuple[StackState, jax.Array]:
    """Unrolls a stack layer by layer, with dropout between the layers; those of a stack within it are layers, too.

    Args:
        stack: the stack.
        params: its parameters.
        state: its state.
        xs: ``[T, *batch, I]``.
        dropout_rate: share of each layer's outputs that the next layer does not see (Zaremba et al., 2014); the
            recurrent connections, residual connections and the top layer's output are left alone. The mask is new for
            every step, example and unit; it comes after the norm.
        locked: whether that mask is `locked_dropout`'s instead: one a sequence, the same at all of its steps.
        key: one key a call; without a key nothing is dropped. No two masks share a key that comes from it.
        **options: ``lengths``, ``resets``, ``reverse``, ``implementation`` and ``remat`` of `unroll`, where
            ``implementation`` is each layer's; and the rates of `unroll_regularized`, which hold for every layer.

    Returns:
        The final state and ``ys [T, *batch, H]``; without a key the same as ``unroll(stack, ...)``.

    Raises:
        ValueError: for a rate outside [0, 1), an option that a layer cannot take, or as `unroll` does.
    """
    check_rate("unroll_stack", "dropout_rate", dropout_rate)
    between: Any = [None] * len(stack.cells)
    between, within = (between, between) if key is None else jax.random.split(key, (2, len(stack.cells)))
    drop: Callable[..., jax.Array] = dropout
    if locked:
        drop = functools.partial(locked_dropout, resets=options.get("resets"), reverse=options.get("reverse", False))

    def apply(depth: int, cell: Cell, p: Any, s: Any, xs: jax.Array) -> tuple[Any, jax.Array]:
        if depth and key is not None:
            xs = drop(between[depth], xs, dropout_rate)
        try:
            if isinstance(cell, Stack):
                return unroll_stack(
                    cell, p, s, xs, dropout_rate=dropout_rate, locked=locked, key=within[depth], **options
                )
            return unroll_regularized(cell, p, s, xs, key=within[depth], **options)
        except ValueError as error:
            where, _, sentence = str(error).partition(": ")
            if where not in ("unroll_regularized", "unroll_stack"):
                raise
            raise ValueError(f"unroll_stack: layer {depth} ({type(cell).__name__}): {sentence}") from error

    return _ascend("unroll_stack", stack, params, state, xs, apply)


@functools.singledispatch
def unroll_layered(
    cell: Any, params: Any, state: Any, xs: jax.Array, controls: Controls, *, reverse: bool, remat: Any
) -> tuple[Any, jax.Array]:
    """The implementation ``"layered"`` of cells made of cells: every part runs its own best one over all steps.

    A class of such cells joins by ``@unroll_layered.register``.
    """
    raise TypeError(f"unroll: 'layered' takes cells that are made of cells, got {cell!r}.")


@unroll_layered.register(Stack)
def _unroll_stack(
    cell: Stack, params: StackParams, state: StackState, xs: jax.Array, controls: Controls, *, reverse: bool, remat: Any
) -> tuple[StackState, jax.Array]:
    def apply(depth: int, cell: Cell, p: Any, s: Any, xs: jax.Array) -> tuple[Any, jax.Array]:
        fresh = None if controls.fresh is None else controls.fresh.layers[depth]
        return run(cell, p, s, xs, controls._replace(fresh=fresh), None, reverse=reverse, remat=remat)

    return _ascend("unroll", cell, params, state, xs, apply)


def _fits(job: Job) -> str:
    if unroll_layered.dispatch(type(job.cell)) is unroll_layered.dispatch(object):
        return f"needs a cell that is made of cells, got {type(job.cell).__name__}"
    return ""


register(Engine("layered", unroll_layered, fits=_fits, rank=lambda job: 10))
