"""Tests for authors of cells and of implementations: `check_laws`, and the problems that it is made of."""

from rnnjax.testing.contract import check_cell
from rnnjax.testing.laws import LAWS, Case, Law, check_laws
from rnnjax.testing.problems import (
    Outcome,
    Problem,
    assert_close,
    fast_jit,
    forward,
    loop,
    loop_with_gradients,
    loss_of,
    make_problem,
    plain,
    unroll_problem,
    with_gradients,
)

__all__ = [
    "LAWS",
    "Case",
    "Law",
    "Outcome",
    "Problem",
    "assert_close",
    "check_cell",
    "check_laws",
    "fast_jit",
    "forward",
    "loop",
    "loop_with_gradients",
    "loss_of",
    "make_problem",
    "plain",
    "unroll_problem",
    "with_gradients",
]
