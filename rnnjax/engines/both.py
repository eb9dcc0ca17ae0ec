r"""Both directions of a bidirectional layer at once, where an engine runs several networks in one launch.

    (xs, turned(xs)), (w_forward, w_backward)  ->  (ys_forward, turned(ys_backward))

Two launches of a kernel that leaves most of the processors alone follow each other although neither waits for the
other. Turned round in time, the way back is a network like the way there, with masks turned as well.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.engines.choice import choose, make_job
from rnnjax.network import Controls

__all__ = ["run_both"]

Way = tuple[Any, Any, Controls]  # parameters, state and controls of a direction


def run_both(
    cell: Any, there: Way, back: Way, xs: jax.Array, *, reverse: bool, implementation: str | None, remat: Any
) -> tuple[tuple[Any, jax.Array], tuple[Any, jax.Array]] | None:
    """Final states and ``ys`` of both directions, in one run of an engine; None where none takes them together.

    Args:
        cell: of both directions.
        there: the direction that runs from the first step to the last, or with ``reverse`` from the last to the first.
        back: the other one.
        xs: ``[T, *batch, I]``.
        reverse: see ``there``.
        implementation: as for `rnnjax.unroll`.
        remat: the same.
    """
    jobs = [
        make_job(cell, p, s, xs, c, reverse=reverse != way, remat=remat) for way, (p, s, c) in enumerate((there, back))
    ]
    first, second = (choose(job, implementation) for job in jobs)
    if first is not second or not first.many or jax.device_count() > 1 or not _alike(there, back):
        return None
    if jobs[0].valid and first.fits(jobs[0]._replace(valid="any")):  # turned round, padding comes before the steps
        return None

    def both(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.stack([a, b])

    def both_in_time(a: jax.Array, b: jax.Array) -> jax.Array:
        return both(a, jnp.flip(b, 0))

    valid, resets = jax.tree.map(both_in_time, there[2][:2], back[2][:2])
    controls = Controls(valid, resets, jax.tree.map(both, there[2].fresh, back[2].fresh))

    def one(params: Any, state: Any, xs: jax.Array, controls: Controls) -> tuple[Any, jax.Array]:
        return first.run(cell, params, state, xs, controls, reverse=reverse, remat=remat)

    params, state = jax.tree.map(both, there[:2], back[:2])
    states, ys = jax.vmap(one)(params, state, both_in_time(xs, xs), controls)
    ends = [jax.tree.map(lambda leaf, k=k: leaf[k], states) for k in (0, 1)]
    return (ends[0], ys[0]), (ends[1], jnp.flip(ys[1], 0))


def _alike(there: Way, back: Way) -> bool:
    first, second = ([(a.shape, a.dtype) for a in jax.tree.leaves((p, s, c[:3]))] for p, s, c in (there, back))
    return first == second
