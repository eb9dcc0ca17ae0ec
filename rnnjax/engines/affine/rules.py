"""Which form of `rnnjax.engines.affine.xla` runs where: every rule on sizes, with the measurements behind it.

Most are about memory. On a CPU, arrays beyond 32 MB come fresh from the system at every call, and touching them for the
first time costs more than arithmetic does (`rnnjax.cpu`). Measured on two AMD EPYC cores with AVX-512 and 32 MB of
shared cache, jax 0.10.2, float32; sizes are T, B, I, H, times milliseconds.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cpu import memory_is_kept

__all__ = ["backward_segment", "projects_inside", "splits"]

_STACK_BYTES, _WEIGHT_BYTES = 2**25, 2**22
_MIN_ROWS, _STEP_FLOPS = 8, 2e8


def projects_inside(xs: jax.Array, w_ih: jax.Array, dtype: Any, backend: str) -> bool:
    """Whether ``x @ w_ih`` is computed step by step within the loop, and not for all steps before it.

    On a CPU the projections of all steps, ``[T, *batch, G H]``, cost more than one large matmul saves where they exceed
    32 MB, unless ``w_ih`` is then too large to stay in the cache from step to step. Before / within the loop:

        LSTM (128, 128, 128, 256), 67 MB: forward 46.8 / 37.6, training 184 / 175
        LSTM (128, 32, 256, 512), 34 MB: forward 46.9 / 42.2, training 142 / 136
        GRU (128, 128, 128, 256), 50 MB: forward 40.0 / 37.2, training 148 / 147
        GRU (128, 32, 256, 512), 25 MB: forward 25.2 / 26.3, training 114 / 112
        LSTM (32, 64, 512, 1024), 34 MB, but 8 MB of weights: forward 78.6 / 84.1, training 228 / 233
        LSTM (128, 32, 128, 128), 8 MB: forward 4.8 / 5.7, training 15.7 / 16.8

    Where freed memory is kept (`rnnjax.cpu.reuse_memory`) nothing is gained: LSTM (128, 128, 128, 256) 47.5 / 49.7,
    LSTM (128, 32, 256, 512) 44.6 / 48.1 forward.

    Args:
        xs: ``[T, *batch, I]``.
        w_ih: ``[I, G H]``.
        dtype: of the projections.
        backend: elsewhere than on ``"cpu"`` the answer is no: a loop of small kernels leaves an accelerator idle.
    """
    if backend != "cpu" or memory_is_kept():
        return False
    return _stacked(xs, w_ih, dtype) >= _STACK_BYTES and w_ih.size * w_ih.dtype.itemsize <= _WEIGHT_BYTES


def backward_segment(
    xs: jax.Array, weights: tuple[Any, ...], dtype: Any, backend: str, *, keep_gates: bool = True
) -> int | None:
    """The steps after which the backward pass stops to add up weight gradients; None for once, after the loop.

    On a CPU the cotangents of all gates, ``[T, *batch, G H]``, are then never all in memory at once: worth it where
    they would be far beyond the caches and the weights, whose gradients are read and written once a segment, are small.
    After the loop / by segments of 2 MB, training:

        LSTM (128, 128, 128, 256), 64 MB: 200 / 185
        LSTM (128, 256, 128, 128), 64 MB: 189 / 158
        GRU (128, 128, 128, 256), 48 MB: 168 / 165
        GRU (128, 256, 128, 128), 48 MB: 151 / 131
        LSTM (64, 128, 512, 512), 64 MB, but 8 MB of weights: 384 / 431
        LSTM (128, 64, 128, 256), 32 MB: 106 / 101
        LSTM (128, 32, 256, 512), 32 MB: 153 / 166

    Where freed memory is kept (`rnnjax.cpu.reuse_memory`) nothing is gained: 155 / 158 at the first of these.

    Args:
        xs: ``[T, *batch, I]``.
        weights: ``w_ih [I, G H]``, and ``w_hh [H, G H]`` or None.
        dtype: of the cotangents.
        backend: where the program runs.
        keep_gates: whether the pre-activations of all steps were kept; otherwise, on any backend, every segment
            computes its own again, and there are up to 16, none smaller than the weights.
    """
    length, stacked = xs.shape[0], max(_stacked(xs, weights[0], dtype), 1)
    weight_bytes = sum(w.size * w.dtype.itemsize for w in weights if w is not None)
    if keep_gates:
        if backend != "cpu" or memory_is_kept() or stacked < 3 * 2**24 or weight_bytes > 2**21:
            return None
        segment = 2**21 * length // stacked
    else:
        segment = max(max(2**21, weight_bytes) * length // stacked, -(-length // 16))
    count = -(-length // max(1, segment))
    # A number that leaves nothing over is better: what is left over makes a copy of everything.
    counts = sorted(range(-(-count // 2), 2 * count + 1), key=lambda n: abs(n - count))
    segment = next((length // n for n in counts if n and length % n == 0), max(1, segment))
    return segment if segment < length else None


def splits(batch: tuple[int, ...], weights: int, devices: int) -> bool:
    """Whether a batch is split over all CPU devices: where a step is too small for several threads to share.

    On one device / split over two, freed memory kept, arrays placed beforehand:

        LSTM (128, 32, 128, 128), 17 MFLOP a step: forward 6.3 / 5.0, training 19.8 / 16.0
        LSTM (64, 16, 256, 256), 17: forward 4.7 / 5.1, training 16.2 / 13.6
        GRU (64, 16, 256, 256), 13: forward 4.9 / 3.8, training 14.1 / 10.4
        LSTM (128, 32, 256, 512), 101: forward 44.6 / 45.3, training 148 / 132
        LSTM (128, 128, 128, 256), 101: forward 47.5 / 45.0, training 163 / 148
        Elman (128, 32, 256, 512), 25: forward 14.5 / 12.0, training 46.1 / 31.7
        LSTM (32, 64, 512, 1024), 806: forward 82.3 / 94.4, training 249 / 276

    Args:
        batch: the axes of the batch, of which the first is split.
        weights: the number of parameters of the cell.
        devices: how many there are.
    """
    if devices == 1 or not batch or batch[0] % devices:
        return False
    rows = math.prod(batch)
    return rows >= _MIN_ROWS * devices and 2 * rows * weights <= _STEP_FLOPS


def _stacked(xs: jax.Array, w_ih: jax.Array, dtype: Any) -> int:
    """Bytes of ``[T, *batch, G H]``."""
    return math.prod(xs.shape[:-1]) * w_ih.shape[1] * jnp.dtype(dtype).itemsize
