"""How closely two sides of a conversion agree: measured, compared with a bound, and recorded for the page of docs."""

import functools
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax import unroll
from rnnjax.testing.problems import Outcome, fast_jit, loss_of

__all__ = ["TOLERANCE", "agree", "difference", "filled", "outcome", "parameters", "record"]

TOLERANCE = {"float32": 1e-6, "float64": 1e-12}

DIRECTIONS = {"in": "in", "from": "in", "out": "out", "to": "out"}  # into rnnjax, out of rnnjax


def difference(got: Any, want: Any) -> float:
    """The largest absolute difference of two trees of arrays of equal shapes; NaN counts as infinite."""
    got, want = jax.tree.leaves(got), jax.tree.leaves(want)
    assert len(got) == len(want), f"{len(got)} arrays, not {len(want)}"
    worst = 0.0
    for a, b in zip(got, want, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape, f"an array of shape {a.shape}, not {b.shape}"
        gap = np.max(np.abs(a.astype(np.float64) - b.astype(np.float64)), initial=0.0)
        worst = max(worst, float("inf") if np.isnan(gap) else float(gap))
    return worst


def filled(tree: Any, dtype: Any = None, seed: int = 0) -> Any:
    """Random numbers in the place of all arrays, or of what tells their shapes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), dtype or leaf.dtype), tree)


def parameters(cell: Any, input_size: int = 3, dtype: Any = None, seed: int = 0) -> Any:
    """Random parameters of a cell; nothing is zero, where a wrong place would not show."""
    return filled(jax.eval_shape(lambda: cell.init(jax.random.key(0), input_size)), dtype, seed)


@functools.cache
def outcome(cell: Any) -> Any:
    """A compiled unroll of a cell or network with all gradients: `(params, state, xs)` to `Outcome`."""

    def loss(params: Any, state: Any, xs: Any) -> Any:
        final, ys = unroll(cell, params, state, xs, implementation="scan")
        return loss_of(final, ys), (final, ys)

    def measure(params: Any, state: Any, xs: Any) -> Outcome:
        gradients, (final, ys) = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(params, state, xs)
        return Outcome(final, ys, gradients)

    return fast_jit(measure)


def agree(framework: str, cell: str, direction: str, dtype: Any, got: Any, want: Any, tolerance: float) -> float:
    """Asserts that two trees agree within the tolerance, and records by how much they differ."""
    found = difference(got, want)
    assert found <= tolerance, f"{framework} {cell} {direction}: differs by {found:.3g}, more than {tolerance:.0e}"
    record(framework, cell, direction, dtype, found)
    return found


def record(framework: str, cell: str, direction: str, dtype: Any, error: float) -> None:
    """Appends one measurement to the file named by RNNJAX_AGREEMENT; does nothing where that is not set.

    `framework` as it is called on the page ("torch", "flax linen"), `cell` the foreign layer ("LSTM, proj_size"),
    `direction` "in" (or "from": into rnnjax) or "out" (or "to"), `dtype` "float32" or "float64", `error` the largest
    absolute difference of outputs, final states and gradients. Rows of the same four names become one line of the
    table, with the largest error.
    """
    assert direction in DIRECTIONS, f"direction must be one of {', '.join(DIRECTIONS)}, got {direction!r}"
    assert np.isfinite(error) and error >= 0, f"error must be a finite number, got {error!r}"
    path = os.environ.get("RNNJAX_AGREEMENT")
    if not path:
        return
    row = {
        "framework": framework,
        "cell": cell,
        "direction": DIRECTIONS[direction],
        "dtype": np.dtype(dtype).name,
        "error": float(error),
    }
    line = json.dumps(row).encode() + b"\n"
    # One write in append mode, so that lines of several processes do not mix.
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(handle, line)
    finally:
        os.close(handle)
