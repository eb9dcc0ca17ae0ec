r"""What a process can be told before it computes on a CPU: to use every core, and to keep the memory that it frees.

XLA gives the small matmul of a step to one core, where it runs as fast as any library's; the other cores wait. With one
JAX device a core, `rnnjax.unroll` lets each device step through time over its own rows of the batch, and nothing waits
for anything until the end.

An array that no step before has touched costs a page fault every 4 KiB: about 50,000 of them in a training step of an
LSTM over T = 128, B = 128, H = 256, a fifth of its time. glibc hands large arrays back to the system as soon as they
are freed, unless it is told otherwise (mallopt(3)). Measurements: docs/benchmarks.md.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

import jax

__all__ = ["available_cores", "chosen_by_user", "cores_in_use", "memory_is_kept", "reuse_memory", "use_cores"]

_kept = False
_in_use = False


def use_cores(count: int | None = None) -> int:
    """Lets `rnnjax.unroll` use several cores of a CPU in this process. To be called before anything else uses JAX.

    JAX then has that many CPU devices, the default implementation of a cell becomes ``"split"`` where that pays, and
    memory that is freed is kept for the next step. Arguments of a compiled function should not be bound to one device
    (`jax.device_put` with a device binds them); results may lie on several. `rnnjax train` does its own splitting,
    and an accelerator is not affected.

    Args:
        count: of devices; None for one a core, or as many as ``jax_num_cpu_devices`` already says.

    Returns:
        The number of CPU devices.

    Raises:
        ValueError: for a count below one.
        RuntimeError: if JAX is in use already with another number of devices.
    """
    global _in_use
    if count is not None and count < 1:
        raise ValueError(f"use_cores: count must be at least 1, got {count}.")
    reuse_memory()
    wanted = count or (None if chosen_by_user() else available_cores())
    if wanted is not None:
        with contextlib.suppress(RuntimeError):  # JAX is in use: what it has is compared below
            jax.config.update("jax_num_cpu_devices", wanted)
    found = jax.local_device_count("cpu")
    if wanted not in (None, found):
        raise RuntimeError(
            f"use_cores: JAX is in use already, with {found} CPU device(s), not {wanted}; call rnnjax.use_cores before "
            "anything else makes an array."
        )
    _in_use = True
    return found


def cores_in_use() -> bool:
    """Whether `use_cores` has been called."""
    return _in_use


def reuse_memory() -> None:
    """Lets the allocator keep what a training step frees: the next step takes arrays of the same sizes.

    Memory that was freed then counts as the process's until it ends. Best called before JAX starts its threads.
    Elsewhere than with glibc (Linux) there is nothing to set, and nothing happens.
    """
    global _kept
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-8, 1)  # M_ARENA_MAX: a thread's own arena is too small for large arrays, and gives them back
        mallopt(-4, 0)  # M_MMAP_MAX: no mappings of their own for large arrays
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: and no return of the heap's end
        _kept = True


def memory_is_kept() -> bool:
    """Whether `reuse_memory` has been called, where it has an effect."""
    return _kept


def available_cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def chosen_by_user() -> bool:
    """Whether the number of CPU devices has been set already."""
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    return forced or getattr(jax.config, "jax_num_cpu_devices", -1) != -1
