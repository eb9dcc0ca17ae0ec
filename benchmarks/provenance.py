"""Where a measurement was made: goes into every result file."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess

import jax


def provenance() -> dict:
    """Device, cores, versions, commit and date."""
    versions = {}
    for name in ("jax", "jaxlib", "optax", "flax", "torch", "numpy"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    git = ["git", "-C", str(pathlib.Path(__file__).parent), "describe", "--always", "--dirty"]
    device = jax.devices()[0]
    return {
        "device": _cpu() if device.platform == "cpu" else device.device_kind,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **versions,
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or None,
        "date": datetime.date.today().isoformat(),
    }


def _cpu() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
