"""Lyapunov exponents: at what rates nearby states part or meet in the long run."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.analysis.flat import flat_step, flatten_state, widen_start
from rnnjax.cell import Cell, batch_shape
from rnnjax.checks import check_size
from rnnjax.kinds import public

__all__ = ["LyapunovSpectrum", "kaplan_yorke_dimension", "lyapunov_spectrum"]


class LyapunovSpectrum(NamedTuple):
    """What `lyapunov_spectrum` measures: NumPy arrays, k exponents in nats a step, the largest first."""

    exponents: np.ndarray  # [k], the mean over all start states
    by_example: np.ndarray  # [*batch, k]
    running: np.ndarray  # [T - warmup, k], the mean over start states of what was known after each step


@public
def lyapunov_spectrum(
    cell: Cell,
    params: Any,
    state: Any,
    xs: jax.Array,
    *,
    num_exponents: int | None = None,
    warmup: int = 0,
    key: jax.Array | None = None,
) -> LyapunovSpectrum:
    r"""The Lyapunov spectrum along a sequence, by QR factorisations (Benettin et al., 1980).

        Q_t R_t    = J_t Q_{t-1},                   J_t = d state_t / d state_{t-1},  Q_0 random orthonormal
        lambda_i   = mean_t log |R_t[i, i]|         over the steps after the warm-up

    ``lambda_1`` is the mean rate at which a small change of the state grows, and so also a gradient on its way back:
    the network is stable where it is negative and chaotic where it is positive, and a gradient survives where it is
    near zero (Engelken et al., 2023; Vogt et al., 2022). Their sum is the rate at which volumes grow. ``J_t Q`` comes
    from k forward derivatives, so no Jacobian is ever formed.

    Args:
        cell: any cell, also a `Stack`.
        params: its parameters.
        state: start states, one for each example of the batch.
        xs: ``[T, *batch, I]``; zeros leave the network to itself.
        num_exponents: k, the leading ones; by default all D, the numbers in a state.
        warmup: steps that are taken, with their QR, but not counted: the state comes to its attractor and Q to the
            directions that grow.
        key: draws ``Q_0``; it makes no difference once the warm-up is long enough. ``jax.random.key(0)`` by default.

    Returns:
        `LyapunovSpectrum`. An exponent is minus infinity where a direction is wiped out, as by a ReLU that is off.

    Raises:
        ValueError: for shapes or numbers that do not fit.
        TypeError: for a state of integers.

    >>> import jax, jax.numpy as jnp, rnnjax
    >>> cell = rnnjax.cells.IndRNN(2)  # h' = relu(u * h + b)
    >>> params = cell.init(jax.random.key(0), input_size=1)._replace(u=jnp.array([0.5, 0.25]), b=jnp.ones(2))
    >>> spectrum = lyapunov_spectrum(cell, params, cell.initial_state(), jnp.zeros((60, 1)), warmup=20)
    >>> spectrum.exponents.round(4).tolist()  # log 1/2 and log 1/4
    [-0.6931, -1.3863]
    """
    where = "lyapunov_spectrum"
    state, xs = widen_start(where, cell, state, xs)
    batch, start = batch_shape(cell, state), flatten_state(cell, state)
    size, length = start.shape[-1], xs.shape[0]
    count = check_size(
        where, "num_exponents, of D numbers,", size if num_exponents is None else num_exponents, most=size
    )
    check_size(where, "warmup, of T steps,", warmup, least=0, most=length - 1)
    key = jax.random.key(0) if key is None else key
    inputs = xs.reshape(length, -1, *xs.shape[1 + len(batch) :])
    logs = np.asarray(_log_diagonals(cell, params, start.reshape(-1, size), inputs, key, count), np.float64)
    counted = np.arange(1, length - warmup + 1)[:, None]
    # One order for all start states and steps, that of their mean: sorted one by one, noise would part equal exponents.
    order = np.argsort(-logs[warmup:].mean(axis=(0, 1)), kind="stable")
    logs = logs[warmup:, :, order]  # [T - warmup, B, k]
    return LyapunovSpectrum(
        exponents=logs.mean(axis=(0, 1)),
        by_example=logs.mean(axis=0).reshape(*batch, count),
        running=np.cumsum(logs.mean(axis=1), axis=0) / counted,
    )


@functools.partial(jax.jit, static_argnames=("cell", "count"))
def _log_diagonals(cell, params, start, xs, key, count):
    """``log |diag R|`` of every step, ``[T, B, k]``."""
    n, size = start.shape

    def example(carry, x):
        s, columns = carry  # [D], [D, k]
        s, push = jax.linearize(lambda s: flat_step(cell, params, s, x), s)
        columns, triangle = jnp.linalg.qr(jax.vmap(push, in_axes=1, out_axes=1)(columns))
        return (s, columns), jnp.log(jnp.abs(jnp.diagonal(triangle)))

    normal = jax.random.normal(key, (n, size, count), start.dtype)
    return jax.lax.scan(jax.vmap(example), (start, jnp.linalg.qr(normal)[0]), xs)[1]


@public
def kaplan_yorke_dimension(exponents: np.ndarray) -> float:
    r"""The dimension of the attractor that a spectrum implies (Kaplan and Yorke, 1979).

        D = j + (lambda_1 + .. + lambda_j) / |lambda_{j+1}|,    j the largest number with a sum that is not negative

    0 where the first exponent is negative: the states end in a point. It is k, a lower bound, where the sum of all k
    exponents that are known is still positive.

    >>> import numpy as np
    >>> kaplan_yorke_dimension(np.array([0.5, 0.0, -1.0])), kaplan_yorke_dimension(np.array([-0.1, -0.2]))
    (2.5, 0.0)
    """
    exponents = np.sort(np.asarray(exponents, np.float64).reshape(-1))[::-1]
    if not (exponents < np.inf).all():  # minus infinity is a direction that dies in one step
        raise ValueError("kaplan_yorke_dimension: exponents must be numbers below infinity, got some that are not.")
    sums = np.cumsum(exponents)
    count = int(np.sum(sums >= 0))  # the sums rise, then fall
    if count == 0 or count == len(exponents):
        return float(count)
    return count + float(sums[count - 1] / -exponents[count])
