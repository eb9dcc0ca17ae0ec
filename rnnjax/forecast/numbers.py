"""Numbers that measures and baselines compute with, on the host."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from rnnjax.checks import describe, short

__all__ = ["as_floats"]


def as_floats(where: str, name: str, value: Any, axes: int | None = None) -> np.ndarray:
    """Numbers of any kind as float64, on the host.

    Raises:
        TypeError: for what holds no real numbers.
        ValueError: if the number of axes is not ``axes``, or is 0 where that is None; with -1 any will do.
    """
    try:
        array = np.asarray(value)
        known = array.dtype.kind in "biuf" or not array.size or jnp.issubdtype(array.dtype, jnp.floating)
        array = array.astype(np.float64) if known else array.astype(object)
    except (TypeError, ValueError):
        array = np.zeros(1, object)
    if array.dtype != np.float64:
        raise TypeError(f"{where}: {name} must be an array of numbers, got {short(value)}.")
    if axes == -1:
        return array
    if array.ndim < 1 or (axes is not None and array.ndim != axes):
        wanted = "axes" if axes is None else f"{axes} of them" if axes > 1 else "one axis"
        raise ValueError(f"{where}: {name} must have {wanted}, got {describe(array)}.")
    return array
