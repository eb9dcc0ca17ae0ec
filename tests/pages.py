"""Runs the code of a page, block after block, in a process of its own that has imported nothing of the library."""

from __future__ import annotations

import re
from pathlib import Path

from tests.processes import ROOT, run_program

__all__ = ["ROOT", "blocks", "of_cells", "run_fresh"]

# The laws that a cell can break, see tests/test_laws.py.
LAWS = ("values", "loop", "valid", "padding", "resets", "dtypes", "batch_axes", "derivative")


def blocks(page: str) -> list[str]:
    """The Python code of a page, given by its path within the project."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)


def of_cells(code: str) -> str:
    """Code of a page whose cells are tried on these laws alone; those of engines hold for one cell as for another."""
    return re.sub(r"(check_laws\(.*input_size=\d+)\)", rf"\1, laws={LAWS})", code)


def run_fresh(page: str, before: dict[str, str] | None = None, after: str = "", cwd: Path = ROOT) -> str:
    """Runs all blocks of a page in order and fails as they do; returns what they print.

    Args:
        page: path within the project.
        before: code that gives what a block takes for granted, by a piece of that block; it sees earlier blocks.
        after: code that looks at what the blocks leave.
        cwd: where it runs.
    """
    code, before = [], dict(before or {})
    for number, block in enumerate(blocks(page), 1):
        code += [(f"before block {number}", before.pop(key)) for key in [k for k in before if k in block]]
        code.append((f"{page}, block {number}", of_cells(block)))
    assert not before, f"no block of {page} has {list(before)}"
    code.append((f"after {page}", after))
    return run_program(code, cwd=cwd)
