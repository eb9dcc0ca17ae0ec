"""A recurrence under JAX's transformations: which of them the loops of an engine run, and which go to XLA's.

Reverse mode takes the loops. Forward mode takes the derivative that JAX makes of the loops of `XlaLoops`. A batch that
`jax.vmap` makes is one more axis of the batch; where parameters differ from example to example, the loops are mapped,
or, native ones, run for one example after the other, or `ManyLoops` take all networks at once.

Loops that are opaque to JAX (`Loops.platform`) are operations of their own, so that higher derivatives, parameters that
are mapped, other platforms and exported programs find the loops of `XlaLoops` in their place.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.engines.affine.axes import batch_axes, folded, network_axes, of_their_own
from rnnjax.engines.affine.gradient import backward
from rnnjax.engines.affine.loops import Kept, Loops, Operands, take_many
from rnnjax.engines.affine.plan import Plan
from rnnjax.engines.affine.xla import XlaLoops
from rnnjax.engines.operation import Axes, Flat, Operation, apply, push, wanted
from rnnjax.engines.placement import on_mesh

__all__ = ["recur"]

_XLA = XlaLoops()


def recur(loops: Loops, plan: Plan, operands: Operands) -> tuple[Any, jax.Array]:
    """The final state and ``ys``."""
    leaves, tree = jax.tree.flatten(operands)
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return apply(_Recurrence(loops, plan, tree, precision=precision), *leaves)


@dataclasses.dataclass(frozen=True)
class _Base(Operation):
    """A pair of loops on the leaves of its operands.

    Attributes:
        loops: those of the engine.
        plan: of the recurrence.
        tree: of the operands.
        many: whether all of them have an axis of networks, where `network_axes` says.
        precision: `jax.default_matmul_precision` where it was called; the backward pass keeps it.
    """

    loops: Loops
    plan: Plan
    tree: Any
    many: bool = dataclasses.field(default=False, kw_only=True)
    precision: str | None = dataclasses.field(default=None, kw_only=True)

    @property
    def platform(self) -> str | None:  # type: ignore[override]
        return self.loops.platform

    @property
    def results(self) -> int:
        """How many leaves the results have: those of the state, and ``ys``."""
        return len(jax.tree.leaves(self.tree.unflatten(range(self.tree.num_leaves)).state)) + 1

    def axes_out(self, args: Flat, axes: Axes) -> list[int]:
        """Where the results have what was folded into the batch: those of the state, then ``ys``."""
        last = batch_axes(args, axes)
        return [last] * (self.results - 1) + [last + 1]

    def forward(self, loops: Loops, args: Flat, *, keep: bool) -> tuple[Any, jax.Array, Kept | None]:
        def one(*args: jax.Array) -> tuple[Any, jax.Array, Kept | None]:
            return loops.forward(self.plan, self.tree.unflatten(args), keep=keep)

        mapped = self.many and loops is not self.loops
        with jax.default_matmul_precision(self.precision):
            return (jax.vmap(one, tuple(network_axes(self.tree)), (0, 1, 0)) if mapped else one)(*args)

    def backward(self, loops: Loops, args: Flat, kept: Any, cts: Flat) -> list[jax.Array | None]:
        """The cotangents of the arguments; None for masks."""

        def one(args: Flat, kept: Any, cts: Flat) -> list[jax.Array | None]:
            operands = self.tree.unflatten(args)
            d_final, d_ys = jax.tree.unflatten(jax.tree.structure((operands.state, 0)), cts)
            return self.tree.flatten_up_to(backward(loops, self.plan, operands, kept, d_final, d_ys))

        axes, mapped = network_axes(self.tree), self.many and loops is not self.loops
        with jax.default_matmul_precision(self.precision):
            run = jax.vmap(one, (axes, 0, self.networks_out()), axes) if mapped else one
            return run(list(args), kept, list(cts))

    def of_kind(self, kind: type[_Base], *more: Any) -> Any:
        """An operation of another kind on the same operands."""
        return kind(self.loops, self.plan, self.tree, *more, many=self.many, precision=self.precision)

    def kept_axes(self, kept: Any) -> list[int]:
        """Where what was kept has the axis of networks."""
        return jax.tree.leaves(self.loops.kept_axes(kept)) if take_many(self.loops) else []

    def networks_out(self) -> list[int]:
        """Where the results have the axis of networks: those of the state, then ``ys``."""
        return [0] * (self.results - 1) + [1]

    def takes_networks(self, axes: Axes) -> bool:
        """Whether its loops take what `jax.vmap` maps as networks, here where every launch is on one device."""
        able = take_many(self.loops) and jax.device_count() == 1
        return able and (self.many or of_their_own(self.tree, axes))


@dataclasses.dataclass(frozen=True)
class _Recurrence(_Base):
    """The final state and ``ys``, with the backward pass of the loops for reverse mode."""

    def run(self, *args: jax.Array) -> Any:
        return self.forward(self.loops, args, keep=False)[:2]

    def portable(self, *args: jax.Array) -> Any:
        return self.forward(self.loops if self.platform is None else _XLA, args, keep=False)[:2]

    def keep(self, *args: jax.Array) -> tuple[Any, Any]:
        """The results, and what the backward pass needs."""
        if self.platform is None:
            *results, kept = self.forward(self.loops, args, keep=True)
        else:
            *results, kept = apply(self.of_kind(_Forward), *args)
        return tuple(results), kept

    def pull(self, args: Flat, kept: Any, cts: Flat) -> list[jax.Array | None]:
        """The cotangents of the arguments; None for masks."""
        if self.platform is None:
            return self.backward(self.loops, args, kept, cts)
        leaves, tree = jax.tree.flatten(kept)
        found = iter(apply(self.of_kind(_Backward, tree), *args, *leaves, *cts))
        return [next(found) if jnp.issubdtype(a.dtype, jnp.inexact) else None for a in args]

    def jvp(self, primals: Flat, tangents: Flat) -> tuple[Flat, Flat]:
        return _keep_and_push(self, primals, tangents)

    def batch(self, args: Flat, axes: Axes) -> tuple[Flat, Axes]:
        rows = folded(self.tree, args, axes)  # of several networks, too: more rows for each
        if rows is not None:
            return jax.tree.leaves(apply(self, *rows)), self.axes_out(args, axes)
        if self.takes_networks(axes):
            return _as_networks(self, args, axes, network_axes(self.tree), lambda _: self.networks_out())
        return _mapped(self, args, axes)


@dataclasses.dataclass(frozen=True)
class _Forward(_Base):
    """The forward loop of an engine that is opaque to JAX: the results, and what it keeps."""

    def run(self, *args: jax.Array) -> Any:
        return self.forward(self.loops, args, keep=True)

    def portable(self, *args: jax.Array) -> Any:
        """Nothing is kept: `_Backward.portable`, which follows, begins again."""
        return *self.forward(_XLA, args, keep=False)[:2], self.nothing(args)

    def batch(self, args: Flat, axes: Axes) -> tuple[Flat, Axes]:
        if self.takes_networks(axes):
            where = network_axes(self.tree)
            return _as_networks(self, args, axes, where, lambda out: [*self.networks_out(), *self.kept_axes(out[2])])
        rows = folded(self.tree, args, axes)
        if _kept_each(self, args, axes):
            return _one_by_one(self, args, axes)
        if rows is None:
            return super().batch(args, axes)
        outs = jax.tree.leaves(apply(self.of_kind(_Recurrence), *rows))
        one = [jax.eval_shape(lambda a, axis=axis: a if axis is None else jax.lax.index_in_dim(a, 0, axis, False), a)
               for a, axis in zip(args, axes, strict=True)]  # fmt: skip
        kept = jax.tree.leaves(self.nothing(one))
        return [*outs, *kept], [*self.axes_out(args, axes), *[None] * len(kept)]

    def nothing(self, args: Flat) -> Any:
        """Zeros in the place of what is kept, where nobody reads it."""
        return jax.tree.map(lambda k: jnp.zeros(k.shape, k.dtype), jax.eval_shape(self.run, *args)[2])


@dataclasses.dataclass(frozen=True)
class _Backward(_Base):
    """The backward loop of an engine that is opaque to JAX: the cotangents of all operands but masks."""

    kept: Any  # its tree

    def split(self, args: Flat) -> tuple[Flat, Flat, Flat]:
        first = self.tree.num_leaves
        return args[:first], args[first : first + self.kept.num_leaves], args[first + self.kept.num_leaves :]

    def run(self, *args: jax.Array) -> Any:
        primals, kept, cts = self.split(args)
        found = self.backward(self.loops, primals, self.kept.unflatten(kept), cts)
        return [d for d in found if d is not None]

    def batch(self, args: Flat, axes: Axes) -> tuple[Flat, Axes]:
        if self.takes_networks(axes[: self.tree.num_leaves]):
            where = network_axes(self.tree)
            kept = self.kept_axes(self.kept.unflatten(range(self.kept.num_leaves)))
            found = [axis for a, axis in zip(args, where, strict=False) if jnp.issubdtype(a.dtype, jnp.inexact)]
            return _as_networks(self, args, axes, [*where, *kept, *self.networks_out()], lambda _: found)
        if _kept_each(self, args, axes):
            return _one_by_one(self, args, axes)
        return super().batch(args, axes)

    def portable(self, *args: jax.Array) -> Any:
        primals, _, cts = self.split(args)
        _, _, kept = self.forward(_XLA, primals, keep=True)
        return [d for d in self.backward(_XLA, primals, kept, cts) if d is not None]


@dataclasses.dataclass(frozen=True)
class _Mapped(Operation):
    """A recurrence under `jax.vmap`, where parameters differ from example to example."""

    inner: _Recurrence | _Mapped
    axes: tuple[int | None, ...]

    @property
    def platform(self) -> str | None:  # type: ignore[override]
        return self.inner.platform

    def run(self, *args: jax.Array) -> Any:
        mapped = self.platform is None or _follow(self)  # what is opaque can only be mapped one by one
        return _each(self, self.inner.run if mapped else self.inner.portable, self.axes, *args)

    def portable(self, *args: jax.Array) -> Any:
        return jax.vmap(self.inner.portable, in_axes=self.axes)(*args)

    def keep(self, *args: jax.Array) -> tuple[Any, Any]:
        return _each(self, self.inner.keep, self.axes, *args)

    def pull(self, args: Flat, kept: Any, cts: Flat) -> list[jax.Array | None]:
        found = _each(self, self.inner.pull, (self.axes, 0, 0), tuple(args), kept, list(cts))
        moved = zip(found, self.axes, strict=True)
        return [d if d is None else jnp.sum(d, 0) if axis is None else jnp.moveaxis(d, 0, axis) for d, axis in moved]

    def jvp(self, primals: Flat, tangents: Flat) -> tuple[Flat, Flat]:
        return _keep_and_push(self, primals, tangents)

    def batch(self, args: Flat, axes: Axes) -> tuple[Flat, Axes]:
        return _mapped(self, args, axes)


@dataclasses.dataclass(frozen=True)
class _Tangent(Operation):
    """The tangent of a recurrence, linear in the last arguments; its transpose is the backward pass of the loops."""

    recurrence: _Recurrence | _Mapped
    which: tuple[bool, ...]  # the arguments of the recurrence that have tangents
    kept: Any  # the tree of what was kept

    def split(self, args: Flat) -> tuple[Flat, Flat, Flat]:
        first, second = len(self.which), len(self.which) + self.kept.num_leaves
        return args[:first], args[first:second], args[second:]

    def run(self, *args: jax.Array) -> Any:
        primals, _, some = self.split(args)
        rest = iter(some)
        return push(self.recurrence.portable, primals, [next(rest) if here else None for here in self.which])[1]

    def transpose(self, cts: Flat, args: Flat) -> Flat:
        primals, kept, _ = self.split(args)
        recurrence = _asked(self.recurrence, self.which[0])
        found = recurrence.pull(primals, self.kept.unflatten(kept), cts)
        known = [None] * (len(primals) + len(kept))
        return [*known, *(d for d, here in zip(found, self.which, strict=True) if here)]


def _asked(self: Any, inputs: bool) -> Any:
    """The same, told whether anybody asks for the cotangent of the inputs."""
    if isinstance(self, _Mapped):
        return dataclasses.replace(self, inner=_asked(self.inner, inputs))
    return dataclasses.replace(self, plan=dataclasses.replace(self.plan, moves_inputs=inputs))


def _keep_and_push(self: _Recurrence | _Mapped, primals: Flat, tangents: Flat) -> tuple[Flat, Flat]:
    """The rule of differentiation: what the backward pass needs is kept, in case the tangents are transposed."""
    results, kept = self.keep(*primals)
    leaves, tree = jax.tree.flatten(kept)
    which = wanted(tangents)
    some = [t for t, here in zip(tangents, which, strict=True) if here]
    moved = apply(_Tangent(self, which, tree), *primals, *leaves, *some)
    return jax.tree.leaves(results), jax.tree.leaves(moved)


def _follow(self: _Base | _Mapped) -> bool:
    """Whether examples with parameters of their own follow each other instead of being mapped.

    Native loops do: one example after the other, each with all cores. XLA multiplies matrices that differ from example
    to example one by one as well, and slower: gradients of 16 LSTMs, (T, B, I, H) = (50, 16, 32, 64), take it 43 ms,
    and these 17 (two cores of an AMD EPYC).
    """
    return self.platform == "cpu" and not on_mesh()


def _kept_each(self: _Base, args: Flat, axes: Axes) -> bool:
    """Whether gradients of single examples are taken by native loops, each from what its own forward pass has kept.

    XLA's loops take all examples at once. Milliseconds of them and of the native ones, on two cores of an AMD EPYC, for
    N examples of an LSTM, (N, T, B, I, H): (16, 50, 16, 32, 64) 31 and 11, (8, 100, 8, 128, 256) 96 and 80,
    (32, 50, 4, 64, 64) 10 and 7, (16, 100, 1, 64, 128) 6 and 10.
    """
    if not _follow(self) or all(axis is None for axis in axes[: self.tree.num_leaves]):  # only cotangents differ
        return False
    shape = [n for i, n in enumerate(args[0].shape) if i != axes[0]]
    return of_their_own(self.tree, axes) or math.prod(shape[1:-1]) >= 4


def _each(self: _Base | _Mapped, function: Callable[..., Any], axes: Any, *args: Any) -> Any:
    """The results of a function for all examples; ``axes`` as `jax.vmap` takes them."""
    if not _follow(self):
        return jax.vmap(function, in_axes=axes)(*args)
    leaves, tree = jax.tree.flatten(args)
    # An axis for every array below it; None among the axes is one, and among the arguments is nothing.
    spread = jax.tree.map(lambda axis, some: [axis] * len(jax.tree.leaves(some)), axes, args, is_leaf=_is_none)
    along = jax.tree.leaves(spread, is_leaf=_is_none)
    mapped = [jnp.moveaxis(a, axis, 0) for a, axis in zip(leaves, along, strict=True) if axis is not None]

    def one(some: list[jax.Array]) -> Any:
        rest = iter(some)
        found = [a if axis is None else next(rest) for a, axis in zip(leaves, along, strict=True)]
        return function(*jax.tree.unflatten(tree, found))

    return jax.lax.map(one, mapped)


def _is_none(a: Any) -> bool:
    return a is None


def _one_by_one(self: _Base, args: Flat, axes: Axes) -> tuple[Flat, Axes]:
    outs = jax.tree.leaves(_each(self, functools.partial(apply, self), tuple(axes), *args))
    return outs, [0] * len(outs)


def _mapped(self: _Recurrence | _Mapped, args: Flat, axes: Axes) -> tuple[Flat, Axes]:
    outs = jax.tree.leaves(apply(_Mapped(self, tuple(axes)), *args))
    return outs, [0] * len(outs)


def _as_networks(
    self: _Base, args: Flat, axes: Axes, where: Sequence[int], out: Callable[[Any], Sequence[int]]
) -> tuple[Flat, Axes]:
    """Results under `jax.vmap` from loops that take all networks at once; networks of networks are more networks.

    Args:
        self: the operation.
        args: of it.
        axes: that are mapped; what is not mapped is the same for all networks.
        where: the axis of networks of every argument.
        out: that of every leaf of the results, given these.
    """
    size = next(a.shape[axis] for a, axis in zip(args, axes, strict=True) if axis is not None)
    together = []
    for a, axis, to in zip(args, axes, where, strict=True):
        if axis is None:
            a = jnp.broadcast_to(jnp.expand_dims(a, to), (*a.shape[:to], size, *a.shape[to:]))
        else:
            a = jnp.moveaxis(a, axis, to)
        together.append(a.reshape(*a.shape[:to], size * a.shape[to + 1], *a.shape[to + 2 :]) if self.many else a)
    found = apply(dataclasses.replace(self, many=True), *together)
    ends, leaves = out(found), jax.tree.leaves(found)
    if self.many:
        leaves = [
            a.reshape(*a.shape[:to], size, a.shape[to] // size, *a.shape[to + 1 :])
            for a, to in zip(leaves, ends, strict=True)
        ]
    return leaves, ends
