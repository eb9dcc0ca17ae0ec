"""An engine of linear cells is a recurrence: a second one obeys all laws, also where JAX cannot look into it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax.engines import Job, choice, choose, linear_engine, register
from rnnjax.engines.linear.scans import advance
from rnnjax.testing import assert_close, check_laws, make_problem
from rnnjax.testing.problems import unroll_problem
from tests.engines.hidden import CALLS, hidden


class Loop:
    """Ten lines: a plain loop, without a derivative of its own."""

    platform = None

    def fits(self, job):
        return "" if job.steps != 13 else "needs another number of steps than 13"

    def states(self, a, b, start, *, reverse):
        def step(s, coefficients):
            s = advance(coefficients[0], s, coefficients[1])
            return s, s

        return jax.lax.scan(step, start, (jnp.broadcast_to(a, (len(b), *a.shape[1:])), b), reverse=reverse)[1]


class Opaque(Loop):
    """The same behind a curtain, as native code is."""

    platform = "cpu"

    def states(self, a, b, start, *, reverse):
        return hidden(functools.partial(super().states, reverse=reverse), a, b, start)


@pytest.fixture
def registered(monkeypatch):
    """Two more engines for the time of a test."""
    monkeypatch.setattr(choice, "_engines", choice._engines)
    register(linear_engine("loop", Loop(), rank=9))
    register(linear_engine("opaque", Opaque(), rank=-1))


@pytest.mark.parametrize(("cell", "name"), [(rnnjax.LRU(2), "loop"), (rnnjax.MinGRU(3), "opaque")])
def test_all_laws(cell, name, registered):
    check_laws(cell, implementations=[name])


def test_it_is_asked(registered):
    assert choose(Job(rnnjax.LRU(3))).name == "loop"
    assert choose(Job(rnnjax.LRU(3), steps=13)).name == "hoisted"
    with pytest.raises(ValueError, match=r"^unroll: 'loop' needs another number of steps than 13; take"):
        choose(Job(rnnjax.LRU(3), steps=13), "loop")
    assert "loop" not in rnnjax.implementations(rnnjax.GRU(3))


TRANSFORMS = {
    "jvp": lambda f, *a: jax.jvp(f, a, jax.tree.map(lambda x: jnp.sin(x + 1), a)),
    "hessian": lambda f, p, s, x: jax.hessian(lambda s: f(p, s, x))(s),
    "vmap_params": lambda f, p, s, x: jax.vmap(jax.grad(f, (0, 1, 2)), (0, None, None))(
        jax.tree.map(lambda a: jnp.stack([a, 0.5 * a]), p), s, x
    ),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transformations(transform, registered, x64):
    cell = rnnjax.LRU(2)
    problem = make_problem(cell, input_size=2, batch=(2,), seq_len=3)

    def scalar(name, params, state, xs):
        state, ys = unroll_problem(cell, name, problem._replace(params=params, state=state, xs=xs))
        return jnp.sum(jnp.sin(ys)) + sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(state))

    @jax.jit
    def outcomes(*point):
        return [TRANSFORMS[transform](functools.partial(scalar, name), *point) for name in ("scan", "loop", "opaque")]

    want, *others = outcomes(*problem[:3])
    for got in others:
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9), got, want)


def test_exported_programs_are_portable(registered, x64):
    """What is compiled here runs the recurrence; what is exported does not hold it, and computes the same."""
    cell = rnnjax.MinGRU(2)
    problem = make_problem(cell, input_size=2, batch=(2,), seq_len=3)
    leaves, tree = jax.tree.flatten(problem)
    run = jax.jit(lambda *leaves: jax.tree.leaves(unroll_problem(cell, "opaque", tree.unflatten(leaves))))
    CALLS.clear()
    want = run(*leaves)
    assert CALLS == [False]
    exported = jax.export.export(run)(*leaves)
    assert_close(jax.export.deserialize(exported.serialize()).call(*leaves), want, 1e-12)
    assert CALLS == [False]
