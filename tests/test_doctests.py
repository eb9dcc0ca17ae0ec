"""Runs every doctest of the package.

Not by pytest's own collector: it imports each file anew, and `rnnjax.unroll` would turn from function to module.
"""

import doctest
import importlib
import pkgutil

import pytest

import rnnjax

MODULES = ["rnnjax", *(m.name for m in pkgutil.walk_packages(rnnjax.__path__, "rnnjax."))]
# What cannot be imported without a framework that is not installed for every Python.
NEEDS = {"rnnjax.interop._haiku_modules": "haiku", "rnnjax.interop._equinox_modules": "equinox"}


@pytest.mark.quick
@pytest.mark.parametrize("name", MODULES)
def test_doctests_hold(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{NEEDS[name]} is not installed on this Python")
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert result.failed == 0


def test_there_are_doctests():
    finder = doctest.DocTestFinder(exclude_empty=True)
    names = [name for name in MODULES if name not in NEEDS]
    examples = [t for name in names for t in finder.find(importlib.import_module(name)) if t.examples]
    assert len(examples) > 10
