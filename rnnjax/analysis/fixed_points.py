"""Fixed points and slow points: the skeleton of what a network does with its state."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rnnjax.analysis.flat import flat_step, flatten_state, state_size, trajectory, unflatten_state, widen_state
from rnnjax.cell import Cell
from rnnjax.checks import check_real, check_size, describe
from rnnjax.kinds import public
from rnnjax.network import input_shape
from rnnjax.promotion import promoting

__all__ = ["FixedPoints", "find_fixed_points", "visited_states"]

_DAMPING, _LEAST_DAMPING, _MOST_DAMPING = 1e-2, 1e-12, 1e8


class FixedPoints(NamedTuple):
    """What `find_fixed_points` finds: NumPy arrays, M points of D numbers, those with the lowest speed first."""

    points: np.ndarray  # [M, D], in the order of `rnnjax.analysis.flat.flatten_state`
    states: Any  # the same as states of the cell, leaves [M, ...]
    speed: np.ndarray  # [M], q = |s - F(s, x)|^2 / 2
    fixed: np.ndarray  # bool [M], whether q is at most ``tolerance``; the others are slow points
    eigenvalues: np.ndarray  # complex [M, D] of dF/ds, those with the largest modulus first
    stable: np.ndarray  # bool [M], fixed points whose eigenvalues all have a modulus below one
    hits: np.ndarray  # [M], how many searches ended there
    distance: np.ndarray  # [M], to the nearest visited state, in the units of the state
    far: int  # how many searches ended slow, but too far from all visited states to say anything about the network
    lowest_speed: float  # the lowest q that any search came to near visited states; infinite if none ended there


@public
def find_fixed_points(
    cell: Cell,
    params: Any,
    states: Any,
    x: jax.Array,
    *,
    steps: int = 500,
    learning_rate: float = 0.02,
    polish_steps: int = 30,
    tolerance: float = 1e-10,
    max_speed: float = 1e-4,
    merge_distance: float = 1e-3,
    max_distance: float | None = None,
    visited: Any = None,
    group: int = 64,
) -> FixedPoints:
    r"""Searches for states that a step leaves (nearly) where they are, from many starts at once.

        q(s) = |s - F(s, x)|^2 / 2,        F(s, x) the step with the input held at x

    Every start runs ``steps`` of Adam with a rate that falls to zero (Sussillo and Barak, 2013; Golub and Sussillo,
    2018), and then of Levenberg and Marquardt's method, which near a fixed point is Newton's and squares the error:

        s <- s - (A^T A + mu I)^-1 A^T (s - F(s, x)),    A = I - dF/ds

    where a step that does not lower q is not taken. Where q cannot be brought to zero, a local minimum of it is a slow
    point, near which the network lingers. Points that end closer together than ``merge_distance`` are one. A stable
    point attracts states, a saddle has eigenvalues of modulus above one, and one on the unit circle is a memory:
    it neither forgets nor grows.

    A search may leave the region where the network lives for a plateau on which nothing moves, since gates are
    saturated and float32 rounds the rest away. No sequence leads there, so ends that are farther from every visited
    state than ``max_distance`` are left out, and counted.

    Args:
        cell: any cell, also a `Stack`. A state that counts or grows without bound has no fixed point.
        params: its parameters.
        states: where to start, with any batch axes: states that the network visits (`visited_states`), since its
            dynamics elsewhere says little about what it does.
        x: the input that is held, ``[I]``; zeros, for example, or the mean input.
        steps: of Adam; 0 leaves all to the polish.
        learning_rate: of Adam at the start.
        polish_steps: of Levenberg and Marquardt; 0 for states with so many numbers that ``D^2`` of them are too many.
        tolerance: the largest q of a fixed point. In float32, q has an error of about ``1e-14 D``.
        max_speed: the largest q of a slow point; points that are faster are left out.
        merge_distance: see above, in the units of the state.
        max_distance: how far from the nearest visited state a point may lie. None takes the radius of the cloud of
            visited states, the largest distance of one from their mean, and asks besides that no unit lies more
            than about a quarter of its range outside of what was visited; where that is zero, anything goes, as it does
            with ``math.inf``.
        visited: states that the network passes, with any batch axes, where ``states`` are not such, because noise was
            added for example; None takes ``states``.
        group: how many starts are polished at once; each needs a few times ``D^2`` numbers.

    Returns:
        `FixedPoints`, in float32 or wider: with float64 states and params, under ``jax.enable_x64(True)``, all is
        computed in float64, where plateaus move and a ``tolerance`` of 1e-20 is met by true fixed points alone.

    Raises:
        ValueError: for shapes or numbers that do not fit.
        TypeError: for a state of integers.

    >>> import jax, jax.numpy as jnp, rnnjax
    >>> cell = rnnjax.Elman(1)  # h' = tanh(2 h): rests at 0, from where it leaves, and at two ends
    >>> params = cell.init(jax.random.key(0), input_size=1)._replace(w_hh=jnp.full((1, 1), 2.0))
    >>> starts = cell.initial_state((9,))._replace(h=jnp.linspace(-1, 1, 9)[:, None])
    >>> found = find_fixed_points(cell, params, starts, jnp.zeros(1), steps=50)
    >>> sorted((round(float(h), 4) + 0.0, bool(stable)) for (h,), stable in zip(found.points, found.stable))
    [(-0.9575, True), (0.0, False), (0.9575, True)]
    """
    where = "find_fixed_points"
    states, x = widen_state(where, cell, states), jnp.asarray(x)
    if x.ndim != len(input_shape(cell, 1)):
        raise ValueError(f"{where}: x must be one input without batch axes, got {describe(x)}.")
    for name, value, least in (("steps", steps, 0), ("polish_steps", polish_steps, 0), ("group", group, 1)):
        check_size(where, name, value, least=least)
    for name, number in (("tolerance", tolerance), ("max_speed", max_speed), ("merge_distance", merge_distance)):
        check_real(where, name, number, least=0)
    learning_rate = check_real(where, "learning_rate", learning_rate, above=0)
    starts = flatten_state(cell, states).reshape(-1, state_size(cell))
    if not len(starts):
        raise ValueError(f"{where}: states must hold at least one state, got none.")
    ends, speeds = _search(cell, params, starts, x, learning_rate, steps, polish_steps, group)
    ends, speeds = np.asarray(ends), np.asarray(speeds)
    cloud = np.asarray(starts if visited is None else flatten_state(cell, widen_state(where, cell, visited)))
    cloud = cloud.reshape(-1, ends.shape[-1])
    distances, radius = _distances(ends, cloud)
    if max_distance is not None:
        endless = isinstance(max_distance, float | np.floating) and max_distance == math.inf
        radius = math.inf if endless else check_real(where, "max_distance", max_distance, above=0)
    near = np.isfinite(speeds) & (distances <= radius)
    if max_distance is None:
        near &= _between(ends, cloud, radius)
    still = np.isfinite(speeds) & (speeds <= max(max_speed, tolerance))
    slow = near & still
    kept, hits = _merge(ends[slow], speeds[slow], merge_distance)
    points, speed = ends[slow][kept], speeds[slow][kept]
    eigenvalues = _eigenvalues(cell, params, points, x, group)
    fixed = speed <= tolerance
    return FixedPoints(
        points=points,
        states=unflatten_state(cell, points),
        speed=speed,
        fixed=fixed,
        eigenvalues=eigenvalues,
        stable=fixed & (np.abs(eigenvalues).max(axis=-1) < 1),
        hits=hits,
        distance=distances[slow][kept],
        far=int((still & ~near).sum()),
        lowest_speed=float(speeds[near].min()) if near.any() else math.inf,
    )


def _distances(points: np.ndarray, visited: np.ndarray) -> tuple[np.ndarray, float]:
    """From each point to the nearest visited state, and the radius of the cloud of these; infinite for one place."""
    visited = np.unique(visited.astype(np.float64), axis=0)
    radius = float(np.linalg.norm(visited - visited.mean(axis=0), axis=-1).max())
    nearest = np.array([np.linalg.norm(visited - point, axis=-1).min() for point in points])
    return nearest, radius if radius > 0 else math.inf


def _between(points: np.ndarray, visited: np.ndarray, radius: float) -> np.ndarray:
    """Which points lie, unit by unit, within what was visited and a quarter of its range, bool ``[M]``.

    A saturated gate holds any value still; units that only gates hold still are far outside, and near in the mean.
    """
    if not math.isfinite(radius):
        return np.ones(len(points), bool)
    low, high = visited.min(axis=0), visited.max(axis=0)
    room = 0.25 * (high - low) + 0.1 * radius
    inside: np.ndarray = ((points >= low - room) & (points <= high + room)).all(axis=-1)
    return inside


@public
def visited_states(
    cell: Cell, params: Any, state: Any, xs: jax.Array, *, count: int, key: jax.Array, noise: float = 0.0
) -> Any:
    """States that the network passes on its way through ``xs``, drawn at random: starts for `find_fixed_points`.

    Args:
        cell: any cell.
        params: its parameters.
        state: the state before the first step.
        xs: ``[T, *batch, I]``.
        count: how many states to draw; the same one may come twice.
        key: for the draw and the noise.
        noise: standard deviation of what is added to every number of a state.

    Returns:
        A state with leaves ``[count, ...]``, in float32 or wider.

    Raises:
        ValueError: for shapes that do not fit, or a count below one.
        TypeError: for a state of integers.
    """
    check_size("visited_states", "count", count)
    check_real("visited_states", "noise", noise, least=0)
    states, _ = trajectory(cell, params, state, xs)
    flat = jax.vmap(functools.partial(flatten_state, cell))(states).reshape(-1, state_size(cell))
    key_draw, key_noise = jax.random.split(key)
    flat = flat[jax.random.randint(key_draw, (count,), 0, flat.shape[0])]
    return unflatten_state(cell, flat + noise * jax.random.normal(key_noise, flat.shape, flat.dtype))


@functools.partial(jax.jit, static_argnames=("cell", "steps", "polish_steps", "group"))
def _search(cell, params, starts, x, learning_rate, steps, polish_steps, group):
    """Ends ``[N, D]`` of all searches and their q ``[N]``; a start whose numbers overflow ends in a NaN."""

    def residual(s):
        return s - flat_step(cell, params, s, x)

    def speed(s):
        return 0.5 * jnp.sum(residual(s) ** 2)

    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, max(steps, 1)))

    def descend(carry, _):
        s, opt_state = carry
        # Every entry of s has a rate of its own in Adam, so the sum of all q moves each start as if it were alone.
        gradient = jax.grad(lambda s: jnp.sum(jax.vmap(speed)(s)))(s)
        updates, opt_state = promoting(optimizer.update)(gradient, opt_state)
        return (optax.apply_updates(s, updates), opt_state), None

    def polish(carry, _):
        s, q, damping = carry
        a, r = jax.jacfwd(residual)(s), residual(s)
        normal = a.T @ a + damping * jnp.eye(len(s), dtype=s.dtype)
        new = s - jax.scipy.linalg.solve(normal, a.T @ r, assume_a="pos")
        new_q = speed(new)
        better = new_q < q  # False for a NaN
        damping = jnp.clip(jnp.where(better, 0.1, 10.0) * damping, _LEAST_DAMPING, _MOST_DAMPING)
        return (jnp.where(better, new, s), jnp.where(better, new_q, q), damping), None

    def finish(s):
        carry = (s, speed(s), jnp.asarray(_DAMPING, s.dtype))
        return jax.lax.scan(polish, carry, None, length=polish_steps)[0][:2]

    (ends, _), _ = jax.lax.scan(descend, (starts, optimizer.init(starts)), None, length=steps)
    # Adam may have left the basin of a start that was good already.
    ends = jnp.where((jax.vmap(speed)(ends) < jax.vmap(speed)(starts))[:, None], ends, starts)
    return jax.lax.map(finish, ends, batch_size=group)


def _merge(points: np.ndarray, speeds: np.ndarray, distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices of one point a cluster, the slowest of it, and how many points it stands for."""
    kept: list[int] = []
    count: list[int] = []
    for i in np.argsort(speeds, kind="stable"):
        apart = np.linalg.norm(points[kept] - points[i], axis=-1)
        if kept and apart.min() < distance:
            count[int(apart.argmin())] += 1
        else:
            kept.append(int(i))
            count.append(1)
    return np.array(kept, int), np.array(count, int)


def _eigenvalues(cell: Cell, params: Any, points: np.ndarray, x: jax.Array, group: int) -> np.ndarray:
    """Of the Jacobian at every point, ``[M, D]``; by NumPy, since JAX has them on the CPU only."""
    size = points.shape[-1]
    if not len(points):
        return np.zeros((0, size), complex)
    # Filled up to a power of two, so that there are few sizes to compile for.
    fill = (1 << (len(points) - 1).bit_length()) - len(points)
    padded = np.concatenate([points, np.broadcast_to(points[:1], (fill, size))])
    values = np.linalg.eigvals(np.asarray(_jacobians(cell, params, padded, x, group), np.float64)[: len(points)])
    order = np.argsort(-np.abs(values), axis=-1, kind="stable")
    return np.take_along_axis(values, order, axis=-1).astype(complex)


@functools.partial(jax.jit, static_argnames=("cell", "group"))
def _jacobians(cell, params, points, x, group):
    return jax.lax.map(jax.jacfwd(lambda s: flat_step(cell, params, s, x)), points, batch_size=group)
