"""Where code lives: who may import whom, how long a file may be, and what a module offers."""

import ast
import dataclasses
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    "cell": 0,
    "network": 0,
    "initializers": 0,
    "cpu": 0,
    "checks": 0,
    "promotion": 0,
    "traced": 0,
    "equations": 0,
    "card": 3,
    "summary": 3,
    "options": 0,
    "programs": 0,
    "_start": 0,
    "files": 0,
    "arrays": 0,
    "user_code": 0,
    "extras": 0,
    "kinds": 0,
    "text": 0.5,  # of checks, files and options
    "cells": 1,
    "data": 1,
    "networks": 1.5,  # of cells, and run by unroll
    "unroll": 2,
    "engines": 2,
    "averaging": 2.1,
    "update": 2.2,
    "online": 2.5,  # of unroll and update, under tbptt
    "tbptt": 3,
    "topologies": 3.2,  # of networks
    "decoding": 3,
    "fit": 3.2,  # by tbptt, into files of saving
    "forecast": 3.4,  # of topologies, trained by fit
    "testing": 3,
    "lm": 4,
    "analysis": 4,
    "interop": 4,
    "report": 4.2,  # of runs of lm, by analysis
    "saving": 3,
    "cli": 4.5,
    "__main__": 5,  # hands over to the command line, and nothing imports it
}
FACADE = 3.5  # rnnjax/__init__.py: gathers floors 0 to 3, and is seen from floor 4
OUTSIDE = {"benchmarks", "experiments", "tests"}
CORE = {"jax", "jaxlib", "optax", "flax", "chex", "numpy", "rnnjax"}
EXTRAS = {"torch"}  # not installed for every Python that the tests run on
MAX_LINES = 400


@dataclasses.dataclass(frozen=True)
class Import:
    target: str  # dotted and absolute
    line: int
    in_function: bool


def package_of(module: str, is_package: bool) -> str:
    return module if is_package else module.rpartition(".")[0]


def imports(source: str, package: str) -> Iterator[Import]:
    """All imports of a module in `package`; `from a import b` counts as `a.b`."""

    def visit(node: ast.AST, in_function: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, in_function)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node.lineno, in_function)
        inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    yield from visit(ast.parse(source), False)


def floor(name: str) -> float:
    """The floor of a module of rnnjax, or of a name imported from one."""
    part = name.split(".")[1] if "." in name else ""
    return FLOORS.get(part, FACADE)


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
    """One sentence for each import that the table of floors forbids."""
    package = package_of(module, is_package)
    here = floor(module)
    found = []
    for item in imports(source, package):
        where, top = f"{module}:{item.line}", item.target.split(".")[0]
        if top in OUTSIDE:
            found.append(f"{where}: imports {item.target}, which lies outside the package.")
        elif top == "rnnjax":
            there = floor(item.target)
            room = ".".join(package.split(".")[:2])  # a module may import what lies beside it in its room
            sideways = there == here and (item.target + ".").startswith(room + ".")
            if there >= here and not sideways:
                found.append(f"{where}: floor {here:g} imports {item.target} on floor {there:g}.")
        elif here < 4 and not item.in_function and top not in CORE | sys.stdlib_module_names:
            found.append(f"{where}: a core module imports {top} when it is imported.")
    return found


def all_modules() -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / "rnnjax").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = all_modules()
PUBLIC = [name for name in MODULES if not any(part.startswith("_") for part in name.split("."))]


@pytest.mark.parametrize(
    ("module", "source", "target"),
    [
        ("rnnjax.cell", "import rnnjax.cells", "rnnjax.cells"),
        ("rnnjax.cell", "from rnnjax import cells", "rnnjax.cells"),
        ("rnnjax.cell", "from .unroll import unroll", "rnnjax.unroll"),
        ("rnnjax.cells.lstm", "from ..unroll import unroll", "rnnjax.unroll"),
        ("rnnjax.cells.lstm", "from rnnjax import LSTM", "rnnjax.LSTM"),
        ("rnnjax.unroll", "def f():\n    import rnnjax.tbptt", "rnnjax.tbptt"),
        ("rnnjax.networks.stack", "from rnnjax.unroll import unroll", "rnnjax.unroll"),
        ("rnnjax.engines.scan", "from rnnjax.unroll import unroll", "rnnjax.unroll"),
        ("rnnjax.lm.train", "from rnnjax.analysis import lyapunov", "rnnjax.analysis"),
        ("rnnjax.interop.torch", "import rnnjax.lm.model", "rnnjax.lm"),
        ("rnnjax.networks", "import rnnjax", "floor 3.5"),
        ("rnnjax.networks", "from tests import cells_table", "outside the package"),
        ("rnnjax.cell", "import typer", "typer"),
        ("rnnjax.cells.lstm", "try:\n    import torch\nexcept ImportError:\n    pass", "torch"),
    ],
)
def test_forbidden_import_is_reported(module: str, source: str, target: str) -> None:
    (message,) = violations(module, source)
    assert message.startswith(f"{module}:") and target in message


