r"""The loops of an affine cell as one CUDA kernel each: the engine ``"cuda"``.

A `jax.lax.scan` on a GPU launches a few kernels at every step, and that is its speed, whatever the cell. Here one
launch runs all steps: blocks keep their part of ``w_hh`` in registers and shared memory, and hand ``h`` (backward: the
cotangents of the gates) to each other through memory, with no other barrier than the arrival of the numbers. The
pointwise update and its pull are made of the cell by `cuda_cell`; NVRTC compiles the text when a call is traced, and
XLA launches it. What multiplies many steps at once, projections and the gradients of weights, stays with XLA. A cell
without ``w_hh`` has kernels without a matmul, whose threads wait for nobody.

Where matmuls may round (`jax.default_matmul_precision`), float32 is multiplied in TF32; with ``"highest"`` three
products in TF32 are added, which is as exact as float32 is. bfloat16 and float16 are accumulated in float32, and all
leaves of the state but ``h`` stay in float32 from the first step to the last.

A wait has a limit: should a block not come, the others give up after about a second, and all results are NaN.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.engines.affine import cuda_kernels, cuda_matmuls, nvrtc
from rnnjax.engines.affine.cuda_cell import cell_text
from rnnjax.engines.affine.cuda_operands import Work, as_kept, joined, masks, networks, nothing, see
from rnnjax.engines.affine.cuda_rules import (
    Card,
    Facts,
    backward_tiles,
    forward_tiles,
    is_worth_it,
    unit_tiles,
    wave_pieces,
)
from rnnjax.engines.affine.cuda_sharding import by_rows
from rnnjax.engines.affine.cuda_trial import cluster_trial, trial
from rnnjax.engines.affine.loops import Cotangents, Finished, Kept, Operands
from rnnjax.engines.affine.plan import Plan
from rnnjax.engines.affine.program import Refusal
from rnnjax.engines.affine.recurrence import plan_of
from rnnjax.engines.choice import Job

__all__ = ["CudaLoops", "rank"]

# Names of `jax.default_matmul_precision` under which a float32 is not rounded to TF32.
_EXACT = {"highest", "float32", "F32_F32_F32", "F64_F64_F64", *(f"BF16_BF16_F32_X{n}" for n in (3, 6, 9))}
_STORED = ("bfloat16", "float16", "float32")


@dataclasses.dataclass(frozen=True)
class CudaLoops:
    """Two launches; see `rnnjax.engines.affine.loops.Loops`.

    Attributes:
        card: the GPU; None for the one that JAX runs on.
        launch: takes a kernel, the shapes of its results, its operands, and which operand becomes which result.
    """

    card: Card | None = None
    launch: Callable[..., Any] = cuda_kernels.launch

    @property
    def platform(self) -> str | None:
        """Where the launches can be compiled; what stands in for them in tests can be everywhere."""
        return "cuda" if self.launch is cuda_kernels.launch else "any"

    def fits(self, plan: Plan, job: Job) -> str:
        """Whether there is a GPU, a compiler, and kernels for this cell and its sizes."""
        return _fits(self, plan, job, _exact())

    def segment(self, plan: Plan, operands: Operands) -> int | None:
        """All steps at once."""
        del plan, operands
        return None

    def forward(self, plan: Plan, operands: Operands, *, keep: bool) -> tuple[Any, jax.Array, Kept | None]:
        """One launch."""
        state, H = operands.state, plan.cell.hidden_size
        steps, batch = operands.xs.shape[0], operands.xs.shape[1:-1]
        if 0 in (steps, *batch):
            return state, jnp.zeros((steps, *batch, H), state.h.dtype), as_kept(operands, None) if keep else None
        work = _work(self, plan, operands)
        zx = cuda_matmuls.project(operands.xs, operands.w_ih).reshape(steps, -1, work.text.gates * H)
        flags, start, fresh = masks(work, operands)

        def call(w_hh: Any, b: Any, zx: Any, start: Any, own: Any, flags: Any, fresh: Any) -> tuple[Any, ...]:
            here = _work(self, plan, operands, zx.shape[1])
            end, ys, kept = cuda_kernels.run_forward(
                here.setting, here.forward, w_hh, b, zx, start, own, flags, fresh,
                keep=keep, keep_seen=plan.keep_gates, launch=self.launch,
            )  # fmt: skip
            broken = jnp.broadcast_to(kept.broken, zx.shape[1:2])  # what each row knows of its launch
            return end, ys, *(kept._replace(broken=broken) if keep else (None,) * 4)

        run = by_rows(call, (None, None, 1, 1, None, 1, 1), (1, 1, 1, 1, 2, 0))
        end, ys, *kept = run(operands.w_hh, operands.b, zx, start, work.own(operands), flags, fresh)
        final = work.unpack(end, state)
        return final, ys.reshape(steps, *batch, H), as_kept(operands, cuda_kernels.Kept(*kept)) if keep else None

    def kept_axes(self, kept: Kept) -> Any:
        """Of ``h``, what the update saw, the other leaves, and whether the run was given up."""
        seen, s, _ = kept.rest
        return Kept((1,), (None if seen is None else 1, None if s is None else 2, 0))

    def pieces(self, plan: Plan, job: Job, layers: int) -> int:
        """Where the blocks of all layers find room on the card at once, and time is long; see `wave_pieces`."""
        card, rows, steps = self.card or _card(), math.prod(job.batch), job.steps
        if isinstance(card, str) or not plan.summed:
            return 1
        masked = bool(job.valid), job.resets
        work = _prepare(plan, card, 1, rows, str(job.param_dtype), str(job.dtype), *masked, _exact())
        return 1 if isinstance(work, str) else wave_pieces(work.facts, card, layers, steps)

    def backward(self, plan: Plan, operands: Operands, kept: Kept, d_final: Any, d_ys: jax.Array) -> Cotangents:
        """One launch, and the matmuls after it."""
        steps, batch = operands.xs.shape[0], operands.xs.shape[1:-1]
        H = plan.cell.hidden_size
        if 0 in (steps, *batch):
            return nothing(plan, operands, d_final)
        work, w_hh = _work(self, plan, operands), operands.w_hh
        before = kept.states.h.reshape(steps, -1, H)
        seen, s, broken = kept.rest
        seen = see(work, operands, kept.states.h) if seen is None else seen.reshape(steps, -1, *seen.shape[-2:])
        s, broken = None if s is None else s.reshape(*s.shape[:2], -1, H), broken.reshape(-1)
        flags, _, _ = masks(work, operands)

        def call(w_hh: Any, own: Any, flags: Any, d_end: Any, d_ys: Any, *kept: Any) -> tuple[Any, ...]:
            here = _work(self, plan, operands, d_ys.shape[1])
            found = cuda_kernels.Kept(*kept)
            found = found._replace(broken=jnp.max(found.broken, keepdims=True))
            return cuda_kernels.run_backward(
                here.setting, here.backward, w_hh, own, flags, found, d_end, d_ys, launch=self.launch
            )

        run = by_rows(call, (None, None, 1, 1, 1, 1, 1, 2, 0), (1, 1, 1, 1, 1))
        d_ys = d_ys.reshape(steps, -1, H)
        given = (w_hh, work.own(operands), flags, work.pack(d_final), d_ys, seen, before, s, broken)
        dz, dx, d_start, d_columns, d_fresh = run(*given)
        d_fresh_state = None
        restarts = operands.controls.restarts
        if restarts is not None and d_fresh is not None:
            restart = restarts[-1 if plan.reverse else 0].reshape(-1, 1)
            d_fresh = d_fresh + jnp.where(restart, d_start, 0)
            d_start = jnp.where(restart, 0, d_start)
            d_fresh_state = work.unpack(d_fresh, d_final)
        d_zx = dz if dx is None else joined(plan.summed, dz, dx)
        d_zx, d_zh = (d.reshape(steps, *batch, -1) for d in (d_zx, dz))
        finished = Finished(
            cuda_matmuls.weight_gradient(operands.xs, d_zx, operands.w_ih),
            None if w_hh is None else cuda_matmuls.weight_gradient(kept.states.h, d_zh, w_hh),
            cuda_matmuls.bias_gradient(d_zx, operands.b),
            cuda_matmuls.input_gradient(d_zx, operands.w_ih, operands.xs.dtype),
        )
        d_own = work.own_leaves(operands, d_columns)
        return Cotangents(work.unpack(d_start, d_final), d_own, d_fresh_state, finished)


def rank(job: Job) -> float:
    """Above all others where it fits and is the fastest, unless it is said elsewhere where arrays lie.

    That is where another device is the default, or arrays have explicit shardings.
    """
    placed = getattr(jax.config, "jax_default_device", None) is not None
    kinds = jax.sharding.get_abstract_mesh().axis_types
    if placed or jax.sharding.AxisType.Explicit in kinds:
        return -1
    return _rank(job, _exact())


@functools.lru_cache(maxsize=512)
def _rank(job: Job, exact: bool) -> float:
    card, cell = _card(), job.cell
    if isinstance(card, str):
        return -1
    if not plan_of(cell, 1, job.param_dtype, job.dtype).summed:  # no w_hh: a thread waits for nobody, whatever the size
        return 40
    leaves = len(jax.tree.leaves(jax.eval_shape(lambda: cell.initial_state(()))))
    form = _format(str(job.param_dtype), exact)
    facts = Facts(cell.num_gates, cell.num_gates, leaves - 1, 0, cell.hidden_size, math.prod(job.batch), form)
    return 40 if is_worth_it(facts, card) else 4


def _format(param_dtype: str, exact: bool) -> str:
    return {"bfloat16": "bf16", "float16": "f16"}.get(param_dtype, "tf32x3" if exact else "tf32")


def _exact() -> bool:
    return str(jax.config.jax_default_matmul_precision) in _EXACT  # type: ignore[attr-defined]


@functools.lru_cache(maxsize=512)
def _prepare(
    plan: Plan,
    card: Card,
    networks: int,
    rows: int,
    param_dtype: str,
    dtype: str,
    valid: bool,
    resets: bool,
    exact: bool,
) -> Work | str:
    """All that depends on neither arrays nor T, or why there is nothing: the end of a sentence."""
    if dtype not in _STORED or param_dtype not in _STORED:
        return f"needs bfloat16, float16 or float32, got parameters of {param_dtype} and a state of {dtype}"
    program = plan.program()
    if isinstance(program, Refusal):
        return program.reason
    leaves = jax.tree.leaves(state := jax.eval_shape(lambda: plan.cell.initial_state(())))
    h = next(i for i, leaf in enumerate(leaves) if leaf is state.h)
    order = (h, *(i for i in range(len(leaves)) if i != h))
    dense = bool(plan.summed)
    text = cell_text(program, plan.summed or (True,) * plan.cell.num_gates, h)  # of one without w_hh, zh is 0
    form = _format(param_dtype, exact)
    H = plan.cell.hidden_size
    facts = Facts(text.gates, text.seen, text.states, text.own, H, max(rows, 1), form, networks)
    forward, backward = (forward_tiles(facts, card), backward_tiles(facts, card)) if dense else (unit_tiles(facts),) * 2
    if forward is None or backward is None:
        size = f"H = {H} with {text.gates} gates in {param_dtype}"
        return f"needs recurrent weights that fit into the processors of the GPU, got {size}"
    setting = cuda_kernels.Setting(text, dense, H, form, dtype, valid, resets, plan.reverse, card, networks)
    return Work(program, text, setting, forward, backward, order, facts)


def _work(loops: CudaLoops, plan: Plan, operands: Operands, rows: int | None = None) -> Work:
    card = loops.card or _card()
    if isinstance(card, str):
        raise ValueError(f"unroll: 'cuda' {card}; take implementation=None.")
    controls = operands.controls
    count = networks(operands) or 1
    work = _prepare(
        dataclasses.replace(plan, keep_gates=True),
        card,
        count,
        (math.prod(operands.xs.shape[1:-1]) if rows is None else rows) // count,
        str(operands.w_ih.dtype),
        str(operands.state.h.dtype),
        controls.valid is not None,
        controls.resets is not None,
        _exact(),
    )
    if isinstance(work, str):
        raise ValueError(f"unroll: 'cuda' {work}; take implementation=None.")
    return work


@functools.lru_cache(maxsize=1024)
def _fits(loops: CudaLoops, plan: Plan, job: Job, exact: bool) -> str:
    card = loops.card
    if card is None:
        if job.backend != "gpu":
            return f"needs an NVIDIA GPU, got the backend {job.backend!r}"
        found = _card()
        if isinstance(found, str):
            return found
        card = found
    if job.dtype is None or job.param_dtype is None:
        return "needs one dtype for the parameters and one for the state"
    if plan.dtype != jnp.float32:
        return f"needs a state of float32 or narrower, got {job.dtype}"
    plan = plan.directed(job.reverse)
    work = _prepare(
        plan, card, 1, math.prod(job.batch), str(job.param_dtype), str(job.dtype), bool(job.valid), job.resets, exact
    )
    if isinstance(work, str):
        return work
    if loops.card is None:
        try:  # now, so that whoever is refused gets another engine
            for backward in (False, True):
                tiles = work.backward if backward else work.forward
                kernel = cuda_kernels.make_kernel(work.setting, tiles, backward=backward)
                nvrtc.compile_ptx(kernel.source, kernel.capability)
        except nvrtc.CompileError as error:
            warnings.warn(f"rnnjax: {error} XLA runs this cell instead.", stacklevel=2)
            return "needs kernels that NVRTC compiles"
    return ""


@functools.lru_cache(maxsize=1)
def _card() -> Card | str:
    """The GPU that JAX runs on, or what is missing; asked for when a GPU is the default backend, not before."""
    device = jax.local_devices()[0]
    if "cuda" not in str(device.client.platform_version).lower():
        return "needs an NVIDIA GPU"
    reason = _missing(str(device.compute_capability))
    if reason:
        warnings.warn(f"rnnjax: the engine 'cuda' {reason}; XLA runs recurrent cells instead.", stacklevel=2)
        return reason
    card = Card(round(10 * float(device.compute_capability)), int(device.core_count))
    wrong = trial(CudaLoops(card))
    if wrong:
        why = f"a trial of the engine 'cuda' failed ({wrong})"
        warnings.warn(f"rnnjax: {why}; XLA runs recurrent cells instead.", stacklevel=2)
        return "needs a GPU on which its trial gives the right numbers"
    if not card.has_clusters:
        return card
    alone = dataclasses.replace(card, alone=True)
    wrong = cluster_trial(CudaLoops(alone))
    if not wrong:
        return alone
    why = f"a trial of clusters failed ({wrong})"
    warnings.warn(f"rnnjax: {why}; the engine 'cuda' runs small networks without.", stacklevel=2)
    return card


def _missing(capability: str) -> str:
    if float(capability) < 8.0:
        return f"needs compute capability 8.0 or higher, got {capability}"
    if nvrtc.version() is None:
        return "needs NVRTC: pip install nvidia-cuda-nvrtc"
    driver, needed = nvrtc.driver_version(), nvrtc.needed_driver(round(10 * float(capability)))
    if driver is not None and driver < needed:
        return "needs a driver for CUDA {}.{} or newer, got {}.{}".format(*needed, *driver)
    return ""
