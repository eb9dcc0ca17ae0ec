"""Laws that hold for every cell and every implementation; see the table of cells."""

import copy
import pickle
from functools import partial

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

import rnnjax
import rnnjax.testing
from rnnjax.engines import Job, choose
from rnnjax.network import leaves
from tests import pages
from tests.cells_table import (
    CELLS,
    CORE,
    NAMES,
    NETWORKS,
    VARIANTS,
    Outcome,
    Problem,
    Row,
    assert_close,
    fast_jit,
    loop_with_gradients,
    loss_of,
    make_problem,
    plain,
    rows,
    rows_and_implementations,
    unroll,
    with_gradients,
)
from tests.processes import run_program

BATCH, TIME = 3, 8


# One cell of each kind that an engine can tell from the others: gates that are sums and gates that are not, an update
# that mixes units, no recurrent matmul, coefficients that depend on the input and complex ones that do not, a plain
# cell, one with several axes of features, and the networks.
KINDS = (
    "lstm", "gru", "layernorm_gru", "indrnn", "min_gru", "lru", "minimal_rnn", "conv_lstm", "stack", "learned_state",
)  # fmt: skip
# What is tried on four devices, by a process of its own; see `test_laws_on_four_devices`.
OF_MESHES = ("sharded", "shard_map")
# What only an engine can break: where values, final state and all gradients are those of a loop over the cell's step,
# in both directions, ragged, with resets and gaps, a cell has no say in these.
OF_ENGINES = ("scan", "chunks", "vmap", "causality", "jit", "second_derivative", "remat")


def by_implementation():
    """Every cell in every implementation, on the laws that cells can break; the kinds on all of them, in the default.

    The other implementations of a row follow at once, so that they find the loop's answer.
    """
    assert set(OF_ENGINES + OF_MESHES) < set(rnnjax.testing.LAWS) and set(KINDS) < set(CELLS)
    every = [law for law in rnnjax.testing.LAWS if law not in OF_MESHES]
    of_cells = [law for law in every if law not in OF_ENGINES]
    assert set(of_cells) == set(pages.LAWS)
    found = []
    for name, row in (CELLS | NETWORKS).items():
        default = choose(Job(leaves(row.cell)[0].cell)).name
        others = [other for other in rnnjax.implementations(row.cell) if other not in (default, "newton")]
        found.append(pytest.param(row, [default], every if name in KINDS else of_cells, id=f"{name}-default"))
        if others:
            laws = ["loop", "valid", "padding", "resets", *["remat"] * (name in ("lru", "deep_stack"))]
            found.append(pytest.param(row, others, every if name in CORE else laws, id=f"{name}-others"))
    return found


@pytest.mark.parametrize(("row", "implementations", "laws"), by_implementation())
def test_laws(row, implementations, laws):
    rnnjax.testing.check_laws(row.cell, row.input_size, implementations=implementations, laws=laws)


@rows_and_implementations(*CORE)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_unroll_is_a_loop_over_step(row, implementation, reverse, x64):
    problem = plain(make_problem(row))
    got = with_gradients(row.cell, implementation, reverse)(problem)
    assert_close(got, loop_with_gradients(row, problem, reverse))


@rows_and_implementations("lstm", "gru")
def test_bfloat16_is_close_to_exact(row, implementation, x64):
    """bfloat16 keeps 8 bits: 0.4 % a rounding, and a few dozen roundings on the way."""
    problem = make_problem(row, dtype=jnp.bfloat16)
    run = with_gradients(row.cell, implementation)
    wide = jax.tree.map(lambda a: a.astype(float) if a.dtype == jnp.bfloat16 else a, problem)
    for got, want in zip(jax.tree.leaves(run(problem)), jax.tree.leaves(run(wide)), strict=True):
        want = np.asarray(want)
        np.testing.assert_allclose(np.asarray(got, np.float32), want, rtol=0, atol=0.04 * max(1, np.abs(want).max()))


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


@rows_and_implementations(*CORE)
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
        twin = eval(repr(row.cell), NAMES)
        assert twin is not row.cell
        rnnjax.unroll(twin, *make_problem(row, seq_len=11, seed=seed)[:3], implementation=implementation)

    run(seed=0)
    assert traces or implementation == "native"  # which has compiled an equal cell in a test before
    count = len(traces)
    run(seed=1)
    assert len(traces) == count


@pytest.mark.parametrize("remat", [1, 5, TIME, 100])
def test_checkpointing_takes_any_distance(remat, x64):
    row = CELLS["gru"]
    problem = make_problem(row)
    for implementation in rnnjax.implementations(row.cell):
        want = with_gradients(row.cell, implementation)(problem)
        assert_close(with_gradients(row.cell, implementation, remat=remat)(problem), want)


@pytest.mark.parametrize("implementation", ["scan", "fused"])
def test_checkpointing_takes_no_rows(implementation):
    cell, empty = rnnjax.GRU(3), jnp.ones((7, 0, 2))
    params = cell.init(jax.random.key(0), 2)
    run = lambda params: rnnjax.unroll(cell, params, None, empty, implementation=implementation, remat=3)[1]  # noqa: E731
    assert run(params).shape == (7, 0, 3)
    found = jax.grad(lambda params: run(params).sum())(params)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(found))


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
    for twin in (eval(repr(cell), NAMES), pickle.loads(pickle.dumps(cell)), copy.deepcopy(cell)):
        assert twin == cell and hash(twin) == hash(cell) and twin is not cell
    others = [other.cell for other in (CELLS | VARIANTS).values() if other is not row]
    assert cell not in others
    with pytest.raises(AttributeError):  # frozen
        cell.hidden_size = 7


ON_FOUR_DEVICES = """
import jax
import rnnjax
from tests.cells_table import CELLS, NETWORKS
from tests.test_laws import OF_MESHES
assert len(jax.devices()) == 4
for name, implementations in {
    "gru": ("scan", "fused"), "lru": ("associative", "hoisted"), "layernorm_gru": ("fused",),
    "learned_state": ("fused",), "deep_stack": ("stacked",), "bidirectional": ("fused",), "conv_lstm": ("scan",),
}.items():
    row = (CELLS | NETWORKS)[name]
    rnnjax.testing.check_laws(row.cell, row.input_size, implementations=implementations, laws=OF_MESHES)
print("hold")
"""


@pytest.mark.quick
@pytest.mark.long
def test_laws_on_four_devices():
    assert run_program(ON_FOUR_DEVICES, devices=4) == "hold\n"


@pytest.mark.skipif(len(jax.devices()) > 1, reason="it takes the only device")
def test_laws_of_meshes_for_native_code():
    """Which runs on a mesh of one device."""
    if "native" in rnnjax.implementations(CELLS["gru"].cell):
        rnnjax.testing.check_laws(CELLS["gru"].cell, implementations=["native"], laws=OF_MESHES)


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
