"""Runs every doctest of the package.

Not by pytest's own collector: it imports each file anew, and `rnnjax.unroll` would turn from function to module.
"""

import doctest
import importlib
import pkgutil

import pytest

import rnnjax

MODULES = ["rnnjax", *(m.name for m in pkgutil.walk_packages(rnnjax.__path__, "rnnjax."))]


@pytest.mark.quick
@pytest.mark.parametrize("name", MODULES)
def test_doctests_hold(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert result.failed == 0


def test_there_are_doctests():
    finder = doctest.DocTestFinder(exclude_empty=True)
    examples = [t for name in MODULES for t in finder.find(importlib.import_module(name)) if t.examples]
    assert len(examples) > 10
