"""Parallel in time by Newton's method: the laws, its iterations, and what happens where it does not converge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import cells
from rnnjax.analysis import newton_report
from rnnjax.engines import Job, Newton, affine_engine, choice, choose, engine, register
from rnnjax.testing import check_laws
from tests.cells_table import Row, assert_close, make_problem, with_gradients


@pytest.mark.parametrize(
    "cell", [cells.DiagonalLSTM(3), rnnjax.GRU(3), rnnjax.SLSTM(3)], ids=["DiagonalLSTM", "GRU", "SLSTM"]
)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_values_and_gradients_are_those_of_a_loop(cell, reverse, x64):
    """With lengths, gaps and resets; of parameters, state, start and inputs."""
    row = Row(cell)
    problem = make_problem(row, seq_len=7)
    valid = np.ones(problem.resets.shape, bool)
    valid[0, 1], valid[3] = False, False
    problem = problem._replace(valid=valid)
    got = with_gradients(cell, "newton", reverse)(problem)
    assert_close(got, with_gradients(cell, "scan", reverse)(problem), 1e-9)


def test_what_stands_in_padding_and_before_a_reset_does_not_matter(x64):
    check_laws(cells.DiagonalGRU(3), 3, implementations=["newton"], laws=["padding", "remat", "vmap"])
    problem = make_problem(Row(cells.DiagonalGRU(3)), seq_len=6)
    resets = np.zeros_like(problem.resets)
    resets[3] = True
    problem = problem._replace(resets=resets, lengths=np.full_like(problem.lengths, 6))
    xs = np.array(problem.xs)
    xs[2] = np.nan
    run = with_gradients(cells.DiagonalGRU(3), "newton")
    np.testing.assert_allclose(run(problem._replace(xs=xs)).ys[3:], run(problem).ys[3:], atol=1e-9)


def problem(cell, steps=200, scale=1.0, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), 5))
    params = cell.init(jax.random.key(0), 5, dtype)
    if hasattr(shapes, "w_hh"):
        params = params._replace(w_hh=scale * params.w_hh)
    return params, jnp.asarray(rng.normal(size=(steps, 2, 5)), dtype)


@pytest.mark.parametrize("cell", [cells.DiagonalGRU(6), cells.IndRNN(6, activation="tanh")], ids=["gru", "indrnn"])
def test_few_iterations_where_the_jacobian_is_exact(cell):
    """Quadratic convergence does not care for the length."""
    report = newton_report(cell, *problem(cell)[:1], None, problem(cell)[1])
    assert report.converged and report.iterations <= 10
    assert report.residual <= 1e-6 and report.agreement < 1e-5


def test_a_diagonal_of_a_dense_recurrence_takes_more_iterations_as_it_grows():
    cell = rnnjax.GRU(12)
    found = [newton_report(cell, *problem(cell, scale=scale)[:1], None, problem(cell)[1]) for scale in (0.3, 1.5)]
    assert all(one.converged and one.agreement < 1e-5 for one in found)
    assert 3 <= found[0].iterations < found[1].iterations


def test_chaos_does_not_converge():
    cell = rnnjax.Elman(12)
    params, xs = problem(cell, scale=6.0)
    report = newton_report(cell, params, None, xs, options=Newton(max_iters=8))
    assert not report.converged and report.iterations <= 8 and not report.residual < 1e-3


def test_a_program_returns_the_record_beside_its_loss():
    """Within one compiled program, with its gradient; of a training that comes to a recurrence that is too strong."""
    cell = rnnjax.Elman(12)
    params, xs = problem(cell, 100)  # more than the iterations allowed

    @jax.jit
    def loss(params):
        _, ys = rnnjax.unroll(cell, params, None, xs, implementation="newton")
        report = newton_report(cell, jax.lax.stop_gradient(params), None, xs)
        return jnp.mean(ys**2), {"converged": report.converged, "iterations": report.iterations}

    weak, strong = (params._replace(w_hh=scale * params.w_hh) for scale in (0.2, 6.0))
    for now, converges in ((weak, True), (strong, False)):
        (value, found), slope = jax.value_and_grad(loss, has_aux=True)(now)
        assert bool(found["converged"]) is bool(found["iterations"] < 64) is converges
        if converges:  # else it is chaotic, and rounding decides
            wanted, slope_wanted = jax.value_and_grad(lambda p: loss_by_scan(cell, p, xs))(now)
            np.testing.assert_allclose(value, wanted, rtol=1e-5)
            np.testing.assert_allclose(slope.b, slope_wanted.b, rtol=1e-3, atol=1e-6)


def loss_by_scan(cell, params, xs):
    return jnp.mean(rnnjax.unroll(cell, params, None, xs, implementation="scan")[1] ** 2)


def test_the_loop_runs_where_it_does_not_converge(monkeypatch):
    """One iteration is not enough; values and gradients are the loop's, through an engine with options of its own."""
    monkeypatch.setattr(choice, "_engines", choice._engines)
    register(affine_engine("once", Newton(max_iters=1, damping=0.5), rank=-1))
    cell = rnnjax.GRU(4)
    params, xs = problem(cell, 20)
    assert not newton_report(cell, params, None, xs, options=Newton(max_iters=1, damping=0.5)).converged

    def loss(params, implementation):
        state, ys = rnnjax.unroll(cell, params, None, xs, implementation=implementation)
        return jnp.mean(ys * jnp.cos(jnp.arange(4.0))) + jnp.sum(state.h[0]), ys

    slope = jax.value_and_grad(loss, has_aux=True)
    for got, want in zip(*map(jax.tree.leaves, (slope(params, "once"), slope(params, "fused"))), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        (Job(cells.LayerNormGRU(4)), "needs a pointwise update, got reduce_sum"),
        (Job(rnnjax.GRU(4), dtype=jnp.dtype("bfloat16")), "needs a state in float32 or wider, got bfloat16"),
        (Job(rnnjax.MinGRU(4)), "needs an affine cell"),
    ],
)
def test_what_it_does_not_take(job, reason):
    assert engine("newton").fits(job).startswith(reason)


def test_it_is_never_the_default():
    for backend in ("cpu", "gpu", "tpu"):
        assert choose(Job(cells.DiagonalGRU(64), backend, steps=100_000, batch=(1,))).name != "newton"


def test_options_out_of_range():
    for options in ({"max_iters": 0}, {"tolerance": 0.0}, {"damping": 1.5}):
        with pytest.raises(ValueError, match=f"^Newton: {next(iter(options))} must"):
            Newton(**options)
