"""Which models are compared, and how wide each must be so that all have the same number of parameters."""

import math
import pathlib
from collections.abc import Callable

import jax

from experiments import lru_block
from rnnjax.lm.options import ModelOptions
from rnnjax.lm.run import make_model

__all__ = ["CELLS", "TOLERANCE", "count_parameters", "same_size", "solve_size"]

# What `ModelOptions` knows them by; the LRU comes from a file of this folder's neighbourhood, as anybody's cell would.
CELLS = {
    "Elman": "elman",
    "LSTM": "lstm",
    "GRU": "gru",
    "minGRU": "min_gru",
    "LRU": f"{pathlib.Path(lru_block.__file__).resolve()}:LRUBlock",
}
TOLERANCE = 0.02


def count_parameters(options: ModelOptions, vocab_size: int) -> int:
    """Numbers in all arrays of the model, its embedding and output included; nothing is computed."""
    shapes = jax.eval_shape(make_model(options, vocab_size).init, jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def solve_size(count: Callable[[int], int], target: int) -> int:
    """The whole number at which a growing function comes nearest to a target.

    >>> solve_size(lambda size: 3 * size * size, 200)
    8
    """
    low, high = 1, 2
    while count(high) < target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < target else (low, middle)
    return min((low, high), key=lambda size: abs(count(size) - target))


def same_size(cell: str, layers: int, *, embed: int, vocab_size: int, target: int) -> tuple[ModelOptions, int]:
    """The options of the model with this many parameters, and their number.

    Args:
        cell: a key of `CELLS`.
        layers: its depth.
        embed: size of the embedding, which does not grow with the model.
        vocab_size: V.
        target: the number of parameters wanted.

    Raises:
        ValueError: if no size comes as near as `TOLERANCE`.
    """

    def options(size: int) -> ModelOptions:
        return ModelOptions(cell=CELLS[cell], layers=layers, hidden=size, embed=embed)

    def count(size: int) -> int:
        return count_parameters(options(size), vocab_size)

    size = solve_size(count, target)
    if abs(count(size) - target) > TOLERANCE * target:
        raise ValueError(
            f"same_size: {cell} with {layers} layers must have {target} parameters within {TOLERANCE:.0%}, got "
            f"{count(size)} with {size} units; take a larger target or a smaller embedding."
        )
    return options(size), count(size)
