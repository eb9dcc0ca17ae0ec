"""The one table of cells, and what the laws measure on each: a new cell joins them by one row."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import GRU, LSTM, Chrono, Elman, Glorot, Identity, Orthogonal, Stack, Uniform


class Row(NamedTuple):
    cell: Any
    input_size: int = 3


CELLS = {
    "elman": Row(Elman(4)),
    "lstm": Row(LSTM(4)),
    "gru": Row(GRU(5)),
    "stack": Row(Stack((LSTM(5), GRU(4)))),
}
# The mathematics of a row above with another nonlinearity or other initial values: no law sees a difference, so
# only the tests of references, initialisers and value semantics take these too.
VARIANTS = {
    "irnn": Row(Elman(4, activation="relu", recurrent_init=Identity(0.5))),
    "elman_torch_init": Row(Elman(4, input_init=Uniform(), recurrent_init=Uniform(0.5))),
    "lstm_chrono": Row(LSTM(4, forget_bias=Chrono(max_lag=20))),
    "lstm_scaled": Row(LSTM(4, forget_bias=2.0, input_init=Glorot(0.5), recurrent_init=Orthogonal(0.9))),
    "gru_chrono": Row(GRU(5, update_bias=Chrono(max_lag=20))),
    "gru_biased": Row(GRU(5, update_bias=-1.0)),
    "stack_of_one": Row(Stack((LSTM(4),))),
    "stack_of_stacks": Row(Stack((Stack((Elman(4), GRU(2))), LSTM(4)))),
}


def rows(table: dict[str, Row] = CELLS) -> pytest.MarkDecorator:
    """Parametrizes a test over `row`."""
    return pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in table.items()])


def rows_and_implementations(*names: str) -> pytest.MarkDecorator:
    """Parametrizes a test over `row` and `implementation`: every registered one that takes the cell.

    With names it takes these rows only, for a law that is dear to test and says little about one cell more.
    """

    def params() -> Iterator[Any]:
        for name, row in CELLS.items():
            if names and name not in names:
                continue
            for implementation in rnnjax.implementations(row.cell):
                quick = [pytest.mark.quick] if name == "gru" else []
                yield pytest.param(row, implementation, id=f"{name}-{implementation}", marks=quick)

    return pytest.mark.parametrize(("row", "implementation"), list(params()))


class Problem(NamedTuple):
    """Random numbers for every argument of `unroll`; no parameter and no entry of the state is zero."""

    params: Any
    state: Any
    xs: jax.Array
    lengths: jax.Array
    resets: jax.Array


def make_problem(
    row: Row,
    batch: tuple[int, ...] = (3,),
    seq_len: int = 8,
    dtype: Any = None,
    state_dtype: Any = None,
    seed: int = 0,
) -> Problem:
    """Without a dtype it is float64 within the fixture `x64` and else float32."""
    rng = np.random.default_rng(seed)
    dtype = dtype or jnp.zeros(()).dtype
    state_dtype = state_dtype or dtype

    def fill(leaf: Any, scale: float) -> jax.Array:
        return jnp.asarray(rng.normal(0, scale, leaf.shape), leaf.dtype)

    params = jax.eval_shape(lambda: row.cell.init(jax.random.key(0), row.input_size, dtype))
    state = jax.eval_shape(lambda: row.cell.initial_state(batch, state_dtype))
    lengths = rng.integers(1, seq_len, batch) if seq_len > 1 else rng.integers(0, seq_len + 1, batch)
    if batch:  # every kind of length: none, some and all
        lengths[(0,) * len(batch)], lengths[(-1,) * len(batch)] = seq_len, 0
    return Problem(
        params=jax.tree.map(lambda leaf: fill(leaf, 0.5), params),
        state=jax.tree.map(lambda leaf: fill(leaf, 0.5), state),
        xs=jnp.asarray(rng.normal(0, 1, (seq_len, *batch, row.input_size)), state_dtype),
        lengths=jnp.asarray(lengths, jnp.int32),
        resets=jnp.asarray(rng.random((seq_len, *batch)) < 0.3),
    )


def plain(problem: Problem) -> Problem:
    """The same problem without lengths and resets."""
    return problem._replace(lengths=None, resets=None)


def loss_of(state: Any, ys: jax.Array) -> jax.Array:
    """A loss in which every number of the final state and of the outputs has a weight of its own."""
    total = jnp.zeros((), jnp.promote_types(ys.dtype, jnp.float32))
    for leaf in [ys, *jax.tree.leaves(state)]:
        weights = jnp.cos(jnp.arange(leaf.size, dtype=total.dtype)).reshape(leaf.shape)
        total += jnp.sum(weights * leaf)
    return total


class Outcome(NamedTuple):
    """What every implementation must agree on."""

    state: Any
    ys: jax.Array
    gradients: Any  # of params, state and xs


# Unoptimised code compiles in half the time; for functions that are not differentiated from outside.
fast_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def unroll(cell: Any, implementation: str, problem: Problem, reverse: bool = False, remat: Any = None) -> Any:
    """`rnnjax.unroll` of a problem."""
    return rnnjax.unroll(
        cell, *problem[:3], lengths=problem.lengths, resets=problem.resets, reverse=reverse,
        implementation=implementation, remat=remat,
    )  # fmt: skip


@functools.cache
def forward(cell: Any, implementation: str, reverse: bool = False, remat: Any = None) -> Any:
    """A compiled `unroll`, as a function of a `Problem`."""
    return fast_jit(lambda problem: unroll(cell, implementation, problem, reverse, remat))


@functools.cache
def with_gradients(cell: Any, implementation: str, reverse: bool = False, remat: Any = None) -> Any:
    """A compiled `unroll` with its gradients, as a function from a `Problem` to an `Outcome`."""

    def loss(differentiable: Any, problem: Problem) -> Any:
        arguments = Problem(*differentiable, problem.lengths, problem.resets)
        state, ys = unroll(cell, implementation, arguments, reverse, remat)
        return loss_of(state, ys), (state, ys)

    def outcome(problem: Problem) -> Outcome:
        gradients, (state, ys) = jax.grad(loss, has_aux=True)(tuple(problem[:3]), problem)
        return Outcome(state, ys, gradients)

    return fast_jit(outcome)


@functools.cache
def _jitted_step(cell: Any) -> Any:
    return jax.jit(cell.step)


def loop(row: Row, problem: Problem, reverse: bool = False) -> Any:
    """`unroll` as the words of its documentation: row by row and step by step, without a mask anywhere."""
    cell, (params, state, xs, lengths, resets) = row.cell, problem
    batch = xs.shape[1:-1]
    step = _jitted_step(cell)
    finals, outputs = [], []
    for index in np.ndindex(batch):
        length = xs.shape[0] if lengths is None else int(lengths[index])
        single = jax.tree.map(lambda leaf, index=index: leaf[index], state)
        ys = [jnp.zeros(cell.hidden_size, xs.dtype)] * xs.shape[0]
        for t in reversed(range(length)) if reverse else range(length):
            if resets is not None and bool(resets[(t, *index)]):
                single = cell.initial_state((), xs.dtype)
            single, ys[t] = step(params, single, xs[(t, *index)])
        finals.append(single)
        outputs.append(jnp.stack(ys) if ys else jnp.zeros((0, cell.hidden_size), xs.dtype))
    final = jax.tree.map(lambda *leaves: jnp.stack(leaves).reshape(*batch, *leaves[0].shape), *finals)
    return final, jnp.stack(outputs, axis=1).reshape(xs.shape[0], *batch, cell.hidden_size)


def loop_with_gradients(row: Row, problem: Problem, reverse: bool = False) -> Outcome:
    """`loop`, differentiated by JAX."""

    def loss(differentiable: Any) -> Any:
        state, ys = loop(row, Problem(*differentiable, problem.lengths, problem.resets), reverse)
        return loss_of(state, ys), (state, ys)

    gradients, (state, ys) = jax.grad(loss, has_aux=True)(tuple(problem[:3]))
    return Outcome(state, ys, gradients)


def assert_close(got: Any, want: Any, tolerance: float = 1e-10) -> None:
    """Same structure, shapes and dtypes, and values that differ by no more than the tolerance, scaled by size."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        where = jax.tree_util.keystr(path)
        assert a.shape == b.shape and a.dtype == b.dtype, f"{where}: {a.dtype}{a.shape} is not {b.dtype}{b.shape}"
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=where)
