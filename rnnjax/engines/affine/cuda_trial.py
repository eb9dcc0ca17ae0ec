"""The first thing that kernels do on a card: results that are known otherwise."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cell import affine_step
from rnnjax.engines.affine.loops import Finished, Loops, Operands
from rnnjax.engines.affine.plan import make_plan
from rnnjax.engines.affine.xla import XlaLoops
from rnnjax.engines.choice import Controls

__all__ = ["cluster_trial", "trial"]


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
    return _tried(lambda: all([_passes(loops, _Cell(dense)) for dense in (True, False)]))


def cluster_trial(loops: Loops) -> str:
    """The same of a forward pass that clusters of eight blocks run by themselves, where the rules choose those.

    Every unit needs another block's, so that each message counts.
    """
    cell = _Cell(True, 190)

    def run(loops: Any, xs: jax.Array, w_ih: jax.Array, w_hh: jax.Array) -> Any:
        params = cell.init(None, 1, xs.dtype)
        operands = Operands(xs, w_ih, w_hh, params.b, [], cell.initial_state((9,), xs.dtype), Controls())
        final, ys, _ = loops.forward(make_plan(cell, params, jnp.float32), operands, keep=False)
        return ys.astype(jnp.float32), final.h.astype(jnp.float32)

    def arguments() -> list[jax.Array]:
        xs = jnp.sin(jnp.arange(540.0)).reshape(60, 9, 1)
        arrays = xs, jnp.cos(jnp.arange(190.0)).reshape(1, 190), jnp.roll(0.9 * jnp.eye(190), 77, axis=1)
        return [array.astype(jnp.bfloat16) for array in arrays]

    return _tried(lambda: _agree(run, loops, arguments, 0.05))


def _passes(loops: Loops, cell: _Cell) -> bool:
    def run(loops: Any, xs: jax.Array, w_hh: jax.Array | None) -> Any:
        params = cell.init(None, 1)
        plan = make_plan(cell, params, jnp.float32)
        operands = Operands(xs, params.w_ih, w_hh, params.b, [], cell.initial_state((9,)), Controls())
        final, ys, kept = loops.forward(plan, operands, keep=True)
        found = loops.backward(plan, operands, kept, final, jnp.cos(ys))
        seen = found.seen
        return ys, found.state.h, seen.b if isinstance(seen, Finished) else jnp.sum(seen[0][0], axis=(0, 1))

    def arguments() -> list[jax.Array | None]:
        xs = jnp.sin(jnp.arange(45, dtype=jnp.float32)).reshape(5, 9, 1)
        w_hh = jnp.cos(jnp.arange(1600, dtype=jnp.float32)).reshape(40, 40) / 6 if cell.dense else None
        return [xs, w_hh]

    return _agree(run, loops, arguments, 1e-3)


def _agree(run: Callable[..., Any], loops: Loops, arguments: Callable[[], Any], tolerance: float) -> bool:
    """Whether loops give what XLA gives."""
    with jax.default_matmul_precision("highest"):
        arrays = arguments()
        got, want = (jax.jit(functools.partial(run, each))(*arrays) for each in (loops, XlaLoops()))
        close = functools.partial(jnp.allclose, rtol=tolerance, atol=tolerance)
        return all(bool(close(g, w)) for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True))


def _tried(right: Callable[[], bool]) -> str:
    with ThreadPoolExecutor(1) as thread:
        try:
            return "" if thread.submit(right).result() else "wrong numbers"
        except Exception as error:  # of any kind: what the kernels stand on is JAX's, NVRTC's and the driver's
            lines = str(error).strip().splitlines()
            return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
