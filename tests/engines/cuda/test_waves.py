"""Equal layers of a stack side by side: kernels on the host against ``"scan"`` in float64, and when it is done."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax.engines import choice
from rnnjax.engines.affine.cuda import CudaLoops
from rnnjax.engines.affine.cuda_rules import Card, Facts, wave_pieces
from rnnjax.engines.affine.recurrence import affine_engine
from rnnjax.engines.choice import Job
from rnnjax.networks.stack import StackParams
from tests.engines.cuda import emulator

H200 = Card(90, 132)
BF16 = jnp.dtype("bfloat16")
needs_compiler = pytest.mark.skipif(emulator.COMPILER is None, reason="no C++ compiler here")


@pytest.fixture
def in_pieces(monkeypatch):
    """Registers the engine ``"emulated"`` on an emulated card, which cuts time into so many pieces."""

    def register(pieces, launch=emulator.launch):
        monkeypatch.setattr(choice, "_engines", choice.registered())
        entry = affine_engine("emulated", CudaLoops(H200, launch), -1)
        choice.register(dataclasses.replace(entry, pieces=lambda job, layers: pieces))
        emulator.RUNS.clear()

    return register


def deep(cell, layers, **options):
    return rnnjax.Stack((cell,) * layers, **options)


CASES = {
    # Two layers and seven steps in three pieces, from the last to the first; what the update saw is computed again.
    "lengths": (deep(rnnjax.LSTM(6), 2), 3, dict(lengths=True, resets=True), dict(reverse=True, remat="gates")),
    # Three layers with all that can stand between them, inputs wider than a layer, gates seen apart, pieces of a step.
    "between": (deep(rnnjax.GRU(2), 3, residual=True, norm="rms", dropout=0.4), 7, dict(dropped=True), {}),
    # A mask for every document; a state that is learned, to which resets go back; a last piece that is padded.
    "learned": (
        deep(rnnjax.LearnedState(rnnjax.Elman(5)), 3, dropout=0.4, locked=True, norm="layer"),
        4,
        dict(dropped=True, resets=True, learned=True),
        {},
    ),
}


def case(
    net, implementation, dtype, *, lengths=False, resets=False, dropped=False, learned=False, reverse=False, remat=None
):
    """A function that gives values and the gradients of parameters, state and inputs, and its arguments."""
    rng = np.random.default_rng(0)
    flags = rng.random((7, 3)) < 0.4
    given = dict(lengths=np.array([7, 4, 0]) if lengths else None, resets=flags if resets else None)
    params = jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape), net.init(jax.random.key(0), 3))
    state = jax.tree.map(lambda s: rng.normal(size=s.shape), net.initial_state((3,)))
    arrays = jax.tree.map(lambda a: a.astype(dtype), (params, state, rng.normal(size=(7, 3, 3))))

    def loss(params, state, xs):
        options = dict(implementation=implementation, remat=remat, reverse=reverse)
        start, key = None if learned else state, jax.random.key(3) if dropped else None
        final, ys = rnnjax.unroll(net, params, start, xs, key=key, **given, **options)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves((final, ys))), (final, ys)

    return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True), arrays


def nothing(kernel, outs, args, aliases):
    """In the place of a launch where nobody looks at numbers."""
    return [jnp.zeros(out.shape, out.dtype) for out in outs]


def equations(program, times=1):
    """Those of a program and of those within, but not of operations that are opaque, and how often each comes."""
    for equation in program.eqns:
        yield equation, times
        if equation.primitive.name != "rnnjax":
            rounds = times * (equation.params["length"] if equation.primitive.name == "scan" else 1)
            for value in jax.tree.leaves(list(equation.params.values())):
                if hasattr(getattr(value, "jaxpr", value), "eqns"):
                    yield from equations(getattr(value, "jaxpr", value), rounds)


def launches(program):
    """How often it calls a kernel."""
    calls = [(e.params["operation"], times) for e, times in equations(program) if e.primitive.name == "rnnjax"]
    return sum(times for operation, times in calls if operation.platform is not None)


def scans(program):
    return [equation for equation, _ in equations(program) if equation.primitive.name == "scan"]


@needs_compiler
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name, in_pieces, x64):
    """A launch a wave, forward and backward."""
    net, pieces, given, options = CASES[name]
    in_pieces(pieces)
    with jax.default_matmul_precision("highest"):
        function, arrays = case(net, "emulated", np.float32, **given, **options)
        waves = pieces + len(net.cells) - 1
        assert launches(jax.make_jaxpr(function)(*arrays)) == 2 * waves
        got = jax.jit(function)(*arrays)
        function, arrays = case(net, "scan", np.float64, **given, reverse=options.get("reverse", False))
        want = jax.jit(function)(*arrays)
    got, want = jax.device_get((got, want))
    for (path, g), w in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        assert g.shape == w.shape
        np.testing.assert_allclose(g, w, rtol=2e-5, atol=2e-5, err_msg=jax.tree_util.keystr(path))
    assert sorted(emulator.RUNS) == ["rnn_backward"] * waves + ["rnn_forward"] * waves


ODD = {
    "one step": (deep(rnnjax.LSTM(3), 2, residual=True), 1, 2, (3,), {}),
    "five layers": (deep(rnnjax.GRU(4), 5, norm="layer", dropout=0.4, locked=True), 7, 3, (2, 2), dict(reverse=True)),
    "one unit": (deep(rnnjax.LearnedState(rnnjax.LSTM(1)), 3, dropout=0.4), 11, 10, (3,), dict(remat="gates")),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "five layers" else [pytest.mark.thorough]) for n in ODD]
)
def test_odd_sizes(name, monkeypatch, x64):
    """In float64, by an engine that is not the kernels': waves are exact, whatever pieces they are of."""
    net, steps, pieces, batch, options = ODD[name]
    monkeypatch.setattr(choice, "_engines", choice.registered())
    choice.register(choice.Engine("mapped", choice.engine("fused").run, many=True, pieces=lambda job, layers: pieces))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape), net.init(jax.random.key(0), 2))
    state = jax.tree.map(lambda s: rng.normal(size=s.shape), net.initial_state(batch))
    xs, flags = rng.normal(size=(steps, *batch, 2)), rng.random((steps, *batch)) < 0.4
    given = dict(lengths=rng.integers(0, steps + 1, size=batch), resets=flags, key=jax.random.key(3))
    given["reverse"] = options.get("reverse", False)

    def loss(params, state, xs, implementation, remat):
        final, ys = rnnjax.unroll(net, params, state, xs, implementation=implementation, remat=remat, **given)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves((final, ys))), (final, ys)

    both = (("mapped", options.get("remat")), ("scan", None))
    traced = jax.make_jaxpr(lambda *arrays: loss(*arrays, *both[0]))(params, state, xs)
    assert pieces + len(net.cells) - 1 in [e.params["length"] for e in scans(traced)]
    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True), static_argnums=(3, 4))
    got, want = (run(params, state, xs, *which) for which in both)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-9, atol=1e-10), got, want)


