"""What the tests of topologies share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

KEY = jax.random.key(0)


def random_params(model: Any, dtype: Any = np.float32) -> Any:
    """Parameters without zeros, so that biases and attention matter; nothing is compiled for them."""
    rng = np.random.default_rng(1)
    like = jax.eval_shape(model.init, KEY)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.5, dtype), like)
