"""A batch split over several devices, each of which runs its own loop over its rows; arrays between devices and files.

The gradients are averaged once an update and nothing waits at every step. On two cores of an AMD EPYC, where the small
matmuls of a step gain little from a second thread, two CPU devices train LSTM language models 1.05 to 1.34 times as
fast as one (`python -m benchmarks lm`, docs/benchmarks.md). More cores have not been measured. Each device holds the
parameters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rnnjax.checks import describe
from rnnjax.cpu import MAX_DEVICES, available_cores, devices_are_set
from rnnjax.fit.processes import ALONE, Crew, crew
from rnnjax.online import Cut, Lookback
from rnnjax.online.across import AnyBorder, Carried, Window
from rnnjax.update import Carry

__all__ = [
    "AXIS",
    "CARRY",
    "CHUNK",
    "carry_specs",
    "check_mesh",
    "choose_devices",
    "finite",
    "make_mesh",
    "on_one",
    "over_rows",
    "own_rows",
    "place",
    "place_rows",
    "placed",
    "prepare_devices",
    "without_keys",
    "without_rows",
]

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
        asked: that many; 0 for all accelerators, or as many of them as share the batch evenly, and on a CPU as many
            as there are, up to `MAX_DEVICES`, if they divide the batch into parts of at least `MIN_ROWS` rows. Several
            processes share all that they have.
        batch_size: B.

    Raises:
        ValueError: if there are not as many, or they do not divide the batch.

    >>> choose_devices(1, 50)
    1
    """
    found, backend = jax.device_count(), jax.default_backend()
    if jax.process_count() > 1:
        return _all_devices(asked, batch_size, found)
    if not asked:
        evenly = max(n for n in range(1, found + 1) if batch_size % n == 0)
        return _most(batch_size, found) if backend == "cpu" else evenly
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


def _all_devices(asked: int, batch_size: int, found: int) -> int:
    have = f"{jax.process_count()} processes with {jax.local_device_count()} each"
    if asked not in (0, found):
        raise ValueError(
            f"TrainOptions: devices must be all {found} that {have} have, got {asked}; leave it out, or start another "
            "number of processes."
        )
    if batch_size % found:
        fitting = ", ".join(str(n) for n in range(1, 2 * found + 1) if batch_size % n == 0)
        raise ValueError(
            f"TrainOptions: batch_size must be a multiple of {found}, the devices of {have}, got {batch_size}; take "
            f"{max(1, round(batch_size / found)) * found}, or as many processes as come to one of {fitting} devices."
        )
    return found


def own_rows(mesh: Mesh | None, batch_size: int) -> slice:
    """The rows of the batch that lie on this process's devices, which stand together in the mesh."""
    if mesh is None or not mesh.is_multi_process:
        return slice(0, batch_size)
    ours = [at for at, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]
    rows = batch_size // mesh.size
    return slice(ours[0] * rows, (ours[-1] + 1) * rows)


def make_mesh(count: int) -> Mesh | None:
    """The first devices in a row; None for a single one, which needs no splitting."""
    if count == 1:
        return None
    return Mesh(jax.devices()[:count], (AXIS,))


def check_mesh(where: str, mesh: Mesh | None) -> tuple[Mesh | None, Crew]:
    """The mesh as it is needed, and the processes that it belongs to.

    Raises:
        TypeError: if it is none.
        ValueError: if it has several axes, or leaves processes out.
    """
    if mesh is None:
        return None, ALONE
    if not isinstance(mesh, Mesh):
        raise TypeError(f"{where}: mesh must be a jax.sharding.Mesh, got {describe(mesh)}; see jax.make_mesh.")
    if len(mesh.axis_names) != 1:
        raise ValueError(
            f"{where}: mesh must have one axis, along which the batch is split, got {mesh.axis_names}; write "
            f"jax.make_mesh(({mesh.size},), ('batch',))."
        )
    mesh = Mesh(mesh.devices, mesh.axis_names)  # of the kind that leaves the types of arrays alone
    if not mesh.is_multi_process:
        return mesh, ALONE
    if missing := set(range(jax.process_count())) - {device.process_index for device in mesh.devices.flat}:
        raise ValueError(
            f"{where}: mesh must have devices of all {jax.process_count()} processes, got none of {sorted(missing)}; "
            "take jax.devices()."
        )
    return mesh, crew()


