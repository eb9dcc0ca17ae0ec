"""Laws that hold for every cell and every implementation; see the table of cells."""

import copy
import os
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

import rnnjax
from tests.cells_table import (
    CELLS,
    VARIANTS,
    Outcome,
    Problem,
    Row,
    assert_close,
    fast_jit,
    forward,
    loop,
    loop_with_gradients,
    loss_of,
    make_problem,
    plain,
    rows,
    rows_and_implementations,
    unroll,
    with_gradients,
)

BATCH, TIME = 3, 8


@rows_and_implementations()
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_unroll_is_a_loop_over_step(row, implementation, reverse, x64):
    problem = plain(make_problem(row))
    got = with_gradients(row.cell, implementation, reverse)(problem)
    assert_close(got, loop_with_gradients(row, problem, reverse))


@pytest.mark.quick
@rows()
def test_unroll_is_a_scan_over_step_by_hand(row, x64):
    problem = make_problem(row)
    got = forward(row.cell, "scan")(plain(problem))
    want = jax.lax.scan(partial(row.cell.step, problem.params), problem.state, problem.xs)
    assert_close(got, want)


@rows_and_implementations()
def test_two_chunks_are_one_unroll(row, implementation, x64):
    """Pitfall 14, and T = 0 and T = 1 of pitfall 16."""
    params, state, xs, *_ = make_problem(row)
    run = forward(row.cell, implementation)
    whole = run(Problem(params, state, xs, None, None))
    for k in (0, 1, 4, 7, 8):
        middle, head = run(Problem(params, state, xs[:k], None, None))
        final, tail = run(Problem(params, middle, xs[k:], None, None))
        assert_close((final, jnp.concatenate([head, tail])), whole)


@rows_and_implementations()
def test_two_chunks_are_one_unroll_with_lengths_and_resets(row, implementation, x64):
    params, state, xs, lengths, resets = make_problem(row)
    run = forward(row.cell, implementation)
    whole = run(Problem(params, state, xs, lengths, resets))
    k = TIME // 2
    middle, head = run(Problem(params, state, xs[:k], jnp.minimum(lengths, k), resets[:k]))
    final, tail = run(Problem(params, middle, xs[k:], jnp.maximum(lengths - k, 0), resets[k:]))
    assert_close((final, jnp.concatenate([head, tail])), whole)


