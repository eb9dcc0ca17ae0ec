"""Where a measurement was made: goes into every result file, and in short into every row."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess

import jax

__all__ = ["PACKAGES", "ROW_FIELDS", "provenance", "row_provenance"]

PACKAGES = ("jax", "jaxlib", "optax", "flax", "torch", "numpy", "dm-haiku", "equinox", "keras")
# What two rows must share to be comparable; the date is in every row, but a day makes no difference.
ROW_FIELDS = ("device", "cores", "python", "jax", "jaxlib", "commit", "memory_reused")


def provenance(memory_reused: bool | None = None) -> dict:
    """Device, cores, versions, commit and date.

    Args:
        memory_reused: whether the allocator was told to keep freed memory; None where nobody has said.
    """
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    device = jax.devices()[0]
    cores = os.cpu_count()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    return {
        "device": _cpu() if device.platform == "cpu" else device.device_kind,
        "cores": usable,
        "cores_of_the_machine": cores,
        "python": platform.python_version(),
        **versions,
        "xla_flags": os.environ.get("XLA_FLAGS"),
        "memory_reused": memory_reused,
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }


def _commit() -> str | None:
    """Of the checkout; "-dirty" if what is measured, or what measures, has changed since. None outside of git."""
    git = ["git", "-C", str(pathlib.Path(__file__).parents[1])]
    name = subprocess.run([*git, "describe", "--always"], capture_output=True, text=True, check=False).stdout.strip()
    code = ["rnnjax", "benchmarks", ":(exclude)benchmarks/results"]
    changed = subprocess.run(
        [*git, "diff", "--quiet", "HEAD", "--", *code], capture_output=True, check=False
    ).returncode
    return f"{name}{'-dirty' if changed else ''}" if name else None


def row_provenance(record: dict) -> dict:
    """The part of a `provenance` that every row carries."""
    return {key: record[key] for key in (*ROW_FIELDS, "date")}


def _cpu() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
