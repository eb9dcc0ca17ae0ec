"""A process that uses its cores: the same values as on one device, and what it cannot do is said.

JAX learns once how many CPU devices there are, so each test runs a script of its own.
"""

import contextlib
import io
import os
import platform
import textwrap

import jax
import numpy as np
import pytest

import rnnjax
from rnnjax.engines.affine import rules
from tests.processes import run_program


def script(text: str, devices: int = 0) -> str:
    """What the script prints, JAX having said nothing yet about CPU devices."""
    return run_program(textwrap.dedent(text), devices=devices)


def test_split_equals_one_device():
    """Values, final state, gradients, second derivatives; lengths, resets, and batches of any size and shape."""
    script("""
        import jax, rnnjax
        import jax.numpy as jnp
        import numpy as np
        from functools import partial

        assert rnnjax.use_cores(4) == 4 == rnnjax.use_cores()
        jax.config.update("jax_enable_x64", True)
        T, B, I, H = 6, 32, 3, 4
        lengths, resets = jnp.arange(B) % (T + 1), jnp.arange(T * B).reshape(T, B) % 4 == 2
        same = partial(jax.tree.map, partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12))

        def loss(implementation, cell, params, state, xs, **options):
            final, ys = rnnjax.unroll(cell, params, state, xs, implementation=implementation, **options)
            return jnp.sum(jnp.cos(ys)) + sum(jnp.sum(abs(leaf) ** 2) for leaf in jax.tree.leaves(final)), ys

        def gradients(implementation, cell, **options):
            run = jax.value_and_grad(partial(loss, implementation, cell, **options), argnums=(0, 1, 2), has_aux=True)
            return jax.jit(run)

        xs = jax.random.normal(jax.random.key(1), (T, B, I), jnp.float64)
        for cell in (rnnjax.cells.PeepholeLSTM(H), rnnjax.LRU(H), rnnjax.LearnedState(rnnjax.LSTM(H))):
            params = cell.init(jax.random.key(0), I, jnp.float64)
            state = cell.initial_state((B,), jnp.float64)
            default = gradients(None, cell, lengths=lengths, resets=resets)(params, state, xs)
            assert len(default[0][1].sharding.device_set) == 4, cell
            same(default, gradients("scan", cell, lengths=lengths, resets=resets)(params, state, xs))

        cell = rnnjax.GRU(H)
        params = cell.init(jax.random.key(0), I, jnp.float64)
        state = cell.initial_state((B,), jnp.float64)
        backwards = [gradients(name, cell, reverse=True)(params, state, xs) for name in (None, "scan")]
        same(*backwards)

        def slope(implementation, params):
            first = jax.grad(lambda p: loss(implementation, cell, p, state, xs)[0])(params)
            return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(first))

        same(jax.jit(jax.grad(partial(slope, None)))(params), jax.jit(jax.grad(partial(slope, "scan")))(params))

        # What was split once meets batches that are not: smaller, odd, of two axes, none, and no steps.
        def step(params, batch, steps=T):
            x = jnp.reshape(xs[:steps, : int(np.prod(batch))], (steps, *batch, I))
            run = lambda p: loss(None, cell, p, cell.initial_state(batch, jnp.float64), x)[0]
            other = lambda p: loss("scan", cell, p, cell.initial_state(batch, jnp.float64), x)[0]
            slopes = jax.jit(jax.grad(run))(params)
            same(slopes, jax.jit(jax.grad(other))(params))
            return jax.tree.map(lambda p, d: p - 0.1 * d, params, slopes)

        for batch, steps in (((B,), T), ((16,), T), ((5,), T), ((16, 2), T), ((), T), ((B,), 0), ((B,), 1)):
            params = step(params, batch, steps)
    """)