@pytest.mark.parametrize(
    ("module", "is_package", "source"),
    [
        ("rnnjax.cell", False, "import jax.numpy as jnp\nfrom rnnjax.initializers import orthogonal"),
        ("rnnjax.cells", True, "from .lstm import LSTM\nfrom rnnjax.cells.gru import GRU"),
        ("rnnjax.cells.lstm", False, "from ..cell import affine_step\nfrom .gru import GRU"),
        ("rnnjax.unroll", False, "from rnnjax.engines import scan\nfrom rnnjax.networks import Stack"),
        ("rnnjax.tbptt", False, "from rnnjax import networks\nfrom rnnjax.unroll import unroll"),
        ("rnnjax.testing", False, "def f():\n    import torch"),
        ("rnnjax", True, "from rnnjax.cells import LSTM\nfrom .networks import Stack"),
        ("rnnjax.lm.train", False, "import typer\nimport rnnjax\nfrom rnnjax import GRU\nfrom . import text"),
    ],
)
def test_allowed_import_is_not_reported(module: str, is_package: bool, source: str) -> None:
    assert violations(module, source, is_package) == []


def test_modules_are_found() -> None:
    assert {"rnnjax", "rnnjax.cell", "rnnjax.cells", "rnnjax.unroll"} <= MODULES.keys()


@pytest.mark.parametrize("module", MODULES)
def test_module_keeps_to_its_floor(module: str) -> None:
    part = module.split(".")[1] if "." in module else None
    assert part is None or part in FLOORS, f"{module} has no floor: give it one in FLOORS and CONTRIBUTING.md"
    path = MODULES[module]
    found = violations(module, path.read_text(encoding="utf-8"), path.name == "__init__.py")
    assert not found, "\n".join(found)


def import_graph(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Who imports whom, also within functions and for the types alone."""
    graph = {}
    for module, path in modules.items():
        graph[module] = set()
        for item in imports(path.read_text(encoding="utf-8"), package_of(module, path.name == "__init__.py")):
            target = item.target
            while target and target not in modules:  # a name in a module, or in a package's __init__
                target = target.rpartition(".")[0]
            if target and target != module:
                graph[module].add(target)
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """What reaches itself, each circle once: the module where one begins, and those on the shortest way back."""
    found, seen = [], set()
    for start in sorted(graph):
        came_from: dict[str, str] = {}
        queue = [start]
        while queue and start not in came_from:
            here = queue.pop(0)
            for target in sorted(graph[here] - came_from.keys()):
                came_from[target] = here
                queue.append(target)
        if start in came_from and start not in seen:
            circle = [start]
            while came_from[circle[0]] != start:
                circle.insert(0, came_from[circle[0]])
            seen |= set(circle)
            found.append(circle)
    return found


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"a"}, "e": {"e2", "a"}, "e2": {"e"}}
    assert [set(circle) for circle in circles(graph)] == [{"a", "b", "d"}, {"e", "e2"}]


def test_types_alone_count_as_imports(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from x.b import B\n")
    (tmp_path / "b.py").write_text("def f():\n    import x.a\n")
    assert circles(import_graph({"x.a": tmp_path / "a.py", "x.b": tmp_path / "b.py"})) == [["x.b", "x.a"]]


def test_no_import_goes_in_a_circle() -> None:
    assert not circles(import_graph(MODULES))


@pytest.mark.parametrize("module", MODULES)
def test_file_is_short(module: str) -> None:
    lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{module} has {lines} lines, the limit is {MAX_LINES}: make it a folder"


@pytest.mark.quick
@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_exist(module: str) -> None:
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        pytest.skip(f"{error.name} is not installed")
    names = getattr(loaded, "__all__", None)
    assert names is not None, f"{module} has no __all__"
    assert len(set(names)) == len(names), f"{module}.__all__ lists a name twice"
    assert not [name for name in names if not hasattr(loaded, name)], f"{module}.__all__ lists missing names"


def undocumented(module: object, names: list[str]) -> list[str]:
    """Classes and functions without a docstring of their own; dataclasses and tuples generate a signature."""
    found = []
    for name in names:
        value = getattr(module, name)
        text = (getattr(value, "__doc__", None) or "").strip() if callable(value) else "not callable"
        if not text or text.startswith(f"{name}("):
            found.append(name)
    return found


def test_undocumented_is_reported() -> None:
    @dataclasses.dataclass
    class Bare:
        size: int

    @dataclasses.dataclass
    class Documented:
        """Text."""

        size: int

    names = {"Bare": Bare, "Documented": Documented, "function": lambda: None, "LIMIT": 3}
    module = type("Module", (), names)
    assert undocumented(module, list(names)) == ["Bare", "function"]


def test_public_api_is_documented() -> None:
    rnnjax = importlib.import_module("rnnjax")
    missing = undocumented(rnnjax, rnnjax.__all__)
    assert not missing, f"rnnjax exports names without a docstring: {', '.join(missing)}"
