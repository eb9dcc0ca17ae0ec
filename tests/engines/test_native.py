"""The native loops against the scan in float64, for every way in which a sequence can be run."""

import ctypes
import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import rnnjax
from rnnjax.cell import param_shapes
from rnnjax.engines import Job, choose, engine
from rnnjax.engines.affine import native_build
from rnnjax.engines.affine.native_text import functions_text, layout_of, places_text
from rnnjax.testing.problems import fast_jit
from tests.cells_table import CELLS, some_params
from tests.engines.cuda.cells import POINTWISE, Custom
from tests.engines.cuda.test_emulated import compare
from tests.engines.programs import needs_compiler

pytestmark = needs_compiler
ROOT = Path(__file__).parents[2]
RUN = engine("native").run


class Wide(Custom):
    """As `Custom`, with five gates: more than one product takes."""

    num_gates = 5

    def init(self, key, input_size, dtype=jnp.float32):
        narrow = super().init(key, input_size, dtype)
        tiled = {name: jnp.tile(getattr(narrow, name), (1, 3))[:, : 5 * self.hidden_size] for name in ("w_ih", "w_hh")}
        return narrow._replace(**tiled)

    def update(self, params, state, zx, zh):
        state, y = super().update(params, state, zx, zh)
        c = state.c + jnp.tanh(zx[2] + zh[2]) * jax.nn.sigmoid(zx[3] + zh[3]) - 0.1 * zx[4] * zh[4]
        return state._replace(c=c), y


ALL = dict(valid=True, resets=True)
CASES = {
    # One row; units that fill no vector; one more than two vectors; several panels of units; blocks of the sums.
    "lstm": (rnnjax.LSTM(33), 9, (1,), "float32", {}),
    "lstm, threads divide the units": (rnnjax.LSTM(210), 4, (1,), "float32", dict(valid=True, reverse=True)),
    "gru, threads divide the units": (rnnjax.GRU(150), 5, (3,), "float64", {}),
    "lstm masked": (rnnjax.LSTM(50), 7, (3,), "float32", dict(**ALL, reverse=True)),
    "lstm large": (rnnjax.LSTM(160), 6, (13,), "float32", dict(resets=True)),
    "lstm states only": (rnnjax.LSTM(33), 7, (5,), "float32", dict(**ALL, remat="gates")),
    "gru": (rnnjax.GRU(5), 7, (2, 3), "float64", dict(**ALL, reverse=True, remat="gates")),
    "gru large": (rnnjax.GRU(130), 5, (50,), "float64", dict(valid=True)),
    "elman": (rnnjax.Elman(70), 6, (9,), "float64", ALL),
    "without w_hh": (rnnjax.cells.IndRNN(21, activation="tanh"), 6, (4,), "float32", dict(**ALL, reverse=True)),
    "without w_hh, states only": (rnnjax.cells.IndRNN(9), 6, (4,), "float64", dict(**ALL, remat="gates")),
    "y is not h": (Custom(19), 7, (6,), "float64", dict(**ALL, reverse=True)),
    "y is not h, states only": (Custom(19), 7, (6,), "float64", dict(**ALL, remat="gates")),
    "five gates": (Wide(18), 5, (7,), "float64", ALL),
    "no batch axis": (rnnjax.GRU(6), 5, (), "float32", ALL),
    "no step": (rnnjax.LSTM(6), 0, (3,), "float32", ALL),
    "one step": (rnnjax.LSTM(6), 1, (3,), "float32", dict(**ALL, reverse=True)),
    "no row": (rnnjax.GRU(6), 3, (0,), "float32", {}),
    "chunks of the backward pass": (rnnjax.LSTM(96), 64, (40,), "float32", dict(resets=True, reverse=True)),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case, x64):
    cell, steps, batch, dtype, options = CASES[case]
    compare(RUN, cell, steps, batch, dtype, **options)


