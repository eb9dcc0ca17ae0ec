"""Lengths, resets and reverse: one semantics, against a loop over each row that knows no mask."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rnnjax
from tests.cells_table import (
    CELLS,
    CORE,
    able,
    assert_close,
    forward,
    loop,
    loop_with_gradients,
    make_problem,
    rows_and_implementations,
    with_gradients,
)

BATCH, TIME = 3, 8


def every(name):
    """The implementations of a row; of a stack not "newton", which compiles for long and runs it layer by layer."""
    return able(CELLS[name].cell) if name == "stack" else rnnjax.implementations(CELLS[name].cell)


@pytest.mark.parametrize("name", ["gru", "stack"])
@pytest.mark.parametrize("without", ["lengths", "resets"])
def test_lengths_alone_and_resets_alone(name, without, x64):
    row = CELLS[name]
    problem = make_problem(row)._replace(**{without: None})
    want = loop_with_gradients(row, problem)
    for implementation in every(name):
        assert_close(with_gradients(row.cell, implementation)(problem), want)


@pytest.mark.parametrize("name", ["gru", "stack"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_any_lengths_and_resets(name, reverse):
    """Shapes stay, so that nothing compiles after the first example."""
    row = CELLS[name]
    problem = make_problem(row)
    bits = st.integers(0, 2 ** (TIME * BATCH) - 1)

    @settings(max_examples=10)
    @given(lengths=st.tuples(*[st.integers(0, TIME)] * BATCH), resets=bits)
    def check(lengths, resets):
        flags = np.array([resets >> i & 1 for i in range(TIME * BATCH)], bool).reshape(TIME, BATCH)
        case = problem._replace(lengths=jnp.array(lengths, jnp.int32), resets=jnp.array(flags))
        want = loop(row, case, reverse)
        for implementation in every(name):
            assert_close(forward(row.cell, implementation, reverse)(case), want, 1e-5)

    check()


@rows_and_implementations(*CORE)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_padding_reaches_nothing(row, implementation, reverse, x64):
    """Pitfalls 7, 8 and 9, each on its own words rather than on those of the loop."""
    problem = make_problem(row)
    run = with_gradients(row.cell, implementation, reverse)
    want = run(problem)
    padding = np.arange(TIME)[:, None] >= np.asarray(problem.lengths)
    assert padding[:, -1].all() and not padding[:, 0].any() and padding[-1, 1]

    for poison in (np.nan, np.inf, 1e300):
        bad = problem._replace(xs=jnp.where(padding[..., None], poison, problem.xs))
        got = run(bad)
        assert_close(got, want, 0)  # no output, no final state and no gradient notices

    assert (np.asarray(want.ys)[padding] == 0).all()
    assert (np.asarray(want.gradients[2])[padding] == 0).all()
    last = jax.tree.map(lambda leaf: leaf[-1], (want.state, problem.state))
    assert_close(*last, 0)  # length 0 returns the state that was passed in


@rows_and_implementations(*CORE)
def test_reset_on_padding_does_nothing(row, implementation, x64):
    """Not even to the final state."""
    problem = make_problem(row)
    padding = np.arange(TIME)[:, None] >= np.asarray(problem.lengths)
    for reverse in (False, True):
        run = with_gradients(row.cell, implementation, reverse)
        cleared = problem._replace(resets=problem.resets & ~padding)
        flagged = problem._replace(resets=problem.resets | padding)
        assert_close(run(flagged), run(cleared), 0)


@rows_and_implementations(*CORE)
def test_reset_comes_before_the_step_it_marks(row, implementation, x64):
    """Pitfall 12: from the marked step on, the numbers are those of a run that starts there."""
    params, _, xs, lengths, resets = make_problem(row)[:5]
    at = 3
    problem = make_problem(row)._replace(
        lengths=jnp.full_like(lengths, TIME), resets=jnp.zeros_like(resets).at[at, 1].set(True)
    )
    got = with_gradients(row.cell, implementation)(problem)
    never = with_gradients(row.cell, implementation)(problem._replace(resets=jnp.zeros_like(resets)))

    fresh = row.cell.initial_state((BATCH,), xs.dtype)
    step = jax.jit(row.cell.step)
    for t in range(at, TIME):
        fresh, y = step(params, fresh, xs[t])
        assert_close(got.ys[t, 1], y[1])
    np.testing.assert_array_equal(got.ys[:at], never.ys[:at])
    np.testing.assert_array_equal(got.ys[:, [0, 2]], never.ys[:, [0, 2]])
    assert not np.allclose(got.ys[at, 1], never.ys[at, 1])
    # Nothing flows back across the reset.
    through_state = jax.tree.map(lambda leaf: leaf[1], got.gradients[1])
    uncut = jax.tree.map(lambda leaf: leaf[1], never.gradients[1])
    assert not np.allclose(jax.tree.leaves(through_state)[0], jax.tree.leaves(uncut)[0])


@rows_and_implementations(*CORE)
def test_reverse_turns_every_row_round(row, implementation, x64):
    """Pitfall 6: each row is flipped by hand within its valid part, run forward, and flipped back."""
    problem = make_problem(row)
    flip = np.tile(np.arange(TIME)[:, None], (1, BATCH))
    for b, length in enumerate(np.asarray(problem.lengths)):
        flip[:length, b] = flip[:length, b][::-1]
    rows = np.arange(BATCH)
    turned = problem._replace(xs=problem.xs[flip, rows], resets=problem.resets[flip, rows])
    got = with_gradients(row.cell, implementation, reverse=True)(problem)
    want = with_gradients(row.cell, implementation)(turned)
    assert_close(got.state, want.state)
    assert_close(got.ys, want.ys[flip, rows])


@dataclasses.dataclass(frozen=True)
class StartsAtOne:
    """A cell whose initial state is not zero, nor is its state an `h`: what a reset restores must be asked for."""

    hidden_size: int

    def init(self, key, input_size, dtype=jnp.float32):
        return jnp.ones((input_size, self.hidden_size), dtype)

    def initial_state(self, batch_shape=(), dtype=jnp.float32):
        return jnp.ones((*batch_shape, self.hidden_size), dtype)

    def step(self, params, state, x):
        state = state + x @ params
        return state, state


@pytest.mark.quick
def test_reset_restores_the_initial_state_of_the_cell():
    """Neither zeros nor the state that was passed in."""
    cell = StartsAtOne(2)
    rnnjax.check_cell(cell, 1)
    xs = jnp.ones((4, 1, 1))
    resets = jnp.array([False, False, True, False])[:, None]
    params, state = cell.init(jax.random.key(0), 1), jnp.full((1, 2), 10.0)
    final, ys = rnnjax.unroll(cell, params, state, xs, resets=resets)
    np.testing.assert_array_equal(ys[:, 0, 0], [11, 12, 2, 3])
    np.testing.assert_array_equal(final[0], [3, 3])
    _, ys = rnnjax.unroll(cell, params, state, xs, resets=resets, reverse=True)
    np.testing.assert_array_equal(ys[:, 0, 0], [4, 3, 2, 11])


@pytest.mark.parametrize("seq_len", [0, 1])
@pytest.mark.parametrize("name", ["gru", "stack"])
def test_no_step_and_one_step(seq_len, name, x64):
    """Pitfall 16, with every control and all gradients."""
    row = CELLS[name]
    problem = make_problem(row, seq_len=seq_len)
    for reverse in (False, True):
        want = loop_with_gradients(row, problem, reverse)
        for implementation in every(name):
            assert_close(with_gradients(row.cell, implementation, reverse, True)(problem), want)


def test_an_empty_batch_is_no_error():
    row = CELLS["lstm"]
    problem = make_problem(row, batch=(2,))
    empty = jax.tree.map(lambda leaf: leaf[:0], (problem.state, problem.lengths))
    for implementation in every("lstm"):
        final, ys = rnnjax.unroll(
            row.cell, problem.params, empty[0], problem.xs[:, :0], lengths=empty[1], implementation=implementation
        )
        assert final.h.shape == (0, 4) and ys.shape == (TIME, 0, 4)
