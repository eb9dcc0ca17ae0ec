"""Pages that are made of the code: the reference of every room, and one page for every cell."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import textwrap
from pathlib import Path
from typing import Any

import jax
from drawing import drawing

import rnnjax

HERE = Path(__file__).resolve().parent
MADE = HERE / "made"


def write(path: Path, text: str) -> None:
    """Only where something changed, so that a page is not read again for nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").split("\n")[0]


def entry(module: str, name: str, thing: object) -> str:
    """The directive that documents a name; records show their fields as they stand in the code, with their shapes."""
    path = f"{module}.{name}"
    if inspect.isclass(thing) and hasattr(thing, "_fields"):
        return f"```{{eval-rst}}\n.. autoclass:: {path}\n```\n\n```python\n{fields(thing)}\n```\n"
    if inspect.isclass(thing):
        return f"```{{eval-rst}}\n.. autoclass:: {path}\n   :members:\n   :exclude-members: __new__, __init__\n```\n"
    if callable(thing):
        return f"```{{eval-rst}}\n.. autofunction:: {path}\n```\n{result(thing)}"
    if isinstance(thing, dict):
        return "A table of " + ", ".join(f"`{key}`" for key in thing) + ".\n"
    return f"`{thing!r}`\n"


def result(thing: Any) -> str:
    """The fields of what a function returns, where that is a record."""
    function = inspect.unwrap(thing)
    record = getattr(function, "__globals__", {}).get(str(inspect.signature(function).return_annotation))
    if not hasattr(record, "_fields"):
        return ""
    return f"\n`{record.__name__}`:\n\n```python\n{fields(record)}\n```\n"


def fields(record: type) -> str:
    """The lines of a NamedTuple that declare its fields."""
    lines = inspect.getsource(record).splitlines()
    names = tuple(f"    {name}:" for name in record._fields)
    return "\n".join(line[4:] for line in lines if line.startswith(names))


def reference() -> None:
    """A page a room, from the docstrings."""
    rooms = {"rnnjax": rnnjax} | {f"rnnjax.{room}": importlib.import_module(f"rnnjax.{room}") for room in rnnjax._ROOMS}
    lines = ["# Reference", "", "From the docstrings; `help(rnnjax.LSTM)` shows the same.", ""]
    lines += ["| room | what is in it |", "|---|---|"]
    seen = {}
    for room, module in rooms.items():
        names = [name for name in module.__all__ if not inspect.ismodule(getattr(module, name))]
        text = f"# {room}\n\n{first_line(module)}\n\n"
        for name in names:
            thing = getattr(module, name)
            if id(thing) in seen:
                text += f"`{name}`: see [{seen[id(thing)]}]({seen[id(thing)]}.md).\n\n"
            else:
                if callable(thing):
                    seen[id(thing)] = room
                text += f"## {name}\n\n{entry(room, name, thing)}\n"
        write(MADE / "reference" / f"{room}.md", text)
        lines.append(f"| [{room}]({room}.md) | {first_line(module)} |")
    lines += ["", "```{toctree}", ":hidden:", "", *rooms, "```", ""]
    write(MADE / "reference" / "index.md", "\n".join(lines))


SPECIAL = {"conv_lstm": {"spatial_shape": (8, 8)}}
DRAWN = {"highway": {"depth": 2}}  # what a drawing would repeat otherwise
FAMILIES = (
    ("Affine", "two affine maps and a pointwise update: every engine of loops", rnnjax.AffineCell),
    ("Linear", "linear in the state, so that time can be parallel", rnnjax.LinearCell),
    ("Plain", "any other step", rnnjax.Cell),
)


def parameters(cell: Any, input_size: int) -> str:
    """A table of the parameters and their shapes."""
    params = jax.eval_shape(lambda key: cell.init(key, input_size), jax.random.key(0))
    lines, total = ["| parameter | shape | numbers |", "|---|---|---|"], 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        lines.append(f"| `{jax.tree_util.keystr(path).lstrip('.')}` | `{list(leaf.shape)}` | {leaf.size:,} |")
        total += leaf.size
    return "\n".join([*lines, f"| all | | {total:,} |"])


