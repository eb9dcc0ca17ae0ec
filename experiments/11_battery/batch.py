"""What a problem hands to the loop."""

from typing import Any, NamedTuple

import jax

__all__ = ["Batch"]


class Batch(NamedTuple):
    """Sequences, what is to be said at each step, and where it is asked."""

    xs: jax.Array  # [T, B, I]
    targets: jax.Array  # int [T, B] for classes; [T, B, O] for numbers, and for sets of classes 0 or 1
    asked: jax.Array  # bool [T, B]
    legal: Any = None  # bool [T, B, O]: the symbols that may come, where the next one is chance
