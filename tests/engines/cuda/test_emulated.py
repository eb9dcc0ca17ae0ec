"""The kernels on the host, through the whole engine, against ``"scan"`` in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax.cell import param_shapes
from rnnjax.engines import Controls, choice, engine
from rnnjax.engines.affine import cuda, cuda_kernels, cuda_rules
from rnnjax.engines.affine.cuda import CudaLoops
from rnnjax.engines.affine.cuda_rules import Card
from rnnjax.engines.affine.cuda_trial import trial
from rnnjax.engines.affine.recurrence import affine_engine
from tests.cells_table import some_params
from tests.engines.cuda import emulator
from tests.engines.cuda.cells import Custom

pytestmark = pytest.mark.skipif(emulator.COMPILER is None, reason="no C++ compiler here")
TOLERANCE = {"float64": 1e-12, "float32": 3e-6, "tf32": 5e-3, "bfloat16": 2e-2, "float16": 4e-3}


@pytest.fixture
def emulated():
    """The engine on an emulated card; what is compiled for one test is of no use to another."""

    emulator.RUNS.clear()
    yield lambda card: affine_engine("emulated", CudaLoops(card, emulator.launch), -1).run


def problem(cell, steps, batch, dtype, *, valid, resets):
    """Made by NumPy, since every operation of its own would be compiled."""
    rng = np.random.default_rng(cell.hidden_size)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731

    def fill(p):
        mean, scale = (1, 0.4) if p.ndim < 2 else (0, min(0.4, p.shape[0] ** -0.5))  # large ones are no chaos
        return (mean + scale * draw(*p.shape)).astype(p.dtype)

    params = jax.tree.map(fill, param_shapes(cell, 3, jnp.dtype(dtype)))
    start = jax.jit(lambda: cell.initial_state(batch, jnp.dtype(dtype)))()
    state, fresh = (
        jax.tree.map(lambda s: (np.asarray(s, np.float32) + 0.5 * draw(*s.shape)).astype(s.dtype), start)
        for _ in range(2)
    )
    xs = draw(steps, *batch, 3).astype(jnp.dtype(dtype))
    masks = (rng.random((steps, *batch)) < 0.7 if valid else None,)
    masks += (rng.random((steps, *batch)) < 0.3 if resets else None,)
    weights = jax.tree.map(lambda s: draw(*s.shape), (state, np.zeros((steps, *batch, cell.hidden_size))))
    return (params, state, xs, fresh if resets else None), masks, weights


def outcome(run, cell, arrays, masks, weights, dtype, params_dtype=None, **options):
    """Values and the gradients of parameters, state, xs and the state of restarts."""
    valid, resets = masks
    params, *arrays = jax.tree.map(lambda a: a.astype(jnp.dtype(dtype)), arrays)
    arrays = (jax.tree.map(lambda a: a.astype(jnp.dtype(params_dtype or dtype)), params), *arrays)

    def loss(params, state, xs, fresh):
        controls = Controls(*(None if mask is None else jnp.asarray(mask) for mask in (valid, resets)), fresh)
        final, ys = run(cell, params, state, xs, controls, **options)
        ys = ys if valid is None else jnp.where(valid[..., None], ys, 0)
        products = jax.tree.map(lambda a, b: jnp.sum(a.astype(jnp.float64) * b), (final, ys), weights)
        return sum(jax.tree.leaves(products)), (final, ys)

    (_, values), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))(*arrays)
    return values, gradients


def compare(
    run, cell, steps, batch, dtype, *, valid=False, resets=False, reverse=False, remat=None, name=None,
    state_dtype=None, tolerances=TOLERANCE, beside_xla=False,
):  # fmt: skip
    """With float64; ``beside_xla``: four times what XLA's own loops lose to rounding in these dtypes is no fault."""
    case = problem(cell, steps, batch, dtype, valid=valid, resets=resets)
    with jax.default_matmul_precision("default" if name == "tf32" else "highest"):
        got = outcome(run, cell, *case, state_dtype or dtype, dtype, reverse=reverse, remat=remat)
    want = outcome(engine("scan").run, cell, *case, jnp.float64, reverse=reverse, remat=None)
    got, want = jax.device_get((got, want))  # so that NumPy compares, which compiles nothing
    lost = functools.cache(lambda: _errors(_by_xla(cell, case, state_dtype or dtype, dtype, reverse), want))
    for path, error in _errors(got, want).items():
        tolerance = tolerances[name or dtype]
        if error > tolerance and beside_xla:
            tolerance = max(tolerance, 4 * lost()[path])
        assert error <= tolerance, f"{path}: {error:.1e}, more than {tolerance:.1e}"