def test_what_else_places_arrays():
    """Meshes of the user's, a default device, `jax.vmap`, a stack: the same values, split at most once."""
    script("""
        import jax, rnnjax
        import jax.numpy as jnp
        import numpy as np
        from functools import partial
        from jax.sharding import Mesh, PartitionSpec as P

        rnnjax.use_cores(2)
        same = partial(jax.tree.map, partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6))
        cell = rnnjax.GRU(4)
        params, state = cell.init(jax.random.key(0), 3), cell.initial_state((16,))
        xs = jax.random.normal(jax.random.key(1), (6, 16, 3))
        plain = partial(rnnjax.unroll, implementation="scan")

        mesh = Mesh(jax.devices(), ("mine",))
        rows = (P("mine"), P(None, "mine"))
        local = partial(rnnjax.unroll, cell, params)
        run = jax.shard_map(local, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
        same(run(state, xs), plain(cell, params, state, xs))
        with jax.set_mesh(mesh):
            same(jax.jit(partial(rnnjax.unroll, cell))(params, state, xs), plain(cell, params, state, xs))
        with jax.default_device(jax.devices()[1]):
            assert rnnjax.unroll(cell, params, state, xs)[1].sharding.device_set == {jax.devices()[1]}

        ensemble = jax.vmap(lambda key: cell.init(key, 3))(jax.random.split(jax.random.key(2), 3))
        mapped = jax.vmap(lambda p: rnnjax.unroll(cell, p, state, xs)[1])(ensemble)
        same(mapped, jax.vmap(lambda p: plain(cell, p, state, xs)[1])(ensemble))

        stack = rnnjax.Stack((rnnjax.LSTM(4), rnnjax.Elman(4)))
        params, state = stack.init(jax.random.key(0), 3, jnp.bfloat16), stack.initial_state((16,), jnp.bfloat16)
        final, ys = rnnjax.unroll(stack, params, state, xs.astype(jnp.bfloat16))
        assert ys.dtype == jnp.bfloat16 and len(ys.sharding.device_set) == 2
        wide = partial(jax.tree.map, lambda a: np.asarray(a, np.float32))
        jax.tree.map(
            partial(np.testing.assert_allclose, atol=0.03),
            wide((final, ys)), wide(plain(stack, params, state, xs.astype(jnp.bfloat16))),
        )
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
        assert not rnnjax.cpu.splits_batches()
    """)
    assert "JAX is in use already, with 1 CPU device(s), not 3; call rnnjax.use_cores before" in said


def test_devices_that_the_user_chose():
    said = script("import rnnjax; print(rnnjax.use_cores(), rnnjax.use_cores(3))", devices=3)
    assert said.split() == ["3", "3"]
    with pytest.raises(ValueError, match="use_cores: count must be at least 1, got 0"):
        rnnjax.use_cores(0)


@pytest.mark.parametrize(
    "batch, size, hidden, gates, devices, split",
    [
        ((32,), 128, 128, 4, 2, True),
        ((16,), 256, 256, 4, 2, True),
        ((50,), 65, 128, 4, 2, True),
        ((50,), 65, 128, 4, 4, False),  # 50 rows are not divisible by 4
        ((16, 2), 65, 128, 3, 4, True),
        ((32,), 256, 512, 4, 2, True),
        ((64,), 512, 1024, 4, 2, False),
        ((16, 100), 128, 128, 4, 2, False),
        ((1,), 64, 128, 4, 2, False),
        ((8,), 64, 128, 4, 2, False),
        ((), 64, 128, 4, 2, False),
        ((32,), 128, 128, 4, 1, False),
    ],
)
def test_where_the_batch_is_split(batch, size, hidden, gates, devices, split):
    """The rule at the sizes at which it was measured."""
    assert rules.splits(batch, (size + hidden + 1) * gates * hidden, devices) == split


@pytest.mark.parametrize(
    "shape, gates, keep_gates, backend, kept, segment",
    [
        ((128, 128, 128, 256), 4, True, "cpu", False, 4),
        ((128, 256, 128, 128), 3, True, "cpu", False, 4),
        ((128, 128, 128, 256), 4, True, "cpu", True, None),
        ((128, 128, 128, 256), 4, True, "gpu", False, None),
        ((128, 64, 128, 256), 4, True, "cpu", False, None),
        ((64, 128, 512, 512), 4, True, "cpu", False, None),
        ((127, 128, 128, 256), 4, True, "cpu", False, 4),  # a prime
        ((126, 128, 128, 256), 4, True, "cpu", False, 3),
        ((128, 128, 128, 256), 4, False, "gpu", False, 8),
        ((16, 128, 512, 1024), 4, False, "cpu", False, 8),  # 24 MB of weights
        ((4, 2, 128, 128), 4, False, "cpu", False, None),
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