@pytest.mark.parametrize("name", sorted(set(POINTWISE) - set(CELLS)))
def test_other_pointwise_cells(name, x64):
    """Variants, that of the README, and one of a page; the laws try those in the table of cells."""
    compare(RUN, POINTWISE[name], 4, (2,), "float64", valid=True)


def test_halves_are_widened(x64):
    compare(RUN, rnnjax.LSTM(21), 6, (3,), "bfloat16", resets=True)
    compare(RUN, rnnjax.GRU(21), 6, (3,), "float16", valid=True)


def rows(members, batch=2):
    cell = rnnjax.LSTM(6)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: rng.normal(size=(*members, *p.shape)), param_shapes(cell, 4, jnp.dtype(float)))
    xs = rng.normal(size=(3, 5, batch, 4))

    def loss(implementation, params, xs):
        state = cell.initial_state((batch,), float)
        options = {"lengths": jnp.arange(3, 3 + batch) % 6, "implementation": implementation}
        state, ys = rnnjax.unroll(cell, params, state, xs, **options)
        return jnp.sum(jnp.sin(ys)) + jnp.sum(state.c**2)

    return loss, params, xs


def same(function, *arguments):
    got, want = (fast_jit(functools.partial(function, name))(*arguments) for name in ("native", "scan"))
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-10, atol=1e-12)


def test_vmap_over_sequences_and_over_parameters(x64):
    """Gradients of the whole and of every member, one axis and two, with shared parameters and with their own."""
    loss, params, xs = rows(())
    grad = lambda name: jax.grad(lambda p, x: loss(name, p, x), argnums=(0, 1))  # noqa: E731
    same(lambda name, p, xs: jax.vmap(grad(name), in_axes=(None, 0))(p, xs), params, xs)
    same(lambda name, p, xs: jax.grad(lambda p: jax.vmap(lambda x: loss(name, p, x))(xs).sum())(p), params, xs)
    of_four, _, four = rows((), 4)  # so many rows that every member's gradient is taken by itself
    each = lambda name: jax.grad(lambda p, x: of_four(name, p, x), argnums=(0, 1))  # noqa: E731
    same(lambda name, p, xs: jax.vmap(each(name), in_axes=(None, 0))(p, xs), params, four)
    _, own, _ = rows((3,))
    same(lambda name, p, xs: jax.vmap(grad(name))(p, xs), own, xs)
    same(lambda name, p, xs: jax.grad(lambda p: jax.vmap(lambda p: loss(name, p, xs[0]))(p).sum())(p), own, xs)
    same(lambda name, p, xs: jax.vmap(lambda x: jax.vmap(lambda p: loss(name, p, x))(p))(xs), own, xs)


@pytest.mark.parametrize("remat", [None, "gates"])
@pytest.mark.parametrize("dense", [None, (0, 0), (2, 1), (6, 4)])
@pytest.mark.parametrize("cell", [rnnjax.LSTM(37), rnnjax.GRU(20), rnnjax.Elman(70)], ids=lambda c: type(c).__name__)
def test_inputs_that_are_symbols(cell, dense, remat, x64):
    """Rows with one number that is not zero, or none; all of them, or all but one; only some cotangents are wanted."""
    rng = np.random.default_rng(0)
    xs = np.zeros((7, 5, 19))
    steps, rows = np.indices(xs.shape[:2])
    xs[steps, rows, rng.integers(0, 19, xs.shape[:2])] = rng.normal(size=xs.shape[:2])
    xs[3, 2] = 0
    if dense:
        xs[dense] = rng.normal(size=19)
    params = jax.tree.map(lambda p: rng.normal(size=p.shape) / 3, cell.init(jax.random.key(0), 19, float))

    def loss(name, remat, params, xs):
        options = {"lengths": jnp.array([7, 5, 7, 2, 7]), "reverse": True, "remat": remat, "implementation": name}
        return jnp.sum(jnp.sin(rnnjax.unroll(cell, params, None, xs, **options)[1]))

    remats = {"native": remat, "scan": None}  # the scan knows no "gates"
    for which in (0, 1, (0, 1)):
        same(lambda name, *a, which=which: jax.grad(functools.partial(loss, name, remats[name]), which)(*a), params, xs)


