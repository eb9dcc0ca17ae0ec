"""Every cell on every classic problem of recurrent networks: which of them does it learn?

Ten seeds side by side; a seed has reached a problem once its score passes what is asked. One learning rate a cell and
one budget a problem, for all. Each result is written as it comes, and what is there is not made again, so that a run
that was stopped goes on.

python -m experiments.11_battery.run [--quick] [--cell NAME or file.py:Class]... [--problem NAME]... [--out FOLDER]
"""

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from experiments import common
from rnnjax.files import write_atomic

from . import entries, tables
from .problems import PROBLEMS, Problem, by_name
from .training import train

HERE = pathlib.Path(__file__).resolve().parent
HIDDEN, SEEDS, EVERY = 32, 10, 100
QUICK, QUICK_UPDATES = {"hidden": 8, "seeds": 2, "every": 20}, 20
QUICK_CELLS, QUICK_PROBLEMS = ("gru",), ("waveform",)


def settings_of(problem: Problem, entry: entries.Entry, options: common.Options) -> dict[str, Any]:
    """What a result depends on besides the code."""
    full = options.extra["full"]
    setting = {
        "cell": entry.spec,
        "rate": entry.rate,
        "hidden": HIDDEN,
        "seeds": SEEDS,
        "every": EVERY,
        "updates": problem.updates * (10 if full else 1),
        "steps": problem.length(full),
        "batch": problem.batch,
        "passes": problem.passes,
        "seed": options.seed,
    }
    return setting | QUICK | {"updates": QUICK_UPDATES} if options.quick else setting


def one(problem: Problem, entry: entries.Entry, setting: dict[str, Any]) -> dict[str, Any]:
    """A row of a cell's file."""
    cell = entries.cell_of(entry, setting["hidden"])
    names = ("seeds", "updates", "every", "steps", "seed")
    found = train(problem, cell, entry.rate, **{name: setting[name] for name in names})
    return {**found._asdict(), "setting": setting}


def read(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def options(parser: argparse.ArgumentParser) -> None:
    """Of this experiment alone."""
    parser.add_argument("--cell", action="append", help="only this one, again for more; also file.py:Class")
    parser.add_argument("--problem", action="append", help="only this one, again for more")
    parser.add_argument("--full", action="store_true", help="lengths as published, ten times the updates; hours")
    parser.add_argument("--minutes", type=float, help="begin nothing new after so many")


def main(argv: Sequence[str] | None = None) -> None:
    given = common.parse(argv, here=HERE, doc=__doc__, add=options)
    chosen = given.extra["cell"] or (QUICK_CELLS if given.quick else [known.spec for known in entries.ENTRIES])
    wanted = given.extra["problem"] or (QUICK_PROBLEMS if given.quick else [one.name for one in PROBLEMS])
    problems, cells = [by_name(name) for name in wanted], [entries.entry(spec) for spec in chosen]
    folder = given.out / ("cells_full" if given.extra["full"] else "cells")
    folder.mkdir(parents=True, exist_ok=True)
    limit = 60 * given.extra["minutes"] if given.extra["minutes"] else float("inf")
    for entry in cells:
        entries.cell_of(entry, HIDDEN)  # a cell that cannot be made is told before hours of others
    for entry in cells:
        path = folder / f"{entry.name}.json"
        for problem in problems:
            found, setting = read(path), settings_of(problem, entry, given)
            if found.get(problem.name, {}).get("setting") == setting or given.seconds > limit:
                continue
            row = one(problem, entry, setting)
            found[problem.name] = common.plain(row)
            write_atomic(path, (json.dumps(found, indent=1) + "\n").encode())
            count = sum(value is not None for value in row["solved"])
            common.say(
                given,
                f"{entry.name:16} {problem.name:16} {count:2} of {len(row['solved'])}, {row['updates']} updates, "
                f"{row['seconds']:.0f} s of processor time",
            )
    finish(given, folder)


def finish(options: common.Options, folder: pathlib.Path) -> None:
    """The matrix of all that lies in the folder."""
    found = {path.stem: read(path) for path in folder.glob("*.json")}
    order = [known.name for known in entries.ENTRIES]
    names = [name for name in order if name in found] + sorted(set(found) - set(order))
    places = sum(len(rows) for rows in found.values())
    result = {
        "question": "Which cell learns which of the classic problems?",
        "settings": {"hidden": HIDDEN, "seeds": SEEDS, "full": options.extra["full"]},
        "places": places,
        "of": len(entries.ENTRIES) * len(PROBLEMS),
        "processor_seconds": sum(row["seconds"] for rows in found.values() for row in rows.values()),
        "reached": {
            name: [one for one, row in found[name].items() if tables.verdict(row) == "reached"] for name in names
        },
    }
    seeds = QUICK["seeds"] if options.quick else SEEDS
    name = "battery_full" if options.extra["full"] else "battery"
    common.finish(options, result, {f"{name}.png": tables.picture(found, names, seeds)})
    page = "README.md" if name == "battery" else f"{name}.md"
    tables.write_page(options.out / page, tables.markdown(found, names, f"{name}.png", options.extra["full"]))


if __name__ == "__main__":
    common.run(main)
