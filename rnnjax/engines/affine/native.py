r"""The native loops of the CPU: C++ made from a cell's own equations, compiled at first use by the machine's compiler.

    z[t]        = b + x[t] @ w_ih + h[t-1] @ w_hh
    state[t], y = update(state[t-1], z[t])

XLA gives the small matmul of a step to one core, packs the weights again at every step, and writes pre-activations to
memory between the matmul and the pointwise part. Here every thread has rows of the batch of its own and runs all steps
on them without waiting for anybody: weights are packed once, a tile of the matmul stays in registers, and the cell's
update (`program`, `native_text`) follows while its results are in the cache. The backward loop works on chunks of
steps, whose gradients of weights and inputs are taken before the chunk leaves the cache: two calls do everything.

All numbers are computed in the dtype of the update, float32 or float64; what is kept in 16 bits is widened before.
Compiling takes a quarter of a second a cell and dtype, and 3 s once a machine; see `native_build` for the cache.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cell import AffineCell, widen
from rnnjax.cpu import splits_batches
from rnnjax.engines.affine.loops import Cotangents, Finished, Kept, Operands
from rnnjax.engines.affine.native_build import BuildError, find_compiler, libraries, switched_off
from rnnjax.engines.affine.native_calls import Call, Loaded
from rnnjax.engines.affine.native_text import Layout, cell_text, handler_text, layout_of, loops_text
from rnnjax.engines.affine.plan import Plan
from rnnjax.engines.affine.program import Program, Refusal
from rnnjax.engines.affine.recurrence import plan_of
from rnnjax.engines.choice import Job, is_floating

__all__ = ["NativeLoops", "compiles", "rank"]

_MAX_STATES, _MAX_OWN, _MAX_GATES = 8, 64, 32  # what the loops have room for


_failures: dict[Any, str] = {}  # of compilations: said by `fits` from then on


def rank(job: Job) -> float:
    """Above ``"fused"`` where there is enough to do, and the cell compiles; that happens here, if it has not before.

    Packing the weights costs as much as several steps of a few rows. Milliseconds of one core, forward, native / fused,
    LSTM (T, B, I, H): (8, 1, 512, 512) 2.15 / 0.94, (1, 64, 512, 512) 3.0 / 2.3, (4, 16, 256, 256) 0.47 / 0.55,
    (8, 16, 64, 64) 0.07 / 0.09, (64, 1, 256, 256) 0.92 / 0.98, (128, 32, 256, 512) 64 / 82. A job of less than a
    million operations takes microseconds either way, and need not wait for a compiler.
    """
    rows = math.prod(job.batch)
    if not all(isinstance(n, int) for n in (job.steps, rows, job.input_size)):
        return -1
    H, G = job.cell.hidden_size, job.cell.num_gates
    if not job.batch:  # perhaps within `jax.vmap`, where gradients are taken one member after the other
        return -1
    if job.steps < 8 or job.steps * rows < 64 or 2 * job.steps * rows * G * H * (job.input_size + H) < 1_000_000:
        return -1
    return 10 if isinstance(_load(plan_of(job.cell, job.input_size, job.param_dtype, job.dtype).bare()), Loaded) else -1


def compiles(cell: Any) -> bool:
    """Whether the native loops can run a cell on this machine's CPU; asks JAX for no device, and compiles nothing."""
    if not is_floating(cell, AffineCell):
        return False
    return not isinstance(_prepared(plan_of(cell, cell.hidden_size, None, None).bare()), str)


@dataclasses.dataclass(frozen=True)
class NativeLoops:
    """Both loops of pointwise affine cells on a CPU; see the module."""

    platform = "cpu"

    def fits(self, plan: Plan, job: Job) -> str:
        """``""``, or why not."""
        if job.backend != "cpu":
            return f"needs the CPU, got {job.backend}"
        if jax.local_device_count("cpu") > 1 and not (splits_batches() and job.free):
            return "needs to have the only CPU device, all cores of which it uses"
        found = _prepared(plan.bare())
        return found if isinstance(found, str) else _failures.get(found, "")

    def segment(self, plan: Plan, operands: Operands) -> int | None:
        """The chunks of the backward pass are the loops' own."""
        del plan, operands
        return None

    def forward(self, plan: Plan, operands: Operands, *, keep: bool) -> tuple[Any, jax.Array, Kept | None]:
        """Everything in one call."""
        call = _call(plan, operands, keep)
        ys, *rest = call.forward(*_arrays(call, plan, operands))
        narrow, tree = _flat(operands.state)
        final = [a.reshape(like.shape).astype(like.dtype) for a, like in zip(rest, narrow)]
        kept = rest[len(narrow) :]
        shape = (*operands.xs.shape[:-1], plan.cell.hidden_size)
        result = ys.reshape(shape).astype(operands.state.h.dtype)
        return tree.unflatten(final), result, Kept(None, ([ys] if call.y_is_h else []) + kept) if keep else None

    def backward(self, plan: Plan, operands: Operands, kept: Kept, d_final: Any, d_ys: jax.Array) -> Cotangents:
        """Everything in one call: also the gradients of the weights and the inputs."""
        call = _call(plan, operands, keep=True)
        leaves, tree = _flat(operands.state)
        T, B, H = kept.rest[0].shape
        arrays = [*_arrays(call, plan, operands), *kept.rest, _wide(plan, d_ys, T, B, H)]
        arrays += [_wide(plan, leaf, B, H) for leaf in jax.tree.leaves(d_final)]
        found = iter(call.backward(*arrays))
        d_xs = next(found).reshape(operands.xs.shape) if call.inputs else jnp.zeros_like(operands.xs)
        d_w_ih = next(found)
        d_w_hh, d_b = next(found) if operands.w_hh is not None else None, next(found)
        program = call.cell.program
        d_own = program.leaves(list(next(found))) if program.num_own else []
        d_state = tree.unflatten([next(found).reshape(leaf.shape) for leaf in leaves])
        d_fresh = tree.unflatten([next(found).reshape(leaf.shape) for leaf in leaves]) if call.resets else None
        return Cotangents(d_state, d_own, d_fresh, Finished(d_w_ih, d_w_hh, d_b, d_xs))


