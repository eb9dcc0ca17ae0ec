"""``python -m benchmarks``: measures on this machine and writes result files with their provenance."""

import os

if __name__ == "__main__":  # before jax is imported
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # a cache on disk would take the compile times
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs room on the same GPU
    os.environ["KERAS_BACKEND"] = "jax"

from benchmarks.commands import main

if __name__ == "__main__":
    main()
