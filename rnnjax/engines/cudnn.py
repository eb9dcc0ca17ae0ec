r"""The LSTM of NVIDIA's cuDNN, through `jax.experimental.rnn`: one call for the whole sequence.

cuDNN knows an LSTM with two biases, batch-major arrays and one flat vector of weights:

    [w_ih.T | w_hh.T | b_ih | b_hh],   gates i, f, g, o,   b_ih = b,   b_hh = 0

Its equations are those of `rnnjax.LSTM`, so the values agree as far as the precision of its matmuls does: TF32
unless ``jax.default_matmul_precision("highest")`` is set. Lengths are its own; rows are turned round outside.

It is never the default, since it has no resets, no forward mode, no second derivative and no `vmap`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cell import batch_shape
from rnnjax.cells.lstm import LSTM, LSTMParams, LSTMState
from rnnjax.engines.choice import Controls, Job
from rnnjax.engines.scan import checkpointed, no_named_remat, segment_length, select

__all__ = ["fits", "pack", "unpack", "unroll_cudnn"]


class _Inputs(NamedTuple):
    xs: jax.Array
    valid: jax.Array | None


def fits(job: Job) -> str:
    """What it needs: exactly an `LSTM`, an NVIDIA GPU as JAX's default backend, float32, and no resets."""
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


def unroll_cudnn(
    cell: LSTM,
    params: LSTMParams,
    state: LSTMState,
    xs: jax.Array,
    controls: Controls,
    *,
    reverse: bool = False,
    remat: bool | int | None = None,
) -> tuple[LSTMState, jax.Array]:
    """Unrolls an LSTM by cuDNN; first-order reverse-mode derivatives only.

    Args:
        cell: an `LSTM`.
        params: its parameters, float32.
        state: the state before the first step, float32.
        xs: ``[T, *batch, I]``, float32.
        controls: ``valid`` must be True up to each row's length and False from there; no resets.
        reverse: whether time runs from the last step to the first.
        remat: None keeps what cuDNN reserves for the backward pass; True and integers as for ``"scan"``.

    Returns:
        The final state, and ``ys [T, *batch, H]``.
    """
    segment = segment_length(remat, xs.shape[0])
    if xs.shape[0] == 0 or 0 in xs.shape[1:-1]:
        return state, jnp.zeros((*xs.shape[:-1], cell.hidden_size), xs.dtype)
    weights = pack(params)

    def run(state: LSTMState, inputs: _Inputs, reverse: bool = False) -> tuple[LSTMState, jax.Array]:
        if not reverse:
            return _run(cell, weights, state, inputs)
        xs, valid = inputs
        state, ys = _run(cell, weights, state, _Inputs(_turned(xs, valid), valid))
        return state, _turned(ys, valid)

    inputs = _Inputs(xs, controls.valid)
    if segment is None:
        return run(state, inputs, reverse)
    return checkpointed(run, state, inputs, segment, reverse)


def _turned(array: jax.Array, valid: jax.Array | None) -> jax.Array:
    """``[T, *batch, N]`` with time turned round: of a row that ends early its valid part, and padding stays behind."""
    if valid is None:
        return jnp.flip(array, axis=0)
    lengths = jnp.sum(valid, axis=0, dtype=jnp.int32)
    time = jnp.arange(valid.shape[0]).reshape(-1, *(1,) * lengths.ndim)
    return jnp.take_along_axis(array, jnp.where(valid, lengths - 1 - time, time)[..., None], axis=0)


def _run(cell: LSTM, weights: jax.Array, state: LSTMState, inputs: _Inputs) -> tuple[LSTMState, jax.Array]:
    """One call of cuDNN, which wants one batch axis, the first one, and a length of at least 1 for every row."""
    from jax.experimental import rnn

    batch, size = batch_shape(cell, state), cell.hidden_size
    steps, input_size = inputs.xs.shape[0], inputs.xs.shape[-1]
    xs = jnp.swapaxes(inputs.xs.reshape(steps, -1, input_size), 0, 1)  # [B, T, I]
    rows = xs.shape[0]
    lengths = jnp.full(rows, steps, jnp.int32)
    if inputs.valid is not None:
        lengths = jnp.sum(inputs.valid.reshape(steps, rows), axis=0, dtype=jnp.int32)
    wanted = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    ys, h, c = rnn.lstm(
        xs,
        state.h.reshape(1, rows, size),
        state.c.reshape(1, rows, size),
        weights,
        jnp.maximum(lengths, 1),
        input_size,
        size,
        1,  # layers
        0.0,  # dropout
        False,  # bidirectional
        jax.lax.Precision.HIGHEST if wanted in ("highest", "float32") else jax.lax.Precision.HIGH,
    )
    new = LSTMState(h.reshape(*batch, size), c.reshape(*batch, size))
    if inputs.valid is not None:
        new = select((lengths > 0).reshape(batch), new, state)
    return new, jnp.swapaxes(ys, 0, 1).reshape(steps, *batch, size)