def count_waves(net, steps=6, size=3, **options):
    """Of a program of ``"emulated"``: launches of its forward pass."""
    params = net.init(jax.random.key(0), size)
    run = lambda params, xs: rnnjax.unroll(net, params, None, xs, implementation="emulated", **options)  # noqa: E731
    return launches(jax.make_jaxpr(run)(params, jnp.ones((steps, 2, size))))


def test_where_layers_follow_each_other(in_pieces):
    """One launch a layer where they differ, where there is nothing to gain, or where it is asked for."""
    in_pieces(3, nothing)
    two = deep(rnnjax.LSTM(4), 2)
    assert count_waves(two) == 4 and count_waves(deep(rnnjax.LSTM(4), 4)) == 6
    assert count_waves(rnnjax.Stack((rnnjax.LSTM(4), rnnjax.LSTM(5)))) == 2
    assert count_waves(rnnjax.Stack((rnnjax.LSTM(4), rnnjax.LSTM(4, forget_bias=0.0)))) == 2
    assert count_waves(rnnjax.Stack((two, two))) == 8  # each of them for itself
    assert count_waves(two, size=9) == 2
    assert count_waves(two, remat=3) == 4  # of two pieces a layer, layer after layer
    assert count_waves(two, steps=0) == 2
    assert count_waves(deep(rnnjax.Bidirectional((rnnjax.LSTM(4),)).layers[0][0], 1)) == 1
    assert count_waves(Doubling((rnnjax.LSTM(4),) * 2)) == count_waves(deep(DoublingStart(rnnjax.LSTM(4)), 2)) == 2
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.PartitionSpec(None, "rows")
    params = two.init(jax.random.key(0), 3)
    run = lambda xs: rnnjax.unroll(two, params, None, xs, implementation="emulated")[1]  # noqa: E731
    alone = jax.shard_map(run, mesh=mesh, in_specs=rows, out_specs=rows)
    assert jax.eval_shape(alone, jnp.ones((6, 2, 3))).shape == (6, 2, 4)
    in_pieces(1, nothing)
    assert count_waves(two) == 2


class Doubling(rnnjax.Stack):
    """What is derived may thread data in its own way."""

    def thread(self, visit, params, state, xs, controls, **options):
        return super().thread(visit, params, state, 2 * xs, controls, **options)


class DoublingStart(rnnjax.LearnedState):
    def thread(self, visit, params, state, xs, controls, **options):
        return super().thread(visit, params, state, 2 * xs, controls, **options)


