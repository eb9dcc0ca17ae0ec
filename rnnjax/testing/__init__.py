"""Tests for authors of cells and of implementations: `check_laws`, and the problems that it is made of."""

from rnnjax.testing.contract import check_cell
from rnnjax.testing.laws import LAWS, check_laws
from rnnjax.testing.problems import assert_close, make_problem

__all__ = [
    "LAWS",
    "assert_close",
    "check_cell",
    "check_laws",
    "make_problem",
]
