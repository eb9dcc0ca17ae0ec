"""Rows on several devices: each launches for its own."""

import pytest

from tests.engines.cuda import emulator
from tests.processes import run_program

PROGRAM = r'''
import re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import rnnjax
from rnnjax.engines import Controls, engine
from rnnjax.engines.affine.cuda import CudaLoops
from rnnjax.engines.affine.cuda_rules import Card
from rnnjax.engines.affine.recurrence import affine_engine

launched = []

def launch(kernel, outs, args, aliases):
    """In place of a kernel, which reads all operands: some numbers that follow from a row's own numbers alone."""
    launched.append((kernel.name, outs[2].shape[1]))
    read = sum(jnp.sum(jnp.where(a == a, a, 0).astype(jnp.float32)) for a in args)
    made = [jnp.zeros(out.shape, out.dtype) + (0 * read).astype(out.dtype) for out in outs]
    if kernel.name == "rnn_forward":
        zx, state = args[3], args[5]
        made[2] = 2 * zx[..., : outs[2].shape[-1]] + state[0]
        made[3] = state + 1
        if made[5].ndim == 3:
            made[4], made[5] = made[4] + zx[:, :, None, : outs[4].shape[-1]], made[2]
    else:
        d_ys, d_end, seen = args[7], args[8], args[2]
        made[2] = jnp.tile(d_ys, (1, 1, outs[2].shape[-1] // d_ys.shape[-1])) + seen[:, :, 0, :1]
        made[3], made[4], made[5], made[6] = made[3] + d_ys, 2 * d_end, made[5] + d_end[:1], made[6] + d_end
    return made

cell = rnnjax.GRU(6)
run = affine_engine("stand-in", CudaLoops(Card(90, 132), launch), -1).run
params, state = cell.init(jax.random.key(0), 3), cell.initial_state((8,))
xs = jax.random.normal(jax.random.key(1), (5, 8, 3))
resets = jax.random.bernoulli(jax.random.key(2), 0.3, (5, 8))

def gradients(params, state, xs, resets):
    def loss(params, state, xs):
        final, ys = run(cell, params, state, xs, Controls(None, resets, state), reverse=False, remat=None)
        return jnp.sum(jnp.sin(ys)) + jnp.sum(final.h), ys
    return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(params, state, xs)

def same(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, want)

want = jax.jit(gradients)(params, state, xs, resets)
mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
specs = P(), P("d"), P(None, "d"), P(None, "d")
args = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip((params, state, xs, resets), specs)]

launched.clear()
compiled = jax.jit(gradients).lower(*args).compile()
assert launched[-2:] == [("rnn_forward", 2), ("rnn_backward", 2)], launched
assert set(re.findall(r"all-\w+|collective-\w+", compiled.as_text())) == {"all-reduce"}
got = compiled(*args)
same(got, want)
assert got[1].sharding.spec == P(None, "d") and got[0][0].w_hh.sharding.is_fully_replicated

launched.clear()
def local(*args):
    (d_params, *rest), ys = gradients(*args)
    return (jax.lax.psum(d_params, "d"), *rest), ys
outs = (P(), P("d"), P(None, "d")), P(None, "d")
same(jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=outs, check_vma=False))(*args), want)
assert {rows for _, rows in launched} == {2}

launched.clear()
twice = jax.vmap(lambda xs: gradients(*args[:2], xs, args[3])[1])
found = jax.jit(twice)(jax.device_put(jnp.stack([xs, xs]), NamedSharding(mesh, P(None, None, "d"))))
assert launched[-1] == ("rnn_forward", 4) and found.sharding.spec == P(None, None, "d")
same(found, jnp.stack([want[1], want[1]]))

many = jax.tree.map(lambda p: jnp.stack([p, -p]), params)  # networks are XLA's affair where there are several devices
got, want = (jax.jit(jax.vmap(lambda p: r(cell, p, state, xs, Controls())[1]))(many) for r in (run, engine("scan").run))
same(got, want)
print("same")
'''


@pytest.mark.quick
def test_each_device_runs_its_rows():
    assert run_program(PROGRAM, devices=4) == "same\n"


TRIAL = r"""
import jax, jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec as P
from rnnjax.engines.affine.cuda import CudaLoops
from rnnjax.engines.affine.cuda_rules import Card
from rnnjax.engines.affine.cuda_trial import trial
from tests.engines.cuda import emulator

said = []
def tries(x):
    said.append(trial(CudaLoops(Card(90, 132), emulator.launch)))
    return x

auto, explicit = (jax.make_mesh((2,), ("d",), axis_types=(kind,)) for kind in (AxisType.Auto, AxisType.Explicit))
jax.jit(jax.shard_map(tries, mesh=auto, in_specs=P("d"), out_specs=P("d")))(jnp.ones(2))
with jax.set_mesh(explicit), jax.debug_nans(True), jax.enable_x64(True):
    jax.grad(tries)(1.0)
print(said)
"""


@pytest.mark.skipif(emulator.COMPILER is None, reason="no C++ compiler here")
def test_the_trial_does_not_mind_who_asks_first():
    """With several devices, in the midst of a trace, on a mesh."""
    assert run_program(TRIAL, devices=2) == "['', '']\n"
