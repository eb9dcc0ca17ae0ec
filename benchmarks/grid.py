"""The points that are measured: a cell, four sizes, a dtype and a mode."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

__all__ = ["DTYPES", "GRIDS", "MODES", "Point", "Sizes", "points"]

MODES = ("forward", "training")
# tf32 is float32 arrays with matmuls in TF32; float32 means matmuls in full float32 everywhere.
DTYPES = ("float32", "tf32", "bfloat16", "float16")


class Sizes(NamedTuple):
    """Steps, batch, input size and hidden size."""

    T: int
    B: int
    I: int
    H: int

    @classmethod
    def parse(cls, text: str) -> "Sizes":
        """``128,32,128,128`` or ``128x32x128x128``."""
        parts = text.replace("x", ",").split(",")
        if len(parts) != 4 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
            raise ValueError(f"sizes: must be four positive numbers T,B,I,H, got {text!r}.")
        return cls(*map(int, parts))


class Point(NamedTuple):
    """One measurement, in which all contestants take turns."""

    cell: str
    sizes: Sizes
    dtype: str
    mode: str

    def __str__(self) -> str:
        return f"{self.cell} {self.mode} {self.dtype} (T, B, I, H) = {tuple(self.sizes)}"


TARGET = (
    Sizes(128, 32, 128, 128),
    Sizes(128, 32, 256, 512),
    Sizes(128, 128, 128, 256),
    Sizes(256, 1, 64, 128),
    Sizes(50, 50, 65, 128),
    Sizes(64, 16, 256, 256),
    Sizes(32, 64, 512, 1024),
)
_BASE = Sizes(128, 32, 128, 128)
SWEEP = (
    *(_BASE._replace(T=steps) for steps in (16, 32, 64, 256, 512, 1024)),
    *(_BASE._replace(B=batch) for batch in (1, 4, 16, 64, 128, 256)),
    *(_BASE._replace(H=size) for size in (32, 64, 256, 512, 1024)),
)
GRIDS = {
    "quick": (Sizes(50, 50, 65, 128),),
    "target": TARGET,
    # One size changes while the others stay, for the pictures of how cost grows.
    "sweep": (_BASE, *SWEEP),
    "full": (*TARGET, *SWEEP),
    "h200": tuple(Sizes(512, batch, size, size) for size in (512, 1024, 2048) for batch in (16, 64)),
}


def points(
    cells: Sequence[str], shapes: Sequence[Sizes], dtypes: Sequence[str], modes: Sequence[str]
) -> Iterator[Point]:
    """All combinations; the shapes come first, so that an interrupted run has whole rows of the table."""
    for sizes, dtype, cell, mode in itertools.product(shapes, dtypes, cells, modes):
        yield Point(cell, sizes, dtype, mode)
