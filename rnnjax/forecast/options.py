"""Options of a forecast from the command line, as values that check themselves."""

from __future__ import annotations

import dataclasses
from typing import Any

from rnnjax.cells import cell_from_name
from rnnjax.checks import check_choice, check_real
from rnnjax.forecast.heads import Head, NegativeBinomial, Normal, Quantiles, StudentT
from rnnjax.forecast.model import Forecaster
from rnnjax.kinds import check_fields
from rnnjax.networks import Stack
from rnnjax.options import MAX_LAYERS, MAX_SIZE, check_most, option

__all__ = ["HEADS", "ForecastOptions", "make_forecaster"]

HEADS: dict[str, Head] = {
    "quantiles": Quantiles(),
    "student": StudentT(),
    "normal": Normal(),
    "counts": NegativeBinomial(),
}


@dataclasses.dataclass(frozen=True)
class ForecastOptions:
    """The model of a forecast and its training; every field says what it is.

    Raises:
        ValueError: for a number out of range or an unknown name.
    """

    cell: str = option("lstm", "Cell by name, or file.py:Class.", "CELL")
    hidden: int = option(32, "Units of a layer.", "UNITS")
    layers: int = option(1, "Layers of cells.", "NUMBER")
    head: str = option("quantiles", "What a value is said to be distributed like.", "|".join(HEADS))
    recursive: bool = option(False, "Step by step, fed with what it has drawn, in place of all steps at once.")
    context: int = option(0, "Steps of history that are read; 0: two of the longest season.", "STEPS")
    scale: str = option("mean_std", "What values are divided by.", "mean_abs|mean_std")
    dropout: float = option(0.0, "Rate, between layers and before the head.", "RATE")
    steps: int = option(800, "Updates of the training.", "UPDATES")
    batch_size: int = option(32, "Windows of an update.", "WINDOWS")
    lr: float = option(5e-3, "Peak learning rate.", "RATE")
    samples: int = option(200, "Paths that are drawn, where the model draws.", "PATHS")
    windows: int = option(5, "Windows of the backtest, none of which is trained on.", "NUMBER")
    seed: int = option(0, "Of everything random.", "NUMBER")

    def __post_init__(self) -> None:
        where = "ForecastOptions"
        check_fields(self, least={"context": 0, "seed": 0}, rates=("dropout",))
        check_most(self, hidden=MAX_SIZE, layers=MAX_LAYERS)
        check_choice(where, "head", self.head, tuple(HEADS))
        check_choice(where, "scale", self.scale, ("mean_abs", "mean_std"))
        check_real(where, "lr", self.lr, above=0.0)


def make_forecaster(options: ForecastOptions, season: tuple[int, ...]) -> Forecaster:
    """The model that the options describe.

    Raises:
        ValueError: for an unknown cell.
    """
    cells = tuple(cell_from_name(options.cell, options.hidden) for _ in range(options.layers))
    network: Any = cells[0] if len(cells) == 1 else Stack(cells)
    return Forecaster(
        network,
        HEADS[options.head],
        season or (1,),
        direct=not options.recursive,
        context=options.context,
        scale="mean_abs" if options.head == "counts" else options.scale,  # type: ignore[arg-type]
        dropout=options.dropout,
    )
