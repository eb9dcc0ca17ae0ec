"""Series of numbers: a waveform, two chaotic systems, and the pixels of digits."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .batch import Batch

__all__ = ["LORENZ_STEP", "chaos", "digits", "lorenz", "mackey_glass", "waveform"]

LORENZ_STEP = 0.05


def waveform(key: Any, steps: int, batch: int) -> Batch:
    """A sum of five sines, without input but a one at the first step; a row is another waveform."""
    keys = jax.random.split(key, 3)
    periods = jnp.exp(jax.random.uniform(keys[0], (5, batch), minval=jnp.log(8.0), maxval=jnp.log(float(steps))))
    phases = jax.random.uniform(keys[1], (5, batch), maxval=2 * jnp.pi)
    sizes = jax.random.uniform(keys[2], (5, batch), minval=0.5)
    wave = (sizes * jnp.sin(2 * jnp.pi * jnp.arange(steps)[:, None, None] / periods + phases)).sum(1)
    wave = (wave - wave.mean(0)) / wave.std(0)
    xs = jnp.zeros((steps, batch, 1)).at[0].set(1.0)
    return Batch(xs, wave[..., None], jnp.ones((steps, batch), bool))


def _standard(series: np.ndarray) -> np.ndarray:
    return ((series - series.mean(0)) / series.std(0)).astype(np.float32)


@functools.cache
def mackey_glass(length: int = 6000, tau: int = 17, substeps: int = 10) -> np.ndarray:
    """dx/dt = 0.2 x(t - tau) / (1 + x(t - tau)^10) - 0.1 x, one value a unit of time, standardised, ``[N, 1]``."""
    size, spare = 1.0 / substeps, 500
    x = np.full((length + spare) * substeps + tau * substeps + 1, 1.2)
    for n in range(tau * substeps, len(x) - 1):
        then, later = x[n - tau * substeps], x[n - tau * substeps + 1]
        middle = (then + later) / 2

        def slope(now: float, delayed: float) -> float:
            return 0.2 * delayed / (1 + delayed**10) - 0.1 * now

        k1 = slope(x[n], then)
        k2 = slope(x[n] + size / 2 * k1, middle)
        k3 = slope(x[n] + size / 2 * k2, middle)
        k4 = slope(x[n] + size * k3, later)
        x[n + 1] = x[n] + size / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return _standard(x[(tau + spare) * substeps :: substeps][:length, None])


@functools.cache
def lorenz(length: int = 6000, substeps: int = 10) -> np.ndarray:
    """Lorenz's three equations with sigma 10, rho 28 and beta 8/3, standardised, ``[N, 3]``."""

    def slope(s: np.ndarray) -> np.ndarray:
        x, y, z = s
        return np.array([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z])

    size, s, rows = LORENZ_STEP / substeps, np.array([1.0, 1.0, 1.05]), []
    for n in range((length + 500) * substeps):
        if n % substeps == 0:
            rows.append(s)
        k1 = slope(s)
        k2 = slope(s + size / 2 * k1)
        k3 = slope(s + size / 2 * k2)
        k4 = slope(s + size * k3)
        s = s + size / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return _standard(np.array(rows[500:]))


def chaos(key: Any, steps: int, batch: int, *, series: np.ndarray, low: int, high: int) -> Batch:
    """Windows of a series that begin between two places; asked is the next value less the present one, scaled."""
    data = jnp.asarray(series)
    starts = jax.random.randint(key, (batch,), low, high - steps)
    window = data[jnp.arange(steps + 1)[:, None] + starts]  # [T + 1, B, D]
    scale = np.diff(series, axis=0).std(0)
    return Batch(window[:-1], (window[1:] - window[:-1]) / scale, jnp.ones((steps, batch), bool))


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return (images[order] / 8 - 1).astype(np.float32), labels[order].astype(np.int32)


def digits(key: Any, steps: int, batch: int, *, test: bool) -> Batch:
    """Images of 8 x 8, pixel by pixel; the digit is asked at the end. The last 360 of 1,797 are for tests."""
    images, labels = (jnp.asarray(array) for array in _digits())
    some = jnp.arange(batch) + len(labels) - batch if test else jax.random.randint(key, (batch,), 0, len(labels) - 360)
    asked = jnp.zeros((steps, batch), bool).at[-1].set(True)
    return Batch(images[some].T[..., None], jnp.broadcast_to(labels[some], (steps, batch)), asked)