def _by_xla(cell, case, state_dtype, dtype, reverse):
    with jax.default_matmul_precision("highest"):
        return jax.device_get(outcome(engine("fused").run, cell, *case, state_dtype, dtype, reverse=reverse))


def _errors(got, want):
    """By leaf, in the Euclidean norm; that of a number, which is one sum and may cancel, a fifth."""
    found = {}
    for (path, g), w in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        assert g.shape == w.shape
        error = np.linalg.norm(np.asarray(g, np.float64) - w) / max(np.linalg.norm(w), 1e-30)
        found[jax.tree_util.keystr(path)] = error / (1 if w.ndim else 5)
    return found


CASES = {
    # Rows in two groups, of which one is not full; padding of H; all masks; time in reverse.
    "lstm": (rnnjax.LSTM(21), 6, (3, 3), "float32", dict(valid=True, resets=True, reverse=True)),
    # A gate seen apart, a bias within the update, gates computed again, no batch axis.
    "gru": (rnnjax.GRU(18), 5, (), "float32", dict(resets=True, remat="gates")),
    "custom": (Custom(35), 5, (9,), "bfloat16", dict(valid=True, resets=True)),
    # No w_hh: a thread a unit, more steps than are read ahead.
    "units": (rnnjax.cells.DiagonalLSTM(35), 7, (3, 2), "float32", dict(valid=True, resets=True, reverse=True)),
    "unit states": (rnnjax.cells.IndRNN(150), 5, (), "bfloat16", dict(resets=True, remat="gates")),
    "wide state": (rnnjax.GRU(20), 4, (2,), "bfloat16", dict(resets=True, state_dtype="float32")),
    "one step": (rnnjax.Elman(8), 1, (2,), "float16", dict(resets=True)),
    "no step": (rnnjax.GRU(8), 0, (2,), "float32", dict(resets=True)),
    "tf32": (rnnjax.cells.CoupledLSTM(17), 4, (2,), "float32", dict(name="tf32")),
}


MORE = {"one step", "tf32", "wide state"}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.thorough] if case in MORE else []) for case in CASES]
)
def test_values_and_gradients(case, emulated, x64):
    cell, steps, batch, dtype, options = CASES[case]
    compare(emulated(Card(90, 132)), cell, steps, batch, dtype, **options)
    assert set(emulator.RUNS) == ({"rnn_forward", "rnn_backward"} if steps else set())


def _mapped(run, cell, axes, remat=None):
    """Values and gradients of a loss under `jax.vmap` over parameters, state and inputs, of which some differ."""
    params, state = some_params(cell, 3), cell.initial_state((2,))
    rng = np.random.default_rng(1)
    xs = rng.normal(size=(2, 3, 4, 2, 3)).astype(np.float32)
    valid, resets = rng.random((4, 2)) < 0.7, rng.random((4, 2)) < 0.4

    def loss(params, state, xs):
        controls = Controls(jnp.asarray(valid), jnp.asarray(resets), state)
        final, ys = run(cell, params, state, xs, controls, reverse=True, remat=remat)
        return jnp.sum(jnp.where(valid[..., None], jnp.square(ys), 0)) + jnp.sum(jnp.sin(final.h))

    many = jax.tree.map(lambda p: np.stack([p, 0.5 * np.asarray(p), -np.asarray(p)]), params)
    states = jax.tree.map(lambda s: rng.normal(size=(3, *s.shape)).astype(np.float32), state)
    one = jax.value_and_grad(loss, argnums=(0, 1, 2))
    if axes == "data":
        return jax.jit(jax.vmap(jax.vmap(one, (None, None, 0)), (None, None, 0)))(params, state, xs)
    if axes == "all":
        return jax.jit(jax.vmap(one))(many, states, xs[0])
    if axes == "forward":
        return jax.jit(jax.vmap(loss, (0, None, None)))(many, state, xs[0, 0])
    if axes == "summed":  # the gradient of what all networks do with the same inputs
        total = lambda *args: jnp.sum(jax.vmap(loss, (0, None, None))(*args))  # noqa: E731
        return jax.jit(jax.grad(total, argnums=(0, 1, 2)))(many, state, xs[0, 0])
    assert axes == "twice"
    more = jax.tree.map(lambda p: np.stack([p, 0.9 * p]), many)
    return jax.jit(jax.vmap(jax.vmap(one, (0, None, None)), (0, None, None)))(more, state, xs[0, 0])


