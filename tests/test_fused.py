"""What is specific to the fused implementation; that it equals "scan" for every cell is among the laws."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax.engines import Controls, Job, engine
from rnnjax.engines.affine import rules, xla
from rnnjax.engines.affine.plan import make_plan

T, B, I, H = 5, 3, 4, 6


class PeepholeParams(NamedTuple):
    w_ih: jax.Array
    w_hh: jax.Array
    b: jax.Array
    peephole: jax.Array  # [2, H]


class PeepholeState(NamedTuple):
    age: jax.Array  # [*batch]: fewer axes than h, and a dependence of every later step on it
    h: jax.Array  # [*batch, H]
    c: jax.Array  # [*batch, H]


@dataclasses.dataclass(frozen=True)
class Peephole:
    """Two summed gates with a peephole each, a gate that sees zx and zh apart, and an extra leaf of state."""

    hidden_size: int
    num_gates = 3

    def init(self, key, input_size, dtype=jnp.float32):
        keys = jax.random.split(key, 4)
        G, size = self.num_gates, self.hidden_size
        shapes = ((input_size, G * size), (size, G * size), (G * size,), (2, size))
        return PeepholeParams(*(0.5 * jax.random.normal(k, s).astype(dtype) for k, s in zip(keys, shapes)))

    def initial_state(self, batch_shape=(), dtype=jnp.float32):
        wide = jnp.zeros((*batch_shape, self.hidden_size), dtype)
        return PeepholeState(jnp.ones(batch_shape, dtype), wide, wide)

    def update(self, params, state, zx, zh):
        i, f, _ = (a + b for a, b in zip(zx, zh))
        keep = jax.nn.sigmoid(f + params.peephole[1] * state.c) / state.age[..., None]
        c = keep * state.c + jax.nn.sigmoid(i + params.peephole[0] * state.c) * zx[2]
        h = jnp.tanh(c) * jnp.cos(zh[2])
        return PeepholeState(state.age + 0.1 * jnp.mean(h * h, axis=-1), h, c), h - 0.3 * c

    step = rnnjax.affine_step


class IndependentParams(NamedTuple):
    w_ih: jax.Array
    b: jax.Array
    u: jax.Array  # [H], the whole recurrence


class IndependentState(NamedTuple):
    h: jax.Array


@dataclasses.dataclass(frozen=True)
class Independent:
    """An affine cell without ``w_hh``."""

    hidden_size: int
    num_gates = 1

    def init(self, key, input_size, dtype=jnp.float32):
        keys = jax.random.split(key, 3)
        shapes = ((input_size, self.hidden_size), (self.hidden_size,), (self.hidden_size,))
        return IndependentParams(*(jax.random.normal(k, s).astype(dtype) for k, s in zip(keys, shapes)))

    def initial_state(self, batch_shape=(), dtype=jnp.float32):
        return IndependentState(jnp.zeros((*batch_shape, self.hidden_size), dtype))

    def update(self, params, state, zx, zh):
        assert zh == ()
        h = jnp.tanh(zx[0] + params.u * state.h)
        return IndependentState(h), h

    step = rnnjax.affine_step


CELLS = [Peephole(H), Independent(H), rnnjax.LSTM(H), rnnjax.GRU(H)]
by_name = functools.partial(pytest.mark.parametrize, "cell", ids=lambda cell: type(cell).__name__)


def example(cell: Any, length: int = T, batch: tuple[int, ...] = (B,), dtype: Any = jnp.float32) -> tuple:
    keys = jax.random.split(jax.random.key(1), 3)
    params = cell.init(keys[0], I, dtype)
    state = jax.tree.map(lambda a: a + 0.2, cell.initial_state(batch, dtype))
    return params, state, jax.random.normal(keys[1], (length, *batch, I)).astype(dtype)


def loss_of(cell: Any, implementation: str, **options: Any) -> Callable[..., Any]:
    """A scalar in which every output and every leaf of the final state has its own weight, and these outputs."""

    def loss(params, state, xs):
        outputs = rnnjax.unroll(cell, params, state, xs, implementation=implementation, **options)
        leaves = [leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) for leaf in jax.tree.leaves(outputs)]
        return sum(jnp.sum(leaf * jnp.cos(jnp.arange(leaf.size).reshape(leaf.shape))) for leaf in leaves), outputs

    return loss


def gradients_of(cell: Any, implementation: str, **options: Any) -> Callable[..., Any]:
    """Gradients of params, state and xs; then the final state and ys."""
    return jax.jit(jax.grad(loss_of(cell, implementation, **options), (0, 1, 2), has_aux=True))


def assert_equals_scan(cell: Any, arguments: tuple, rtol: float, *remats: Any, **options: Any) -> None:
    """Values, final state, and the gradients of params, state and xs, with each of ``remats``."""
    expected = gradients_of(cell, "scan", **options)(*arguments)
    for remat in remats or (None,):
        got = gradients_of(cell, "fused", remat=remat, **options)(*arguments)
        chex.assert_trees_all_equal_shapes_and_dtypes(got, expected)
        chex.assert_trees_all_close(got, expected, rtol=rtol, atol=rtol)


@by_name(argvalues=CELLS[:3])
def test_fused_is_the_default_and_equals_scan(cell, x64):
    assert rnnjax.implementations(cell)[:2] == ("scan", "fused")
    assert_equals_scan(cell, example(cell, dtype=jnp.float64), 1e-11)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, (T, 2, 0)])
def test_controls_and_remat(lengths, reverse, x64):
    cell = CELLS[0]
    options = {"lengths": lengths and jnp.array(lengths), "resets": jnp.arange(T * B).reshape(T, B) % 4 == 2}
    remats = (None, "gates") if lengths else (None, "gates", 2)
    assert_equals_scan(cell, example(cell, dtype=jnp.float64), 1e-11, *remats, reverse=reverse, **options)


@by_name(argvalues=CELLS[:2])
def test_projecting_within_the_loop_changes_nothing(cell, x64, monkeypatch):
    batch = B + 4  # no other test has it: nothing here was traced before, and nothing traced here is taken elsewhere
    monkeypatch.setattr(rules, "memory_is_kept", lambda: False)  # as it is where no command has run
    monkeypatch.setattr(rules, "_STACK_BYTES", 0)
    lengths, resets = np.arange(batch) % (T + 1), jnp.arange(T * batch).reshape(T, batch) % 4 == 2
    arguments = example(cell, batch=(batch,), dtype=jnp.float64)
    assert_equals_scan(cell, arguments, 1e-11, None, "gates", lengths=jnp.asarray(lengths), resets=resets)

    def projects_all_steps(batch):
        arguments = example(cell, batch=(batch,), dtype=jnp.float64)
        jaxpr = str(jax.make_jaxpr(functools.partial(rnnjax.unroll, cell, implementation="fused"))(*arguments))
        return bool(re.search(rf"f64\[{T},{batch},{H}\] = dot_general", jaxpr))

    assert not projects_all_steps(batch)
    monkeypatch.undo()
    assert projects_all_steps(batch + 1)


@pytest.mark.parametrize("cell, reverse", [(CELLS[0], False), (CELLS[0], True), (CELLS[1], False)])
def test_adding_up_weight_gradients_by_segments_changes_nothing(cell, reverse, x64, monkeypatch):
    """Segments of two and what is left; with the gates kept and computed again; and it is done by segments."""
    batch = B + 6  # no other test has it
    asked = []
    monkeypatch.setattr(xla, "backward_segment", lambda *a, keep_gates, **o: asked.append(keep_gates) or 2)
    assert T % 2 == 1
    lengths, resets = np.arange(batch) % (T + 1), jnp.arange(T * batch).reshape(T, batch) % 4 == 2
    arguments = example(cell, batch=(batch,), dtype=jnp.float64)
    options = {"resets": resets, "reverse": reverse}
    assert_equals_scan(cell, arguments, 1e-11, None, "gates", **options)
    assert_equals_scan(cell, arguments, 1e-11, None, lengths=jnp.asarray(lengths), **options)
    assert set(asked) == {True, False}


@pytest.mark.parametrize(
    "shape, gates, backend, inside",
    [
        ((128, 128, 128, 256), 4, "cpu", True),
        ((128, 32, 256, 512), 4, "cpu", True),
        ((128, 32, 256, 512), 3, "cpu", False),
        ((32, 64, 512, 1024), 4, "cpu", False),
        ((128, 128, 128, 256), 4, "gpu", False),
    ],
)
def test_where_inputs_are_projected(shape, gates, backend, inside, monkeypatch):
    """The rule at the sizes at which it was measured."""
    monkeypatch.setattr(rules, "memory_is_kept", lambda: False)
    length, batch, size, hidden = shape
    xs = jax.ShapeDtypeStruct((length, batch, size), jnp.float32)
    w_ih = jax.ShapeDtypeStruct((size, gates * hidden), jnp.float32)
    assert rules.projects_inside(xs, w_ih, jnp.float32, backend) == inside


@pytest.mark.parametrize("length, batch", [(0, ()), (1, ()), (T, ()), (0, (2, 3)), (T, (2, 3))])
def test_batch_axes_and_short_sequences(length, batch, x64):
    cell = CELLS[1]
    resets = jnp.full((length, *batch), True).at[1:].set(False)
    assert_equals_scan(cell, example(cell, length, batch, jnp.float64), 1e-11, resets=resets)


@pytest.mark.parametrize("cell, remat", [(CELLS[0], None), (CELLS[1], "gates")], ids=["peephole", "independent"])
def test_gradient_of_a_gradient(cell, remat, x64):
    arguments = example(cell, 3, dtype=jnp.float64)

    def curvature(implementation, remat):
        first = jax.grad(loss_of(cell, implementation, remat=remat), (0, 1, 2), has_aux=True)
        return jax.jit(jax.grad(lambda *a: sum(jnp.sum(g * g) for g in jax.tree.leaves(first(*a)[0])), (0, 1, 2)))

    expected = curvature("scan", None)(*arguments)
    got = curvature("fused", remat)(*arguments)
    chex.assert_trees_all_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")])
def test_dtypes_are_those_of_scan(dtypes):
    cell = rnnjax.GRU(H)
    weights, rest = map(jnp.dtype, dtypes)
    params, state, xs = example(cell)
    params = jax.tree.map(lambda a: a.astype(weights), params)
    state, xs = jax.tree.map(lambda a: a.astype(rest), (state, xs))
    # Gradients of bfloat16 weights differ by rounding: scan rounds at every step, fused once.
    assert_equals_scan(cell, (params, state, xs), 2e-6 if weights == jnp.float32 else 0.1)


def test_one_rounding_of_a_bfloat16_gradient():
    """The sum over time runs in float32: the gradient is closer to the exact one than scan's."""
    cell = rnnjax.Elman(8)
    params, state, xs = example(cell, 64)
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), params)
    (exact, _, _), _ = gradients_of(cell, "scan")(wide, state, xs)
    error = {}
    for name in ("scan", "fused"):
        (got, _, _), _ = gradients_of(cell, name)(params, state, xs)
        error[name] = max(jax.tree.leaves(jax.tree.map(lambda g, e: float(jnp.abs(g - e).max()), got, exact)))
    assert error["fused"] < error["scan"]