def test_a_cotangent_of_the_inputs_that_nobody_asks_for_is_not_computed():
    cell, xs = rnnjax.LSTM(16), jnp.ones((8, 8, 9))
    params = cell.init(jax.random.key(0), 9)

    def loss(params, xs):
        return rnnjax.unroll(cell, params, None, xs, implementation="native")[1].sum()

    both, one = (jax.jit(jax.grad(loss, which)).lower(params, xs).as_text() for which in ((0, 1), 0))
    calls = [next(line for line in text.splitlines() if "_backward" in line) for text in (both, one)]
    assert [call.split("->")[1].count("tensor<8x8x9xf32>") for call in calls] == [1, 0]


def test_second_derivatives(x64):
    loss, params, xs = rows(())
    same(lambda name, x: jax.jacrev(jax.grad(lambda x: loss(name, params, x)))(x), xs[0])
    same(lambda name, p: jax.grad(lambda p: sum(map(jnp.sum, jax.grad(lambda q: loss(name, q, xs[0]))(p))))(p), params)


def test_an_exported_program_needs_no_compiler():
    cell = rnnjax.GRU(5)
    leaves, tree = jax.tree.flatten(some_params(cell, 3))
    xs = np.random.default_rng(1).normal(size=(4, 2, 3)).astype(np.float32)

    def loss(implementation, leaves, xs):
        options = {"resets": jnp.arange(8).reshape(4, 2) % 3 == 0, "implementation": implementation}
        return rnnjax.unroll(cell, tree.unflatten(leaves), cell.initial_state((2,)), xs, **options)[1].sum()

    run = lambda name: jax.jit(jax.value_and_grad(lambda p, xs: loss(name, p, xs), argnums=(0, 1)))  # noqa: E731
    assert "custom_call @rnnjax_native" in run("native").lower(leaves, xs).as_text()
    exported = export.export(run("native"), platforms=["cpu", "cuda"])(leaves, xs)
    assert "custom_call @rnnjax_native" not in exported.mlir_module()
    got = export.deserialize(exported.serialize()).call(leaves, xs)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(run("scan")(leaves, xs)), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6)


def test_the_default_where_there_is_enough_to_do():
    job = Job(rnnjax.LSTM(64), "cpu", 64, (16,), 32)
    assert choose(job).name == "native"
    assert choose(job._replace(cell=rnnjax.cells.LayerNormLSTM(64))).name == "fused"
    assert choose(job._replace(batch=(), steps=1024)).name == "fused"  # perhaps a member of a `vmap`
    assert choose(job._replace(steps=4)).name == "fused"  # packing the weights costs more
    assert choose(job._replace(batch=(2,), steps=16)).name == "fused"
    assert choose(job._replace(cell=rnnjax.LSTM(8), batch=(4,))).name == "fused"  # no compiler for microseconds
    assert choose(job._replace(dtype=jnp.dtype("bfloat16"))).name == "native"


def test_refusals(monkeypatch):
    fits = engine("native").fits
    job = Job(rnnjax.LSTM(8))
    assert fits(job) == ""
    assert fits(job._replace(backend="gpu")) == "needs the CPU, got gpu"
    assert "reduce_sum (combined.py, line " in fits(job._replace(cell=rnnjax.cells.LayerNormLSTM(8)))
    assert fits(job._replace(cell=rnnjax.cells.ProjectedLSTM(3, cell_size=5))).startswith("needs an affine cell")
    monkeypatch.setattr(jax, "local_device_count", lambda *_: 2)
    assert fits(job) == "needs to have the only CPU device, all cores of which it uses"


