"""rnnjax itself: `rnnjax.unroll` with one of its implementations, and one `step` for the latency."""

from typing import Any

import jax

import rnnjax
from benchmarks.contestants.base import Contestant, JaxContestant, Problem, Skip
from rnnjax.engines import choose
from rnnjax.engines.choice import make_job

__all__ = ["default_implementation", "implementation_names", "make", "make_step"]


def default_implementation(problem: Problem) -> str:
    """The one that ``implementation=None`` takes here."""
    return choose(make_job(problem.cell, problem.params, problem.state, problem.xs)).name


def implementation_names(problem: Problem, wanted: list[str]) -> list[str]:
    """Names for ``default``, ``all`` or names; the default one comes first.

    ``all`` is without "newton", whose time depends on the parameters: name it.
    """
    known = [name for name in rnnjax.implementations(problem.cell) if name != "newton"]
    first = default_implementation(problem)
    names: list[str] = []
    for name in wanted:
        names += {"default": [first], "all": [first, *known]}.get(name, [name])
    return list(dict.fromkeys(names))


def make(problem: Problem, implementation: str) -> Contestant:
    """`rnnjax.unroll` with this implementation."""
    cell = problem.cell
    known = rnnjax.implementations(cell)
    if implementation not in known:
        raise Skip(f"{type(cell).__name__} has no implementation of this name here, only {', '.join(known)}")
    if implementation == "cudnn" and problem.dtype not in ("float32", "tf32"):
        raise Skip("'cudnn' has float32 and TF32 only")

    named = None if implementation == default_implementation(problem) else implementation  # only None splits a batch

    def apply(params: Any, state: Any, xs: Any) -> tuple[Any, Any]:
        final, ys = rnnjax.unroll(cell, params, state, xs, implementation=named)
        return ys, final

    return _contestant(f"rnnjax {implementation}", f"rnnjax.unroll, {implementation!r}", apply, problem)


def make_step(problem: Problem) -> Contestant:
    """One ``cell.step``, for xs with T = 1."""

    def apply(params: Any, state: Any, xs: Any) -> tuple[Any, Any]:
        final, y = problem.cell.step(params, state, xs[0])
        return y[None], final

    return _contestant("rnnjax step", "cell.step", apply, problem)


def _contestant(name, detail, apply, problem):
    return JaxContestant(
        name,
        None,
        detail,
        apply,
        problem.params,
        problem.state,
        problem.xs,
        ours=by_name,
        h_of=lambda final: getattr(final, "h", jax.tree.leaves(final)[0]),
    )


def by_name(params: Any) -> dict[str, Any]:
    """Parameters by their paths: ``w_ih``, or ``layers/0/w_ih``."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
