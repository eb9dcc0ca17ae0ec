"""cuDNN's LSTM: its parameters and its refusals on any machine, its values where there is an NVIDIA GPU.

Where there is none, the reference in plain JAX that comes with `jax.experimental.rnn` takes its place: it has the
same arguments and reads the same flat vector, so that layout, lengths, reverse and checkpoints are tested anyway.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import GRU, LSTM
from rnnjax.engines import Job, engine
from rnnjax.engines.cudnn import pack, unpack
from rnnjax.testing import problems
from tests.cells_table import Row, assert_close, make_problem, plain, with_gradients

rnn = pytest.importorskip("jax.experimental.rnn")
fresh = problems._with_gradients.__wrapped__  # compiled for each call: what stands in for cuDNN differs
cudnn = sys.modules["rnnjax.engines.cudnn"]
fits = engine("cudnn").fits
HAS_GPU = fits(Job(LSTM(4))) == ""
ROW = Row(LSTM(4))


@pytest.fixture
def pretend(monkeypatch):
    """A GPU whose cuDNN is the reference; as a name of its own, so that no trace of it outlives the test."""

    def reference(x, h, c, weights, lengths, input_size, size, layers, dropout, bidirectional, precision):
        assert jax.lax.Precision.HIGH == precision
        assert lengths.dtype == jnp.int32
        parts = rnn.unpack_lstm_weights(weights, input_size, size, layers, bidirectional)
        return rnn.lstm_ref(x, h, c, *parts, lengths, input_size, size, layers, dropout, bidirectional)

    def forward(x, h, c, weights, lengths, *sizes):
        outs = reference(x, h, c, weights, lengths, *sizes)
        return outs, (x, h, c, weights, lengths, outs[0], jnp.zeros(7))

    def backward(*args):
        *sizes, (x, h, c, weights, lengths, _, reserve), cotangents = args
        assert reserve.shape == (7,)
        _, pull = jax.vjp(lambda *floats: reference(*floats, lengths, *sizes), x, h, c, weights)
        return *pull(cotangents), None

    monkeypatch.setattr(cudnn, "_on_nvidia", lambda: True)
    monkeypatch.setattr(rnn, "lstm_fwd", forward)
    monkeypatch.setattr(rnn, "lstm_bwd", backward)


def test_layout_is_that_of_jax():
    params = make_problem(ROW).params
    w_ih, w_hh, b_ih, b_hh = (part[0] for part in rnn.unpack_lstm_weights(pack(params), 3, 4, 1, False))
    assert pack(params).shape == (rnn.get_num_params_in_lstm(3, 4, 1, False),)
    for got, want in ((w_ih, params.w_ih.T), (w_hh, params.w_hh.T), (b_ih, params.b), (b_hh, 0 * params.b)):
        np.testing.assert_array_equal(got, want)
    assert_close(unpack(pack(params), 3, 4), params, 0)
    two_biases = pack(params).at[-16:].set(jnp.arange(16.0))
    np.testing.assert_array_equal(unpack(two_biases, 3, 4).b, params.b + jnp.arange(16.0))


@pytest.mark.skipif(HAS_GPU, reason="there is an NVIDIA GPU")
def test_it_is_not_offered_without_a_gpu():
    problem = plain(make_problem(ROW))
    assert "cudnn" not in rnnjax.implementations(ROW.cell)
    with pytest.raises(ValueError, match=r"^unroll: 'cudnn' needs an NVIDIA GPU as JAX's default backend, got 'cpu';"):
        rnnjax.unroll(ROW.cell, *problem[:3], implementation="cudnn")


def test_what_it_refuses(pretend):
    class Mine(LSTM):
        pass

    assert fits(Job(LSTM(4))) == ""
    assert fits(Job(Mine(4))) == "needs an LSTM, got Mine"
    assert "cudnn" in rnnjax.implementations(LSTM(4)) and "cudnn" not in rnnjax.implementations(GRU(4))
    problem = make_problem(ROW)
    low = make_problem(ROW, dtype=jnp.bfloat16, state_dtype=jnp.float32)
    for wrong, options, sentence in (
        (problem, {"resets": problem.resets}, "needs resets to be None"),
        (low, {}, "needs float32 parameters, state and xs, got parameters of bfloat16"),
        (problem, {"remat": "gates"}, "needs remat to be None, True or an int, got 'gates'"),
    ):
        with pytest.raises(ValueError, match=rf"^unroll: 'cudnn' {sentence}.*; take implementation=None\.$"):
            rnnjax.unroll(LSTM(4), *wrong[:3], implementation="cudnn", **options)


def test_no_steps(pretend):
    problem = plain(make_problem(ROW))
    state, ys = rnnjax.unroll(ROW.cell, problem.params, problem.state, problem.xs[:0], implementation="cudnn")
    assert_close(state, problem.state, 0)
    assert ys.shape == (0, 3, 4)


@pytest.mark.parametrize(("batch", "reverse", "remat", "ragged"), [((3,), False, None, True), ((2, 3), True, 3, False)])
def test_around_the_call(pretend, batch, reverse, remat, ragged):
    """Values, final state and gradients with everything that happens outside of cuDNN."""
    problem = make_problem(ROW, batch)._replace(resets=None)
    problem = problem if ragged else plain(problem)
    got = fresh(ROW.cell, "cudnn", reverse, remat)(problem)
    assert_close(got, with_gradients(ROW.cell, "scan", reverse)(problem), 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("batch", [(3,), ()])
def test_cudnn_is_scan(batch, reverse, ragged):
    problem = make_problem(ROW, batch)._replace(resets=None)
    problem = problem if ragged else plain(problem)
    with jax.default_matmul_precision("highest"):
        got = fresh(ROW.cell, "cudnn", reverse, None)(problem)
        want = fresh(ROW.cell, "scan", reverse, None)(problem)
    assert_close(got, want, 1e-4)
