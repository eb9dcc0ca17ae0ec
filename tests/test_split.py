"""A process that uses its cores: the same values as on one device, and what it cannot do is said.

JAX learns once how many CPU devices there are, so each test runs a script of its own.
"""

import contextlib
import io
import os
import platform
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

import rnnjax
from rnnjax.implementations import rules


def script(text: str, **environment: str) -> str:
    """What the script prints, JAX having said nothing yet about CPU devices."""
    env = {name: value for name, value in os.environ.items() if name not in ("JAX_NUM_CPU_DEVICES",)}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)],
        env=env | {"JAX_PLATFORMS": "cpu"} | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_split_equals_one_device():
    """Values, final state, gradients, second derivatives, lengths, resets, under jit, vmap, scan and shard_map."""
    script("""
        import jax, rnnjax
        import jax.numpy as jnp
        import numpy as np
        from functools import partial
        from jax.sharding import Mesh, PartitionSpec as P

        assert rnnjax.use_cores(2) == 2 == rnnjax.use_cores()
        jax.config.update("jax_enable_x64", True)
        T, B, I, H = 6, 16, 3, 4
        lengths, resets = jnp.arange(B) % (T + 1), jnp.arange(T * B).reshape(T, B) % 4 == 2
        same = partial(jax.tree.map, partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12))

        for cell in (rnnjax.PeepholeLSTM(H), rnnjax.LRU(H), rnnjax.Elman(H)):
            assert "split" in rnnjax.implementations(cell)
            params = cell.init(jax.random.key(0), I, jnp.float64)
            xs = jax.random.normal(jax.random.key(1), (T, B, I), jnp.float64)
            state = cell.initial_state((B,), jnp.float64)

            def loss(implementation, params, state, xs, **options):
                final, ys = rnnjax.unroll(cell, params, state, xs, implementation=implementation, **options)
                return jnp.sum(jnp.cos(ys)) + sum(jnp.sum(abs(leaf) ** 2) for leaf in jax.tree.leaves(final)), ys

            everything = partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True, allow_int=True)
            default = jax.jit(everything(partial(loss, None, lengths=lengths, resets=resets)))(params, state, xs)
            assert len(default[0][1].sharding.device_set) == 2  # ys
            same(default, everything(partial(loss, "scan", lengths=lengths, resets=resets))(params, state, xs))
            same(loss(None, params, state, xs, reverse=True), loss("scan", params, state, xs, reverse=True))

        cell = rnnjax.GRU(H)
        params = cell.init(jax.random.key(0), I, jnp.float64)
        state = cell.initial_state((B,), jnp.float64)

        def slope(implementation, params):
            first = jax.grad(lambda p: loss(implementation, p, state, xs)[0])(params)
            return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(first))

        same(jax.grad(partial(slope, None))(params), jax.grad(partial(slope, "scan"))(params))
        ensemble = jax.vmap(lambda key: cell.init(key, I, jnp.float64))(jax.random.split(jax.random.key(2), 3))
        mapped = jax.vmap(lambda p: rnnjax.unroll(cell, p, state, xs)[1])(ensemble)
        same(mapped, jax.vmap(lambda p: rnnjax.unroll(cell, p, state, xs, implementation="scan")[1])(ensemble))

        # Within a mesh of the user's nothing is split once more.
        mesh = Mesh(jax.devices(), ("mine",))
        run = jax.shard_map(
            lambda s, x: rnnjax.unroll(cell, params, s, x), mesh=mesh, in_specs=(P("mine"), P(None, "mine")),
            out_specs=(P("mine"), P(None, "mine")), check_vma=False,
        )
        same(run(state, xs), rnnjax.unroll(cell, params, state, xs, implementation="fused"))
        one = rnnjax.unroll(cell, params, cell.initial_state((), jnp.float64), xs[:, 0])
        same(one[1], rnnjax.unroll(cell, params, state, xs, implementation="scan")[1][:, 0])
    """)


