r"""Computations that know their own derivatives: one JAX primitive, whose rules are the methods of a value.

`jax.custom_vjp` forbids forward mode, and whatever is opaque to JAX (native code) has to be kept away from every
transformation but one. An `Operation` says for each of them what happens, so that reverse mode can take a hand-written
backward pass, and forward mode, higher derivatives and `jax.vmap` what JAX makes of ordinary operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from rnnjax.engines.placement import on_mesh, placed

__all__ = ["Operation", "apply", "push", "wanted"]

Flat = Sequence[Any]  # arrays; the leaves of what an operation takes or gives
Axes = Sequence[int | None]


class Operation:
    """A computation on arrays; a hashable value. What is not overridden is what JAX makes of ``portable``.

    Attributes:
        platform: where ``run`` can be compiled: ``"cpu"``, ``"cuda"``, ``"any"``. Elsewhere, and in programs that are
            exported, ``portable`` runs in its place. None if it is made of JAX's operations alone.
    """

    platform: str | None = None

    def run(self, *args: jax.Array) -> Any:
        """The results, any pytree."""
        raise NotImplementedError

    def portable(self, *args: jax.Array) -> Any:
        """The same results from operations that JAX can differentiate, map and compile for any platform."""
        return self.run(*args)

    def jvp(self, primals: Flat, tangents: Flat) -> tuple[Flat, Flat]:
        """Results and their tangents; a tangent that is zero is an `ad.Zero`."""
        outs, moved = push(self.portable, primals, tangents)
        return jax.tree.leaves(outs), jax.tree.leaves(moved)

    def transpose(self, cts: Flat, args: Flat) -> Flat:
        """For one that is linear in the arguments that are `ad.UndefinedPrimal`: their cotangents, else None."""
        raise NotImplementedError(f"{type(self).__name__} is not linear")

    def batch(self, args: Flat, axes: Axes) -> tuple[Flat, Axes]:
        """The results of `jax.vmap` over ``axes`` of ``args``, and their axes."""
        outs = jax.tree.leaves(jax.vmap(self.portable, in_axes=tuple(axes))(*args))
        return outs, [0] * len(outs)


def apply(operation: Operation, *args: jax.Array) -> Any:
    """The results of an operation, under any transformation."""
    run = operation.run
    if operation.platform is not None and on_mesh():
        # What is opaque to JAX does not say where its results lie: there where those of `portable` do.
        types = jax.make_jaxpr(operation.portable)(*args).out_avals
        run = lambda *args: placed(operation.run(*args), types)  # noqa: E731
    jaxpr, shapes = jax.make_jaxpr(run, return_shape=True)(*args)
    return jax.tree.unflatten(jax.tree.structure(shapes), _operation.bind(*args, operation=operation, jaxpr=jaxpr))


def wanted(tangents: Flat) -> tuple[bool, ...]:
    """Which tangents are not zero; a zero is an `ad.Zero` or None."""
    return tuple(t is not None and type(t) is not ad.Zero for t in tangents)


def push(function: Callable[..., Any], primals: Flat, tangents: Flat) -> tuple[Any, Any]:
    """`jax.jvp` of a function of arrays, along the tangents that are not zero."""
    which = wanted(tangents)

    def of_some(*some: Any) -> Any:
        rest = iter(some)
        return function(*(next(rest) if here else p for here, p in zip(which, primals, strict=True)))

    moved = [p for here, p in zip(which, primals, strict=True) if here]
    along = [t for here, t in zip(which, tangents, strict=True) if here]
    return jax.jvp(of_some, moved, along)


_operation = Primitive("rnnjax")
_operation.multiple_results = True


@_operation.def_impl
def _(*args: Any, operation: Operation, jaxpr: ClosedJaxpr) -> Any:
    return jax.tree.leaves(operation.run(*args))


@_operation.def_abstract_eval
def _(*avals: Any, operation: Operation, jaxpr: ClosedJaxpr) -> Any:
    return jaxpr.out_avals


def _jvp(primals: Any, tangents: Any, *, operation: Operation, jaxpr: ClosedJaxpr) -> Any:
    return operation.jvp(primals, tangents)


def _transpose(cts: Any, *args: Any, operation: Operation, jaxpr: ClosedJaxpr) -> Any:
    return operation.transpose([ad.instantiate_zeros(ct) for ct in cts], args)


def _batch(args: Any, dims: Any, *, operation: Operation, jaxpr: ClosedJaxpr) -> Any:
    return operation.batch(args, dims)


def _lower(ctx: Any, *args: Any, operation: Operation, jaxpr: ClosedJaxpr) -> Any:
    module = ctx.module_context
    platforms, exported = ctx.platforms or module.platforms, module.lowering_parameters.for_export
    single = platforms if len(platforms) == 1 else ()
    if operation.platform is None or (not exported and operation.platform in ("any", *single)):
        function = jaxpr_as_fun(jaxpr)
    else:
        function = operation.portable
    return mlir.lower_fun(lambda *a: jax.tree.leaves(function(*a)), multiple_results=True)(ctx, *args)


ad.primitive_jvps[_operation] = _jvp
ad.primitive_transposes[_operation] = _transpose
batching.primitive_batchers[_operation] = _batch
mlir.register_lowering(_operation, _lower)