def _call(plan: Plan, operands: Operands, keep: bool) -> Call:
    """Which arrays there are."""
    controls = operands.controls
    mode = 0 if not keep else 1 if plan.keep_gates else 2
    masks = controls.valid is not None, controls.resets is not None
    return Call(plan, _loaded(plan), *masks, mode, plan.moves_inputs)


def _flat(state: Any) -> tuple[list[jax.Array], Any]:
    return jax.tree.flatten(state)


def _wide(plan: Plan, a: jax.Array, *shape: int) -> jax.Array:
    return a.astype(plan.dtype).reshape(shape)


def _arrays(call: Call, plan: Plan, operands: Operands) -> list[jax.Array]:
    """The operands as the handler takes them: one batch axis, everything in the dtype of the update."""
    xs, w_ih, w_hh, b, own, state, controls = operands
    T, *batch, I = xs.shape
    B, H = math.prod(batch), plan.cell.hidden_size
    # Inputs are rounded to the dtype of the weights, as everywhere.
    found = [_wide(plan, xs.astype(w_ih.dtype), T, B, I), w_ih.astype(plan.dtype)]
    found += [] if w_hh is None else [w_hh.astype(plan.dtype)]
    found.append(b.astype(plan.dtype))
    columns = call.cell.program.columns(own, H, plan.dtype)
    found += [jnp.stack(columns)] if columns else []
    found += [mask.reshape(T, B) for mask in (controls.valid, controls.resets) if mask is not None]
    states = [state] if controls.resets is None else [state, controls.fresh]
    return found + [_wide(plan, leaf, B, H) for leaf in jax.tree.leaves(states)]


@functools.lru_cache(maxsize=256)
def _prepared(plan: Plan) -> tuple[Program, Layout, int] | str:
    """What will be compiled, or why nothing can be; compiles nothing."""
    if switched_off():
        return "needs the environment variable RNNJAX_NATIVE not to be 0"
    program = plan.program()
    if isinstance(program, Refusal):
        return program.reason
    state = jax.eval_shape(lambda: widen(plan.cell.initial_state(()), plan.dtype))
    names = [leaf is state.h for leaf in jax.tree.leaves(state)]
    if len(program.new) > _MAX_STATES or program.num_own > _MAX_OWN or plan.cell.num_gates > _MAX_GATES:
        return f"needs at most {_MAX_STATES} states, {_MAX_OWN} parameters of the update and {_MAX_GATES} gates"
    if find_compiler() is None:
        return "needs a C++ compiler, and none of CXX, c++, g++ and clang++ is a program here"
    layout = layout_of(plan.cell.num_gates, plan.summed, names.index(True))
    return program, layout, jnp.dtype(plan.dtype).itemsize


def _load(plan: Plan) -> Loaded | str:
    prepared = _prepared(plan)
    return prepared if isinstance(prepared, str) else _compiled(*prepared)


@functools.lru_cache(maxsize=256)
def _compiled(program: Program, layout: Layout, size: int) -> Loaded | str:
    """Compiles what is not in the cache, loads it, and tells XLA; ``size`` is the bytes of a number."""
    texts = {"handler": handler_text(), f"loops{8 * size}": loops_text(size), "cell": cell_text(program, layout, size)}
    try:
        (handler_key, handler), (_, loops), (key, cell) = libraries(texts).values()
    except BuildError as error:
        _failures[program, layout, size] = str(error)
        return str(error)
    target = f"rnnjax_native_{handler_key}"
    _register(target, handler)
    cell.rnnjax_cell.restype = ctypes.c_void_p
    address = ctypes.c_void_p(cell.rnnjax_cell())
    entries = [ctypes.cast(f, ctypes.c_void_p) for f in (loops.rnnjax_forward, loops.rnnjax_backward)]
    handler.rnnjax_native_add(key.encode(), address, *entries)
    lanes = loops.rnnjax_loops_version() % 1000 // size
    return Loaded(key, target, program, layout, lanes)


@functools.cache
def _register(target: str, handler: ctypes.CDLL) -> None:
    for which in ("forward", "backward"):
        symbol = jax.ffi.pycapsule(getattr(handler, f"rnnjax_native_{which}"))
        jax.ffi.register_ffi_target(f"{target}_{which}", symbol, platform="cpu")


def _loaded(plan: Plan) -> Loaded:
    found = _load(plan.bare())
    if isinstance(found, str):
        raise ValueError(f"unroll: 'native' {found}; take implementation=None.")
    return found
