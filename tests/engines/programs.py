"""Updates as functions of arrays, and their programs compiled as scalar C++."""

import ctypes
import shutil
import subprocess
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnjax.engines.affine.emit_c import SCALAR, SCALAR_MATH, emit
from rnnjax.engines.affine.program import Program, Refusal, make_program

__all__ = ["COMPILER", "Update", "needs_compiler", "random_inputs", "run_compiled", "update_of"]

COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")


class Update:
    """A function ``(own, state, seen) -> (state, y)`` and the shapes of one example."""

    def __init__(self, fn: Any, own: list[Any], state: Any, seen: Any):
        self.fn, self.own, self.state, self.seen = fn, own, state, seen

    def program(self) -> Program | Refusal:
        return make_program(self.fn, self.own, self.state, self.seen)


def update_of(cell: Any, dtype: Any = jnp.float32) -> Update:
    """The update of a cell, with all parameters but the two matrices as its own."""
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3, dtype))
    names = [name for name in params._fields if name not in ("w_ih", "w_hh") and getattr(params, name) is not None]
    own = [getattr(params, name) for name in names]
    state = jax.eval_shape(lambda: cell.initial_state((), dtype))
    z = (jax.ShapeDtypeStruct((cell.hidden_size,), dtype),) * cell.num_gates
    zh = z if hasattr(params, "w_hh") else ()

    def fn(own: Any, state: Any, seen: Any) -> Any:
        return cell.update(params._replace(**dict(zip(names, own))), state, *seen)

    return Update(fn, own, state, (z, zh))


def random_inputs(update: Update, seed: int, scale: float = 1.0) -> tuple[Any, ...]:
    """Own parameters, state, seen and the two cotangents."""
    rng = np.random.default_rng(seed)
    dtype = jax.tree.leaves(update.state)[0].dtype
    shapes = (update.own, update.state, update.seen, update.state, jax.tree.leaves(update.state)[0])
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * scale + 0.1, dtype), shapes)


def run_compiled(programs: list[Program], inputs: list[tuple[Any, ...]], folder: Any) -> list[list[np.ndarray]]:
    """Compiles all programs into one library, and runs each on its inputs: ``new, y, d_own, d_old, d_seen``."""
    text = ["typedef double real;", SCALAR_MATH]
    for n, program in enumerate(programs):
        outputs = (*program.new, program.y, *program.d_own, *program.d_old, *program.d_seen)
        given = {i: f"in[{k}]" for k, i in enumerate(program.inputs)}
        places = [(i, f"out[{k}]") for k, i in enumerate(outputs)]
        text.append(f'extern "C" void f{n}(const real *in, real *out) {{\n{emit(program, places, given, SCALAR)}\n}}')
    source, library = folder / "programs.cpp", folder / "programs.so"
    source.write_text("\n".join(text))
    command = [COMPILER, "-std=c++17", "-O0", "-Wall", "-Werror", "-shared", "-fPIC", str(source), "-o", str(library)]
    command.insert(4, "-Wno-unused-function")
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    loaded = ctypes.CDLL(str(library))
    return [_run(getattr(loaded, f"f{n}"), p, arrays) for n, (p, arrays) in enumerate(zip(programs, inputs))]


def _run(function: Any, program: Program, inputs: tuple[Any, ...]) -> list[np.ndarray]:
    own, state, seen, d_new, d_y = inputs
    size = jax.tree.leaves(state)[0].shape[0]
    columns = program.columns(own, size, jnp.float64)
    arrays = [np.asarray(a, np.float64) for a in (*columns, *jax.tree.leaves((state, seen, d_new)), d_y)]
    count = [len(program.new), 1, len(program.d_own), len(program.d_old), len(program.d_seen)]
    out = np.zeros((size, sum(count)))
    for u in range(size):
        row = np.array([a[u] for a in arrays])
        pointers = [a.ctypes.data_as(ctypes.POINTER(ctypes.c_double)) for a in (row, out[u])]
        function(*pointers)
    new, y, d_own, d_old, d_seen = np.split(out.T, np.cumsum(count)[:-1])
    leaves = program.leaves([jnp.asarray(a) for a in d_own])
    return [np.asarray(a) for a in (*new, *y, *leaves, *d_old, *d_seen)]
