r"""The LSTM of NVIDIA's cuDNN, through `jax.experimental.rnn`: one call for the whole sequence.

cuDNN knows an LSTM with two biases, batch-major arrays and one flat vector of weights:

    [w_ih.T | w_hh.T | b_ih | b_hh],   gates i, f, g, o,   b_ih = b,   b_hh = 0

Its equations are those of `rnnjax.LSTM`, so the values agree as far as the precision of its matmuls does: TF32
unless ``jax.default_matmul_precision("highest")`` is set. Lengths are its own; rows are turned round outside.

What it cannot do, `jax.vmap` over parameters and derivatives beyond the first in reverse mode, the loops of XLA do.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from rnnjax.cells.lstm import LSTM, LSTMParams
from rnnjax.engines.affine.loops import Cotangents, Finished, Kept, Operands
from rnnjax.engines.affine.plan import Plan
from rnnjax.engines.choice import Job
from rnnjax.engines.scan import no_named_remat, select

__all__ = ["CudnnLoops", "pack", "rank", "unpack"]


@dataclasses.dataclass(frozen=True)
class CudnnLoops:
    """Two calls of cuDNN; see `rnnjax.engines.affine.loops.Loops`."""

    @property
    def platform(self) -> str | None:
        """Where the calls can be compiled; the reference that stands in for them in tests can be everywhere."""
        return "cuda" if jax.default_backend() == "gpu" else "any"

    def fits(self, plan: Plan, job: Job) -> str:
        """What it needs: exactly an `LSTM`, an NVIDIA GPU as JAX's default backend, float32, and no resets."""
        del plan
        if type(job.cell) is not LSTM:
            return f"needs an LSTM, got {type(job.cell).__name__}"
        if not _on_nvidia():
            return f"needs an NVIDIA GPU as JAX's default backend, got {job.backend!r}"
        if job.resets:
            return "needs resets to be None, which it cannot do"
        if job.valid == "any":
            return "needs lengths and no other mask"
        for name, dtype in (("parameters", job.param_dtype), ("state", job.dtype), ("xs", job.input_dtype)):
            if dtype != jnp.float32:
                return f"needs float32 parameters, state and xs, got {name} of {dtype or 'several dtypes'}"
        return no_named_remat(job)

    def segment(self, plan: Plan, operands: Operands) -> int | None:
        """All steps at once."""
        del plan, operands
        return None

    def forward(self, plan: Plan, operands: Operands, *, keep: bool) -> tuple[Any, jax.Array, Kept | None]:
        """One call."""
        rnn = _rnn()
        steps, batch, state = operands.xs.shape[0], operands.xs.shape[1:-1], operands.state
        size = plan.cell.hidden_size
        if 0 in (steps, *batch):
            return state, jnp.zeros((steps, *batch, size), state.h.dtype), Kept(None, ()) if keep else None
        arrays = _arrays(plan, operands)
        (ys, h, c), residuals = rnn.lstm_fwd(*arrays, *_sizes(operands, size))
        ys, h, c = map(_row_major, (ys, h, c))
        final = type(state)(h.reshape(*batch, size), c.reshape(*batch, size))
        if operands.controls.valid is not None:  # of a row without a step the state stays; cuDNN wants one
            final = select(jnp.any(operands.controls.valid, axis=0), final, state)
        ys_here = _turned(_time_major(ys, batch), operands.controls.valid, plan.reverse)
        return final, ys_here, Kept(None, (ys, residuals[-1])) if keep else None

    def backward(self, plan: Plan, operands: Operands, kept: Kept, d_final: Any, d_ys: jax.Array) -> Cotangents:
        """One call."""
        rnn = _rnn()
        xs, valid, batch = operands.xs, operands.controls.valid, operands.xs.shape[1:-1]
        size = plan.cell.hidden_size
        weights = LSTMParams(operands.w_ih, _recurrent(operands), operands.b)
        if 0 in (xs.shape[0], *batch):
            return Cotangents(d_final, [], None, Finished(*jax.tree.map(jnp.zeros_like, (*weights, xs))))
        zeros = jax.tree.map(jnp.zeros_like, d_final)
        moved = jnp.ones(batch, bool) if valid is None else jnp.any(valid, axis=0)
        d_end = select(moved, d_final, zeros)
        arrays = _arrays(plan, operands)
        d_out = _batch_major(_turned(d_ys, valid, plan.reverse))
        cotangents = (d_out, *(_row_major(d.reshape(1, -1, size)) for d in d_end))
        saved = (*arrays, *map(_row_major, kept.rest))
        d_xs, d_h, d_c, d_flat, _ = rnn.lstm_bwd(*_sizes(operands, size), saved, cotangents)
        d_xs, d_h, d_c = map(_row_major, (d_xs, d_h, d_c))
        d_state = type(d_final)(d_h.reshape(*batch, size), d_c.reshape(*batch, size))
        d_state = jax.tree.map(jnp.add, d_state, select(moved, zeros, d_final))
        _, pull = jax.vjp(pack, weights)
        (d_weights,) = pull(d_flat)
        d_xs = _turned(_time_major(d_xs, batch), valid, plan.reverse)
        return Cotangents(d_state, [], None, Finished(d_weights.w_ih, d_weights.w_hh, d_weights.b, d_xs))


