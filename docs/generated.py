"""Pages that are made of the code: the reference of every room, and one page for every cell."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

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
        return f"```{{eval-rst}}\n.. autofunction:: {path}\n```\n"
    if isinstance(thing, dict):
        return "A table of " + ", ".join(f"`{key}`" for key in thing) + ".\n"
    return f"`{thing!r}`\n"


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


def make(app) -> None:
    reference()
    write(MADE / "cells" / "index.md", "# Cells\n")


def setup(app):
    app.connect("config-inited", lambda app, config: make(app))
    return {"parallel_read_safe": True}
