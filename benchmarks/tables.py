"""Markdown tables of the smaller measurements: parts, latency, memory, settings of the CPU, the language model."""

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.gpu import gpu_table
from benchmarks.report import line, parts_table
from benchmarks.scale import Link, allreduce_seconds
from benchmarks.text import text_table

__all__ = ["TABLES", "kind_of", "table"]

Document = dict[str, Any]


def kind_of(document: Document) -> str | None:
    """Which command wrote a result file; None for ``run``.

    >>> kind_of({"remat": []}), kind_of({"rows": [{"contestant": "torch"}]})
    ('memory', None)
    """
    keys = {"parts": "parts", "remat": "memory", "training": "lm", "gpu": "gpu", "allreduce": "scale", "texts": "text"}
    keys |= {"steps": "latency"}  # last: that of others is a number
    found = [kind for key, kind in keys.items() if key in document]
    if not found and any("setting" in row for row in document.get("rows", ())):
        found = ["cpu"]
    return found[0] if found else None


def table(kind: str, document: Document) -> str:
    """The table of a result file, under what it was measured on."""
    where = document["provenance"]
    torch = f", torch {where['torch']}" if where.get("torch") else ""
    machine = (
        f"{where['device']}, {where['cores']} cores, Python {where['python']}, jax {where['jax']}{torch}, commit "
        f"{where['commit']}, {where['date']}: `{document['command'].partition(' --out')[0]}`."
    )
    return f"{machine}\n\n{TABLES[kind](document)}\n"


def _rows(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


def _latency(document: Document) -> str:
    steps = document["steps"]
    names = list(dict.fromkeys(row["contestant"] for row in steps))
    taken = {(row["cell"], row["B"], row["I"], row["H"], row["contestant"]): row["seconds"]["median"] for row in steps}
    points = dict.fromkeys(key[:4] for key in taken)
    return _rows(
        ["cell", "B, I, H", *names],
        (
            [cell, f"{b}, {i}, {h}"]
            + [f"{1e6 * taken[cell, b, i, h, n]:.1f}" if (cell, b, i, h, n) in taken else "" for n in names]
            for cell, b, i, h in points
        ),
    )


def _cpu(document: Document) -> str:
    rows = document["rows"]
    names = [name for name in dict.fromkeys(row["setting"] for row in rows) if name != "as it is"]
    points: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        key = (row["cell"], row["mode"], ", ".join(str(row[axis]) for axis in "TBIH"))
        points.setdefault(key, {})[row["setting"]] = row
    return _rows(
        ["cell", "mode", "T, B, I, H", "as it is, ms", *(f"{name}, times as fast" for name in names)],
        (
            [*key, f"{1e3 * found['as it is']['seconds']['median']:.3g}"]
            + [f"{found[name]['speedup']:.2f}" if name in found else "" for name in names]
            for key, found in points.items()
        ),
    )


def _memory(document: Document) -> str:
    policies = _rows(
        ["T", "implementation", "remat", "peak MB", "ms"],
        (
            [
                f"{row['T']:,}", row["implementation"], str(row["remat"]), f"{row['peak_bytes'] / 1e6:,.1f}",
                f"{1e3 * row['seconds']['median']:,.3g}" if row["seconds"] else "not run",
            ]
            for row in document["remat"]
        ),
    )  # fmt: skip
    streams = _rows(
        ["T of TBPTT", "temporary KB", "of it the stream, KB", "seconds"],
        (
            [f"{row['T']:,}", f"{row['temp_bytes'] / 1e3:,.0f}", f"{8 * row['T'] / 1e3:,.0f}", f"{row['seconds']:.3g}"]
            for row in document["tbptt"]
        ),
    )
    return f"{policies}\n\n{streams}"


def _lm(document: Document) -> str:
    rows = document["training"]
    names = [key for key, value in rows[0].items() if isinstance(value, dict)]
    speeds = ([f"{row[name]['characters_per_second']:,}" for name in names] for row in rows)
    return _rows(
        ["LSTM language model", *(f"{name}, characters/s" for name in names), "rnnjax / torch"],
        ([row["configuration"], *found, str(row.get("ratio", ""))] for row, found in zip(rows, speeds, strict=True)),
    )


def _scale(document: Document) -> str:
    link = Link(**document["link"])
    reduces = _rows(
        ["all-reduce", "processes", "fastest", "median", "model"],
        (
            [
                f"{row['bytes'] / 1e6:g} MB", str(row["processes"]), f"{1e3 * row['seconds']:.2f} ms",
                f"{1e3 * row['median']:.2f} ms",
                f"{1e3 * allreduce_seconds(row['bytes'], row['processes'], link):.2f} ms",
            ]
            for row in document["allreduce"]
        ),
    )  # fmt: skip
    model, batch, steps = document["model"], document["batch"], document["steps"]
    updates = _rows(
        ["processes", "devices in all", "fastest update", "median"],
        (
            [str(row["processes"]), str(row["devices"])] + [f"{1e3 * row[key]:.1f} ms" for key in ("seconds", "median")]
            for row in document["updates"]
        ),
    )
    fitted = f"The link of the model, fitted: a = {1e6 * link.latency:.0f} us, b = {link.bandwidth / 1e9:.2f} GB/s."
    what = f"Updates of {model['layers']} LSTM layer(s) of {model['hidden']} units on {batch} x {steps} symbols:"
    return f"{reduces}\n\n{fitted}\n\n{what}\n\n{updates}"


TABLES: dict[str, Callable[[Document], str]] = {
    "parts": lambda document: parts_table(document["parts"]),
    "latency": _latency,
    "cpu": _cpu,
    "memory": _memory,
    "lm": _lm,
    "gpu": gpu_table,
    "scale": _scale,
    "text": text_table,
}
