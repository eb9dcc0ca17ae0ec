"""Options that do nothing without another one: it is said before anything is done, as who gives one means something."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

__all__ = ["EVAL", "FORECAST", "MACHINES", "TRAIN", "Partner", "check_partners"]


class Partner(NamedTuple):
    """An option, and what it needs."""

    option: str
    needs: str  # the end of a sentence
    works: Callable[[Mapping[str, Any]], bool]  # of the values of all options


MACHINES = (Partner("wait", "--distributed", lambda v: v["distributed"] is not None),)

TRAIN = (
    Partner("average_after", "--average", lambda v: v["average"] > 0),
    Partner("clip_by", "--clip above 0", lambda v: v["clip"] > 0),
    Partner("decay", "--schedule step or plateau", lambda v: v["schedule"] in ("step", "plateau")),
    Partner("decay_from", "--schedule step", lambda v: v["schedule"] == "step"),
    Partner("embed_dropout", "--embed, as one-hot symbols are not dropped", lambda v: v["embed"] != 0),
    Partner("locked", "--dropout or --embed-dropout", lambda v: max(v["dropout"], v["embed_dropout"]) > 0),
    Partner("min_count", "--level char or word, as there are 256 bytes", lambda v: v["level"] != "byte"),
    Partner("vocabulary_symbols", "--level char or word, as there are 256 bytes", lambda v: v["level"] != "byte"),
    Partner("encoding", "--level char or word, as bytes are read as they are", lambda v: v["level"] != "byte"),
    Partner("glob", "a folder as TEXT", lambda v: any(pathlib.Path(p).is_dir() for p in v["text"] or ())),
)  # fmt: skip

EVAL = (
    Partner("warmup", "--streams above 1", lambda v: v["streams"] != 1),
    Partner("dynamic_lr", "--dynamic", lambda v: v["dynamic"]),
    Partner("dynamic_decay", "--dynamic", lambda v: v["dynamic"]),
)

FORECAST = (
    Partner(
        "samples",
        "a model that draws, with --recursive or another --head",
        lambda v: v["recursive"] or v["head"] != "quantiles",
    ),
)


def check_partners(partners: Iterable[Partner], values: Mapping[str, Any], given: set[str]) -> None:
    """Raises for the first option on the command line that would do nothing.

    Args:
        partners: what needs what.
        values: of all options.
        given: names of those on the command line; one that is set to what switches it off may stand alone.

    Raises:
        ValueError: in one sentence with what is missing.
    """
    for option, needs, works in partners:
        off = values[option] in (0, False, None) or (option == "embed_dropout" and values[option] == -1)
        if option in given and not off and not works(values):
            raise ValueError(f"--{option.replace('_', '-')}: does nothing without {needs}; leave it out.")
