"""Batches that lie on two devices: within `jax.shard_map`, on a mesh with explicit axes, and as JAX places them."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = r"""
import functools
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, PartitionSpec as P
import rnnjax

same = functools.partial(jax.tree.map, functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6))
xs = jax.random.normal(jax.random.key(1), (5, 4, 3))
lengths, resets = jnp.array([5, 3, 0, 4]), jnp.arange(20).reshape(5, 4) % 4 == 2
auto = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
explicit = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Explicit,))

def gradients(net, name, params, state, xs, lengths, resets, mean=lambda a: a):
    def loss(params, xs):
        final, ys = rnnjax.unroll(net, params, state, xs, lengths=lengths, resets=resets, implementation=name)
        return mean(jnp.mean(ys**2) + sum(jnp.mean(leaf**2) for leaf in jax.tree.leaves(final)))
    return jax.grad(loss)(params, xs)

for net, names in (
    (rnnjax.GRU(4), ("scan", "fused")), (rnnjax.LRU(4), ("hoisted", "associative")),
    (rnnjax.Stack((rnnjax.LSTM(4), rnnjax.LearnedState(rnnjax.GRU(4)))), ("fused",)),
):
    params = net.init(jax.random.key(0), 3)
    for name in names:
        run = functools.partial(gradients, net, name)
        want = jax.jit(run)(params, None, xs, lengths, resets)
        rows, steps = P("d"), P(None, "d")
        local = jax.shard_map(
            functools.partial(run, mean=lambda a: jax.lax.pmean(a, "d")),
            mesh=auto, in_specs=(P(), None, steps, rows, steps), out_specs=P(),
        )
        same(jax.jit(local)(params, None, xs, lengths, resets), want)
        small = net.initial_state((2,))
        inside = jax.shard_map(
            lambda p, x: jax.lax.pmean(jnp.mean(rnnjax.unroll(net, p, small, x, implementation=name)[1] ** 2), "d"),
            mesh=auto, in_specs=(P(), steps), out_specs=P(),
        )
        plain = lambda p, x: jnp.mean(rnnjax.unroll(net, p, net.initial_state((4,)), x, implementation="scan")[1] ** 2)
        same(jax.jit(jax.grad(inside))(params, xs), jax.jit(jax.grad(plain))(params, xs))
        put = lambda a, spec: jax.device_put(a, jax.sharding.NamedSharding(MESH, spec))
        for MESH in (auto, explicit):
            with jax.set_mesh(MESH):
                placed = (put(params, P()), None, put(xs, steps), put(lengths, rows), put(resets, steps))
                same(jax.jit(run)(*placed), want)
                print(name, MESH.axis_types[0], flush=True)
print("same")
"""


def test_two_devices():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.stdout.endswith("same\n"), result.stdout + result.stderr
