"""One cell on one problem: several seeds side by side, each a training of its own."""

import functools
import time
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from rnnjax.testing.problems import fast_jit
from rnnjax.update import Carry, gradient_step

from .problems import Problem

__all__ = ["Found", "optimizer_of", "train"]


class Found(NamedTuple):
    """What came out, seed by seed."""

    score: list[float]  # the best of all evaluations
    solved: list[int | None]  # the update at which it first passed
    updates: int  # that were made
    parameters: int
    seconds: float  # of processor time, compilation included


@functools.cache
def quick_to_compile() -> dict[str, Any] | None:
    """Options of XLA for a CPU with which hundreds of programs compile in a third of the time and run as fast."""
    options = {"xla_backend_optimization_level": 1, "xla_cpu_use_fusion_emitters": False}
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:  # an option that this version of XLA does not know
        return None
    return options


def optimizer_of(rate: float, updates: int) -> optax.GradientTransformation:
    """Adam with its rate falling to a tenth, gradients clipped to norm 1; an update that is not finite is not made."""
    fall = optax.cosine_decay_schedule(rate, updates, alpha=0.1)
    return optax.apply_if_finite(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(fall)), 10**9)


def train(
    problem: Problem, cell: Any, rate: float, *, seeds: int, updates: int, every: int, steps: int, seed: int = 0
) -> Found:
    """Trains until all seeds have passed once, or the budget is used up.

    Args:
        problem: the problem.
        cell: the cell.
        rate: the learning rate.
        seeds: how many are trained side by side.
        updates: the budget.
        every: updates between evaluations.
        steps: T.
        seed: of all.
    """
    model, optimizer = problem.model(cell), optimizer_of(rate, updates)

    def start(key: jax.Array) -> Carry:
        params = model.init(key)
        return Carry(params, optimizer.init(params), ())

    def loss_fn(params: Any, state: Any, batch: Any) -> Any:
        return problem.loss(model, params, batch), state

    def part(carry: Carry, key: jax.Array, begin: jax.Array) -> Carry:
        def one(carry: Carry, n: jax.Array) -> tuple[Carry, None]:
            drawn = key if problem.fixed else jax.random.fold_in(key, n)
            return gradient_step(loss_fn, optimizer, carry, problem.draw(drawn, steps, problem.batch))[0], None

        return jax.lax.scan(one, carry, begin + jax.numpy.arange(every))[0]

    def score(params: Any, key: jax.Array) -> jax.Array:
        # What is always the same batch is scored on itself: the question is whether it can be learned at all.
        return problem.score(model, params, problem.draw(key, steps, problem.batch) if problem.fixed else test)

    began = time.process_time()
    keys, data_keys = (jax.random.split(jax.random.key(2 * seed + n), seeds) for n in (0, 1))
    test = fast_jit(lambda key: problem.test(key, steps))(jax.random.key(10**6 + seed))
    carry = fast_jit(jax.vmap(start))(keys)
    run = jax.jit(jax.vmap(part, in_axes=(0, 0, None)), donate_argnums=0, compiler_options=quick_to_compile())
    measure = fast_jit(jax.vmap(score))
    best = np.full(seeds, np.inf if problem.lower else -np.inf)
    solved: list[int | None] = [None] * seeds
    done = 0
    while done < updates and None in solved:
        carry = run(carry, data_keys, jax.numpy.asarray(done))
        done += every
        scores = np.asarray(measure(carry.params, data_keys))
        best = np.where(scores < best if problem.lower else scores > best, scores, best)
        for number in np.flatnonzero(problem.reached(scores)):
            solved[number] = done if solved[number] is None else solved[number]
    size = sum(leaf.size for leaf in jax.tree.leaves(carry.params)) // seeds
    return Found(best.tolist(), solved, done, size, time.process_time() - began)
