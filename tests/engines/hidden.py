"""Functions that JAX can compile, and do nothing else with: what native code is to it."""

import jax
from jax.extend.core import Primitive
from jax.interpreters import mlir

__all__ = ["CALLS", "hidden"]

CALLS: list[bool] = []  # every time that one is compiled: whether for export
hidden_p = Primitive("hidden")
hidden_p.multiple_results = True
hidden_p.def_impl(lambda *leaves, fn: fn(*leaves))
hidden_p.def_abstract_eval(lambda *avals, fn: jax.make_jaxpr(fn)(*avals).out_avals)


def _lower(ctx, *args, fn):
    CALLS.append(ctx.module_context.lowering_parameters.for_export)
    return mlir.lower_fun(fn, multiple_results=True)(ctx, *args)


mlir.register_lowering(hidden_p, _lower)


def hidden(run, *args):
    """``run(*args)``, behind a primitive that has no rules."""
    leaves, tree = jax.tree.flatten(args)
    shapes = jax.eval_shape(run, *args)
    fn = lambda *leaves: jax.tree.leaves(run(*tree.unflatten(leaves)))  # noqa: E731
    return jax.tree.unflatten(jax.tree.structure(shapes), hidden_p.bind(*leaves, fn=fn))