DTYPES = [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float64", "float64")]


@rows_and_implementations()
@pytest.mark.parametrize(("params_dtype", "dtype"), DTYPES)
def test_dtypes_and_shapes_are_a_fixed_point(row, implementation, params_dtype, dtype, x64):
    """Pitfall 10: no drift of the carry, and bfloat16 in is bfloat16 out, also in the gradients."""
    problem = make_problem(row, dtype=jnp.dtype(params_dtype), state_dtype=jnp.dtype(dtype))
    for arguments, reverse in ((problem, False), (plain(problem), True)):
        got = jax.eval_shape(with_gradients(row.cell, implementation, reverse), arguments)
        chex.assert_trees_all_equal_shapes_and_dtypes(got.state, problem.state)
        chex.assert_trees_all_equal_shapes_and_dtypes(got.gradients, tuple(problem[:3]))
        chex.assert_shape(got.ys, (TIME, BATCH, row.cell.hidden_size))
        assert got.ys.dtype == jnp.dtype(dtype)
    by_hand = jax.eval_shape(partial(jax.lax.scan, partial(row.cell.step, problem.params)), *problem[1:3])
    chex.assert_trees_all_equal_shapes_and_dtypes(by_hand[0], problem.state)


@rows_and_implementations("lstm", "gru")
def test_bfloat16_is_close_to_exact(row, implementation, x64):
    """bfloat16 keeps 8 bits: 0.4 % a rounding, and a few dozen roundings on the way."""
    problem = make_problem(row, dtype=jnp.bfloat16)
    run = with_gradients(row.cell, implementation)
    wide = jax.tree.map(lambda a: a.astype(float) if a.dtype == jnp.bfloat16 else a, problem)
    for got, want in zip(jax.tree.leaves(run(problem)), jax.tree.leaves(run(wide)), strict=True):
        want = np.asarray(want)
        np.testing.assert_allclose(np.asarray(got, np.float32), want, rtol=0, atol=0.04 * max(1, np.abs(want).max()))


@rows_and_implementations()
def test_any_batch_axes(row, implementation, x64):
    """Pitfall 16: two batch axes and none."""
    run = forward(row.cell, implementation)
    problem = make_problem(row, batch=(2, 3))
    assert_close(run(problem), loop(row, problem))
    single = make_problem(row, batch=())
    single = single._replace(lengths=jnp.asarray(5))
    assert_close(run(single), loop(row, single))


@rows_and_implementations("gru", "stack")
def test_batch_is_vmap(row, implementation, x64):
    problem = make_problem(row)
    axes = Problem(params=None, state=0, xs=1, lengths=0, resets=1)
    mapped = jax.vmap(partial(unroll, row.cell, implementation), in_axes=(axes,), out_axes=(0, 1))

    @fast_jit
    def outcome(problem):
        def loss(differentiable):
            state, ys = mapped(problem._replace(**dict(zip(Problem._fields, differentiable))))
            return loss_of(state, ys), (state, ys)

        gradients, (state, ys) = jax.grad(loss, has_aux=True)(problem[:3])
        return Outcome(state, ys, gradients)

    assert_close(outcome(problem), with_gradients(row.cell, implementation)(problem))


@rows_and_implementations()
def test_the_future_does_not_change_the_past(row, implementation, x64):
    problem, at = plain(make_problem(row)), 4
    moved = problem._replace(xs=problem.xs.at[at].add(1.0))
    for reverse in (False, True):
        run = with_gradients(row.cell, implementation, reverse)
        changed = np.asarray(jnp.any(run(problem).ys != run(moved).ys, axis=(1, 2)))
        past = np.arange(TIME) > at if reverse else np.arange(TIME) < at
        assert not changed[past].any()
        assert changed[at]


@rows_and_implementations()
def test_jit_changes_nothing(row, implementation, x64):
    problem = make_problem(row)
    compiled = with_gradients(row.cell, implementation)(problem)
    assert_close(unroll(row.cell, implementation, problem), (compiled.state, compiled.ys))


@rows_and_implementations()
def test_equal_cells_share_one_trace(row, implementation, monkeypatch):
    """Pitfall 17: also a cell that is built anew, and for new values, compiles nothing a second time."""
    traces = []
    for cell in row.cell.cells if isinstance(row.cell, rnnjax.Stack) else [row.cell]:
        original = type(cell).update

        def update(self, *args, original=original):
            traces.append(type(self))
            return original(self, *args)

        monkeypatch.setattr(type(cell), "update", update)

    def run(seed):
        twin = eval(repr(row.cell), vars(rnnjax))
        assert twin is not row.cell
        rnnjax.unroll(twin, *make_problem(row, seq_len=11, seed=seed)[:3], implementation=implementation)

    run(seed=0)
    assert traces
    count = len(traces)
    run(seed=1)
    assert len(traces) == count


@rows_and_implementations("lstm", "gru")
def test_derivatives_are_those_of_finite_differences(row, implementation, x64):
    """First and second order along two random directions; forward mode is promised by the scan only."""
    problem = make_problem(row, batch=(2,), seq_len=3)
    controls = {"lengths": jnp.array([3, 2]), "resets": problem.resets}
    point, u, v = (tuple(make_problem(row, (2,), 3, seed=seed)[:3]) for seed in (0, 1, 2))

    def loss(differentiable):
        state, ys = rnnjax.unroll(row.cell, *differentiable, **controls, implementation=implementation)
        return loss_of(state, ys)

    def dot(a, b):
        return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b)))

    @fast_jit
    def derivatives(point):
        value, gradient = jax.value_and_grad(loss)(point)
        second = jax.grad(lambda p: dot(jax.grad(loss)(p), v))(point)
        forward = jax.jvp(loss, (point,), (u,))[1] if implementation == "scan" else dot(gradient, u)
        return value, dot(gradient, u), forward, dot(gradient, v), dot(second, u)

    eps = 1e-5
    above, below = (
        derivatives(jax.tree.map(lambda a, d, step=step: a + step * d, point, u)) for step in (eps, -eps)
    )
    _, along_u, forward, _, second = derivatives(point)
    np.testing.assert_allclose([along_u, forward], (above[0] - below[0]) / (2 * eps), rtol=1e-6)
    np.testing.assert_allclose(second, (above[3] - below[3]) / (2 * eps), rtol=1e-6)


@rows_and_implementations()
def test_checkpointing_changes_no_number(row, implementation, x64):
    problem = make_problem(row)._replace(lengths=None)
    got = with_gradients(row.cell, implementation, reverse=True, remat=True)(problem)
    assert_close(got, loop_with_gradients(row, problem, reverse=True))


