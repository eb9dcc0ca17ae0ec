"""An engine of affine cells is a pair of loops: a second one obeys all laws, also where JAX cannot look into it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax.cell import cast_like, widen
from rnnjax.engines import Job, affine_engine, choice, choose, engine, register
from rnnjax.engines.affine.loops import Cotangents, Finished, Kept
from rnnjax.engines.affine.xla import XlaLoops
from rnnjax.testing import assert_close, check_laws, make_problem
from rnnjax.testing.problems import unroll_problem
from tests.engines.hidden import CALLS, hidden


class Whole:
    """Ten lines: the whole layer, with JAX's own derivative of the loop in the place of a backward loop."""

    platform = None

    def fits(self, plan, job):
        return "" if job.steps != 13 else "needs another number of steps than 13"

    def segment(self, plan, operands):
        return None

    def forward(self, plan, operands, *, keep):
        return *XlaLoops().forward(plan, operands, keep=False)[:2], Kept(None, ()) if keep else None

    def backward(self, plan, operands, kept, d_final, d_ys):
        def run(floats, fresh):
            controls = operands.controls._replace(fresh=fresh)
            return self.forward(plan, operands._replace(**floats, controls=controls), keep=False)[:2]

        floats = {name: value for name, value in operands._asdict().items() if name != "controls"}
        (final, _), pull = jax.vjp(run, floats, operands.controls.fresh)
        d, d_fresh = widen(pull((cast_like(d_final, final), d_ys)), plan.dtype)
        return Cotangents(d["state"], d["own"], d_fresh, Finished(d["w_ih"], d["w_hh"], d["b"], d["xs"]))


@dataclasses.dataclass(frozen=True)
class Opaque:
    """The loops of XLA behind a curtain, as native code is; the results that are kept in a layout of their own."""

    platform = "cpu"

    def fits(self, plan, job):
        return ""

    def segment(self, plan, operands):
        return None

    def forward(self, plan, operands, *, keep):
        def run(operands):
            final, ys, kept = XlaLoops().forward(plan, operands, keep=keep)
            return final, ys, Kept(kept.states, [jnp.flip(a, 0) for a in jax.tree.leaves(kept.rest)]) if keep else None

        return hidden(run, operands)

    def backward(self, plan, operands, kept, d_final, d_ys):
        def run(operands, kept, d_final, d_ys):
            seen = XlaLoops().forward(plan, operands, keep=True)[2].rest
            leaves = [jnp.flip(a, 0) for a in kept.rest]
            kept = Kept(kept.states, jax.tree.unflatten(jax.tree.structure(seen), leaves))
            return XlaLoops().backward(plan, operands, kept, d_final, d_ys)

        return hidden(run, operands, kept, d_final, d_ys)


@pytest.fixture
def registered(monkeypatch):
    """Two more engines for the time of a test."""
    monkeypatch.setattr(choice, "_engines", choice._engines)
    register(affine_engine("whole", Whole(), rank=-1))
    register(affine_engine("opaque", Opaque(), rank=-1))


@pytest.mark.parametrize(("cell", "name"), [(rnnjax.cells.IndRNN(3), "whole"), (rnnjax.GRU(3), "opaque")])
def test_all_laws(cell, name, registered):
    check_laws(cell, implementations=[name])


def test_a_refusal_is_a_value(registered):
    assert engine("whole").fits(Job(rnnjax.GRU(3), steps=13)) == "needs another number of steps than 13"
    assert choose(Job(rnnjax.GRU(3), steps=13)).name == "fused"
    with pytest.raises(ValueError, match=r"^unroll: 'whole' needs another number of steps than 13; take"):
        choose(Job(rnnjax.GRU(3), steps=13), "whole")


def scalar(cell, implementation, problem, params, state, xs):
    state, ys = unroll_problem(cell, implementation, problem._replace(params=params, state=state, xs=xs))
    leaves = [ys, *jax.tree.leaves(state)]
    return sum(jnp.sum(jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape) * leaf**2) for leaf in leaves)


def stacked(tree):
    return jax.tree.map(lambda a: jnp.stack([a, 0.5 * a]), tree)


