"""Jacobians against finite differences, their products against NumPy, and the bound from the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax.analysis import jacobian_spectrum, recurrent_bound, step_jacobians, trajectory
from rnnjax.analysis.flat import flatten_state, state_size, unflatten_state
from tests.cells_table import CELLS, fast_jit, make_problem


@pytest.mark.parametrize("name", ["slstm"])
def test_jacobians_are_finite_differences(name, x64):
    cell = CELLS[name].cell
    problem = make_problem(CELLS[name], batch=(2,), seq_len=3)
    jacobians = step_jacobians(cell, problem.params, problem.state, problem.xs)
    size = state_size(cell)
    assert jacobians.shape == (3, 2, size, size)
    states, ys = trajectory(cell, problem.params, problem.state, problem.xs)
    _, expected = rnnjax.unroll(cell, problem.params, problem.state, problem.xs, implementation="scan")
    np.testing.assert_allclose(ys, expected, rtol=1e-12)
    before = flatten_state(cell, jax.tree.map(lambda leaf: leaf[1], states))  # [2, D]
    shifts = 1e-6 * jnp.eye(size)[:, None]  # [D, 1, D]: the whole of a Jacobian is one batch
    x = jnp.broadcast_to(problem.xs[1], (size, *problem.xs[1].shape))
    step = fast_jit(cell.step)
    up, down = (
        flatten_state(cell, step(problem.params, unflatten_state(cell, before + sign * shifts), x)[0])
        for sign in (1, -1)
    )
    np.testing.assert_allclose(jacobians[1], np.transpose((up - down) / 2e-6, (1, 2, 0)), atol=1e-7)


@pytest.mark.parametrize("name", ["gru"])
def test_spectrum_is_that_of_the_matrices(name, x64):
    cell = CELLS[name].cell
    problem = make_problem(CELLS[name], batch=(2,), seq_len=4)
    jacobians = np.asarray(step_jacobians(cell, problem.params, problem.state, problem.xs))
    spectrum = jacobian_spectrum(cell, problem.params, problem.state, problem.xs, num_values=3)
    np.testing.assert_allclose(
        spectrum.singular_values, np.linalg.svd(jacobians, compute_uv=False)[..., :3], rtol=1e-9, atol=1e-12
    )
    product = jacobians[3] @ jacobians[2] @ jacobians[1] @ jacobians[0]
    expected = np.log(np.linalg.svd(product, compute_uv=False))
    np.testing.assert_allclose(spectrum.log_product[3], expected[:, :3], rtol=1e-6)
    np.testing.assert_allclose(spectrum.rate, expected[:, 0] / 4, rtol=1e-6)


@pytest.fixture(scope="module")
def elman():
    cell = rnnjax.Elman(5)
    params = cell.init(jax.random.key(0), 2)
    return cell, params._replace(w_hh=jnp.asarray(np.random.default_rng(0).normal(0, 0.5, (5, 5)), jnp.float32))


@pytest.mark.quick
def test_product_far_beyond_float32(elman):
    cell, params = elman
    params = params._replace(w_hh=1e-3 * jnp.eye(5))
    spectrum = jacobian_spectrum(cell, params, cell.initial_state(), jnp.zeros((30, 2)))
    np.testing.assert_allclose(spectrum.log_product[:, 0], np.log(1e-3) * np.arange(1, 31), rtol=1e-5)


def test_bound_holds_and_is_reached_at_rest(elman):
    cell, params = elman
    xs = jax.random.normal(jax.random.key(1), (20, 3, 2))
    bound = recurrent_bound(cell, params)
    assert bound.sigma_max == pytest.approx(np.linalg.svd(np.asarray(params.w_hh), compute_uv=False)[0], rel=1e-5)
    assert bound.spectral_radius < bound.bound == bound.sigma_max
    moving = jacobian_spectrum(cell, params, cell.initial_state((3,)), xs)
    assert (moving.singular_values[..., 0] < bound.bound).all()
    assert (moving.log_product[..., 0] < np.log(bound.bound) * np.arange(1, 21)[:, None]).all()
    resting = step_jacobians(cell, params, cell.initial_state((3,)), 0 * xs)  # phi'(0) = 1
    np.testing.assert_allclose(np.linalg.norm(resting, 2, axis=(-2, -1)), bound.bound, rtol=1e-5)


@pytest.mark.parametrize("cell", [rnnjax.cells.LeakyRNN(5, learn_tau=True), rnnjax.cells.IndRNN(5, activation="tanh")])
def test_bound_of_other_cells(cell):
    params = cell.init(jax.random.key(0), 2)
    if isinstance(cell, rnnjax.cells.LeakyRNN):
        params = params._replace(logit_alpha=jnp.linspace(-2.0, 1, 5))
    found = step_jacobians(cell, params, cell.initial_state((3,)), jax.random.normal(jax.random.key(1), (4, 3, 2)))
    bound = recurrent_bound(cell, params).bound
    assert 0.3 * bound < np.linalg.norm(found, 2, axis=(-2, -1)).max() <= bound * (1 + 1e-6)


def test_errors(elman):
    cell, params = elman
    with pytest.raises(TypeError, match="no weight bounds"):
        recurrent_bound(rnnjax.GRU(3), None)
    with pytest.raises(ValueError, match="num_values, of D numbers, must lie between 1 and 5"):
        jacobian_spectrum(cell, params, cell.initial_state(), jnp.zeros((3, 2)), num_values=6)
