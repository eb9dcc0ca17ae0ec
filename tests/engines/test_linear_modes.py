"""Forward mode and higher derivatives of the engines of linear cells: those of the plain scan."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax

MODES = {
    "hessian": lambda f, s, x: jax.hessian(f)(s, x),
    "jvp": lambda f, s, x: jax.jvp(f, (s, x), (s, jnp.cos(x))),
    "vmap_of_grad": lambda f, s, x: jax.vmap(jax.grad(f), (None, 0))(s, jnp.stack([x, -x])),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cell", [rnnjax.LRU(2), rnnjax.MinGRU(2)], ids=["complex", "real"])
def test_derivatives(cell, mode, x64):
    params = cell.init(jax.random.key(0), 2, jnp.float64)
    state = jax.tree.map(lambda a: a + 0.1, cell.initial_state((2,), jnp.float64))
    xs = jax.random.normal(jax.random.key(1), (4, 2, 2))
    resets = jnp.arange(8).reshape(4, 2) % 4 == 2

    def loss(name, state, xs):
        return jnp.sum(jnp.sin(rnnjax.unroll(cell, params, state, xs, implementation=name, resets=resets)[1]))

    names = ("scan", "hoisted", "associative")
    want, *others = jax.jit(lambda: [MODES[mode](functools.partial(loss, name), state, xs) for name in names])()
    for got in others:
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-9), got, want)
