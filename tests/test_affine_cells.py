"""What is special about single affine cells, beside the laws and the references."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import LSTM, SLSTM, Elman
from rnnjax.cells import (
    MGU,
    MILSTM,
    MIRNN,
    CoupledLSTM,
    IndRNN,
    LayerNormGRU,
    LayerNormLSTM,
    LeakyRNN,
    MinimalRNN,
    PeepholeLSTM,
)
from rnnjax.cells.elman import ElmanParams, leaky_noise
from rnnjax.cells.lstm import LSTMParams
from rnnjax.initializers import Chrono
from tests.cells_table import (
    Row,
    assert_close,
    fast_jit,
    forward,
    make_problem,
    plain,
    some_params,
    with_gradients,
)
from tests.references import numpy_affine

pytestmark = pytest.mark.quick
RANDOM = np.random.default_rng(0)


def fused_and_scan(cell, problem, tolerance=1e-10):
    """The outcome of "scan", after a comparison with that of "fused"."""
    want = with_gradients(cell, "scan")(problem)
    assert_close(with_gradients(cell, "fused")(problem), want, tolerance)
    return want


@pytest.mark.parametrize(
    "cell", [MIRNN(4), MGU(4, reset_gate=False), LeakyRNN(4), SLSTM(4, forget_gate="exp")], ids=repr
)
def test_variants_are_fused_exactly(cell, x64):
    """Other parameters, or another use of the gates, than the row of the table: with lengths and resets."""
    fused_and_scan(cell, make_problem(Row(cell)))


@pytest.mark.parametrize(
    ("cell", "bias"),
    [
        (PeepholeLSTM(2, forget_bias=3.0), [0, 0, 3, 3, 0, 0, 0, 0]),
        (LayerNormLSTM(2, forget_bias=3.0), [0, 0, 3, 3, 0, 0, 0, 0]),
        (MILSTM(2, forget_bias=3.0), [0, 0, 3, 3, 0, 0, 0, 0]),
        (SLSTM(2, forget_bias=3.0), [0, 0, 3, 3, 0, 0, 0, 0]),
        (CoupledLSTM(2, forget_bias=3.0), [3, 3, 0, 0, 0, 0]),
        (LayerNormGRU(2, update_bias=3.0), [0, 0, 3, 3, 0, 0]),
        (MGU(2, forget_bias=3.0), [3, 3, 0, 0]),
    ],
    ids=repr,
)
def test_bias_of_the_gate_that_keeps(cell, bias):
    params = cell.init(jax.random.key(0), 1)
    np.testing.assert_array_equal(params.b if hasattr(params, "b") else params.bias, bias)


def test_chrono_biases_lie_between_its_time_scales():
    biases = [CoupledLSTM(50, forget_bias=Chrono(20)).init(jax.random.key(0), 1).b[:50]]
    biases.append(MinimalRNN(50, update_bias=Chrono(20)).init(jax.random.key(0), 1).b_u)
    b = PeepholeLSTM(50, forget_bias=Chrono(20)).init(jax.random.key(0), 1).b
    np.testing.assert_array_equal(b[:50], -b[50:100])
    for bias in (*biases, b[50:100]):
        assert 0 <= bias.min() < 1.5 < 2.5 < bias.max() <= np.log(19)


def test_peephole_lstm_starts_as_an_lstm(x64):
    cell = PeepholeLSTM(4)
    problem = plain(make_problem(Row(cell)))
    params = cell.init(jax.random.key(0), 3, jnp.float64)
    got = forward(cell, "scan")(problem._replace(params=params))
    want = forward(LSTM(4), "scan")(problem._replace(params=LSTM(4).init(jax.random.key(0), 3, jnp.float64)))
    assert_close(got, want, 1e-14)


@pytest.mark.parametrize(
    ("cell", "base", "kind"), [(MIRNN(4), Elman(4), ElmanParams), (MILSTM(4), LSTM(4), LSTMParams)]
)
def test_multiplicative_integration_without_its_product(cell, base, kind, x64):
    problem = plain(make_problem(Row(cell)))
    params = problem.params
    ones = jnp.ones_like(params.bias)
    params = params._replace(alpha=0 * ones, beta_x=ones, beta_h=ones)
    _, got = forward(cell, "scan")(problem._replace(params=params))
    state = base.initial_state((3,))._replace(**problem.state._asdict())
    _, want = forward(base, "scan")(problem._replace(params=kind(*params[:3]), state=state))
    assert_close(got, want, 1e-13)


def test_coupled_lstm_holds_with_a_saturated_gate():
    """Forgetting nothing is writing nothing: whatever comes in, c stays as it is, and forgetting all is tanh(g)."""
    cell = CoupledLSTM(4)
    params, state, xs, *_ = make_problem(Row(cell))
    held, _ = cell.step(params._replace(b=params.b.at[:4].set(100.0)), state, xs[0])
    np.testing.assert_array_equal(held.c, state.c)
    written, _ = cell.step(params._replace(b=params.b.at[:4].set(-100.0)), state, xs[0])
    g = jnp.tanh((xs[0] @ params.w_ih + state.h @ params.w_hh + params.b)[:, 4:8])
    np.testing.assert_allclose(written.c, g, rtol=1e-5)


@pytest.mark.parametrize("cell", [LayerNormLSTM(4, epsilon=1e-14), LayerNormGRU(4, epsilon=1e-14)], ids=repr)
def test_layer_norm_forgets_the_scale_of_the_weights(cell, x64):
    problem = plain(make_problem(Row(cell)))
    scale = problem.params._replace(w_ih=7 * problem.params.w_ih, w_hh=0.1 * problem.params.w_hh)
    run = forward(cell, "scan")
    assert_close(run(problem._replace(params=scale)), run(problem), 1e-8)
    other = run(problem._replace(params=problem.params._replace(gain_x=2 * problem.params.gain_x)))
    assert np.abs(other[1] - run(problem)[1]).max() > 0.01


def test_layer_norm_of_zeros_has_finite_gradients():
    """Of zeros in the state and in the input, where every variance is zero."""
    cell = LayerNormLSTM(4)
    problem = plain(make_problem(Row(cell)))
    problem = problem._replace(state=cell.initial_state((3,)), xs=0 * problem.xs)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(with_gradients(cell, "fused")(problem)))


def test_relu_indrnn_is_independent_recurrences(x64):
    """With inputs and weights above zero ReLU does nothing: h[t] = sum_s u**(t - s) z[s], a unit at a time."""
    cell = IndRNN(4)
    params = cell.init(jax.random.key(0), 3, jnp.float64)
    assert params.u.min() >= 0 and params.u.max() <= 1
    params = params._replace(w_ih=jnp.abs(params.w_ih))
    xs = RANDOM.uniform(0, 1, (8, 3))
    _, ys = rnnjax.unroll(cell, params, cell.initial_state((), jnp.float64), xs)
    z, u = xs @ np.asarray(params.w_ih), np.asarray(params.u)
    want = [sum(u ** (t - s) * z[s] for s in range(t + 1)) for t in range(8)]
    np.testing.assert_allclose(ys, want, rtol=1e-12)
    # A unit hears of another in no way.
    jacobian = jax.jacobian(lambda h: cell.step(params, type(cell.initial_state())(h), jnp.ones(3))[1])(jnp.ones(4))
    np.testing.assert_allclose(jacobian, np.diag(u), rtol=1e-12)


def test_leaky_with_alpha_one_is_elman(x64):
    for activation in ("tanh", "relu"):
        leaky, elman = LeakyRNN(4, tau=3.0, dt=3.0, activation=activation), Elman(4, activation=activation)
        problem = plain(make_problem(Row(leaky)))
        _, got = forward(leaky, "scan")(problem)
        plainly = problem._replace(params=ElmanParams(*problem.params[:3]), state=elman.initial_state((3,)))
        plainly = plainly._replace(state=plainly.state._replace(h=problem.state.h))
        assert_close(got, forward(elman, "scan")(plainly)[1], 1e-14)


def test_leaky_decays_with_its_time_constant(x64):
    """Without input a rate follows exp(-t / tau); learned time constants start where they are set."""
    for cell in (LeakyRNN(4, tau=50.0, dt=0.5), LeakyRNN(4, tau=50.0, dt=0.5, learn_tau=True)):
        params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0), 3, jnp.float64))
        params = params._replace(logit_alpha=cell.init(jax.random.key(0), 3, jnp.float64).logit_alpha)
        start = type(cell.initial_state())(jnp.ones(4))
        _, ys = rnnjax.unroll(cell, params, start, jnp.zeros((100, 3)))
        np.testing.assert_allclose(ys[-1], (1 - 0.01) ** 100, rtol=1e-12)
        np.testing.assert_allclose(ys[-1], np.exp(-1), rtol=1e-2)


@pytest.mark.parametrize("learn_tau", [False, True])
def test_leaky_noise_is_noise_within_the_nonlinearity(learn_tau, x64):
    cell, sigma = LeakyRNN(4, learn_tau=learn_tau), 0.3
    params, state, xs, *_ = make_problem(Row(cell))
    noisy, wide = leaky_noise(jax.random.key(1), cell, params, xs, sigma)
    noise = np.asarray(wide[..., 3:])
    np.testing.assert_array_equal(wide[..., :3], xs)
    _, ys = forward(cell, "fused")(plain(make_problem(Row(cell)))._replace(params=noisy, xs=wide))
    h, (w_ih, w_hh, b) = np.asarray(state.h), map(np.asarray, params[:3])
    alpha = numpy_affine.sigmoid(np.asarray(params.logit_alpha)) if learn_tau else 0.2
    for t in range(8):
        drive = np.asarray(xs[t]) @ w_ih + b + h @ w_hh + np.sqrt(2 / alpha) * sigma * noise[t]
        h = (1 - alpha) * h + alpha * np.tanh(drive)
        np.testing.assert_allclose(ys[t], h, rtol=1e-12)


def test_leaky_noise_differentiates_and_has_the_promised_strength(x64):
    cell = LeakyRNN(4, activation="relu", tau=20.0)
    params = cell.init(jax.random.key(0), 3, jnp.float64)

    @jax.jit
    def rates(params, key, sigma, bias):
        noisy, xs = leaky_noise(key, cell, params, jnp.zeros((2000, 10, 3)), sigma)
        noisy = noisy._replace(b=noisy.b + bias)
        return rnnjax.unroll(cell, noisy, cell.initial_state((10,), jnp.float64), xs)[1]

    alone = params._replace(w_hh=0 * params.w_hh)
    # The bias keeps ReLU linear; 0.05 * 2000 steps are a hundred time constants, in ten examples of four units.
    deviation = float(rates(alone, jax.random.key(1), 0.1, 100.0)[200:].std())
    np.testing.assert_allclose(deviation, 0.1 * np.sqrt(2 / (2 - 0.05)), rtol=0.05)
    quiet = rates(params, jax.random.key(1), 0.0, 1.0)
    np.testing.assert_array_equal(quiet, rates(params, jax.random.key(2), 0.0, 1.0))
    assert np.abs(rates(params, jax.random.key(1), 0.1, 1.0) - rates(params, jax.random.key(2), 0.1, 1.0)).max() > 0.01
    gradient = jax.grad(lambda p: jnp.sum(rates(p, jax.random.key(1), 0.1, 1.0)))(params)
    assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
def test_stabiliser_of_slstm_changes_no_output(forget_gate, x64):
    cell = SLSTM(4, forget_gate=forget_gate)
    params, _, xs, *_ = jax.tree.map(np.asarray, plain(make_problem(Row(cell))))
    forget = numpy_affine.sigmoid if forget_gate == "sigmoid" else np.exp
    _, ys = rnnjax.unroll(cell, params, cell.initial_state((3,), jnp.float64), xs)
    for b in range(3):
        state = (np.zeros(4), np.zeros(4), np.zeros(4))
        for t in range(8):
            state, y = numpy_affine.numpy_slstm_unstable(params, state, xs[t, b], forget)
            np.testing.assert_allclose(ys[t, b], y, rtol=1e-12)


@pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
def test_slstm_survives_large_gates(forget_gate):
    """Gates of +-200 in float32, where exp overflows at 89: finite numbers and gradients, and the exact outputs."""
    cell = SLSTM(4, forget_gate=forget_gate)
    params = cell.init(jax.random.key(0), 3)
    # Unit by unit, input and forget gate are large or small in all four combinations.
    signs = jnp.array([[1, 1, -1, -1], [1, -1, 1, -1]], jnp.float32) * 200
    params = params._replace(b=params.b.at[:8].set(signs.reshape(-1)))
    problem = plain(make_problem(Row(cell)))._replace(params=params, state=cell.initial_state((3,)))
    outcome = fused_and_scan(cell, problem, 1e-4)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(outcome))
    assert outcome.state.n.min() >= 1
    np_params = jax.tree.map(lambda leaf: np.asarray(leaf, np.longdouble), params)
    forget = numpy_affine.sigmoid if forget_gate == "sigmoid" else np.exp
    for b in range(3):
        state = tuple(np.zeros(4, np.longdouble) for _ in range(3))
        for t in range(8):  # extended precision reaches exp(11000)
            state, y = numpy_affine.numpy_slstm_unstable(np_params, state, np.asarray(problem.xs[t, b]), forget)
            np.testing.assert_allclose(outcome.ys[t, b], np.asarray(y, float), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
def test_slstm_forgets_from_the_start(forget_gate, x64):
    """With the biases of init alone, y is half a mean of tanh(g) in which each step weighs sigmoid(1) of the next."""
    cell = SLSTM(1, forget_gate=forget_gate)
    params = cell.init(jax.random.key(0), 1, jnp.float64)
    w_ih = jnp.zeros((1, 4)).at[0, 2].set(1.0)  # the input reaches the candidate alone
    params = params._replace(w_ih=w_ih, w_hh=jnp.zeros_like(params.w_hh))
    xs = np.random.default_rng(0).normal(size=(6, 1))
    _, ys = rnnjax.unroll(cell, params, cell.initial_state((), jnp.float64), xs)
    weights = (1 / (1 + np.exp(-1.0))) ** np.arange(5, -1, -1)
    assert weights[0] < 0.25 * weights[-1]
    np.testing.assert_allclose(ys[-1], 0.5 * weights @ np.tanh(xs) / weights.sum(), rtol=1e-6)


def test_forget_biases_of_slstm_mean_the_same_for_both_gates():
    """A number is taken as it is; what is meant for a sigmoid becomes the logarithm of that sigmoid."""
    usual, exp = (
        np.asarray(SLSTM(3, forget_bias=Chrono(20), forget_gate=gate).init(jax.random.key(0), 1).b).reshape(4, 3)
        for gate in ("sigmoid", "exp")
    )
    np.testing.assert_array_equal(exp[[0, 2, 3]], usual[[0, 2, 3]])
    np.testing.assert_allclose(np.exp(exp[1]), 1 / (1 + np.exp(-usual[1])), rtol=1e-6)
    biases = SLSTM(2, forget_bias=3.0, forget_gate="exp").init(jax.random.key(0), 1).b
    np.testing.assert_array_equal(biases, [0, 0, 3, 3, 0, 0, 0, 0])
    assert rnnjax.cells.registry.cell_from_repr(repr(SLSTM(2, forget_gate="exp"))) == SLSTM(2, forget_gate="exp")


def test_first_step_of_slstm_sees_only_its_input():
    """c / n is tanh(g) exactly, since the state that it starts from counts for nothing, in any dtype."""
    cell = SLSTM(4)
    params = cell.init(jax.random.key(0), 3)
    g = np.tanh(np.ones(3) @ np.asarray(params.w_ih[:, 8:12]))

    @fast_jit
    def step(i, start):
        return cell.step(params._replace(b=params.b.at[:4].set(i)), start, jnp.ones(3))

    for dtype in (jnp.float32, jnp.float16):
        start = cell.initial_state((), dtype)
        assert all(np.isfinite(leaf).all() for leaf in start)
        for i in (-200.0, 0.0, 200.0):
            state, _ = step(i, start)
            np.testing.assert_allclose(state.c, g, rtol=1e-3)
            np.testing.assert_array_equal(state.n, np.ones(4))


@pytest.mark.parametrize(
    ("full", "plainer", "field"),
    [
        (MGU(4), MGU(4, reset_gate=False), "b_hn"),
        (LeakyRNN(4, learn_tau=True, tau=9.0), LeakyRNN(4, tau=5.0), "logit_alpha"),
    ],
    ids=["mgu", "leaky"],
)
def test_a_cell_does_what_its_own_field_says(full, plainer, field):
    """With the params of the other variant: what the cell does not use has no effect, what it needs is asked for."""
    params, state, x = some_params(full, 3), full.initial_state(), jnp.ones(3)
    params = params._replace(**{field: params._asdict()[field] + 1})
    state = state._replace(h=state.h + 0.5)
    without = params._replace(**{field: None})
    np.testing.assert_array_equal(plainer.step(params, state, x)[1], plainer.step(without, state, x)[1])
    assert np.abs(full.step(params, state, x)[1] - plainer.step(params, state, x)[1]).max() > 0.01
    with pytest.raises(ValueError, match=rf"^{type(full).__name__}: params\.{field} must be an array for .* got None;"):
        full.step(without, state, x)


@pytest.mark.parametrize("cell", [LayerNormLSTM(4), SLSTM(4), LeakyRNN(4, learn_tau=True)], ids=repr)
def test_bfloat16_parameters_with_a_float32_state(cell):
    """Against float32 parameters of the same values: what is rounded are the inputs of the matmuls."""
    problem = plain(make_problem(Row(cell), seq_len=4, dtype=jnp.bfloat16, state_dtype=jnp.float32))
    wide = problem._replace(params=jax.tree.map(lambda leaf: leaf.astype(jnp.float32), problem.params))
    run = forward(cell, "scan")
    final, ys = run(problem)
    assert ys.dtype == final.h.dtype == jnp.float32
    np.testing.assert_allclose(ys, run(wide)[1], atol=0.03)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: PeepholeLSTM(0), "PeepholeLSTM: hidden_size must be at least 1, got 0."),
        (lambda: CoupledLSTM(3).init(jax.random.key(0), 0), "CoupledLSTM.init: input_size must be at least 1, got 0."),
        (lambda: LayerNormLSTM(3, epsilon=0.0), "LayerNormLSTM: epsilon must be a finite number above 0, got 0"),
        (lambda: LayerNormGRU(3, epsilon=-1.0), "LayerNormGRU: epsilon must be a finite number above 0, got -1"),
        (lambda: IndRNN(3, activation="gelu"), "IndRNN: activation must be 'relu' or 'tanh', got 'gelu'."),
        (
            lambda: IndRNN(3, recurrent_range=(1.0, 0.0)),
            "IndRNN: recurrent_range must be a tuple (low, high), got (1.0",
        ),
        (
            lambda: IndRNN(3, recurrent_range=[0.0, 1.0]),
            "IndRNN: recurrent_range must be a tuple (low, high), got [0.0",
        ),
        (lambda: LeakyRNN(3, activation="gelu"), "LeakyRNN: activation must be 'tanh' or 'relu', got 'gelu'."),
        (lambda: LeakyRNN(3, tau=0.5), "LeakyRNN: 0 < dt <= tau must hold, got dt = 1.0 and tau = 0.5."),
        (lambda: LeakyRNN(3, tau=1.0, learn_tau=True), "LeakyRNN: 0 < dt < tau must hold, got dt = 1.0 and tau = 1.0."),
        (lambda: SLSTM(3, forget_gate="relu"), "SLSTM: forget_gate must be 'sigmoid' or 'exp', got 'relu'."),
    ],
)
def test_errors(make, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        make()
