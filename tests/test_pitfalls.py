"""Every mistake listed in docs/pitfalls.md is kept out by tests that exist."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PAGE = (TESTS.parent / "docs" / "pitfalls.md").read_text(encoding="utf-8")


def test_every_pitfall_has_tests_that_exist():
    rows = re.findall(r"^\| (\d+) \|.*\| (.*?) \|$", PAGE, re.M)
    assert [int(number) for number, _ in rows] == list(range(1, 21))
    for number, cell in rows:
        named = re.findall(r"`(\S+?)::(\w+)`", cell)
        assert named, f"pitfall {number} names no test"
        for file, function in named:
            tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
            functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            assert function in functions, f"pitfall {number}: {file} has no {function}"