@pytest.mark.parametrize("remat", [1, 5, TIME, 100])
def test_checkpointing_takes_any_distance(remat, x64):
    row = CELLS["gru"]
    problem = make_problem(row)
    for implementation in rnnjax.implementations(row.cell):
        want = with_gradients(row.cell, implementation)(problem)
        assert_close(with_gradients(row.cell, implementation, remat=remat)(problem), want)


def test_checkpointing_saves_memory():
    """From 64 to 1024 steps, full memory grows 16 times and the memory with checkpoints 4 times."""
    row = Row(rnnjax.LSTM(16), 1)

    def temporary(seq_len, remat):
        problem = make_problem(row, batch=(8,), seq_len=seq_len)
        run = jax.jit(lambda p: rnnjax.unroll(row.cell, *p, implementation="scan", remat=remat)[0].h.sum())
        compiled = jax.jit(jax.grad(lambda p, s, xs: run((p, s, xs)))).lower(*problem[:3]).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    full, saved = temporary(1024, None), temporary(1024, True)
    assert full / temporary(64, None) > 12
    assert saved / temporary(64, True) < 6
    assert saved < full / 8


@rows(CELLS | VARIANTS)
@pytest.mark.quick
def test_cells_are_values(row):
    cell = row.cell
    for twin in (eval(repr(cell), vars(rnnjax)), pickle.loads(pickle.dumps(cell)), copy.deepcopy(cell)):
        assert twin == cell and hash(twin) == hash(cell) and twin is not cell
    others = [other.cell for other in (CELLS | VARIANTS).values() if other is not row]
    assert cell not in others
    with pytest.raises(AttributeError):  # frozen
        cell.hidden_size = 7


@rows()
def test_params_and_states_can_be_pickled(row):
    problem = make_problem(row)
    twin = pickle.loads(pickle.dumps(problem))
    chex.assert_trees_all_equal(twin, problem)
    assert type(twin.params) is type(problem.params)


@pytest.mark.quick
@rows(CELLS | VARIANTS)
def test_readable_paths(row):
    """Checkpoints and shardings address leaves by name."""
    params = jax.eval_shape(lambda: row.cell.init(jax.random.key(0), row.input_size))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert all(path.startswith((".w_", ".b", ".layers[")) for path in paths), paths


SHARDED = """
import jax, numpy as np, rnnjax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from tests.cells_table import CELLS, assert_close, make_problem, with_gradients
assert len(jax.devices()) == 2
cases = [("gru", AxisType.Auto), ("stack", AxisType.Auto)]
if jax.__version_info__ < (0, 11):  # jax 0.12 refuses the gradient of any matmul whose batch is sharded
    cases.append(("stack", AxisType.Explicit))
for name, axis_type in cases:
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(axis_type,))
    row = CELLS[name]
    problem = make_problem(row, batch=(4,))
    specs = type(problem)(P(), P("batch"), P(None, "batch"), P("batch"), P(None, "batch"))
    specs = specs._replace(state=jax.tree.map(lambda _: P("batch"), problem.state),
                           params=jax.tree.map(lambda _: P(), problem.params))
    sharded = jax.tree.map(lambda a, spec: jax.device_put(a, NamedSharding(mesh, spec)), problem, specs)
    for implementation in rnnjax.implementations(row.cell):
        run = with_gradients(row.cell, implementation)
        got = run(sharded)
        assert got.ys.sharding.spec[1] == "batch", got.ys.sharding
        assert_close(jax.device_get(got), jax.device_get(run(problem)), 1e-5)
print("same")
"""


@pytest.mark.quick
def test_batch_may_be_sharded_over_devices():
    settings = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", SHARDED], env=os.environ | settings, cwd=Path(__file__).parents[1],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.stdout == "same\n", result.stderr


@rows_and_implementations("gru")
def test_check_grads_in_float64(row, implementation, x64):
    """JAX's own check, to second order in reverse mode; the reference in forward mode too."""
    problem = plain(make_problem(row, batch=(2,), seq_len=3))

    def loss(params, state, xs):
        return loss_of(*unroll(row.cell, implementation, problem._replace(params=params, state=state, xs=xs)))

    arguments = tuple(problem[:3])
    jax.test_util.check_grads(loss, arguments, order=2, modes=["rev"], atol=1e-5, rtol=1e-5)
    if implementation == "scan":
        jax.test_util.check_grads(loss, arguments, order=1, modes=["fwd"], atol=1e-5, rtol=1e-5)
