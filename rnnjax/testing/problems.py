"""Random problems for `unroll`, a loop that answers them word for word, and comparison of answers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cell import param_shapes
from rnnjax.checks import check_dtype, check_size, describe
from rnnjax.kinds import public
from rnnjax.network import Network, input_shape, network_step, start_state
from rnnjax.promotion import compute_dtype
from rnnjax.unroll import unroll

__all__ = [
    "Case",
    "Outcome",
    "Problem",
    "assert_close",
    "fast_jit",
    "forward",
    "loop",
    "loop_with_gradients",
    "loss_of",
    "make_problem",
    "plain",
    "unroll_problem",
    "with_gradients",
    "without_float0",
]


class Problem(NamedTuple):
    """An argument each for `unroll`: random parameters and inputs, and the state after a random step."""

    params: Any
    state: Any
    xs: jax.Array
    lengths: Any  # int [*batch] or None
    resets: Any  # bool [T, *batch] or None
    valid: Any = None  # bool [T, *batch] or None


class Case(NamedTuple):
    """What a law is tried on."""

    cell: Any
    input_size: int
    implementation: str
    problem: Problem  # float64, with lengths and resets


class Outcome(NamedTuple):
    """What every implementation must agree on."""

    state: Any
    ys: jax.Array
    gradients: tuple[Any, Any, jax.Array]  # of params, state and xs


@public
def make_problem(
    cell: Any,
    input_size: int = 3,
    batch: tuple[int, ...] = (3,),
    seq_len: int = 8,
    dtype: Any = None,
    state_dtype: Any = None,
    seed: int = 0,
) -> Problem:
    """A random problem, in which one row of the batch is full, one empty, and others end somewhere between.

    Args:
        cell: the cell.
        input_size: I.
        batch: the batch axes.
        seq_len: T.
        dtype: of the parameters; None is the widest that is enabled.
        state_dtype: of state and inputs; None is ``dtype``.
        seed: of all numbers.
    """
    for name, given in (("dtype", dtype), ("state_dtype", state_dtype)):
        if given is not None:
            check_dtype("make_problem", given, name)
    batch = tuple(check_size("make_problem", "every size of batch", size, least=0) for size in batch)
    seq_len = check_size("make_problem", "seq_len", seq_len, least=0)
    check_size("make_problem", "seed", seed, least=0)
    rng = np.random.default_rng(seed)
    dtype = dtype or jnp.zeros(()).dtype
    state_dtype = state_dtype or dtype

    def fill(leaf: Any, scale: float) -> jax.Array:
        return jnp.asarray(rng.normal(0, scale, leaf.shape), leaf.dtype)

    params = jax.tree.map(lambda leaf: fill(leaf, 0.5), param_shapes(cell, input_size, jnp.dtype(dtype)))
    x = jnp.asarray(rng.normal(0, 1, (*batch, *input_shape(cell, input_size))), state_dtype)
    # One step from the start, since not every array is a state: a normaliser, for one, is positive.
    state, _ = _compiled_step(cell)[0](params, start_state(cell, params, batch, state_dtype), x)
    lengths = rng.integers(1, seq_len, batch) if seq_len > 1 else rng.integers(0, seq_len + 1, batch)
    if batch:  # every kind of length: none, some and all
        lengths[(0,) * len(batch)], lengths[(-1,) * len(batch)] = seq_len, 0
    return Problem(
        params=params,
        state=state,
        xs=jnp.asarray(rng.normal(0, 1, (seq_len, *batch, *input_shape(cell, input_size))), state_dtype),
        lengths=jnp.asarray(lengths, jnp.int32),
        resets=jnp.asarray(rng.random((seq_len, *batch)) < 0.3, bool),
    )


def plain(problem: Problem) -> Problem:
    """The same problem without lengths, masks and resets."""
    return problem._replace(lengths=None, resets=None, valid=None)


def loss_of(state: Any, ys: jax.Array) -> jax.Array:
    """A loss in which every number of the final state and of the outputs has a weight of its own."""
    total = jnp.zeros((), compute_dtype(ys.dtype))
    for leaf in [ys, *jax.tree.leaves(state)]:
        weights = jnp.cos(jnp.arange(leaf.size, dtype=total.dtype)).reshape(leaf.shape)
        total += jnp.sum(weights * leaf.astype(total.dtype))
    return total


def fast_jit(function: Callable[..., Any], **options: Any) -> Any:
    """`jax.jit` without optimisation, which compiles several times faster; do not differentiate it from outside."""
    return jax.jit(function, compiler_options=_unoptimised(), **options)


@functools.cache
def _unoptimised() -> dict[str, Any]:
    found: dict[str, Any] = {"xla_backend_optimization_level": 0}
    if jax.default_backend() == "cpu":
        options: tuple[dict[str, Any], ...] = (
            {"xla_cpu_parallel_codegen_split_count": 1},
            {"xla_cpu_use_fusion_emitters": False},
        )
        for option in options:
            try:
                jax.jit(lambda x: x, compiler_options=found | option).lower(0.0).compile()
            except jax.errors.JaxRuntimeError:  # an option that this version of XLA does not know
                continue
            found |= option
    return found


def unroll_problem(
    cell: Any, implementation: str | None, problem: Problem, reverse: bool = False, remat: Any = None
) -> tuple[Any, jax.Array]:
    """`rnnjax.unroll` of a problem."""
    options = {"reverse": reverse, "implementation": implementation, "remat": remat}
    return unroll(cell, **problem._asdict(), **options)


def forward(cell: Any, implementation: str | None, reverse: bool = False, remat: Any = None) -> Callable[..., Any]:
    """A compiled `unroll`, as a function of a `Problem`."""
    return _forward(cell, implementation, reverse, remat)


@functools.lru_cache(maxsize=32)  # which takes an argument that is left out for another one than its default
def _forward(cell: Any, implementation: str | None, reverse: bool, remat: Any) -> Callable[..., Any]:
    return fast_jit(lambda problem: unroll_problem(cell, implementation, problem, reverse, remat))


def with_gradients(
    cell: Any, implementation: str | None, reverse: bool = False, remat: Any = None
) -> Callable[[Problem], Outcome]:
    """A compiled `unroll` with its gradients, as a function from a `Problem` to an `Outcome`."""
    return _with_gradients(cell, implementation, reverse, remat)


@functools.lru_cache(maxsize=32)
def _with_gradients(cell: Any, implementation: str | None, reverse: bool, remat: Any) -> Callable[[Problem], Outcome]:
    def loss(differentiable: Any, problem: Problem) -> Any:
        params, state, xs = differentiable
        arguments = Problem(params, state, xs, *problem[3:])
        state, ys = unroll_problem(cell, implementation, arguments, reverse, remat)
        return loss_of(state, ys), (state, ys)

    def outcome(problem: Problem) -> Outcome:
        point = tuple(problem[:3])
        gradients, (state, ys) = jax.grad(loss, has_aux=True, allow_int=True)(point, problem)
        return Outcome(state, ys, without_float0(gradients, point))

    return fast_jit(outcome)


def loop(cell: Any, problem: Problem, reverse: bool = False) -> tuple[Any, jax.Array]:
    """`unroll` as the words of its documentation: row by row and step by step, without a mask anywhere."""
    return loop_with_gradients(cell, problem, reverse, gradients=False)[:2]


def loop_with_gradients(cell: Any, problem: Problem, reverse: bool = False, gradients: bool = True) -> Outcome:
    """`loop`, and backpropagation through time written out: from the last step to the first, a pullback each."""
    params, state, xs, lengths, resets, valid = jax.tree.map(np.asarray, problem)
    step, pullback = _compiled_step(cell)
    start, start_pullback = jax.vjp(lambda p: start_state(cell, p, (), xs.dtype), problem.params)
    start = jax.tree.map(np.asarray, start)
    leaves = jax.tree.leaves(state)
    batch = leaves[0].shape[: leaves[0].ndim - jax.tree.leaves(start)[0].ndim]
    x = jax.ShapeDtypeStruct(xs.shape[1 + len(batch) :], xs.dtype)
    features = jax.eval_shape(step, params, start, x)[1]
    ys = np.zeros((*xs.shape[: 1 + len(batch)], *features.shape), xs.dtype)
    final = jax.tree.map(np.copy, state)
    steps: dict[tuple[int, ...], list[Any]] = {index: [] for index in np.ndindex(batch)}
    for index, done in steps.items():
        length = xs.shape[0] if lengths is None else int(lengths[index])
        single = _at(state, index)
        for t in reversed(range(length)) if reverse else range(length):
            if valid is not None and not valid[(t, *index)]:
                continue
            restart = resets is not None and bool(resets[(t, *index)])
            single = start if restart else single
            done.append((t, single, restart))
            single, ys[(t, *index)] = step(params, single, xs[(t, *index)])
        _put(final, index, single)
    if not gradients:
        return Outcome(_arrays(final), _arrays(ys), ((), (), xs))

    d_final, d_ys = jax.tree.map(np.asarray, _loss_gradient(final, ys))
    d_params = jax.tree.map(np.zeros_like, params)
    d_state, d_xs = jax.tree.map(np.zeros_like, state), np.zeros_like(xs)
    for index, done in steps.items():
        back = _at(d_final, index)
        for t, single, restart in reversed(done):
            d_here, back, d_xs[(t, *index)] = pullback(params, single, xs[(t, *index)], back, d_ys[(t, *index)])
            d_params = jax.tree.map(lambda total, d: total + np.asarray(d), d_params, d_here)
            if restart:
                (d_here,) = start_pullback(_cotangent(start, _arrays(back)))
                d_params = jax.tree.map(lambda total, d: total + np.asarray(d), d_params, d_here)
                back = jax.tree.map(np.zeros_like, back)
        _put(d_state, index, back)
    return Outcome(_arrays(final), _arrays(ys), _arrays((d_params, d_state, d_xs)))


_arrays = jax.device_put  # of NumPy's; jnp.asarray compiles a program for every shape


def without_float0(gradients: Any, point: Any) -> Any:
    """Zeros in place of the derivatives by integers, as by a counter in a state, which have a dtype of their own."""
    return jax.tree.map(lambda d, a: jnp.zeros_like(a) if d.dtype == jax.dtypes.float0 else d, gradients, point)


@jax.jit
def _loss_gradient(state: Any, ys: jax.Array) -> Any:
    return without_float0(jax.grad(loss_of, argnums=(0, 1), allow_int=True)(state, ys), (state, ys))


@functools.lru_cache(maxsize=32)
def _compiled_step(cell: Any) -> tuple[Any, Any]:
    one = functools.partial(network_step, cell) if isinstance(cell, Network) else cell.step

    def pullback(params: Any, state: Any, x: Any, d_state: Any, d_y: Any) -> Any:
        point = (params, state, x)
        (new, _), pull = jax.vjp(one, *point)
        return without_float0(pull((_cotangent(new, d_state), d_y)), point)

    return fast_jit(one), fast_jit(pullback)


def _cotangent(of: Any, d: Any) -> Any:
    """What `jax.vjp` takes for an output: of integers no numbers."""
    real = (jnp.floating, jnp.complexfloating)
    return jax.tree.map(
        lambda a, d: d if any(jnp.issubdtype(a.dtype, kind) for kind in real) else np.zeros(a.shape, jax.dtypes.float0),
        of,
        d,
    )


def _at(tree: Any, index: tuple[int, ...]) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _put(tree: Any, index: tuple[int, ...], single: Any) -> None:
    for leaf, value in zip(jax.tree.leaves(tree), jax.tree.leaves(single), strict=True):
        leaf[index] = value


def assert_close(got: Any, want: Any, tolerance: float = 1e-10) -> None:
    """Same structure, shapes and dtypes, and values that differ by no more than the tolerance, scaled by size.

    Raises:
        AssertionError: with the first leaf that disagrees.
        TypeError: for a leaf that is no array of numbers.
    """
    for name, tree in (("got", got), ("want", want)):
        for leaf in jax.tree.leaves(tree):
            if getattr(getattr(leaf, "dtype", None), "kind", "O") in "OUSM" or isinstance(leaf, type):
                raise TypeError(f"assert_close: {name} must be a tree of arrays, got {describe(leaf)} in it.")
    import chex  # not at the top: who only runs a network need not wait for it

    chex.assert_trees_all_equal_shapes_and_dtypes(got, want)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        where = jax.tree_util.keystr(path) or "it"
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if not np.allclose(a, b, rtol=tolerance, atol=tolerance):
            with np.errstate(invalid="ignore"):
                gap = np.max(np.abs(a - b))
            raise AssertionError(f"{where} differs by up to {gap:.3g}, more than {tolerance:.0e}")
