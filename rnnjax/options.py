"""Fields of dataclasses that are options of the command line as well."""

from __future__ import annotations

import dataclasses
from typing import Any

__all__ = ["MAX_LAYERS", "MAX_SIZE", "check_most", "option"]

MAX_SIZE, MAX_LAYERS = 2**20, 1024  # whatever a file says, a network is no larger


def option(default: Any, help: str, metavar: str = "", **more: Any) -> Any:
    """A field with a default, and what ``--help`` says of it.

    Args:
        default: of the field and of the option.
        help: a line or two.
        metavar: a word for the value; several, separated by ``|``, are all that there are.
        more: what the command line needs besides, by name.
    """
    return dataclasses.field(default=default, metadata={"help": help, "metavar": metavar, **more})


def check_most(options: Any, **most: float) -> None:
    """Raises the ValueError of a field that is larger than it may be, whatever a file says."""
    for name, limit in most.items():
        if (value := getattr(options, name)) > limit:
            raise ValueError(f"{type(options).__name__}: {name} must be at most {limit:,.0f}, got {value:,}.")
