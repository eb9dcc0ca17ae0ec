"""``rnnjax card``: a cell on one page."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from rnnjax.card import card as make_card
from rnnjax.cells import cell_from_name
from rnnjax.cli.options import Json
from rnnjax.cli.output import echo, echo_json

__all__ = ["card"]


def card(
    cell: Annotated[
        str, typer.Argument(metavar="CELL", help="lstm, gru, ..., elman(activation=relu) or file.py:Cell.")
    ],
    hidden: Annotated[int, typer.Option(help="H.")] = 128,
    input_size: Annotated[int, typer.Option("--input", help="I; 0: as many as H.")] = 0,
    batch: Annotated[int, typer.Option(help="Rows of a step.")] = 1,
    peak_flops: Annotated[float | None, typer.Option(help="Operations a second of the machine, as 1e12.")] = None,
    peak_bytes: Annotated[float | None, typer.Option(help="Bytes a second of its memory, as 5e10.")] = None,
    as_json: Json = False,
) -> None:
    """Show what a cell computes and costs, and which implementations and borders take it.

    [bold]rnnjax card lstm --hidden 512 --peak-flops 1e12 --peak-bytes 5e10[/bold]
    [bold]rnnjax card mine.py:MyCell[/bold]
    """
    found = make_card(
        cell_from_name(cell, hidden), input_size or None, batch_size=batch, peak_flops=peak_flops, peak_bytes=peak_bytes
    )
    if as_json:
        echo_json(dataclasses.asdict(found) | {"num_parameters": found.num_parameters})
    else:
        echo(str(found))
