"""The first thing that kernels do on a card: results that are known otherwise."""

from __future__ import annotations

import dataclasses
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cell import affine_step
from rnnjax.engines.affine.loops import Loops, Operands
from rnnjax.engines.affine.plan import make_plan
from rnnjax.engines.affine.xla import XlaLoops
from rnnjax.engines.choice import Controls

__all__ = ["trial"]


class _Params(NamedTuple):
    w_ih: jax.Array
    w_hh: jax.Array | None
    b: jax.Array


class _State(NamedTuple):
    h: jax.Array


@dataclasses.dataclass(frozen=True)
class _Cell:
    """A small network whose results are known otherwise, with a matrix ``w_hh`` or without."""

    dense: bool
    hidden_size: int = 40
    num_gates = 1

    def init(self, key: Any, input_size: int, dtype: Any = jnp.float32) -> _Params:
        H = self.hidden_size
        w_ih, w_hh, b = (jnp.full(shape, 0.1, dtype) for shape in ((input_size, H), (H, H), (H,)))
        return _Params(w_ih, w_hh if self.dense else None, b)

    def initial_state(self, batch_shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> _State:
        return _State(jnp.zeros((*batch_shape, self.hidden_size), dtype))

    def update(self, params: Any, state: Any, zx: Any, zh: Any) -> tuple[_State, jax.Array]:
        h = jnp.tanh(zx[0] + (zh[0] if self.dense else 0.5 * state.h))
        return _State(h), h

    step = affine_step


def trial(loops: Loops) -> str:
    """Runs all loops once, on little, and compares with XLA: ``""``, or what is wrong with them here.

    Someone may ask for the first time while a program is traced, within a mesh, or where JAX looks for NaN, none of
    which a thread of its own knows of.
    """
    with ThreadPoolExecutor(1) as thread:
        try:
            right = thread.submit(lambda: all([_passes(loops, _Cell(dense)) for dense in (True, False)])).result()
        except Exception as error:  # of any kind: what the kernels stand on is JAX's, NVRTC's and the driver's
            lines = str(error).strip().splitlines()
            return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
    return "" if right else "wrong numbers"


def _passes(loops: Loops, cell: _Cell) -> bool:
    def run(loops: Any, xs: jax.Array, w_hh: jax.Array | None) -> Any:
        params = cell.init(None, 1)
        plan = make_plan(cell, params, jnp.float32)
        operands = Operands(xs, params.w_ih, w_hh, params.b, [], cell.initial_state((9,)), Controls())
        final, ys, kept = loops.forward(plan, operands, keep=True)
        found = loops.backward(plan, operands, kept, final, jnp.cos(ys))
        return ys, found.state.h, found.seen

    with jax.default_matmul_precision("highest"):
        xs = jnp.sin(jnp.arange(45, dtype=jnp.float32)).reshape(5, 9, 1)
        w_hh = jnp.cos(jnp.arange(1600, dtype=jnp.float32)).reshape(40, 40) / 6 if cell.dense else None
        ys, d_h, finished = jax.jit(functools.partial(run, loops))(xs, w_hh)
        want, want_d_h, (((d_z,),)) = jax.jit(functools.partial(run, XlaLoops()))(xs, w_hh)
        pairs = [(ys, want), (d_h, want_d_h), (finished.b, jnp.sum(d_z, axis=(0, 1)))]
        return all(bool(jnp.allclose(got, w, rtol=1e-3, atol=1e-3)) for got, w in pairs)