def test_training_takes_what_it_returned():
    """With optax, step by step: parameters and states that lie on several devices go in again."""
    training = """
        import jax, optax, rnnjax
        import jax.numpy as jnp

        if USE:
            rnnjax.use_cores(2)
        cell = rnnjax.LSTM(4)
        params, state = cell.init(jax.random.key(0), 3), cell.initial_state((16,))
        optimizer = optax.adam(1e-2)
        memory = optimizer.init(params)
        xs = jax.random.normal(jax.random.key(1), (8, 16, 3))

        @jax.jit
        def step(params, memory, state):
            def loss(params):
                final, ys = rnnjax.unroll(cell, params, state, xs)
                return jnp.mean((ys - 0.3) ** 2), final

            (value, final), gradients = jax.value_and_grad(loss, has_aux=True)(params)
            updates, memory = optimizer.update(gradients, memory)
            return optax.apply_updates(params, updates), memory, final, value

        for _ in range(5):
            params, memory, state, value = step(params, memory, state)
            print(float(value))
    """
    two = script(training.replace("USE", "True")).split()
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(textwrap.dedent(training.replace("USE", "False")), {})
    one = said.getvalue().split()
    np.testing.assert_allclose([float(loss) for loss in two], [float(loss) for loss in one], rtol=1e-5)
    assert float(two[-1]) < float(two[0])


def test_jax_in_use_already():
    said = script("""
        import jax, rnnjax
        jax.numpy.zeros(3)
        try:
            rnnjax.use_cores(3)
        except RuntimeError as error:
            print(error)
        assert "split" not in rnnjax.implementations(rnnjax.GRU(4))
    """)
    assert "JAX is in use already, with 1 CPU device(s), not 3; call rnnjax.use_cores before" in said


def test_devices_that_the_user_chose():
    said = script("import rnnjax; print(rnnjax.use_cores(), rnnjax.use_cores(3))", JAX_NUM_CPU_DEVICES="3")
    assert said.split() == ["3", "3"]
    with pytest.raises(ValueError, match="use_cores: count must be at least 1, got 0"):
        rnnjax.use_cores(0)


@pytest.mark.parametrize(
    "shape, gates, devices, count",
    [
        ((128, 32, 128, 128), 4, 2, 2),
        ((64, 16, 256, 256), 4, 2, 2),
        ((50, 50, 65, 128), 4, 4, 2),  # 50 is not divisible by 4, nor by 3
        ((128, 64, 128, 128), 3, 16, 4),
        ((128, 32, 256, 512), 4, 2, 1),
        ((256, 1, 64, 128), 4, 2, 1),
        ((256, 8, 64, 128), 4, 2, 1),
    ],
)
def test_where_the_batch_is_split(shape, gates, devices, count):
    """The rule at the sizes at which it was measured."""
    length, batch, size, hidden = shape
    weights = (size + hidden + 1) * gates * hidden
    assert rules.split_count((length, batch, size), weights, devices) == count


@pytest.mark.parametrize(
    "shape, gates, keep_gates, backend, kept, segment",
    [
        ((128, 128, 128, 256), 4, True, "cpu", False, 4),
        ((128, 256, 128, 128), 3, True, "cpu", False, 5),
        ((128, 128, 128, 256), 4, True, "cpu", True, None),
        ((128, 128, 128, 256), 4, True, "gpu", False, None),
        ((128, 64, 128, 256), 4, True, "cpu", False, None),
        ((64, 128, 512, 512), 4, True, "cpu", False, None),
        ((128, 128, 128, 256), 4, False, "gpu", False, 4),
        ((50, 10, 128, 128), 4, False, "cpu", False, None),  # 1 MB: one segment
        ((0, 32, 128, 128), 4, False, "cpu", False, None),
    ],
)
def test_where_weight_gradients_are_added_up(shape, gates, keep_gates, backend, kept, segment, monkeypatch):
    """The rule at the sizes at which it was measured."""
    monkeypatch.setattr(rules, "memory_is_kept", lambda: kept)
    length, batch, size, hidden = shape
    xs = jax.ShapeDtypeStruct((length, batch, size), "float32")
    weights = tuple(jax.ShapeDtypeStruct((rows, gates * hidden), "float32") for rows in (size, hidden))
    assert rules.backward_segment(xs, weights, "float32", backend, keep_gates=keep_gates) == segment


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has this setting")
def test_memory_is_kept():
    """After a large array was freed the process still has it; without the setting it is given back."""
    out = script("""
        import numpy as np
        from rnnjax import cpu

        def pages():
            np.ones(2**25)
            return open("/proc/self/statm").read().split()[1], cpu.memory_is_kept()

        print(*pages())
        cpu.reuse_memory()
        print(*pages())
    """)
    (given_back, no), (kept, yes) = (line.split() for line in out.splitlines())
    assert (no, yes) == ("False", "True")
    assert int(kept) - int(given_back) > 0.9 * 2**28 / os.sysconf("SC_PAGE_SIZE")