def carry_specs(border: AnyBorder) -> Carry:
    """Where the parts of a carry lie on a mesh; what crosses a border lies by rows, as the states do.

    Args:
        border: but UORO, whose trace is one for all rows.
    """
    if isinstance(border, Cut):
        return CARRY
    rows: Any = PartitionSpec(AXIS)
    if isinstance(border, Lookback):
        rows = Window(PartitionSpec(AXIS), PartitionSpec(None, None, AXIS))  # type: ignore[arg-type]
    return CARRY._replace(state=Carried(PartitionSpec(AXIS), rows, PartitionSpec()))  # type: ignore[arg-type]


def without_rows(state: Any, batch_size: int) -> list[tuple[int, ...]]:
    """Shapes of arrays of the state that have no axis of the batch, and cannot be split."""
    return [leaf.shape for leaf in jax.tree.leaves(state) if leaf.shape[:1] != (batch_size,)]


def place(mesh: Mesh | None, tree: Any, specs: Any) -> Any:
    """Arrays where a split update wants them; as they are without a mesh.

    Args:
        mesh: of the devices.
        tree: whole arrays, the same on every process.
        specs: a prefix of ``tree``.
    """
    if mesh is None:
        return tree
    is_spec = lambda spec: isinstance(spec, PartitionSpec)  # noqa: E731
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=is_spec)
    if not mesh.is_multi_process:
        return jax.device_put(tree, shardings)

    def part(sharding: NamedSharding, leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            # It lies where it should, on a mesh that calls its axes otherwise: `fit` has one of its own.
            if not leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
                raise ValueError(
                    f"fit: an array of several processes must be split as {sharding.spec}, got {leaf.sharding}; "
                    "see batch_spec."
                )
            pieces = [shard.data for shard in leaf.addressable_shards]
            return jax.make_array_from_single_device_arrays(leaf.shape, sharding, pieces)
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(lambda sharding, part_of: jax.tree.map(lambda a: part(sharding, a), part_of), shardings, tree)


def place_rows(mesh: Mesh | None, rows: Any, batch_size: int) -> Any:
    """A chunk of which this process has its rows alone, ``[T, rows of this process, ...]``, as one of all rows."""
    if mesh is None:
        return rows
    sharding = NamedSharding(mesh, CHUNK)
    if not mesh.is_multi_process:
        return jax.device_put(rows, sharding)
    return jax.tree.map(
        lambda a: jax.make_array_from_process_local_data(sharding, a, (a.shape[0], batch_size, *a.shape[2:])), rows
    )


def over_rows(mesh: Mesh | None, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """The function on every device of the mesh, with its rows of what the specs split; without one, the function."""
    if mesh is None:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def on_one(mesh: Mesh | None, tree: Any) -> Any:
    """Arrays that lie everywhere, on one device of this process."""
    if mesh is None:
        return tree
    if mesh.is_multi_process:
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)
    return jax.device_put(tree, mesh.devices.flat[0])


def _most(batch_size: int, limit: int) -> int:
    fitting = range(1, min(limit, MAX_DEVICES) + 1)
    return max(n for n in fitting if n == 1 or (batch_size % n == 0 and batch_size // n >= MIN_ROWS))


def finite(params: Any) -> bool:
    """Whether all floating-point numbers are."""
    leaves = [leaf for leaf in jax.tree.leaves(params) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return all(bool(np.isfinite(leaf).all()) for leaf in jax.device_get(leaves))


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def without_keys(tree: Any) -> Any:
    """Typed random keys as the integers they are made of, which files can hold."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree)


def placed(tree: Any, like: Any) -> Any:
    """Host arrays on the devices of ``like``, with its typed keys."""

    def place(array: Any, like: Any) -> Any:
        if _is_key(like):
            return jax.random.wrap_key_data(jnp.array(array), impl=jax.random.key_impl(like))
        if not like.sharding.is_fully_addressable:  # each process has the whole, and places its part
            return jax.make_array_from_callback(np.shape(array), like.sharding, lambda index: np.asarray(array)[index])
        # An array of a single device stays free to move, as one that jax made itself.
        return jax.device_put(array, like.sharding) if len(like.sharding.device_set) > 1 else jnp.array(array)

    return jax.tree.map(place, tree, like)
