"""Foreign cells written in JAX against ours, in both directions: outputs, final states and all gradients."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.testing.problems import Outcome, fast_jit, loss_of
from tests.interop.agreement import agree

__all__ = ["TOLERANCES", "check_conversion", "fill"]

TOLERANCES = {"float32": 1e-6, "float64": 1e-12}
SEQ_LEN, BATCH = 2, 2  # steps are all alike, so two of them show a state that goes from one to the next


def fill(tree: Any, dtype: Any, scale: float = 0.5) -> Any:
    """Random numbers in the place of all arrays, or of what tells their shapes."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, scale, leaf.shape), dtype), tree)


def loop(step: Any, weights: Any, state: Any, xs: jax.Array) -> Any:
    """`step(weights, state, x)` over a sequence; it compiles in half the time of a scan."""
    ys = []
    for x in xs:
        state, y = step(weights, state, x)
        ys.append(y)
    return state, jnp.stack(ys)


def outcome(run: Any, weights: Any, state: Any, xs: jax.Array) -> Outcome:
    def loss(*arguments: Any) -> Any:
        final, ys = run(*arguments)
        return loss_of(final, ys) / 4, (final, ys)  # gradients of the size of the states

    gradients, (final, ys) = jax.grad(loss, (0, 1, 2), has_aux=True)(weights, state, xs)
    return Outcome(final, ys, gradients)


@functools.cache
def ours(cell: Any) -> Any:
    return fast_jit(functools.partial(outcome, functools.partial(loop, cell.step)))


def check_conversion(
    framework: str, name: str, dtype: str, tree: Any, into: Any, out: Any, theirs: Any, mask: Any = lambda p: p
) -> tuple[Any, Any]:
    """Compares the two sides, and returns our cell and its parameters.

    `into(tree)` is our cell and its parameters, `out(cell, params)` a tree again, and `theirs(tree, state, x)` is a
    step of the foreign cell from our state to our state, and its output. The gradients of what comes in are compared on
    its own parameters, those of what goes out on ours, but for what `mask` takes away.
    """
    cells: list[Any] = []

    @fast_jit
    def convert(tree: Any) -> Any:
        cell, params = into(tree)
        cells.append(cell)
        return params, out(cell, params)

    params, back = convert(tree)
    (cell,) = cells
    shape = (*getattr(cell, "spatial_shape", ()), params.w_ih.shape[-2])
    state = jax.eval_shape(lambda: cell.initial_state((BATCH,)))
    state, xs = fill((state, np.zeros((SEQ_LEN, BATCH, *shape))), dtype)
    run = fast_jit(functools.partial(outcome, functools.partial(loop, theirs)))
    here, there_in, there_out = ours(cell)(params, state, xs), run(tree, state, xs), run(back, state, xs)

    @fast_jit
    def pull_back(tree: Any, params: Any, d_params: Any, d_tree: Any) -> Any:
        (d_in,) = jax.vjp(lambda tree: into(tree)[1], tree)[1](d_params)
        (d_out,) = jax.vjp(functools.partial(out, cell), params)[1](d_tree)
        return d_in, d_out

    d_params, *rest = here.gradients
    d_in, d_out = pull_back(tree, params, d_params, there_out.gradients[0])
    got = here._replace(gradients=(d_in, *rest))
    agree(framework, name, "in", dtype, got, there_in, TOLERANCES[dtype])
    got = there_out._replace(gradients=(d_out, *there_out.gradients[1:]))
    agree(framework, name, "out", dtype, got, here._replace(gradients=(mask(d_params), *rest)), TOLERANCES[dtype])
    return cell, params
