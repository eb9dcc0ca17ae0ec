"""Networks: what is made of cells.

An ensemble needs no class of its own: every function here is pure, so `jax.vmap` over the parameters runs all members
in one program.

>>> import jax, jax.numpy as jnp, rnnjax
>>> cell = rnnjax.Stack((rnnjax.GRU(4), rnnjax.GRU(4)))
>>> params = jax.vmap(lambda key: cell.init(key, input_size=3))(jax.random.split(jax.random.key(0), 5))
>>> def run(params, xs):
...     return rnnjax.unroll(cell, params, None, xs)
>>> state, ys = jax.vmap(run, in_axes=(0, None))(params, jnp.ones((7, 2, 3)))  # all members read the same inputs
>>> ys.shape  # [members, T, B, H]
(5, 7, 2, 4)

With `jax.value_and_grad` of a loss and an optimizer's ``init`` and ``update`` inside of what is mapped, the members
train side by side, each as if it were alone.
"""

from rnnjax.cells import describable
from rnnjax.networks.bidirectional import Bidirectional
from rnnjax.networks.masks import activation_regularization, drop_connect, dropout, zoneout
from rnnjax.networks.regularized import Regularized
from rnnjax.networks.stack import Stack
from rnnjax.networks.start import LearnedState

__all__ = [
    "Bidirectional",
    "LearnedState",
    "Regularized",
    "Stack",
    "activation_regularization",
    "drop_connect",
    "dropout",
    "zoneout",
]

for _kind in (Bidirectional, LearnedState, Regularized, Stack):
    describable(_kind)