def test_vmap_over_parameters(x64):
    cell = CELLS[1]
    params, state, xs = example(cell, dtype=jnp.float64)
    scales = jnp.array([1.0, 0.5])
    many = jax.tree.map(lambda a: jnp.stack([scale * a for scale in scales]), params)
    got, _ = jax.vmap(gradients_of(cell, "fused"), (0, None, None))(many, state, xs)
    one_by_one = [gradients_of(cell, "scan")(jax.tree.map(lambda a, k=k: a[k], many), state, xs)[0] for k in (0, 1)]
    chex.assert_trees_all_close(
        got, jax.tree.map(lambda *leaves: jnp.stack(leaves), *one_by_one), rtol=1e-10, atol=1e-10
    )


def test_no_array_of_the_size_of_the_weights_is_carried():
    """The reason for the implementation: no scan carries or stacks an array of the shape of ``w_hh``."""
    cell = rnnjax.GRU(H)
    jaxpr = jax.make_jaxpr(gradients_of(cell, "fused"))(*example(cell))
    shape = cell.init(jax.random.key(0), I).w_hh.shape

    def carried(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "scan":
                yield from (v.aval.shape for v in equation.outvars)
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from carried(inner)

    shapes = list(carried(jaxpr.jaxpr))
    assert (B, H) in shapes and shape not in shapes


def test_what_the_update_sees_is_found_by_tracing():
    def plan(cell):
        return make_plan(cell, cell.init(jax.random.key(0), I), jnp.dtype("float32"))

    assert plan(rnnjax.LSTM(H)).summed == (True,) * 4
    assert plan(rnnjax.GRU(H)).summed == (True, True, False)
    assert plan(Peephole(H)).summed == (True, True, False)
    assert plan(Independent(H)).summed == ()
    assert plan(rnnjax.GRU(H)).reads == (False, False, False, True)


def test_cells_it_does_not_take():
    class Counting(rnnjax.Elman):
        def initial_state(self, batch_shape=(), dtype=jnp.float32):
            return jnp.zeros(batch_shape, jnp.int32)

    fits = engine("fused").fits
    assert fits(Job(rnnjax.Elman(2))) == ""
    assert fits(Job(Counting(2))) == "needs an affine cell with a floating state, got Counting"
    assert fits(Job(rnnjax.Stack((rnnjax.Elman(2),)))) == "needs an affine cell with a floating state, got Stack"


def test_unknown_remat():
    cell = rnnjax.Elman(2)
    with pytest.raises(ValueError, match="'fused' needs remat to be None, True, an int or 'gates', got 'all'"):
        rnnjax.unroll(cell, *example(cell), implementation="fused", remat="all")


def test_called_without_unroll():
    """As composite cells do; the outputs at invalid steps are anything."""
    cell = CELLS[1]
    params, state, xs = example(cell)
    valid = jnp.arange(T)[:, None] < jnp.array([T, 2, 0])
    got = engine("fused").run(cell, params, state, xs, Controls(valid), reverse=False, remat=None)
    expected = engine("scan").run(cell, params, state, xs, Controls(valid), reverse=False, remat=None)
    np.testing.assert_allclose(jnp.where(valid[..., None], got[1] - expected[1], 0), 0, atol=1e-6)
    chex.assert_trees_all_close(got[0], expected[0], rtol=1e-5)


def test_a_gpu_compiles_few_matmuls(monkeypatch):
    """Those over all steps take all gates at once there, with the same results."""
    cell = rnnjax.LSTM(H)
    params, state = cell.init(jax.random.key(0), I), cell.initial_state((B,))
    xs = jax.random.normal(jax.random.key(1), (T, B, I))

    def loss(params, xs):
        final, ys = engine("fused").run(cell, params, state, xs, Controls(), reverse=False, remat=None)
        return jnp.sum(jnp.square(ys)) + jnp.sum(final.c)

    def matmuls_and_gradients():
        step = jax.grad(lambda params, xs: loss(params, xs), argnums=(0, 1))
        return str(jax.make_jaxpr(step)(params, xs)).count("dot_general["), jax.jit(step)(params, xs)

    on_cpu, want = matmuls_and_gradients()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    on_gpu, got = matmuls_and_gradients()
    assert (on_cpu, on_gpu) == (4 + 1 + 1 + 3 * 4, 1 + 1 + 1 + 3)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=2e-5, atol=1e-6), got, want)


def test_parameters_that_were_made_before_an_explicit_mesh():
    """They lie on none, while inputs are sharded over it."""
    cell = rnnjax.LSTM(3)
    params, xs = cell.init(jax.random.key(0), 2), jax.random.normal(jax.random.key(1), (4, 2, 2))

    def loss(params, xs, implementation):
        return jnp.sum(rnnjax.unroll(cell, params, None, xs, implementation=implementation)[1])

    want = jax.grad(loss)(params, xs, "scan")
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        rows = jax.device_put(xs, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "rows")))
        got = jax.jit(jax.grad(loss), static_argnums=2)(params, rows, "fused")
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5), got, want)
