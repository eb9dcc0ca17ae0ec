"""The laws that every cell obeys in every implementation, and `check_laws`, which tries them all on yours."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cell import check_size, describe, param_shapes
from rnnjax.checks import did_you_mean
from rnnjax.engines import implementations as implementations_of
from rnnjax.engines.choice import UnfitError, registered
from rnnjax.network import start_state
from rnnjax.promotion import as_wide
from rnnjax.testing.contract import check_cell
from rnnjax.testing.meshes import shard_map, sharded
from rnnjax.testing.problems import (
    Case,
    Outcome,
    Problem,
    assert_close,
    fast_jit,
    forward,
    loop_with_gradients,
    loss_of,
    make_problem,
    plain,
    unroll_problem,
    with_gradients,
    without_float0,
)

__all__ = ["LAWS", "Case", "Law", "check_laws"]

TIME = 8  # as `make_problem` has it, so that who tries more on a cell finds the programs compiled


class Law(NamedTuple):
    """A law.

    Attributes:
        says: the law in words, as the end of "... must hold".
        check: raises an `AssertionError` where it does not.
        of_cell: whether it speaks of the cell alone, whatever the implementation.
        by_step: whether it is about going step by step, which a network that needs the future does not.
    """

    says: str
    check: Callable[[Case], None]
    of_cell: bool = False
    by_step: bool = False


def check_laws(
    cell: Any,
    input_size: int = 3,
    *,
    implementations: Sequence[str] | None = None,
    laws: Sequence[str] | None = None,
) -> None:
    r"""Tries every law of `LAWS` on a cell, in float64, on small random problems; returns None if all hold.

    `rnnjax.check_cell` looks at the contract of one step, and of a network. This goes on to sequences: lengths, resets,
    reverse, chunks, padding full of NaN, batch axes, gradients against finite differences, every dtype, and every
    implementation that takes the cell. It needs some seconds a cell, so it fits into a test:

        def test_my_cell():
            rnnjax.testing.check_laws(MyCell(5), input_size=3)

    An implementation that answers that it does not fit what a law asks for breaks no law.

    Args:
        cell: an instance of the cell; a small size is as telling as a large one.
        input_size: I.
        implementations: names; None means all that ``rnnjax.implementations(cell)`` lists but ``"newton"``, which
            iterates and keeps no law to the bit.
        laws: names from `LAWS`; None means all.

    Raises:
        AssertionError: in one sentence, which law fails with which implementation, and where.
        TypeError: as `check_cell` does.
        ValueError: as `check_cell` does, or for an unknown law or implementation.

    >>> import rnnjax.testing
    >>> rnnjax.testing.check_laws(rnnjax.Elman(4), laws=("loop", "chunks"), implementations=("scan",))
    """
    check_size("check_laws", "input_size", input_size)
    if isinstance(cell, type) or not callable(getattr(cell, "init", None)):
        raise TypeError(f"check_laws: cell must be a cell or a network, an instance, got {describe(cell)}.")
    names = tuple(LAWS) if laws is None else tuple(laws)
    for name in names:
        if name not in LAWS:
            guess = did_you_mean(name, LAWS) or ";"
            raise ValueError(f"check_laws: there is no law {name!r}{guess} the laws are {', '.join(LAWS)}.")
    _check_cell(cell, input_size)
    able = implementations_of(cell)
    for implementation in able if implementations is None else implementations:
        if implementation not in able:
            raise ValueError(
                f"check_laws: no {implementation!r} implementation for {type(cell).__name__}; "
                f"available: {', '.join(able)}."
            )
    iterative = {entry.name for entry in registered().entries if entry.iterative}
    chosen = tuple([name for name in able if name not in iterative] if implementations is None else implementations)
    with jax.enable_x64(True):
        problem = make_problem(cell, input_size, seq_len=TIME)
        for name in names:
            if LAWS[name].by_step and not hasattr(cell, "step"):
                continue
            for implementation in chosen[:1] if LAWS[name].of_cell else chosen:
                try:
                    LAWS[name].check(Case(cell, input_size, implementation, problem))
                except UnfitError as refused:
                    # Its right: one that is not for every case ("cudnn" has no resets) says so.
                    if refused.engine != implementation:
                        raise
                except AssertionError as error:
                    how = "" if LAWS[name].of_cell else f" with implementation {implementation!r}"
                    raise AssertionError(
                        f"check_laws: {type(cell).__name__} breaks the law {name!r}{how}: {LAWS[name].says}, "
                        f"but {error}."
                    ) from error


def _check_cell(cell: Any, input_size: int) -> None:
    """`check_cell`, but not again for a cell that has just passed it."""
    try:
        hash(cell)
    except TypeError:
        check_cell(cell, input_size)  # says so in a sentence
    else:
        _check_value(cell, input_size)


_check_value = functools.lru_cache(maxsize=1)(check_cell)


@functools.lru_cache(maxsize=2)  # every implementation of a cell asks for it
def _answer(cell: Any, input_size: int, gaps: bool) -> Outcome:
    problem = make_problem(cell, input_size, seq_len=TIME)
    problem = _with_gaps(problem) if gaps else problem
    if not hasattr(cell, "step"):  # the reference of its cells
        return with_gradients(cell, "scan", reverse=gaps)(problem)
    return loop_with_gradients(cell, problem, reverse=gaps)


def _loop(case: Case) -> None:
    got = with_gradients(case.cell, case.implementation)(case.problem)
    assert_close(got, _answer(case.cell, case.input_size, False))


def _with_gaps(problem: Problem) -> Problem:
    """Every other row is padded on the left, and all have a gap in the middle, beside the lengths."""
    valid = np.ones(problem.resets.shape, bool)
    valid[0, 1::2] = False
    valid[TIME // 2] = False
    return problem._replace(valid=valid)


def _valid(case: Case) -> None:
    _poison(case, _with_gaps(case.problem), _answer(case.cell, case.input_size, True))


def _poison(case: Case, problem: Problem | None = None, answer: Outcome | None = None) -> None:
    """What stands in the padding changes nothing, to the bit, and what comes from it is zero; then the answer."""
    problem = case.problem if problem is None else problem
    padding = np.arange(TIME)[:, None] >= np.asarray(problem.lengths)
    if problem.valid is not None:
        padding |= ~problem.valid
    xs: Any = np.where(as_wide(padding, problem.xs.ndim), np.nan, problem.xs)
    run = with_gradients(case.cell, case.implementation, reverse=answer is not None)
    clean = run(problem)
    assert_close(run(problem._replace(xs=xs, resets=problem.resets | padding)), clean, 0)
    if np.asarray(clean.ys)[padding].any() or np.asarray(clean.gradients[2])[padding].any():
        raise AssertionError("an output or a gradient of the padding is not zero")
    if answer is not None:
        assert_close(clean, answer)


def _scan_by_hand(case: Case) -> None:
    want = fast_jit(lambda p: jax.lax.scan(functools.partial(case.cell.step, p.params), p.state, p.xs))
    assert_close(forward(case.cell, case.implementation)(plain(case.problem)), want(plain(case.problem)))


def _part(problem: Problem, start: int, stop: int, state: Any) -> Problem:
    lengths = np.clip(np.asarray(problem.lengths) - start, 0, stop - start)
    arrays: Any = (np.asarray(problem.xs)[start:stop], lengths, np.asarray(problem.resets)[start:stop])
    return Problem(problem.params, state, *arrays)


def _chunks(case: Case) -> None:
    run = forward(case.cell, case.implementation)
    whole = run(case.problem)
    for bounds in ((0, 0, TIME), (0, TIME // 2, TIME), range(TIME + 1)):
        state, pieces = case.problem.state, []
        for start, stop in itertools.pairwise(bounds):
            state, ys = run(_part(case.problem, start, stop, state))
            pieces.append(ys)
        assert_close((state, np.concatenate(pieces)), whole)


def _resets(case: Case) -> None:
    at = TIME // 2
    xs: Any = np.array(case.problem.xs)
    xs[at - 1] = np.nan
    resets = np.zeros_like(case.problem.resets)
    resets[at] = True
    problem = case.problem._replace(lengths=np.full_like(case.problem.lengths, TIME), resets=resets)
    run = with_gradients(case.cell, case.implementation)
    got, want = run(problem._replace(xs=xs)), run(problem)
    assert_close((got.state, got.ys[at:]), (want.state, want.ys[at:]), 0)


def _dtypes(case: Case) -> None:
    import chex  # not at the top: who only runs a network need not wait for it

    cell, shapes = case.cell, jax.eval_shape(lambda: case.problem)
    batch = shapes.lengths.shape
    for params_dtype, dtype in (("float32",) * 2, ("bfloat16",) * 2, ("bfloat16", "float32"), ("float64",) * 2):
        params = param_shapes(cell, case.input_size, jnp.dtype(params_dtype))
        problem = shapes._replace(
            params=params,
            state=jax.eval_shape(lambda p, d=dtype: start_state(cell, p, batch, jnp.dtype(d)), params),
            xs=jax.ShapeDtypeStruct(shapes.xs.shape, jnp.dtype(dtype)),
        )
        got = jax.eval_shape(with_gradients(cell, case.implementation), problem)
        want = Outcome(problem.state, got.ys, tuple(problem[:3]))
        chex.assert_trees_all_equal_shapes_and_dtypes(got, want)
        if got.ys.dtype != jnp.dtype(dtype):
            raise AssertionError(f"ys is {got.ys.dtype} for a state of {dtype}")


def _batch_axes(case: Case) -> None:
    run = forward(case.cell, case.implementation)
    first = case.problem
    second = make_problem(case.cell, case.input_size, seq_len=TIME, seed=1)._replace(params=first.params)
    wants = [run(first), run(second)]

    def stacked(axis: int, *trees: Any) -> Any:
        return jax.tree.map(lambda *leaves: np.stack(leaves, axis), *trees)

    both = Problem(first.params, *(stacked(i, *pair) for i, *pair in zip((0, 1, 0, 1), first[1:], second[1:])))
    assert_close(run(both), tuple(stacked(i, *pair) for i, *pair in zip((0, 1), *wants)))

    def row(tree: Any, axis: int) -> Any:
        return jax.tree.map(lambda leaf: np.take(np.asarray(leaf), 1, axis), tree)

    one = Problem(first.params, *(row(part, i) for part, i in zip(first[1:5], (0, 1, 0, 1), strict=True)))
    assert_close(run(one), tuple(row(part, i) for part, i in zip(wants[0], (0, 1), strict=True)))


def _vmap(case: Case) -> None:
    axes: Any = (None, 0, 1, 0, 1)
    mapped = jax.vmap(
        functools.partial(unroll_problem, case.cell, case.implementation), in_axes=(Problem(*axes),), out_axes=(0, 1)
    )
    want = forward(case.cell, case.implementation)(case.problem)
    assert_close(fast_jit(mapped)(case.problem), want)


def _causality(case: Case) -> None:
    problem, at = plain(case.problem), TIME // 2
    xs: Any = np.array(problem.xs)
    xs[at] += 1.0
    moved = problem._replace(xs=xs)
    for reverse in (False, True):
        run = forward(case.cell, case.implementation, reverse)
        differs = np.asarray(run(problem)[1]) != np.asarray(run(moved)[1])
        changed: Any = differs.reshape(TIME, -1).any(axis=1)
        past = np.arange(TIME) > at if reverse else np.arange(TIME) < at
        if changed[past].any():
            raise AssertionError(f"an output of step {np.flatnonzero(changed & past)[0]} sees the input of step {at}")
        if not changed[at]:
            raise AssertionError(f"the output of step {at} does not see its input")


def _jit(case: Case) -> None:
    problem = jax.tree.map(jnp.asarray, _part(case.problem, 0, TIME // 2, case.problem.state))
    with jax.disable_jit():
        eager = unroll_problem(case.cell, case.implementation, problem)
    assert_close(eager, forward(case.cell, case.implementation)(problem))


def _values(case: Case) -> None:
    cell = case.cell
    for twin in (copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))):
        if twin is cell or twin != cell or hash(twin) != hash(cell):
            raise AssertionError("a copy is another value")
    if repr(copy.deepcopy(cell)) != repr(cell) or " at 0x" in repr(cell):
        raise AssertionError(f"its repr, {cell!r}, does not describe it")
    twin = pickle.loads(pickle.dumps(case.problem))
    assert_close(twin, case.problem, 0)
    for path, _ in jax.tree_util.tree_leaves_with_path((case.problem.params, case.problem.state)):
        if len(path) > 1 and not isinstance(path[1], jax.tree_util.GetAttrKey | jax.tree_util.DictKey):
            raise AssertionError(f"the leaf {jax.tree_util.keystr(path[1:])} has no name; use a NamedTuple")


def _derivative(case: Case) -> None:
    along = tuple(make_problem(case.cell, case.input_size, seq_len=TIME, seed=1)[:3])
    run = with_gradients(case.cell, case.implementation)

    def value(step: float) -> float:
        params, state, xs = _moved(case.problem[:3], along, step)
        state, ys, _ = run(case.problem._replace(params=params, state=state, xs=xs))
        return float(_loss(state, ys))

    eps = 1e-5
    slope = _dot(run(case.problem).gradients, along)
    measured = (value(eps) - value(-eps)) / (2 * eps)
    if not np.isclose(slope, measured, rtol=1e-5, atol=1e-6):
        raise AssertionError(f"the derivative along a direction is {slope:.8g}, and {measured:.8g} by differences")


_loss = jax.jit(loss_of)


def _moved(point: Any, along: Any, step: float) -> Any:
    """Integers, as a counter in a state, stay where they are."""
    return jax.tree.map(lambda a, d: a if a.dtype.kind in "iub" else np.asarray(a) + step * np.asarray(d), point, along)


def _dot(a: Any, b: Any) -> float:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum(float(np.vdot(x, y)) for x, y in pairs)


def _second_derivative(case: Case) -> None:
    if case.implementation == "scan" and len(implementations_of(case.cell)) > 1:
        return  # JAX's own derivative of the cell, which the others have to take too
    length = 3
    problem = make_problem(case.cell, case.input_size, seq_len=length)
    u, v = (tuple(make_problem(case.cell, case.input_size, seq_len=length, seed=seed)[:3]) for seed in (1, 2))

    def loss(point: Any) -> jax.Array:
        params, state, xs = point
        here = Problem(params, state, xs, None, problem.resets)
        return loss_of(*unroll_problem(case.cell, case.implementation, here))

    @fast_jit
    def slopes(point: Any) -> tuple[jax.Array, Any]:
        def slope(point: Any) -> jax.Array:
            first = without_float0(jax.grad(loss, allow_int=True)(point), point)
            return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, first, v)), jnp.zeros(()))

        value, second = jax.value_and_grad(slope, allow_int=True)(point)
        return value, without_float0(second, point)

    eps, point = 1e-5, tuple(problem[:3])
    above, below = (slopes(_moved(point, u, step))[0] for step in (eps, -eps))
    got, measured = _dot(slopes(point)[1], u), float(above - below) / (2 * eps)
    if not np.isclose(got, measured, rtol=1e-4, atol=1e-5):
        raise AssertionError(f"along two directions it is {got:.8g}, and {measured:.8g} by differences")


def _remat(case: Case) -> None:
    want = with_gradients(case.cell, case.implementation)(case.problem)
    assert_close(with_gradients(case.cell, case.implementation, remat=True)(case.problem), want)


LAWS: dict[str, Law] = {
    "values": Law("a cell and its arrays are values that can be compared, copied and pickled", _values, True),
    "loop": Law("unroll and its gradients equal a Python loop over step, row by row", _loop),
    "valid": Law(
        "in reverse, under a mask with gaps, it equals a loop over the valid steps, whatever stands there", _valid
    ),
    "scan": Law("unroll equals lax.scan over step, written by hand", _scan_by_hand, by_step=True),
    "chunks": Law("chunks of any length with the state carried over equal one unroll", _chunks, by_step=True),
    "padding": Law("inputs and resets in the padding reach no output, no final state and no gradient", _poison),
    "resets": Law("a reset forgets everything before it, also what is not finite", _resets, by_step=True),
    "dtypes": Law("state, outputs and gradients keep their shapes and dtypes", _dtypes),
    "batch_axes": Law("any number of batch axes gives the same numbers", _batch_axes),
    "vmap": Law("a batch equals vmap over its examples", _vmap),
    "causality": Law("no output depends on a later input, and each depends on its own", _causality, by_step=True),
    "jit": Law("compiling changes no number", _jit),
    "derivative": Law("the gradient equals finite differences", _derivative),
    "second_derivative": Law("the second derivative equals finite differences of the first", _second_derivative),
    "remat": Law("checkpointing through time changes no number", _remat),
    "sharded": Law("a batch that lies on several devices gives the same numbers, and lies there still", sharded),
    "shard_map": Law("within jax.shard_map each device computes its examples, and gradients are summed", shard_map),
}