NETWORKS = {
    "all": (rnnjax.GRU(8), None, ["rnn_backward", "rnn_forward"]),
    "forward": (rnnjax.LSTM(6), None, ["rnn_forward"]),
    "summed": (rnnjax.LSTM(6), "gates", ["rnn_backward", "rnn_forward"]),
    "twice": (rnnjax.GRU(5), None, ["rnn_backward", "rnn_forward"]),
    "data": (rnnjax.GRU(8), None, ["rnn_forward"]),  # what was kept for one is not cut into examples
}


@pytest.mark.parametrize("axes", NETWORKS)
def test_vmap_is_more_rows_and_networks(axes, emulated):
    """One launch for all of them."""
    cell, remat, kernels = NETWORKS[axes]
    run = emulated(Card(90, 132))
    with jax.default_matmul_precision("highest"):
        got, want = (_mapped(r, cell, axes, m) for r, m in ((run, remat), (engine("scan").run, None)))
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5), got, want)
    assert sorted(emulator.RUNS) == kernels


def test_networks_without_a_matrix(emulated):
    cell = rnnjax.cells.DiagonalGRU(9)
    got, want = (_mapped(run, cell, "all") for run in (emulated(Card(90, 132)), engine("scan").run))
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5), got, want)
    assert sorted(emulator.RUNS) == ["rnn_backward", "rnn_forward"]


def test_data_of_networks_are_more_rows():
    """What is mapped outside of parameters makes no copies of them."""
    count = []

    def launch(kernel, outs, args, aliases):
        count.append(args[1].shape[0])
        return emulator.launch(kernel, outs, args, aliases)

    cell = rnnjax.GRU(4)
    params, state = some_params(cell, 2), cell.initial_state((2,))
    many = jax.tree.map(lambda p: np.stack([p, 0.5 * np.asarray(p), -np.asarray(p)]), params)
    xs = np.random.default_rng(0).normal(size=(2, 3, 2, 2)).astype(np.float32)

    def ends(run):
        one = jax.vmap(lambda p, x: run(cell, p, state, x, Controls())[0].h, (0, None))
        return jax.jit(jax.vmap(one, (None, 0)))(many, xs)

    with jax.default_matmul_precision("highest"):
        got, want = map(ends, (affine_engine("emulated", CudaLoops(Card(90, 132), launch), -1).run, engine("scan").run))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    assert max(count) == 3


def test_networks_under_other_transformations(emulated):
    """Forward mode, second derivatives and exported programs find XLA's loops in the place of the kernels."""
    cell, run = rnnjax.Elman(4), emulated(Card(90, 132))
    params, state = some_params(cell, 2), cell.initial_state(())
    many = jax.tree.map(lambda p: np.stack([p, 0.5 * np.asarray(p)]), params)
    xs = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)

    def loss(run, many):
        return jnp.sum(jax.vmap(lambda p: jnp.sin(run(cell, p, state, xs, Controls())[1]))(many))

    leaves, tree = jax.tree.flatten(many)

    def exported(function, *args):
        return jax.export.deserialize(jax.export.export(jax.jit(function))(*args).serialize()).call(*args)

    with jax.default_matmul_precision("highest"):
        for transformed in (
            lambda f: jax.jvp(f, (many,), (many,)),
            lambda f: jax.grad(lambda m: jax.jvp(f, (m,), (many,))[1])(many),
            lambda f: exported(lambda *leaves: f(tree.unflatten(leaves)), *leaves),
        ):
            got, want = (transformed(lambda m, r=r: loss(r, m)) for r in (run, engine("scan").run))
            jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5), got, want)


