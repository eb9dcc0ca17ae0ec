"""What commands have in common: how options are called, and sentences of the library in the words of the command."""

from __future__ import annotations

import pathlib
import platform
import re
from typing import Annotated

import jax
import typer

import rnnjax

__all__ = ["Checkpoint", "Json", "RunArgument", "TrustCode", "common_options", "spoken"]

RunArgument = Annotated[pathlib.Path, typer.Argument(metavar="RUN", help="Folder of a trained run.")]
Checkpoint = Annotated[str, typer.Option(help="best (lowest validation loss) or last.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="Run the Python file that the run's cell is in (--cell file.py:Class).")
]



def common_options(
    version: Annotated[bool, typer.Option("--version", help="Show the version.", is_eager=True)] = False,
) -> None:
    """Options before the name of a command."""
    if version:
        typer.echo(f"rnnjax {rnnjax.__version__}, jax {jax.__version__}, Python {platform.python_version()}")
        raise typer.Exit


# `ModelOptions: hidden must ...` is `--hidden must ...` on the command line.
_FIELD = re.compile(r"\b(?:Model|Optimizer|Train|Budget|Text)Options: (\w+)( must )")
_KEYWORDS = {
    "trust_code=True": "--trust-code",
    "batch_size": "--batch-size",
    "chunk_len": "--chunk-len",
    "BudgetOptions: exactly one of steps, epochs and minutes": "exactly one of --steps, --epochs and --minutes",
}


def spoken(sentence: str) -> str:
    """A sentence of the library with its fields as options.

    >>> spoken("TrainOptions: batch_size must be at least 1, got -2.")
    '--batch-size must be at least 1, got -2.'
    """
    found = _FIELD.sub(lambda match: f"--{match[1].replace('_', '-')}{match[2]}", sentence)
    for word, option in _KEYWORDS.items():
        found = re.sub(rf"(?<![\w/\\-]){re.escape(word)}(?![\w(]|\.\w)", option, found)
    return found
