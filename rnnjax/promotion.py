"""What happens where arrays of several dtypes or ranks meet, also for those who forbid JAX to promote by itself.

With ``jax_numpy_dtype_promotion="strict"`` or ``jax_numpy_rank_promotion="raise"`` a program asks JAX to refuse what
its author did not write out. That is meant for the author's code: here weights ``[H]`` meet states ``[*batch, H]`` by
design, after shapes have been checked.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

__all__ = ["as_wide", "compute_dtype", "promoting"]

Function = TypeVar("Function", bound=Callable[..., Any])


def compute_dtype(*dtypes: Any) -> Any:
    """The dtype in which a state of these is updated and in which matmuls accumulate: float32 or wider."""
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, dtypes, jnp.dtype(jnp.float32))


def as_wide(array: Any, ndim: int) -> Any:
    """The array, most often a mask, with axes of size one behind its own, ``ndim`` in all."""
    return array.reshape(array.shape + (1,) * (ndim - array.ndim))


def promoting(function: Function) -> Function:
    """Within ``function`` arrays of several ranks and dtypes may meet, whatever those flags say.

    For functions whose operations are the library's own; what a user hands over is held to the user's flags.

    >>> import jax, jax.numpy as jnp
    >>> add = promoting(lambda weights, state: weights + state)
    >>> with jax.numpy_rank_promotion("raise"):
    ...     add(jnp.ones(3), jnp.ones((2, 3))).shape
    (2, 3)
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        flags: Any = jax.config
        if flags.jax_numpy_rank_promotion == "allow" and flags.jax_numpy_dtype_promotion == "standard":
            return function(*args, **kwargs)
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            return function(*args, **kwargs)

    return call  # type: ignore[return-value]