TRANSFORMS = {
    "jvp": lambda f, *a: jax.jvp(f, a, jax.tree.map(lambda x: jnp.sin(x + 1), a)),
    "hessian": lambda f, p, s, x: jax.hessian(lambda s: f(p, s, x))(s),
    "jacrev_of_jacfwd": lambda f, p, s, x: jax.jacrev(jax.jacfwd(lambda s: f(p, s, x)))(s),
    "jacrev_of_jacrev": lambda f, p, s, x: jax.jacrev(jax.jacrev(lambda x: f(p, s, x)))(x[:2]),
    "vmap_params": lambda f, p, s, x: jax.vmap(jax.value_and_grad(f, (0, 1, 2)), (0, None, None))(stacked(p), s, x),
    "vmap_rows": lambda f, p, s, x: jax.vmap(jax.grad(f, (0, 1)), (None, 0, None))(p, stacked(s), x),
    "grad_of_vmap": lambda f, p, s, x: jax.grad(
        lambda p: jnp.vdot(jax.vmap(f, (None, None, 2))(p, s, jnp.stack([x, -x], 2)), jnp.arange(1.0, 3))
    )(p),
    "grad_of_vmap_params": lambda f, p, s, x: jax.grad(
        lambda p, x: jnp.vdot(jax.vmap(f, (0, None, 0))(p, s, jnp.stack([x, -x])), jnp.arange(1.0, 3)), (0, 1)
    )(stacked(p), x),
    "vmap_of_vmap": lambda f, p, s, x: jax.vmap(jax.vmap(f, (None, None, 0)), (0, None, None))(
        stacked(p), s, jnp.stack([x, -x])
    ),
    "linearize": lambda f, *a: jax.linearize(f, *a)[1](*jax.tree.map(jnp.cos, a)),
    "checkpoint": lambda f, *a: jax.grad(jax.checkpoint(f), (0, 1, 2))(*a),
    "vmap_of_a_pullback": lambda f, *a: jax.vmap(jax.vjp(f, *a)[1])(jnp.arange(3.0)),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transformations(transform, registered, x64):
    """Forward mode, higher derivatives, `vmap` over anything: the numbers of the plain scan, never an error."""
    cell = rnnjax.GRU(2)
    problem = make_problem(cell, input_size=2, batch=(2,), seq_len=3)._replace(lengths=None)
    problem = problem._replace(resets=None) if transform == "jacrev_of_jacrev" else problem

    def outcomes(params, state, xs):
        run = TRANSFORMS[transform]
        names = ("scan", "fused", "opaque")
        return [run(functools.partial(scalar, cell, name, problem), params, state, xs) for name in names]

    want, *others = jax.jit(outcomes)(*problem[:3])
    for got in others:
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9), got, want)


@pytest.mark.parametrize("name", ["fused", "opaque"])
def test_the_backward_pass_keeps_the_precision_of_the_forward_pass(name, registered):
    """Also where the derivative is taken outside of the precision's context, as JAX's own matmuls do."""
    cell = rnnjax.GRU(2)
    problem = make_problem(cell, input_size=2, batch=(2,), seq_len=3)

    def exact(params):
        with jax.default_matmul_precision("highest"):
            return scalar(cell, name, problem, params, problem.state, problem.xs)

    text = str(jax.make_jaxpr(jax.grad(exact))(problem.params))
    assert text.count("dot_general[") == text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") > 0


def test_exported_programs_are_portable(registered, x64):
    """What is compiled here runs the loops; what is exported does not hold them, and computes the same."""
    cell = rnnjax.GRU(2)
    problem = make_problem(cell, input_size=2, batch=(2,), seq_len=3)
    leaves, tree = jax.tree.flatten(problem[:3])

    def slopes(*leaves):
        return jax.tree.leaves(
            jax.grad(functools.partial(scalar, cell, "opaque", problem), (0, 1, 2))(*tree.unflatten(leaves))
        )

    CALLS.clear()
    want = jax.jit(slopes)(*leaves)
    assert CALLS == [False, False]  # both loops
    exported = jax.export.export(jax.jit(slopes))(*leaves)
    assert_close(jax.export.deserialize(exported.serialize()).call(*leaves), want, 1e-12)
    assert CALLS == [False, False]