def conversions(cell: Any) -> str:
    """Where the cell's weights can go, by trying."""
    from rnnjax import interop

    params = cell.init(jax.random.key(0), 3)
    tries = {
        "PyTorch": lambda: interop.to_torch(cell, params, as_numpy=True),
        "Keras": lambda: interop.to_keras(cell, params),
        "flax": lambda: interop.to_flax(cell, params),
        "cuDNN": lambda: interop.to_cudnn(cell, params),
    }
    names = []
    for name, convert in tries.items():
        try:
            convert()
        except (ValueError, TypeError):
            continue
        names.append(name)
    files = "[Files of rnnjax](../../interop.md) hold any cell."
    return (
        f"Weights go to and come from {', '.join(names)}. {files}" if names else f"No other framework has it. {files}"
    )


def equations(cell: Any) -> tuple[str, str]:
    """The equations of a docstring as they stand there, and the sentences before its arguments without them."""
    words, formulas = [], []
    for line in (inspect.getdoc(type(cell)) or "").split("\nArgs:")[0].split("\n>>>")[0].splitlines():
        (formulas if line.startswith("    ") else words).append(line[4:] if line.startswith("    ") else line)
    return "\n".join(formulas), "\n".join(words).replace("``", "`")


def card(cell: Any) -> str:
    """The numbers of `rnnjax.card`, a line each."""
    found = rnnjax.card(cell, 32)
    matmul, pointwise, hard = found.operations
    lines = [
        ("blocks of the projections", str(found.recurrent_blocks) if found.recurrent_blocks else ""),
        ("gates", ", ".join(f"`{gate.name}` ({gate.kind})" for gate in found.gates)),
        ("next state by state", found.jacobian),
        ("a step of one row", f"{matmul:,} operations in matrix products, {pointwise:,} others, {hard:,} of them tanh, "
                              "exp and the like"),
        ("bytes of that step", f"{found.step_bytes:,}"),
        ("borders of a chunk", ", ".join(f"`{name}`{' (exact)' if why == 'exact' else ''}"
                                         for name, why in found.borders.items() if why in ("", "exact"))),
    ]  # fmt: skip
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in lines if value)])


RESULTS = HERE.parent / "benchmarks" / "results"


def speed(name: str) -> str:
    """What was measured of the cell's default engine, in the grid or beside it, or nothing."""
    files = [RESULTS / "grid_2core.json", RESULTS / "cells_2core.json"]
    return next(filter(None, (speed_in(file, name) for file in files if file.is_file())), "")


def speed_in(file: Path, name: str) -> str:
    measured = json.loads(file.read_text(encoding="utf-8"))
    found: dict[tuple[int, ...], dict[str, Any]] = {}
    for row in measured["rows"]:
        if row["cell"] == name and row["default"]:
            found.setdefault(tuple(row[axis] for axis in "TBIH"), {})[row["mode"]] = row
    if not found:
        return ""
    lines = [
        "| T | B | I | H | forward, ms | training, ms | steps a second, training |",
        "|---|---|---|---|---|---|---|",
    ]
    for sizes, modes in sorted(found.items()):
        times = [f"{1000 * modes[mode]['seconds']['median']:.2f}" for mode in ("forward", "training")]
        lines.append(f"| {' | '.join(map(str, (*sizes, *times)))} | {modes['training']['steps_per_second']:,.0f} |")
    about = measured["provenance"]
    where = (
        f"{about['cores']} cores of an {about['device']}, jax {about['jax']}, float32, medians; `{measured['command']}`"
    )
    return "\n".join([*lines, "", f"{where}. [Benchmarks](../../benchmarks.md) have rivals."])


BATTERY = HERE.parent / "experiments" / "11_battery"


def battery(name: str) -> str:
    """How the cell did on the classic problems, or nothing where that was not run."""
    path = BATTERY / "cells" / f"{name}.json"
    if not path.is_file():
        return ""
    tables = importlib.import_module("experiments.11_battery.tables")
    table = tables.row_of(json.loads(path.read_text(encoding="utf-8")))
    command = f"`python -m experiments.11_battery.run --cell {name}`"
    about = "Ten seeds each, 32 units; [what is asked, and all cells](../experiments/11_battery.md)."
    return f"{table}\n\n{about} {command}."


def experiment_pages() -> None:
    """One page an experiment, its README; read_source of conf.py puts the text in."""
    for path in sorted(BATTERY.parent.glob("[0-9]*/README.md")):
        text = f"```{{include}} ../../../experiments/{path.parent.name}/README.md\n```\n"
        write(MADE / "experiments" / f"{path.parent.name}.md", text)