def test_slots_of_a_gate_seen_apart():
    layout = layout_of(3, (True, False, True), 0)
    assert (layout.gate_x, layout.gate_h, layout.slots, layout.first_h) == ((1, 0, 2), (0, 2, 1), 4, 1)
    assert layout.seen == (1, 0, 3, 2)


def test_another_number_of_threads_computes_the_same():
    """Rows are cut otherwise, and sums are taken in another order, which is all that may differ."""
    program = """
import jax, numpy as np, rnnjax, sys
cell = rnnjax.GRU(61)
params = jax.tree.map(lambda p: p + 0.1, cell.init(jax.random.key(0), 40))
xs = jax.random.normal(jax.random.key(1), (20, 7, 40))
run = lambda p, xs: rnnjax.unroll(cell, p, cell.initial_state((7,)), xs, implementation="native")[1]
grad = jax.jit(jax.grad(lambda p, xs: (run(p, xs) ** 2).sum(), argnums=(0, 1)))
states = lambda p: rnnjax.unroll(cell, p, None, xs[:, :6], implementation="native", remat="gates")[1]
kept = jax.jit(jax.grad(lambda p: (states(p) ** 2).sum()))  # 3 rows of 61 units fill no vector
few = rnnjax.LSTM(210)  # rows: threads divide the units
weights, x = few.init(jax.random.key(2), 40), xs[:, :1]
some = jax.jit(jax.grad(lambda p: (rnnjax.unroll(few, p, None, x, implementation="native")[1] ** 2).sum()))
every = lambda: jax.tree.leaves((jax.jit(run)(params, xs), grad(params, xs), kept(params), some(weights)))
leaves = every()
for _ in range(5):  # a thread may come too late to help
    assert all((a == b).all() for a, b in zip(leaves, every()))
np.savez(sys.argv[1], *leaves)
"""
    found = []
    for threads in ("1", "2"):
        target = Path(os.environ["RNNJAX_NATIVE_CACHE"]) / f"threads{threads}.npz"
        environment = os.environ | {"OMP_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", program, target], env=environment, check=True, timeout=300)
        with np.load(target) as arrays:
            found.append([arrays[name] for name in arrays.files])
        target.unlink()
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(two, one, rtol=2e-5, atol=2e-5)