def test_who_has_no_piece_reaches_no_infinity(monkeypatch):
    """A layer that is through, whose state would overflow if it went on: 1e37 grows by half at every step."""
    monkeypatch.setattr(choice, "_engines", choice.registered())
    choice.register(choice.Engine("mapped", choice.engine("fused").run, many=True, pieces=lambda job, layers: 4))
    net, eye = deep(rnnjax.Elman(2, activation="relu"), 2), np.eye(2, dtype=np.float32)
    bottom, top = jax.tree.map(jnp.zeros_like, net.init(jax.random.key(0), 2)).layers
    params = StackParams((bottom._replace(w_ih=eye, w_hh=1.5 * eye), top._replace(w_ih=1e-9 * eye)))
    xs = jnp.zeros((64, 1, 2)).at[0].set(1e26)

    def loss(params, implementation):
        return 1e-30 * jnp.sum(rnnjax.unroll(net, params, None, xs, implementation=implementation)[1])

    got, want = (jax.jit(jax.grad(loss), static_argnums=1)(params, name) for name in ("mapped", "fused"))
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4), got, want)


def test_weights_in_bfloat16_add_up_in_float32(in_pieces):
    """Their gradients, from wave to wave."""
    in_pieces(3, nothing)
    function, arrays = case(deep(rnnjax.LSTM(4), 2), "emulated", BF16)
    backward = scans(jax.make_jaxpr(function)(*arrays))[-1]
    sums = [v.aval.dtype for v in backward.outvars if v.aval.shape in ((2, 4, 16), (2, 16))]
    assert sums == [jnp.float32] * 3  # of w_ih, w_hh and b


def test_the_rule():
    """Small layers over long times; whatever it costs, no fewer blocks than find room."""

    def pieces(size, layers, steps, rows=16, card=H200):
        return wave_pieces(Facts(4, 4, 1, 0, size, rows, "bf16"), card, layers, steps)

    assert pieces(256, 2, 4096) == 8 and pieces(256, 3, 1024) == 8 and pieces(64, 2, 1024) == 4
    assert pieces(256, 2, 1024) == 1  # by 13 % faster, if the estimate is right
    assert pieces(256, 2, 50) == pieces(256, 2, 1) == pieces(256, 2, 0) == 1
    assert pieces(1024, 2, 1024) == pieces(2048, 3, 4096) == pieces(256, 3, 4096, rows=512) == 1
    assert pieces(256, 2, 1024, card=Card(90, 16)) == 1 and pieces(3000, 2, 4096) == 1
    engine = affine_engine("cuda on an H200", CudaLoops(H200), -1)
    job = Job(rnnjax.LSTM(256), "gpu", steps=1024, input_size=256, dtype=BF16, param_dtype=BF16)
    assert engine.pieces(job, 3) == 8 and engine.pieces(job._replace(steps=64), 3) == 1
    assert engine.pieces(job._replace(cell=rnnjax.cells.IndRNN(256)), 2) == 1


def _exported(function, *args):
    leaves, tree = jax.tree.flatten(args)
    program = jax.export.export(jax.jit(lambda *leaves: function(*tree.unflatten(leaves))))(*leaves)
    return jax.export.deserialize(program.serialize()).call(*leaves)


TRANSFORMED = {
    # More rows, more networks, and XLA's loops in the place of kernels.
    "batch": (lambda f, p, x: jax.jit(jax.vmap(jax.grad(f, (0, 1)), (None, 0)))(p, np.stack([x, 2 * x])), 8),
    "networks": (
        lambda f, p, x: jax.jit(jax.vmap(jax.grad(f), (0, None)))(jax.tree.map(lambda a: np.stack([a, -a]), p), x),
        8,
    ),
    "forward": (lambda f, p, x: jax.jvp(lambda p: f(p, x), (p,), (p,))[1], 4),
    "export": (_exported, 0),
}


@needs_compiler
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "networks" else [pytest.mark.thorough]) for n in TRANSFORMED]
)
def test_waves_under_transformations(name, in_pieces):
    transformed, kernels = TRANSFORMED[name]
    in_pieces(3)
    net = deep(rnnjax.GRU(4), 2)
    params = jax.tree.map(np.asarray, net.init(jax.random.key(0), 3))
    xs = np.random.default_rng(0).normal(size=(7, 2, 3)).astype(np.float32)

    def found(implementation):
        def loss(params, xs):
            return jnp.sum(jnp.sin(rnnjax.unroll(net, params, None, xs, implementation=implementation)[1]))

        with jax.default_matmul_precision("highest"):
            return transformed(loss, params, xs)

    got, runs = found("emulated"), len(emulator.RUNS)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=2e-5), got, found("scan"))
    assert runs == kernels
