r"""Initialisers: frozen dataclasses that are called as ``init(key, shape, dtype)``.

A recurrent cell initialises each gate block by itself (`per_gate`): a matrix ``[H, G H]`` that is
orthogonal *jointly* has gate blocks whose singular values run down towards zero.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from rnnjax.checks import check_real, check_size
from rnnjax.promotion import compute_dtype, promoting

__all__ = ["Chrono", "Glorot", "Identity", "Initializer", "Orthogonal", "Uniform", "per_gate"]


@runtime_checkable
class Initializer(Protocol):
    """Anything hashable that maps ``(key, shape, dtype)`` to an array of that shape and dtype."""

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array: ...


@dataclasses.dataclass(frozen=True)
class Uniform:
    r"""``U(-s, s)`` with ``s = scale``, by default ``1 / sqrt(shape[-1])``.

    With one gate block ``[I, H]`` at a time the default is what ``torch.nn.LSTM`` does: ``1 / sqrt(H)``.
    """

    scale: float | None = None

    def __post_init__(self) -> None:
        if self.scale is not None:
            object.__setattr__(self, "scale", check_real("Uniform", "scale", self.scale, least=0))

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        scale = 1.0 / math.sqrt(max(shape[-1], 1)) if self.scale is None else self.scale
        return jax.random.uniform(key, shape, jnp.float32, -scale, scale).astype(dtype)


@dataclasses.dataclass(frozen=True)
class Glorot:
    r"""``U(-s, s)`` with ``s = scale * sqrt(6 / (fan_in + fan_out))`` (Glorot and Bengio, 2010)."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", check_real("Glorot", "scale", self.scale, least=0))

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        limit = self.scale * math.sqrt(6.0 / (shape[-2] + shape[-1]))
        return jax.random.uniform(key, shape, jnp.float32, -limit, limit).astype(dtype)


@dataclasses.dataclass(frozen=True)
class Orthogonal:
    r"""``scale * Q`` with Q Haar-distributed, orthonormal along the shorter axis (Saxe et al., 2014).

    The QR factorisation runs in float32 or wider, so half-precision parameters work on every backend.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", check_real("Orthogonal", "scale", self.scale))

    @promoting
    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        rows, columns = shape
        return _orthogonal(key, rows, columns, self.scale, jnp.dtype(dtype))


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))  # one program in the place of nine
def _orthogonal(key: jax.Array, rows: int, columns: int, scale: float, dtype: Any) -> jax.Array:
    wide = compute_dtype(dtype)
    normal = jax.random.normal(key, (max(rows, columns), min(rows, columns)), wide)
    q, r = _qr(normal)
    # The signs of R's diagonal make Q unique, and with that uniformly distributed.
    q = q * jnp.where(jnp.diagonal(r) < 0, -1, 1).astype(wide)
    return (scale * (q if rows >= columns else q.T)).astype(dtype)


@jax.custom_batching.sequential_vmap
def _qr(matrix: jax.Array) -> Any:
    """The QR factorisation, under `jax.vmap` one after the other.

    Batches of factorisations share jaxlib's pool of threads, and two of them at once, as of two gates, can wait for
    each other forever on a machine of two cores (seen with jaxlib 0.10.2).
    """
    return jnp.linalg.qr(matrix)


@dataclasses.dataclass(frozen=True)
class Identity:
    r"""``scale * I``: the start of the IRNN, a ReLU network that copies its state (Le et al., 2015)."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", check_real("Identity", "scale", self.scale))

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        del key  # part of the signature; nothing here is random
        return self.scale * jnp.eye(shape[0], shape[1], dtype=dtype)


@dataclasses.dataclass(frozen=True)
class Chrono:
    r"""Gate biases spread over time scales: ``log U(1, max_lag - 1)`` (Tallec and Ollivier, 2018).

    A gate ``sigmoid(b)`` with ``b = log(k - 1)`` forgets with a time constant of ``k`` steps, so the units
    start with memories between 2 and ``max_lag`` steps. The LSTM's input gate gets ``-b``.

    Args:
        max_lag: the longest dependency to be expected, in steps; at least 3.

    Raises:
        TypeError: if ``max_lag`` is no int.
        ValueError: if it is below 3.
    """

    max_lag: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_lag", check_size("Chrono", "max_lag", self.max_lag, least=3))

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        lag = jax.random.uniform(key, shape, jnp.float32, 1.0, float(self.max_lag - 1))
        return jnp.log(lag).astype(dtype)


def per_gate(
    init: Initializer, key: jax.Array, shape: tuple[int, ...], num_gates: int, dtype: Any = jnp.float32
) -> jax.Array:
    """Calls ``init`` once a gate, each with a key of its own, and joins the blocks along the last axis.

    Args:
        init: the initialiser of one block.
        key: split into one key a gate.
        shape: the shape of one block, for example ``(I, H)``.
        num_gates: G.
        dtype: of the result.

    Returns:
        An array of shape ``[*shape[:-1], G * shape[-1]]``.

    >>> import jax, numpy as np
    >>> w = per_gate(Orthogonal(), jax.random.key(0), (8, 8), 4)
    >>> w.shape, bool(np.allclose(w[:, 8:16] @ w[:, 8:16].T, np.eye(8), atol=1e-5))
    ((8, 32), True)
    """
    return jnp.concatenate([init(k, shape, dtype) for k in jax.random.split(key, num_gates)], axis=-1)
