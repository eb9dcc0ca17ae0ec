r"""What a process can be told before it computes on a CPU: to use every core, and to keep the memory that it frees.

The engine ``"native"`` uses all cores by itself. Everything else runs in XLA, which gives the small matmul of a step to
one core, where it runs as fast as any library's; the other cores wait. With one JAX device a core, `rnnjax.unroll` lets
each device step through time over its own rows of the batch, and nothing waits for anything until the end.

An array that no step before has touched costs a page fault every 4 KiB: about 50,000 of them in a training step of an
LSTM over T = 128, B = 128, H = 256, a fifth of its time. glibc hands large arrays back to the system as soon as they
are freed, unless it is told otherwise (mallopt(3)). Measurements: docs/benchmarks.md.
"""

from __future__ import annotations

import ctypes
import os
import sys

import jax

from rnnjax.kinds import public

__all__ = [
    "MAX_DEVICES",
    "available_cores",
    "devices_are_set",
    "memory_is_kept",
    "reuse_memory",
    "splits_batches",
    "use_cores",
]

MAX_DEVICES = 4  # unless a number is asked for: more were not measured

_kept = False
_splits = False


@public
def use_cores(count: int | None = None) -> int:
    """Lets `rnnjax.unroll` use several cores of a CPU in this process. To be called before anything else uses JAX.

    JAX then has that many CPU devices, the default implementation of affine and linear cells runs on all devices,
    each with its rows of the batch, where that pays, and memory that is freed is kept for the next step. What the
    engine ``"native"`` runs uses all cores of one device, with this call and without it.

    It is meant for scripts that leave the placing of arrays to JAX. What a split unroll returns lies on all devices,
    and compiled functions that take it run on all of them; a function is compiled once more when its arguments have
    moved there. Arguments that are bound to other devices (by `jax.device_put` with a device or sharding) cannot meet
    it: under `jax.set_mesh`, `jax.shard_map` and `jax.default_device` nothing is split, and an implementation that is
    named never is. `rnnjax train` does its own splitting, and an accelerator is not affected.

    Args:
        count: of devices; None for one a core, up to 4 (more were not measured), or as many as
            ``jax_num_cpu_devices`` already says.

    Returns:
        The number of CPU devices.

    Raises:
        ValueError: for a count below one.
        RuntimeError: if JAX is in use already with another number of devices, or may not use the CPU.
    """
    global _splits
    if count is not None and count < 1:
        raise ValueError(f"use_cores: count must be at least 1, got {count}.")
    wanted = count or (None if devices_are_set() else min(available_cores(), MAX_DEVICES))
    if wanted is not None:
        try:
            jax.config.update("jax_num_cpu_devices", wanted)
        except RuntimeError:
            found = _count_devices()
            if found != wanted:
                raise RuntimeError(
                    f"use_cores: JAX is in use already, with {found} CPU device(s), not {wanted}; call "
                    "rnnjax.use_cores before anything else makes an array."
                ) from None
    reuse_memory()  # before the next line starts JAX and its threads
    found = _count_devices()
    _splits = True
    return found


def _count_devices() -> int:
    try:
        return len(jax.local_devices(backend="cpu"))
    except (RuntimeError, AssertionError) as error:
        raise RuntimeError(f"use_cores: JAX may not use the CPU here; add cpu to JAX_PLATFORMS. ({error})") from error


def splits_batches() -> bool:
    """Whether `use_cores` has been called."""
    return _splits


def reuse_memory() -> None:
    """Lets the allocator keep what a training step frees: the next step takes arrays of the same sizes.

    Memory that was freed then counts as the process's until it ends, and all threads allocate from one heap. Best
    called before JAX starts its threads. Elsewhere than with glibc (Linux) there is nothing to set; nothing happens.
    """
    global _kept
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        settings = (
            (-8, 1),  # M_ARENA_MAX: a thread's own arena is too small for large arrays, and gives them back
            (-4, 0),  # M_MMAP_MAX: no mappings of their own for large arrays
            (-1, 2**31 - 1),  # M_TRIM_THRESHOLD: and no return of the heap's end
        )
        _kept = all([mallopt(name, value) == 1 for name, value in settings])


def memory_is_kept() -> bool:
    """Whether `reuse_memory` has been called, where it has an effect."""
    return _kept


def available_cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def devices_are_set() -> bool:
    """Whether the number of CPU devices has been set already."""
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    return forced or getattr(jax.config, "jax_num_cpu_devices", -1) != -1
