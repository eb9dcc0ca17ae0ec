"""Measures everything that the page of one run shows, and packs it: JSON with arrays in it, of bounded size."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rnnjax.analysis.gates import UnitStatistics, unit_statistics
from rnnjax.analysis.labels import LABELS, varying
from rnnjax.analysis.plots import value_scale
from rnnjax.analysis.recording import SymbolModel, leaves_of, text_values
from rnnjax.analysis.search import LabelSearch, search_units
from rnnjax.analysis.units import Leaf, parse_unit
from rnnjax.files import plain
from rnnjax.kinds import check_kinds, public
from rnnjax.lm.baselines import read_baselines
from rnnjax.lm.run import Run
from rnnjax.report.measures import facts, gradient_data, lyapunov_data, predictions, read_curves, read_samples
from rnnjax.report.page import pack, quantize, to_json
from rnnjax.report.writer import writer_data

__all__ = ["STEPS", "ReportOptions", "ReportText", "asked_units", "collect_run", "ranked_units"]

_STANDING_OUT = 2  # units of every leaf that are taken early for what they are, whatever they tell


def asked_units(names: Sequence[str], leaves: Mapping[str, Leaf]) -> list[str]:
    """Units by name; a leaf (``L1.c``) stands for all of its units.

    Raises:
        ValueError: for a name that is neither.

    >>> asked_units(["L1.c", "L1.h.0"], {"L1.h": Leaf(2, "state"), "L1.c": Leaf(2, "state")})
    ['L1.c.0', 'L1.c.1', 'L1.h.0']
    """
    chosen: dict[str, None] = {}
    for name in names:
        if name in leaves:
            chosen |= dict.fromkeys(f"{name}.{k}" for k in range(leaves[name].size))
        else:
            unit = parse_unit(name, dict(leaves))
            chosen[f"{unit.leaf}.{unit.number}"] = None
    return list(chosen)


def ranked_units(
    asked: Sequence[str],
    found: Mapping[str, LabelSearch],
    statistics: UnitStatistics,
    top: int,
) -> dict[str, list[str]]:
    """All units, the most worth showing first, each with the reasons why it is where it is.

    First those asked for; then in turns the first, second, ... ``top``-th of every label, and of every leaf those
    that vary most and, of gates, those that are most often open and most often shut; then all others, leaf by leaf in
    turns, by how much they vary.

    Args:
        asked: names of units.
        found: from `search_units`, by label.
        statistics: from `unit_statistics`.
        top: units of every label.
    """
    queues: list[list[tuple[str, str]]] = []
    for label, search in found.items():
        queues.append([(unit.unit, f"{label} #{rank}") for rank, unit in enumerate(search.top(top), 1)])
    rest: list[list[tuple[str, str]]] = []
    for leaf, about in statistics.leaves.items():
        order = _descending(about.deviation)
        queues.append([(f"{leaf}.{k}", f"varies #{rank}") for rank, k in enumerate(order[:_STANDING_OUT], 1)])
        if about.kind == "gate":
            for what, share in (("open", about.right), ("shut", about.left)):
                best = [k for k in _descending(share)[:_STANDING_OUT] if share[k] > 0]
                queues.append([(f"{leaf}.{k}", f"{what} #{rank}") for rank, k in enumerate(best, 1)])
        rest.append([(f"{leaf}.{k}", "") for k in order])
    chosen: dict[str, list[str]] = {name: ["asked for"] for name in asked}
    for name, reason in (*_in_turns(queues), *_in_turns(rest)):
        reasons = chosen.setdefault(name, [])
        if reason:
            reasons.append(reason)
    return chosen


def _descending(values: np.ndarray) -> list[int]:
    return np.argsort(-values, kind="stable").tolist()


def _in_turns(queues: Sequence[Sequence[tuple[str, str]]]) -> Iterable[tuple[str, str]]:
    for rank in range(max(map(len, queues), default=0)):
        for queue in queues:
            if rank < len(queue):
                yield queue[rank]


# What `collect_run` does, in this order, for whoever shows progress.
STEPS = (
    "what the network expects",
    "how its units vary",
    "which units tell labels",
    "how far gradients reach",
    "Lyapunov exponents",
    "values of units",
)
_LEAST_TO_SEARCH = 40  # symbols, below which halves of a text say nothing
_DIGITS = 6  # of numbers in the page
_BYTES_A_VALUE = 0.3  # of a unit's value, packed; less only for gates that hardly move


@dataclasses.dataclass(frozen=True)
class ReportText:
    """The text that a page shows.

    Attributes:
        name: where it is from.
        ids: integers ``[n]``, at least two.
        starts: positions where documents start, or None.
        labels: by name, bool ``[n]`` or float32 ``[n]``.
    """

    name: str
    ids: np.ndarray
    starts: np.ndarray | None
    labels: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """How much goes into a page.

    Attributes:
        units: names of units or leaves that are in it in any case.
        top: units in the ranking of each label.
        size: bytes of this run's data in the page, at most.
        shifts: controls of the search, see `rnnjax.analysis.search_units`.
        streams: pieces of the text that the search and the statistics read side by side.
    """

    units: tuple[str, ...] = ()
    top: int = 10
    size: int = 4_800_000
    shifts: int = 99
    streams: int = 16

    def __post_init__(self) -> None:
        check_kinds(self)


@public
def collect_run(
    name: str,
    run: Run,
    model: SymbolModel,
    text: ReportText,
    options: ReportOptions | None = None,
    advance: Callable[[str], None] = lambda step: None,
) -> dict[str, Any]:
    """The data of one run's page, ready for JSON; the same run gives the same data.

    What the network expects and the values of units are exact: the text is read from its start in one piece. The search
    and the statistics read ``streams`` pieces side by side.

    Args:
        name: of the run.
        run: from `rnnjax.lm.run.open_run`.
        model: the network of the run, as the analyses see it.
        text: what is shown.
        options: how much of it.
        advance: is called with each of `STEPS` as it begins.

    Raises:
        ValueError: for units that there are not or that do not fit into the size, or options out of range.
    """
    options = ReportOptions() if options is None else options
    leaves = leaves_of(model.cell, model.params, model.inputs[0])
    asked = asked_units(options.units, leaves)
    reading: dict[str, Any] = {"streams": options.streams, "starts": text.starts}
    advance(STEPS[0])
    expected, shown = predictions(run.model, run.params, text.ids, text.starts)
    curves, samples, bound = read_curves(run), run.paths.samples, run.config.optimizer.norm_bound
    data: dict[str, Any] = {
        "name": name,
        "facts": facts(run, curves),
        "text": {
            "name": text.name,
            "level": run.vocabulary.level,
            "symbols": [run.vocabulary.symbols[k] for k in shown.tolist()],
        },
        **expected,
        "training": {**curves, "baselines": read_baselines(run.paths.baselines), "clip": bound},
        "samples": read_samples(samples.read_text("utf-8", "replace") if samples.is_file() else ""),
    }
    advance(STEPS[1])
    statistics = unit_statistics(model, text.ids, **reading)
    advance(STEPS[2])
    searched, left_out = varying(text.labels)
    found: dict[str, LabelSearch] = {}
    if searched and len(text.ids) >= _LEAST_TO_SEARCH:
        found = search_units(model, text.ids, searched, shifts=options.shifts, **reading)
    data["labels"] = [_label_data(text.labels[one], search, options.top) for one, search in found.items()]
    data["left_out"] = left_out if found else list(text.labels)
    data["leaves"] = _leaf_data(statistics, found)
    data["redundant"] = {
        "count": len(statistics.redundant),
        "closest": [list(pair) for pair in statistics.redundant[:10]],
    }
    data["dead"] = {"count": len(statistics.dead), "first": list(statistics.dead[:20])}
    advance(STEPS[3])
    data["gradient"] = gradient_data(model, text.ids, run.config.train.chunk_len)
    advance(STEPS[4])
    data["lyapunov"] = lyapunov_data(model, text.ids)
    data = plain(data, _DIGITS)
    data["writer"], steps = writer_data(run, int(0.8 * options.size) - len(to_json(data)), text.ids)
    advance(STEPS[5])
    ranking = ranked_units(asked, found, statistics, options.top)
    room = options.size - len(to_json(data)) - 100  # the names of what follows
    data["units"] = _values(model, text, leaves, ranking, asked, room)
    data["total"] = sum(leaves[leaf].size for leaf in statistics.leaves)
    data["steps"] = steps
    return data


def _values(
    model: SymbolModel,
    text: ReportText,
    leaves: Mapping[str, Leaf],
    ranking: Mapping[str, Sequence[str]],
    asked: Sequence[str],
    room: int,
) -> dict[str, Any]:
    """Units with their values, as many as fit, in the order of the leaves; the first ones of the ranking are in."""
    most = max(len(asked), int(room / (_BYTES_A_VALUE * len(text.ids) + 200)), 1)
    names = list(ranking)[:most]
    values = text_values(model, text.ids, names, streams=1, starts=text.starts)
    packed: dict[str, Any] = {}
    for column, name in enumerate(names):
        own = values[:, column]
        low, high, levels = quantize(own)
        middle, reach = value_scale(own, leaves[name.rpartition(".")[0]].kind)
        scale = plain({"low": low, "high": high, "middle": middle, "reach": reach}, _DIGITS)
        entry = scale | {"why": list(ranking[name]), "values": pack(levels)}
        room -= len(json.dumps(entry)) + len(name) + 4
        if room < 0:
            break
        packed[name] = entry
    missing = [name for name in asked if name not in packed]
    if missing or not packed:
        raise ValueError(
            f"report: the values of {max(len(asked), 1):,} units over {len(text.ids):,} symbols do not fit into the "
            "page; raise megabytes=, lower symbols=, or name fewer units."
        )
    order = list(leaves)

    def place(name: str) -> tuple[int, int]:
        leaf, _, number = name.rpartition(".")
        return order.index(leaf), int(number)

    return {name: packed[name] for name in sorted(packed, key=place)}


def _label_data(label: np.ndarray, search: LabelSearch, top: int) -> dict[str, Any]:
    described = LABELS[search.label].description if search.label in LABELS else ""
    return {
        "name": search.label,
        "description": described,
        "binary": search.binary,
        "share": search.share,
        "bar": search.bar,
        "shifts": len(search.control),
        "values": pack(label.astype(np.uint8 if search.binary else np.float32)),
        "rows": [
            [one.unit, one.direction, one.score, one.first, one.accuracy, one.threshold, one.p_value, one.error]
            for one in search.top(top)
        ],
    }


def _leaf_data(statistics: UnitStatistics, found: Mapping[str, LabelSearch]) -> list[dict[str, Any]]:
    """Statistics of every unit of every leaf, and the label that it tells best, by its rank's half of the text."""
    result, start = [], 0
    strength = [one.first * 2 - 1 if one.binary else one.first for one in found.values()]  # [labels][units]
    best = np.argmax(strength, axis=0) if found else np.zeros(0, int)
    scores = np.array([one.score for one in found.values()])
    for leaf, about in statistics.leaves.items():
        entry: dict[str, Any] = {"name": leaf, "kind": about.kind, "size": len(about.mean)}
        for column in ("mean", "deviation", *(("left", "right") if about.kind == "gate" else ())):
            entry[column] = pack(getattr(about, column).astype(np.float32))
        stop = start + len(about.mean)
        if found:
            entry["best"] = pack(best[start:stop].astype(np.uint16))
            entry["score"] = pack(scores[best[start:stop], np.arange(start, stop)].astype(np.float32))
        result.append(entry)
        start = stop
    return result
