"""What commands print: lines, tables and JSON, in which no text steers the terminal."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import typer

from rnnjax.files import plain
from rnnjax.text.shown import shown

__all__ = ["echo", "echo_json", "echo_table", "nats"]


def echo(line: str = "", *, err: bool = False) -> None:
    """Prints a line."""
    typer.echo(shown(line), err=err)


def echo_json(data: Any) -> None:
    """Prints JSON; what would steer a terminal is written as an escape of JSON, and what is no number as null."""
    text = json.dumps(plain(data), indent=1, ensure_ascii=False, allow_nan=False)
    steering = "[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
    typer.echo(re.sub(steering, lambda match: f"\\u{ord(match[0]):04x}", text))


def echo_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns of text, the numbers right-aligned; of the same width on a terminal and in a pipe."""
    header, rows = [*map(shown, header)], [[*map(shown, row)] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    number = [all(cell.lstrip("-")[:1].isdigit() or not cell for cell in column) for column in zip(*rows, strict=True)]
    for row in (header, *rows):
        parts = (c.rjust(w) if right else c.ljust(w) for c, w, right in zip(row, widths, number or [False] * len(row)))
        typer.echo("  ".join(parts).rstrip())


def nats(loss: float | None) -> str:
    """A loss in nats and in bits a symbol."""
    if loss is None or not math.isfinite(loss):
        return "-"
    return f"{loss:.4f} nats ({loss / math.log(2):.3f} bits)"
