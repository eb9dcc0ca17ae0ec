r"""A batch split over the CPU devices of a process, each of which steps through time over its own rows.

    state[rows d], ys[:, rows d] = unroll(params, state[rows d], xs[:, rows d])    for every device d

Nothing is exchanged between steps; in the backward pass the gradients of the parameters are added up once, at the end.
`rnnjax.use_cores` makes the devices, and makes this the default.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from rnnjax.cell import AffineCell, LinearCell
from rnnjax.checks import check_kind
from rnnjax.cpu import splits_batches
from rnnjax.engines.affine.rules import splits
from rnnjax.engines.choice import Controls, Engine, Job

__all__ = ["split_over_devices"]

_AXIS = "rnnjax_rows"


def split_over_devices(engine: Engine, job: Job, params: Any) -> Engine:
    """The engine itself, or one that runs it on every CPU device with the rows of that device.

    The batch is split after `rnnjax.use_cores`, for a cell that computes each row of a batch by itself, as affine and
    linear ones do (networks of layers are split layer by layer), where the rule `splits` says that it pays, and unless
    the engine is ``"native"``, which uses all cores from one device. Always over all devices, so that what several
    unrolls return can meet; what was split lies on several devices. Within `jax.shard_map`, under `jax.set_mesh` or
    `jax.default_device`, and for arrays without an axis of the batch nothing is split.

    Args:
        engine: what runs on each device.
        job: the whole job.
        params: the parameters; every device gets them.

    Raises:
        TypeError: if ``engine`` or ``job`` is none.
    """
    check_kind("split_over_devices", "engine", engine, Engine, "an Engine")
    check_kind("split_over_devices", "job", job, Job, "a Job")
    if not splits_batches() or not job.free or job.backend != "cpu" or not job.steps or engine.name == "native":
        return engine
    devices = jax.local_devices(backend="cpu")
    weights = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    if not isinstance(job.cell, AffineCell | LinearCell) or not splits(job.batch, weights, len(devices)):
        return engine

    def run(
        cell: Any, params: Any, state: Any, xs: jax.Array, controls: Controls, *, reverse: bool, remat: Any
    ) -> tuple[Any, jax.Array]:
        rows, columns = PartitionSpec(_AXIS), PartitionSpec(None, _AXIS)
        mapped = jax.shard_map(
            functools.partial(engine.run, cell, reverse=reverse, remat=remat),
            mesh=Mesh(devices, (_AXIS,)),
            in_specs=(PartitionSpec(), rows, columns, Controls._make((columns, columns, rows, rows, PartitionSpec()))),
            out_specs=(rows, columns),
            check_vma=False,
        )
        return mapped(params, state, xs, controls)

    return Engine(f"{engine.name}, split", run)
