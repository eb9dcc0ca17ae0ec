"""`DeepStack`, and ensembles by `jax.vmap`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

import rnnjax
from rnnjax import GRU, LSTM, DeepStack, LearnedState, Stack
from rnnjax.networks import DeepStackState
from tests.cells_table import Problem, Row, assert_close, fast_jit, loss_of, make_problem, plain, unroll

KEY = jax.random.key(0)


def deepen(stack_state):
    """The state of a stack in the form of `DeepStackState`, for one batch axis."""
    first, *rest = stack_state.layers
    return DeepStackState(first, jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *rest))


@pytest.mark.parametrize(
    ("cell", "options"),
    [(GRU(4), {"residual": True, "norm": "layer"}), (LearnedState(LSTM(4)), {})],
    ids=["residual", "learned"],
)
def test_deep_stack_is_the_stack_of_the_same_cells(cell, options, x64):
    """Values, final states and all gradients, on ragged rows with resets; inputs are not as wide as the layers."""
    stack, deep = Stack((cell,) * 4, **options), DeepStack(cell, 4, **options)
    problem = make_problem(Row(stack))
    packed = problem._replace(params=deep.pack(problem.params), state=deepen(problem.state))

    def measure(cell, implementation, pack, problem):
        def loss(arguments):
            arguments = problem._replace(**dict(zip(Problem._fields, arguments)))
            state, ys = unroll(cell, implementation, arguments)
            return loss_of(pack(state), ys), (pack(state), ys)

        return fast_jit(jax.grad(loss, has_aux=True))(problem[:3])

    (d_params, d_state, d_xs), results = measure(stack, "layered", deepen, problem)
    want = (deep.pack(d_params), deepen(d_state), d_xs), results
    for implementation in rnnjax.implementations(deep):
        assert_close(measure(deep, implementation, lambda state: state, packed), want)
    assert_close(deep.unpack(packed.params), problem.params, 0)
    assert_close(rnnjax.start_state(deep, packed.params, (3,)), deepen(rnnjax.start_state(stack, problem.params, (3,))))


@pytest.mark.quick
def test_deep_stack_begins_as_the_stack_does():
    for cell, norm in ((GRU(4), "layer"), (LSTM(4), None)):
        deep = DeepStack(cell, 3, norm=norm)
        assert_close(deep.init(KEY, 5), deep.pack(Stack((cell,) * 3, norm=norm).init(KEY, 5)), 1e-6)
        assert_close(deep.initial_state((2,)), deepen(Stack((cell,) * 3).initial_state((2,))), 0)


def count_equations(jaxpr):
    """All equations of a program, also those within loops and calls."""
    return sum(1 + sum(map(count_equations, jaxprs_in_params(e.params))) for e in jaxpr.eqns)


@pytest.mark.quick
def test_program_of_a_deep_stack_does_not_grow_with_its_depth():
    """Compile time follows the size of the program, here of the loss with its gradient."""

    def size(cell):
        problem = plain(make_problem(Row(cell), seq_len=3))

        def loss(params):
            return loss_of(*rnnjax.unroll(cell, params, problem.state, problem.xs))

        return count_equations(jax.make_jaxpr(jax.grad(loss))(problem.params).jaxpr)

    options = {"residual": True, "norm": "rms"}
    assert size(DeepStack(GRU(4), 16, **options)) == size(DeepStack(GRU(4), 4, **options))
    assert size(Stack((GRU(4),) * 16, **options)) > 3 * size(Stack((GRU(4),) * 4, **options))


@pytest.mark.quick
def test_errors_of_a_deep_stack():
    with pytest.raises(ValueError, match=r"^DeepStack: num_layers must be at least 2, got 1; take the cell itself\.$"):
        DeepStack(GRU(4), 1)
    with pytest.raises(TypeError, match=r"^DeepStack: cell must be a cell, got <class "):
        DeepStack(GRU, 3)
    with pytest.raises(ValueError, match=r"^DeepStack: norm must be 'layer', 'rms' or None, got 'batch'\.$"):
        DeepStack(GRU(4), 3, norm="batch")
    deep = DeepStack(GRU(4), 3)
    params, state, xs = deep.init(KEY, 2), deep.initial_state((2,)), jnp.ones((5, 2, 2))
    other = DeepStack(GRU(4), 4).init(KEY, 2)
    with pytest.raises(ValueError, match=r"^unroll: params.rest.w_ih must have shape \[2, 4, 12\] for this DeepStack"):
        rnnjax.unroll(deep, other, state, xs)
    with pytest.raises(ValueError, match=r"^DeepStack: params.norms must be there exactly if norm is, got norm=None"):
        deep.step(DeepStack(GRU(4), 3, norm="rms").init(KEY, 2), state, xs[0])
    assert deep.step(params, state, xs[0])[1].shape == (2, 4)


def test_ensemble_by_vmap_is_a_loop_over_its_members(x64):
    """Also of a deep stack: final states, outputs and gradients of every member."""
    cell, members = Stack((LearnedState(GRU(4)), DeepStack(LSTM(4), 2))), 3
    params = fast_jit(jax.vmap(lambda key: cell.init(key, 2, jnp.float64)))(jax.random.split(KEY, members))
    params = jax.tree.map(lambda leaf: leaf + 0.1 * np.cos(np.arange(leaf.size)).reshape(leaf.shape), params)
    problem = make_problem(Row(cell, 2))

    def outcome(params, problem):
        def loss(params):
            state = rnnjax.start_state(cell, params, (3,), jnp.float64)
            controls = {"lengths": problem.lengths, "resets": problem.resets}
            state, ys = rnnjax.unroll(cell, params, state, problem.xs, **controls)
            return loss_of(state, ys), (state, ys)

        return jax.grad(loss, has_aux=True)(params)

    got = fast_jit(jax.vmap(outcome, in_axes=(0, None)))(params, problem)
    alone = fast_jit(outcome)
    for member in range(members):
        pick = lambda tree, m=member: jax.tree.map(lambda leaf: leaf[m], tree)  # noqa: E731
        assert_close(pick(got), alone(pick(params), problem))
    assert not np.allclose(got[1][1][0], got[1][1][1])


def test_layers_axis_of_a_state_is_behind_any_batch_axes(x64):
    deep = DeepStack(GRU(4), 2)  # so the axis of the layers has one entry
    assert deep.initial_state((2, 5)).rest.h.shape == (2, 5, 1, 4)
    params, _, xs, *_ = make_problem(Row(deep), batch=(2, 5), seq_len=4)
    one = Problem(params, deep.initial_state((), jnp.float64), xs[:, 1, 2], None, None)
    two = one._replace(state=deep.initial_state((2, 5), jnp.float64), xs=xs)
    for implementation in rnnjax.implementations(deep):
        state, ys = fast_jit(lambda p, i=implementation: rnnjax.unroll(deep, *p[:3], implementation=i))(two)
        want_state, want = rnnjax.unroll(deep, *one[:3], implementation=implementation)
        assert_close(ys[:, 1, 2], want)
        assert_close(jax.tree.map(lambda leaf: leaf[1, 2], state), want_state)
