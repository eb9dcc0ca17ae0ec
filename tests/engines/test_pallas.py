"""The Pallas kernels in the interpreter, and their lowering for a TPU, which needs none."""

import jax
import jax.numpy as jnp
import pytest

import rnnjax
from rnnjax.engines import Job
from rnnjax.engines.affine.pallas_tpu import PallasLoops, example
from rnnjax.engines.affine.plan import make_plan
from rnnjax.engines.affine.recurrence import affine_engine
from tests.engines.cuda.cells import Custom
from tests.engines.cuda.test_emulated import compare

RUN = affine_engine("interpreted", PallasLoops(interpret=True), -1).run
CASES = {
    "lstm": (rnnjax.LSTM(5), 4, (3,), "float32", dict(valid=True, resets=True, reverse=True)),
    "gru": (rnnjax.GRU(4), 5, (), "float32", dict(resets=True)),
    "layer norm": (rnnjax.cells.LayerNormGRU(4), 3, (2, 2), "float32", dict(valid=True)),
    "custom": (Custom(5), 4, (2,), "bfloat16", dict(resets=True)),
    "no step": (rnnjax.GRU(3), 0, (2,), "float32", dict(resets=True)),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case, x64):
    cell, steps, batch, dtype, options = CASES[case]
    compare(RUN, cell, steps, batch, dtype, **options)


def job_and_plan(cell, **options):
    job = Job(cell, "tpu", 8, (16,), 128, **options)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 128, job.param_dtype))
    return job, make_plan(cell, params, jnp.float32)


LOWERED = [rnnjax.LSTM(128), rnnjax.GRU(256), rnnjax.cells.MIRNN(128)]


@pytest.mark.quick
@pytest.mark.parametrize("cell", LOWERED, ids=lambda c: type(c).__name__)
def test_kernels_lower_for_a_tpu(cell):
    job, plan = job_and_plan(cell)
    assert PallasLoops().fits(plan, job) == ""
    run = lambda operands: PallasLoops().forward(plan, operands, keep=True)[1]  # noqa: E731
    text = jax.jit(run).trace(example(plan, job)).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in text


def test_refusals():
    job, plan = job_and_plan(rnnjax.LSTM(128))
    assert PallasLoops().fits(plan, job._replace(backend="cpu")) == "needs a TPU, got the backend 'cpu'"
    job, plan = job_and_plan(rnnjax.LSTM(2048))
    assert PallasLoops().fits(plan, job).startswith("needs 12 MB for weights and a step, got ")
    assert "pallas" not in rnnjax.implementations(rnnjax.LSTM(8))