def rank(job: Job) -> float:
    """Above the loops of XLA: an LSTM of (512, 16, 512, 512) takes 14.2 us a step forward and 32.7 in training.

    On an H200 (jax 0.11.2) ``"fused"`` takes 15.2 and 40.3, and ``"scan"`` 22.8 and 64.
    """
    return 10 if job.free else -1


def _sizes(operands: Operands, size: int) -> tuple[Any, ...]:
    """What `jax.experimental.rnn` asks beside arrays: sizes, one layer, no dropout, one direction, precision."""
    wanted = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    precision = jax.lax.Precision.HIGHEST if wanted in ("highest", "float32") else jax.lax.Precision.HIGH
    return operands.xs.shape[-1], size, 1, 0.0, False, precision


def _recurrent(operands: Operands) -> jax.Array:
    if operands.w_hh is None:
        raise ValueError("unroll: 'cudnn' needs a cell with a recurrent matrix w_hh; take implementation=None.")
    return operands.w_hh


def _arrays(plan: Plan, operands: Operands) -> tuple[jax.Array, ...]:
    """xs, h, c, weights and lengths, as cuDNN wants them: one batch axis, the first, and a length of at least 1."""
    valid, size, xs = operands.controls.valid, plan.cell.hidden_size, operands.xs
    rows = math.prod(xs.shape[1:-1])
    lengths = jnp.full(rows, xs.shape[0], jnp.int32)
    if valid is not None:
        lengths = jnp.maximum(jnp.sum(valid.reshape(-1, rows), axis=0, dtype=jnp.int32), 1)
    state = (_row_major(leaf.reshape(1, rows, size)) for leaf in operands.state)
    weights = pack(LSTMParams(operands.w_ih, _recurrent(operands), operands.b))
    return _batch_major(_turned(xs, valid, plan.reverse)), *state, weights, lengths


def _batch_major(array: jax.Array) -> jax.Array:
    return _row_major(jnp.swapaxes(array.reshape(array.shape[0], -1, array.shape[-1]), 0, 1))


def _row_major(array: jax.Array) -> jax.Array:
    """The same array, with its axes in memory in this order.

    The calls of `jax.experimental.rnn` do not ask for it: XLA then leaves out a transposition before or after them, and
    cuDNN takes time for the batch (seen with jax 0.11.2 on an H200).
    """
    return with_layout_constraint(array, Layout(major_to_minor=tuple(range(array.ndim))))


def _time_major(array: jax.Array, batch: tuple[int, ...]) -> jax.Array:
    return jnp.swapaxes(array, 0, 1).reshape(array.shape[1], *batch, array.shape[-1])


def _rnn() -> Any:
    """Imported when it is needed, as it looks for cuDNN."""
    from jax.experimental import rnn

    return rnn


def _on_nvidia() -> bool:
    if jax.default_backend() != "gpu":
        return False
    return "cuda" in jax.devices()[0].client.platform_version.lower()


def pack(params: LSTMParams) -> jax.Array:
    """The flat vector ``[4H (I + H + 2)]`` that cuDNN wants of the parameters.

    >>> params = LSTM(2).init(jax.random.key(0), input_size=3)
    >>> pack(params).shape, bool((unpack(pack(params), 3, 2).w_hh == params.w_hh).all())
    ((56,), True)
    """
    parts = (params.w_ih.T, params.w_hh.T, params.b, jnp.zeros_like(params.b))
    return jnp.concatenate([part.reshape(-1) for part in parts])


def unpack(flat: jax.Array, input_size: int, hidden_size: int) -> LSTMParams:
    """The parameters of a flat vector, with the sum of its two biases: what `pack` gets is what this returns."""
    gates = 4 * hidden_size
    ends = (gates * input_size, gates * (input_size + hidden_size), gates * (input_size + hidden_size + 1))
    w_ih, w_hh, b_ih, b_hh = jnp.split(flat, ends)
    return LSTMParams(w_ih.reshape(gates, input_size).T, w_hh.reshape(gates, hidden_size).T, b_ih + b_hh)


def _turned(array: jax.Array, valid: jax.Array | None, reverse: bool) -> jax.Array:
    """``[T, *batch, N]``, in reverse with time turned round: of a row its valid part, and padding stays behind."""
    if not reverse:
        return array
    if valid is None:
        return jnp.flip(array, axis=0)
    lengths = jnp.sum(valid, axis=0, dtype=jnp.int32)
    time = jnp.arange(valid.shape[0]).reshape(-1, *(1,) * lengths.ndim)
    return jnp.take_along_axis(array, jnp.where(valid, lengths - 1 - time, time)[..., None], axis=0)
