"""Lyapunov exponents that are known: of linear networks, of random ones, and sums of logarithms of determinants."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax.analysis import lyapunov_spectrum, step_jacobians
from rnnjax.analysis.jacobians import kaplan_yorke_dimension
from tests.cells_table import CELLS, make_problem


class LinearState(NamedTuple):
    h: jax.Array


@dataclasses.dataclass(frozen=True)
class Linear:
    """h' = h @ W + x: a cell that shares nothing with the library but the contract."""

    hidden_size: int

    def init(self, key, input_size, dtype=jnp.float32):
        return jax.random.normal(key, (self.hidden_size, self.hidden_size), dtype)

    def initial_state(self, batch_shape=(), dtype=jnp.float32):
        return LinearState(jnp.zeros((*batch_shape, self.hidden_size), dtype))

    def step(self, params, state, x):
        h = state.h @ params + x
        return LinearState(h), h


CELL, XS = Linear(5), jnp.zeros((120, 3, 5))


def spectrum_of(w, **options):
    return lyapunov_spectrum(CELL, jnp.asarray(w, jnp.float32), CELL.initial_state((3,)), XS, **options)


@pytest.mark.quick
def test_scaled_rotation_has_equal_exponents():
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))
    spectrum = spectrum_of(0.7 * q)
    np.testing.assert_allclose(spectrum.exponents, np.full(5, np.log(0.7)), atol=1e-6)
    np.testing.assert_allclose(spectrum.by_example, np.full((3, 5), np.log(0.7)), atol=1e-6)
    np.testing.assert_allclose(spectrum.running, np.full((120, 5), np.log(0.7)), atol=1e-5)


def test_diagonal_has_the_logarithms_of_its_diagonal():
    diagonal = np.array([0.3, 1.5, 0.9, 0.1, -0.6])
    spectrum = spectrum_of(np.diag(diagonal), warmup=40)
    np.testing.assert_allclose(spectrum.exponents, np.sort(np.log(np.abs(diagonal)))[::-1], atol=1e-5)
    assert spectrum.running.shape == (80, 5)
    np.testing.assert_allclose(spectrum.running[-1], spectrum.exponents)
    assert kaplan_yorke_dimension(spectrum.exponents) == pytest.approx(
        2 + np.log(1.5 * 0.9) / np.log(1 / 0.6), rel=1e-4
    )


def test_general_matrix_has_the_logarithms_of_its_eigenvalues():
    # Triangular: its eigenvalues stand on the diagonal, its singular values do not.
    w = np.triu(np.random.default_rng(1).normal(size=(5, 5)), 1) + np.diag([1.2, 0.8, 0.5, 0.3, 0.15])
    spectrum = spectrum_of(w, warmup=40)
    np.testing.assert_allclose(spectrum.exponents, np.log([1.2, 0.8, 0.5, 0.3, 0.15]), atol=1e-4)


def test_leading_exponents_and_wiped_out_directions():
    w = np.diag([0.5, 0.25, 0, 0, 0])
    assert spectrum_of(w, num_exponents=2, warmup=40).exponents.tolist() == pytest.approx(np.log([0.5, 0.25]).tolist())
    exponents = spectrum_of(w, warmup=40).exponents
    assert not np.isnan(exponents).any() and (exponents[2:] < -10).all()


@pytest.fixture(scope="module")
def random_network():
    """h' = tanh(g J h), J Gaussian of variance 1 / N: chaotic for g > 1 (Sompolinsky et al., 1988)."""
    cell = rnnjax.Elman(60)
    params = cell.init(jax.random.key(0), 1)
    w_hh = jax.random.normal(jax.random.key(1), (60, 60)) / np.sqrt(60)
    state = cell.initial_state((2,))._replace(h=jax.random.normal(jax.random.key(2), (2, 60)))

    def leading(g):
        xs = jnp.zeros((500, 2, 1))
        scaled = params._replace(w_hh=g * w_hh)
        return lyapunov_spectrum(cell, scaled, state, xs, num_exponents=2, warmup=150).by_example[:, 0], scaled

    return cell, state, leading


def test_random_network_below_one_is_stable(random_network):
    _, _, leading = random_network
    exponents, scaled = leading(0.6)
    # At rest in 0, where the Jacobian is w_hh: the logarithm of its spectral radius.
    radius = np.abs(np.linalg.eigvals(np.asarray(scaled.w_hh))).max()
    assert (exponents < -0.2).all()
    np.testing.assert_allclose(exponents, np.log(radius), atol=0.02)


def test_random_network_above_one_is_chaotic(random_network):
    cell, state, leading = random_network
    exponents, scaled = leading(2.5)
    assert (exponents > 0.1).all()
    # Two copies that start 3e-3 apart, brought back to that distance after every step.
    step = jax.jit(lambda h: cell.step(scaled, state._replace(h=h), jnp.zeros((2, 1)))[0].h)
    h, apart = np.asarray(state.h), np.asarray(jax.random.normal(jax.random.key(3), (2, 60)))
    growth = []
    for _ in range(500):
        apart = apart * 3e-3 / np.linalg.norm(apart, axis=-1, keepdims=True)
        new = np.asarray(step(h))
        apart = np.asarray(step(h + apart)) - new
        h = new
        growth.append(np.log(np.linalg.norm(apart, axis=-1) / 3e-3))
    np.testing.assert_allclose(np.mean(growth[150:], axis=0), exponents, atol=0.05)


@pytest.mark.parametrize("name", ["lru", "stack"])
def test_exponents_add_up_to_the_determinants(name, x64):
    cell = CELLS[name].cell
    problem = make_problem(CELLS[name], batch=(2,), seq_len=6)
    spectrum = lyapunov_spectrum(cell, problem.params, problem.state, problem.xs)
    jacobians = np.asarray(step_jacobians(cell, problem.params, problem.state, problem.xs))
    determinants = np.linalg.slogdet(jacobians)[1]  # [T, B]
    np.testing.assert_allclose(spectrum.by_example.sum(axis=-1), determinants.mean(axis=0), rtol=1e-6)


def test_kaplan_yorke_dimension():
    assert kaplan_yorke_dimension(np.array([0.9, 0.0, -14.6])) == pytest.approx(2 + 0.9 / 14.6)
    assert kaplan_yorke_dimension(np.array([-0.5, -np.inf])) == 0
    assert kaplan_yorke_dimension(np.array([0.5, -np.inf])) == 1
    assert kaplan_yorke_dimension(np.array([0.5, 0.1])) == 2


def test_errors():
    with pytest.raises(ValueError, match="num_exponents, of D numbers, must lie between 1 and 5, got 6"):
        spectrum_of(np.eye(5), num_exponents=6)
    with pytest.raises(ValueError, match="warmup, of T steps, must lie between 0 and 119"):
        spectrum_of(np.eye(5), warmup=120)