@pytest.mark.parametrize("masks", [False, True])
def test_both_directions_in_one_launch(masks, monkeypatch):
    """Of two layers; parameters and start states of their own, documents that end within."""
    monkeypatch.setattr(choice, "_engines", choice.registered())
    choice.register(affine_engine("emulated", CudaLoops(Card(90, 132), emulator.launch), -1))
    net = rnnjax.Bidirectional((rnnjax.LSTM(6), rnnjax.GRU(5)))
    rng = np.random.default_rng(0)
    params, state = net.init(jax.random.key(0), 3), net.initial_state((3,))
    state = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), state)
    xs = rng.normal(size=(5, 3, 3)).astype(np.float32)
    given = dict(lengths=np.array([5, 2, 0]), resets=rng.random((5, 3)) < 0.4) if masks else {}

    def outcome(implementation, remat=None, reverse=False):
        def loss(params, state, xs):
            options = dict(implementation=implementation, remat=remat, reverse=reverse)
            final, ys = rnnjax.unroll(net, params, state, xs, **given, **options)
            return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves((final, ys))), (final, ys)

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(params, state, xs)

    for options in ({}, dict(remat="gates", reverse=True)) if masks else ({},):
        emulator.RUNS.clear()
        with jax.default_matmul_precision("highest"):
            got, want = outcome("emulated", **options), outcome("scan", reverse=options.get("reverse", False))
        jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=2e-5), got, want)
        assert sorted(emulator.RUNS) == ["rnn_backward"] * 2 + ["rnn_forward"] * 2  # one a layer


def test_both_kernels_multiply_alike():
    """Also where the derivative is taken outside of the precision's context."""
    found = []

    def launch(kernel, outs, args, aliases):
        found.append((kernel.name, "#define DT 3\n" in kernel.source))
        return [jnp.zeros(out.shape, out.dtype) for out in outs]

    cell, run = rnnjax.LSTM(4), affine_engine("stand-in", CudaLoops(Card(90, 132), launch), -1).run

    def loss(params):
        with jax.default_matmul_precision("highest"):
            return jnp.sum(run(cell, params, cell.initial_state(()), jnp.ones((3, 2)), Controls())[1])

    jax.make_jaxpr(jax.grad(loss))(some_params(cell, 2))
    assert set(found) == {("rnn_forward", True), ("rnn_backward", True)}


def test_other_orders_of_warps_and_stores(emulated, x64, monkeypatch):
    for seed in (2, 3):
        monkeypatch.setattr(emulator, "SEEDS", [seed])
        compare(emulated(Card(90, 132)), rnnjax.LSTM(21), 6, (3, 3), "float32", valid=True, resets=True, reverse=True)


@pytest.mark.parametrize("units, rows, cluster", [(16, 16, 2), pytest.param(8, 8, 4, marks=pytest.mark.thorough)])
def test_tiles_of_large_ones(units, rows, cluster, emulated, x64, monkeypatch):
    """Clusters, two tiles of rows, weights that find no room in registers."""

    def tiles(facts, card, *, backward):
        k = cluster if backward else 1
        found = cuda_rules._tiles(facts, card, max(units, 8 if backward else 16), rows, k, backward=backward)
        chunk = found.warps * 512 * 2 * (4 if not backward else -(-k * units // 16))
        return found._replace(resident=1, shared_bytes=found.shared_bytes + chunk * (found.resident - 1))

    replace = cuda_rules.dataclasses.replace
    monkeypatch.setattr(cuda_rules.Tiles, "_replace", lambda self, **new: replace(self, **new), raising=False)
    monkeypatch.setattr(cuda, "forward_tiles", lambda facts, card: tiles(facts, card, backward=False))
    monkeypatch.setattr(cuda, "backward_tiles", lambda facts, card: tiles(facts, card, backward=True))
    card = Card(90, 1000 + units)  # a card of its own, so that nothing prepared for another is taken
    compare(emulated(card), rnnjax.LSTM(70), 5, (11,), "float32", resets=True)
    assert emulator.RUNS


def test_the_trial_sees_wrong_numbers():
    assert trial(CudaLoops(Card(90, 132), emulator.launch)) == ""
    wrong = CudaLoops(Card(90, 132), lambda kernel, outs, args, aliases: [jnp.zeros(o.shape, o.dtype) for o in outs])
    assert trial(wrong) == "wrong numbers"


def test_a_block_that_never_comes_ends_in_nan(emulated, monkeypatch):
    monkeypatch.setattr(cuda_kernels, "_SPIN", 600)
    monkeypatch.setattr(emulator, "ABSENT", [1])
    cell = rnnjax.Elman(24, activation="relu")
    params, state, xs = some_params(cell, 3), cell.initial_state((2,)), np.ones((4, 2, 3), np.float32)
    card = Card(90, 7)
    final, ys = jax.jit(lambda: emulated(card)(cell, params, state, xs, Controls()))()
    assert np.isnan(final.h).all() and np.isnan(ys[-1]).any()