PLACES = """
#include <thread>
extern "C" int together(int count, int *found) {  // threads that begin, one after the other, where the caller is
  Places places;
  int wrong = 0;
  const int here = found[0] = places.settle();
  for (int i = 1; i < count; i++)
    std::thread([&] {
      cpu_set_t before, one, after;
      sched_getaffinity(0, sizeof before, &before);
      CPU_ZERO(&one);
      CPU_SET(here, &one);
      sched_setaffinity(0, sizeof one, &one);
      sched_setaffinity(0, sizeof before, &before);
      found[i] = places.settle();
      sched_getaffinity(0, sizeof after, &after);
      wrong += !CPU_EQUAL(&before, &after);
    }).join();
  return wrong;
}
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not say where a thread runs")
def test_threads_of_a_call_take_different_processors():
    """And may run everywhere again afterwards; where there is one processor, they share it."""
    ((_, library),) = native_build.libraries({"places": places_text() + PLACES}).values()
    allowed = os.sched_getaffinity(0)
    count = min(4, len(allowed))
    found = (ctypes.c_int * count)()
    assert library.together(count, found) == 0
    assert len(set(found)) == count and set(found) <= allowed
    one = min(allowed)
    os.sched_setaffinity(0, {one})
    try:
        pair = (ctypes.c_int * 2)()
        assert library.together(2, pair) == 0
        assert list(pair) == [one, -1]
    finally:
        os.sched_setaffinity(0, allowed)


FUNCTIONS = """
extern "C" void functions(const real *x, real *out, int64_t n) {
  for (int64_t i = 0; i < n; i += VL) {
    const vf v = *(const vfu *)(x + i);
    *(vfu *)(out + i) = v_exp(v); *(vfu *)(out + n + i) = v_expm1(v);
    *(vfu *)(out + 2 * n + i) = v_tanh(v); *(vfu *)(out + 3 * n + i) = v_logistic(v);
  }
}
"""
LIMITS = (1.2, 2.5, 3.0, 3.0)  # units of the last place; measured 1.06, 1.6, 2.5, 2.4


@pytest.mark.parametrize(("dtype", "wide"), [("float32", np.float64), ("float64", np.longdouble)])
def test_elementary_functions_are_good_to_a_few_ulp(dtype, wide, monkeypatch):
    monkeypatch.setenv("RNNJAX_NATIVE_FLAGS", "")  # as users have it: without optimisation sums are rounded more often
    source = functions_text(np.dtype(dtype).itemsize) + FUNCTIONS
    ((_, library),) = native_build.libraries({f"functions_{dtype}": source}).values()
    rng = np.random.default_rng(0)
    x = np.exp(rng.uniform(-14, np.log(80 if dtype == "float32" else 700), 100_000 // 64 * 64)).astype(dtype)
    x = np.concatenate([x, -x])

    def run(x):
        out = np.zeros((4, len(x)), dtype)
        library.functions(*(a.ctypes.data_as(ctypes.c_void_p) for a in (x, out)), ctypes.c_int64(len(x)))
        return out

    w = x.astype(wide)
    truth = np.exp(w), np.expm1(w), np.tanh(w), 1 / (1 + np.exp(-w))
    for got, want, limit in zip(run(x), truth, LIMITS, strict=True):
        ulp = np.abs(got.astype(wide) - want) / np.spacing(np.abs(want).astype(dtype)).astype(wide)
        assert ulp.max() <= limit
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e30, -1e30, 1e-40] * 8, dtype)
    exp, expm1, tanh, logistic = (row[:8] for row in run(special))
    np.testing.assert_array_equal(exp, [1, 1, np.inf, 0, np.nan, np.inf, 0, 1])
    np.testing.assert_array_equal(expm1[:7], [0, 0, np.inf, -1, np.nan, np.inf, -1])
    np.testing.assert_array_equal(tanh[:7], [0, 0, 1, -1, np.nan, 1, -1])
    np.testing.assert_array_equal(logistic[[0, 1, 2, 4, 5]], [0.5, 0.5, 1, np.nan, 1])
    assert (logistic[[3, 6]] < 1e-34).all() and (logistic[[3, 6]] >= 0).all()


@pytest.mark.thorough
def test_sanitizers_find_nothing():
    """Addresses and undefined behaviour, over the laws of three cells; takes a minute."""
    files = [subprocess.run(["g++", f"-print-file-name=lib{n}.so"], capture_output=True, text=True).stdout.strip()
             for n in ("asan", "ubsan")]  # fmt: skip
    program = """
import rnnjax, rnnjax.testing
for cell in (rnnjax.LSTM(20), rnnjax.GRU(5), rnnjax.cells.IndRNN(33)):
    laws = ["loop", "padding", "resets", "remat"]
    rnnjax.testing.check_laws(cell, 3, implementations=["native"], laws=laws)
import jax, jax.numpy as jnp
cell = rnnjax.LSTM(190)  # threads divide the units of few rows
few = lambda p: rnnjax.unroll(cell, p, None, jnp.ones((9, 1, 3)), implementation="native")[1].sum()
jax.block_until_ready(jax.jit(jax.grad(few))(cell.init(jax.random.key(0), 3)))
print("clean")
"""
    environment = os.environ | {
        "LD_PRELOAD": " ".join(files),
        "ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0",
        "UBSAN_OPTIONS": "halt_on_error=1",
        "CXX": "g++",
        "RNNJAX_NATIVE_FLAGS": "-O1 -fsanitize=address,undefined -fno-sanitize-recover=all",
        "PYTHONPATH": str(ROOT),
    }
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.stdout == "clean\n", result.stderr[-3000:]