def call(name: str, kind: type) -> str:
    """A class with its arguments and their defaults, in lines that fit the page."""
    empty = inspect.Parameter.empty
    listed = inspect.signature(kind).parameters.values()
    given = [str(one.replace(annotation=empty)) for one in listed if one.kind is not one.KEYWORD_ONLY]
    named = [str(one.replace(annotation=empty)) for one in listed if one.kind is one.KEYWORD_ONLY]
    words = ", ".join([*given, *(["*", *named] if named else [])])
    return textwrap.fill(f"{name}({words})", 96, subsequent_indent="    ", break_long_words=False)


def cell_page(name: str, make_cell: Any) -> tuple[str, str]:
    options = SPECIAL.get(name, {})
    cell, small = make_cell(64, **options), make_cell(4, **options)
    kind = type(cell).__name__
    formulas, words = equations(cell)
    summary, _, rest = words.partition("\n\n")
    picture = drawing(make_cell(4, **options, **DRAWN.get(name, {})))
    shown = f"rnnjax.{kind}" if kind in rnnjax.__all__ else f"rnnjax.cells.{kind}"
    text = f"# {kind}\n\n{summary}\n\n"
    if picture:
        text += f"```{{raw}} html\n{picture}\n```\n\n"
        text += (
            "What every value of a step is computed from. A prime marks the new state; a line has the colour of the "
            "value that it brings; a sign above a box, \N{GREEK SMALL LETTER SIGMA} for a sigmoid, says what made it.\n"
        )
        drawn = ", ".join(f"`{key} = {value}`" for key, value in DRAWN.get(name, {}).items())
        text += f"Drawn for {drawn}.\n\n" if drawn else "\n"
    text += (
        f"## Equations\n\n```text\n{formulas.strip(chr(10))}\n```\n\n{rest.strip()}\n\n"
        if formulas.strip()
        else f"{rest}\n\n"
    )
    text += f"## Parameters\n\nWith 32 inputs and 64 units:\n\n{parameters(cell, 32)}\n\n"
    engines = ", ".join(f'`"{one}"`' for one in rnnjax.implementations(small))
    text += f"## Engines\n\n{engines} where this page was built; see [Engines](../../engines.md).\n\n"
    text += f"## Card\n\nWith 32 inputs and 64 units, by `rnnjax card {name}`:\n\n{card(cell)}\n\n"
    for title, table in (("Speed", speed(name)), ("What it learns", battery(name))):
        text += f"## {title}\n\n{table}\n\n" if table else ""
    text += f"## Other frameworks\n\n{conversions(small)}\n\n"
    room = "rnnjax" if kind in rnnjax.__all__ else "rnnjax.cells"
    text += f"## Use\n\n```text\n{call(shown, type(cell))}\n\nrnnjax train --cell {name}\n```\n\n"
    text += f"The arguments are in the [reference](../reference/{room}.md).\n"
    return text, summary


def cell_pages() -> None:
    """One page a cell, and a table of all."""
    groups: dict[str, list[str]] = {family: [] for family, *_ in FAMILIES}
    for name, make_cell in rnnjax.cells.CELLS.items():
        text, summary = cell_page(name, make_cell)
        write(MADE / "cells" / f"{name}.md", text)
        cell = make_cell(4, **SPECIAL.get(name, {}))
        family = next(family for family, _, kind in FAMILIES if isinstance(cell, kind))
        groups[family].append(f"| [{type(cell).__name__}]({name}.md) | `{name}` | {' '.join(summary.split())} |")
    lines = ["# Cells", "", "Drawings and tables are made of the code.", ""]
    for family, words, _ in FAMILIES:
        lines += [
            f"## {family}",
            "",
            f"{words[0].upper()}{words[1:]}.",
            "",
            "| cell | name | |",
            "|---|---|---|",
            *groups[family],
            "",
        ]
    lines += ["```{toctree}", ":hidden:", "", *rnnjax.cells.CELLS, "```", ""]
    write(MADE / "cells" / "index.md", "\n".join(lines))


def make(app) -> None:
    """All of them, unless they are of the code as it is now."""
    sources = sorted(
        (
            *HERE.glob("*.py"),
            *(HERE.parent / "rnnjax").rglob("*.py"),
            *BATTERY.glob("cells/*.json"),
            *BATTERY.parent.glob("[0-9]*/README.md"),
            *RESULTS.glob("*_2core.json"),
        )
    )
    stamp = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    kept = MADE / "stamp"
    if not kept.exists() or kept.read_text() != stamp:
        reference()
        cell_pages()
        experiment_pages()
        kept.write_text(stamp)


def setup(app):
    app.connect("config-inited", lambda app, config: make(app))
    return {"parallel_read_safe": True}
