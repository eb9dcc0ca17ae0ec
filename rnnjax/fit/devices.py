r"""A batch split over several devices, each of which runs its own loop over its rows.

The gradients are averaged once an update and nothing waits at every step. On two cores of an AMD EPYC, where the small
matmuls of a step gain little from a second thread, two CPU devices train LSTM language models 1.05 to 1.34 times as
fast as one (`python -m benchmarks lm`, docs/benchmarks.md). More cores have not been measured. Each device holds the
parameters.
"""

from __future__ import annotations

import contextlib
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rnnjax.cpu import MAX_DEVICES, available_cores, devices_are_set
from rnnjax.fit.folder import require_one_process
from rnnjax.update import Carry

__all__ = ["AXIS", "CARRY", "CHUNK", "choose_devices", "make_mesh", "place", "prepare_devices", "without_rows"]

AXIS = "batch"  # of the mesh
CARRY = Carry(PartitionSpec(), PartitionSpec(), PartitionSpec(AXIS))  # parameters everywhere, states by rows
CHUNK = PartitionSpec(None, AXIS)
MIN_ROWS = 8  # of a device, unless a number is asked for


def prepare_devices(asked: int, batch_size: int) -> None:
    """Tells JAX how many CPU devices there will be, unless it is in use already or the user has told it.

    Args:
        asked: that many, but not more than there are cores; 0 for a number that fits the batch and the cores.
        batch_size: B.
    """
    if devices_are_set():
        return
    cores = available_cores()
    with contextlib.suppress(RuntimeError):  # in use already: then `choose_devices` says what can be had
        jax.config.update("jax_num_cpu_devices", min(asked, cores) or _most(batch_size, cores))


def choose_devices(asked: int, batch_size: int) -> int:
    """The number of devices that a batch is split over.

    Args:
        asked: that many; 0 for one on an accelerator, and on a CPU as many as there are, up to `MAX_DEVICES`, if they
            divide the batch into parts of at least `MIN_ROWS` rows.
        batch_size: B.

    Raises:
        ValueError: if there are not as many, they do not divide the batch, or there are several processes.

    >>> choose_devices(1, 50)
    1
    """
    require_one_process("train")
    found, backend = jax.device_count(), jax.default_backend()
    if not asked:
        return _most(batch_size, found) if backend == "cpu" else 1
    if asked > found:
        raise ValueError(
            f"TrainOptions: devices must be at most {found}, which JAX has here ({backend}), got {asked}; take 0 for "
            "what fits."
        )
    if batch_size % asked:
        fitting = ", ".join(str(n) for n in range(1, found + 1) if batch_size % n == 0)
        raise ValueError(
            f"TrainOptions: devices must share {batch_size} streams evenly, got {asked}; take one of {fitting}, or "
            "another batch_size."
        )
    return asked


def make_mesh(count: int) -> Mesh | None:
    """The first devices in a row; None for a single one, which needs no splitting."""
    if count == 1:
        return None
    return Mesh(jax.devices()[:count], (AXIS,))


def without_rows(state: Any, batch_size: int) -> list[tuple[int, ...]]:
    """Shapes of arrays of the state that have no axis of the batch, and cannot be split."""
    return [leaf.shape for leaf in jax.tree.leaves(state) if leaf.shape[:1] != (batch_size,)]


def place(mesh: Mesh | None, tree: Any, specs: Any) -> Any:
    """Arrays where a split update wants them; as they are without a mesh."""
    if mesh is None:
        return tree
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda spec: isinstance(spec, PartitionSpec)
    )
    return jax.device_put(tree, shardings)


def _most(batch_size: int, limit: int) -> int:
    fitting = range(1, min(limit, MAX_DEVICES) + 1)
    return max(n for n in fitting if n == 1 or (batch_size % n == 0 and batch_size // n >= MIN_ROWS))
