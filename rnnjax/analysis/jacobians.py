"""The derivative of a state by those before it: at every step, its bound, and its rates in the long run."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.analysis.flat import flat_step, flatten_state, trajectory, widen_start
from rnnjax.cell import Cell, batch_shape
from rnnjax.cells import Elman, IndRNN, LeakyRNN
from rnnjax.checks import check_size, short
from rnnjax.kinds import public
from rnnjax.network import Network

__all__ = [
    "JacobianSpectrum",
    "LyapunovSpectrum",
    "RecurrentBound",
    "jacobian_spectrum",
    "kaplan_yorke_dimension",
    "lyapunov_spectrum",
    "recurrent_bound",
    "step_jacobians",
]


class JacobianSpectrum(NamedTuple):
    """What `jacobian_spectrum` measures: NumPy arrays; D numbers in a state, R of them kept."""

    singular_values: np.ndarray  # [T, *batch, R] of J_t, the largest first
    log_product: np.ndarray  # [T, *batch, R], log of the singular values of J_t J_{t-1} .. J_1
    rate: np.ndarray  # [*batch], log of the product's largest singular value over T, in nats a step


class RecurrentBound(NamedTuple):
    """What `recurrent_bound` reads off the recurrent weights."""

    bound: float  # no singular value of a step's Jacobian is larger
    sigma_max: float  # largest singular value of the recurrent weights
    spectral_radius: float  # largest modulus of their eigenvalues


@public
def step_jacobians(cell: Cell, params: Any, state: Any, xs: jax.Array) -> jax.Array:
    r"""The Jacobians ``J_t = d state_t / d state_{t-1}`` along a sequence, of the states as vectors.

    The order of rows and columns is that of `rnnjax.analysis.flat.flatten_state`. They are made by D forward
    derivatives a step, all at once, and need ``T B D^2`` numbers; `jacobian_spectrum` keeps none of them.

    Args:
        cell: any cell, also a `Stack`.
        params: its parameters.
        state: the state before the first step.
        xs: ``[T, *batch, I]``.

    Returns:
        ``[T, *batch, D, D]``, entry ``[.., i, j]`` being the derivative of entry i of the new state by entry j of the
        old one; float32 or wider.

    Raises:
        ValueError: for shapes that do not fit.
        TypeError: for a state of integers.

    >>> import jax, jax.numpy as jnp, rnnjax
    >>> cell = rnnjax.Elman(2, activation="relu")
    >>> params = cell.init(jax.random.key(0), input_size=1)._replace(w_hh=jnp.array([[1.0, 2.0], [3.0, 4.0]]))
    >>> jacobians = step_jacobians(cell, params._replace(b=jnp.ones(2)), cell.initial_state(), jnp.zeros((3, 1)))
    >>> jacobians.shape, jacobians[0].tolist()  # the transpose of w_hh, which stands on the right of h
    ((3, 2, 2), [[1.0, 3.0], [2.0, 4.0]])
    """
    state, xs = widen_start("step_jacobians", cell, state, xs)
    states, _ = trajectory(cell, params, state, xs)
    return _jacobians(cell, params, jax.tree.map(lambda leaf: leaf[:-1], states), xs)


@functools.partial(jax.jit, static_argnames="cell")
def _jacobians(cell, params, states, xs):
    batch = batch_shape(cell, jax.tree.map(lambda leaf: leaf[0], states))
    flat = jax.vmap(functools.partial(flatten_state, cell))(states)  # [T, *batch, D]
    one = jax.jacfwd(lambda s, x: flat_step(cell, params, s, x))
    rows = jax.vmap(one)(flat.reshape(-1, flat.shape[-1]), xs.reshape(-1, *xs.shape[1 + len(batch) :]))
    return rows.reshape(*flat.shape, flat.shape[-1])


@public
def jacobian_spectrum(
    cell: Cell, params: Any, state: Any, xs: jax.Array, *, num_values: int | None = None
) -> JacobianSpectrum:
    r"""Singular values of the Jacobians along a sequence, and the growth of their product.

        J_t = d state_t / d state_{t-1} = U_t S_t V_t^T
        P_t = J_t J_{t-1} .. J_1,             log of its singular values

    ``P_t`` carries a change of the first state to step t, and its transpose a gradient back. Where all singular values
    of the steps stay below one it vanishes; it can only explode where some are above (Bengio et al., 1994; Pascanu et
    al., 2013). The product is divided by its largest entry after each step, so the leading values are right at any
    length. Those that are smaller than the largest by more than the precision of the dtype (1e-7 in float32) are noise;
    `lyapunov_spectrum` resolves these.

    Args:
        cell: any cell, also a `Stack`.
        params: its parameters.
        state: the state before the first step.
        xs: ``[T, *batch, I]``.
        num_values: R, how many singular values to keep, the largest; all by default.

    Returns:
        `JacobianSpectrum`. One Jacobian an example is in memory at a time.

    Raises:
        ValueError: for shapes or a number that do not fit.
        TypeError: for a state of integers.

    >>> import jax, jax.numpy as jnp, rnnjax
    >>> cell = rnnjax.Elman(3, activation="relu", recurrent_init=rnnjax.initializers.Orthogonal(0.5))
    >>> params = cell.init(jax.random.key(0), input_size=1)._replace(b=jnp.full(3, 9.0))
    >>> spectrum = jacobian_spectrum(cell, params, cell.initial_state(), jnp.zeros((4, 1)))
    >>> spectrum.singular_values[0].round(3).tolist(), round(float(spectrum.rate), 3)
    ([0.5, 0.5, 0.5], -0.693)
    """
    state, xs = widen_start("jacobian_spectrum", cell, state, xs)
    batch = batch_shape(cell, state)
    start = flatten_state(cell, state)
    size = start.shape[-1]
    num_values = check_size(
        "jacobian_spectrum", "num_values, of D numbers,", size if num_values is None else num_values, most=size
    )
    inputs = xs.reshape(xs.shape[0], -1, *xs.shape[1 + len(batch) :])
    values, logs = _spectrum(cell, params, start.reshape(-1, size), inputs)
    shape = (xs.shape[0], *batch, size)
    values, logs = (np.asarray(a).reshape(shape)[..., :num_values] for a in (values, logs))
    return JacobianSpectrum(values, logs, logs[-1, ..., 0] / xs.shape[0])


@functools.partial(jax.jit, static_argnames="cell")
def _spectrum(cell, params, start, xs):
    def example(carry, x):
        s, product, scale = carry
        jacobian, s = jax.jacfwd(lambda s: (flat_step(cell, params, s, x),) * 2, has_aux=True)(s)
        product = jacobian @ product
        largest = jnp.max(jnp.abs(product))
        largest = jnp.where(largest > 0, largest, 1)
        product, scale = product / largest, scale + jnp.log(largest)
        values = jnp.linalg.svd(jacobian, compute_uv=False)
        logs = scale + jnp.log(jnp.linalg.svd(product, compute_uv=False))
        return (s, product, scale), (values, logs)

    n, size = start.shape
    carry = (start, jnp.broadcast_to(jnp.eye(size, dtype=start.dtype), (n, size, size)), jnp.zeros(n, start.dtype))
    return jax.lax.scan(jax.vmap(example), carry, xs)[1]


@public
def recurrent_bound(cell: Cell, params: Any) -> RecurrentBound:
    r"""The classical bound on every step's Jacobian, from the recurrent weights alone (Pascanu et al., 2013).

        Elman      J = diag(phi') w_hh^T                            |J| <= sigma_max(w_hh) max phi'
        LeakyRNN   J = diag(1 - alpha) + diag(alpha phi') w_hh^T    |J| <= max(1 - alpha) + max(alpha) sigma_max(w_hh)
        IndRNN     J = diag(phi' u)                                 |J| <= max |u| max phi'

    with ``max phi' = 1`` for tanh and ReLU. Below one it is enough for the gradient to vanish: it shrinks at least like
    ``bound**k``. Above one it says only that the gradient may explode; compare it with what `jacobian_spectrum`
    measures. Cells with gates have no such bound, for their Jacobian grows with the state.

    Args:
        cell: `Elman`, `LeakyRNN` or `IndRNN`, also within a network of one part, such as `LearnedState`.
        params: its parameters.

    Returns:
        `RecurrentBound`.

    Raises:
        TypeError: for any other cell.

    >>> import jax, rnnjax
    >>> cell = rnnjax.Elman(4, recurrent_init=rnnjax.initializers.Orthogonal(0.5))
    >>> round(recurrent_bound(cell, cell.init(jax.random.key(0), input_size=2)).bound, 6)
    0.5
    """
    if isinstance(cell, Network) and len(inner := cell.parts(params)) == 1:
        return recurrent_bound(*inner[0][1:])
    if isinstance(cell, IndRNN):
        largest = float(np.abs(np.asarray(params.u, np.float64)).max())
        return RecurrentBound(largest, largest, largest)
    if not isinstance(cell, Elman | LeakyRNN):
        raise TypeError(
            f"recurrent_bound: cell must be Elman, LeakyRNN or IndRNN, got {short(cell)}, whose Jacobian no weight "
            "bounds; measure it with jacobian_spectrum."
        )
    w_hh = np.asarray(params.w_hh, np.float64)
    sigma, radius = float(np.linalg.norm(w_hh, 2)), float(np.abs(np.linalg.eigvals(w_hh)).max())
    if isinstance(cell, Elman):
        return RecurrentBound(sigma, sigma, radius)
    alpha = np.asarray(cell.alpha(params), np.float64)
    return RecurrentBound(float(np.max(1 - alpha) + np.max(alpha) * sigma), sigma, radius)


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
