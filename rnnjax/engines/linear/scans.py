"""What an engine of linear cells writes: all states of a linear recurrence, and the two ways that are here.

Nothing else of a layer has to be written again: see `rnnjax.engines.linear.recurrence`. A test registers an engine in
ten lines (``tests/engines/test_linear_seam.py``).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from rnnjax.engines.choice import Job
from rnnjax.promotion import promoting

__all__ = ["Associative", "Hoisted", "Recurrence", "advance", "first"]


class Recurrence(Protocol):
    """All that an engine of linear cells writes; a hashable value.

    Attributes:
        platform: where a recurrence that is opaque to JAX (a kernel, native code) can be compiled: ``"cpu"``,
            ``"cuda"``, ``"tpu"``, or ``"any"``; elsewhere, and in exported programs, `Associative` takes its place.
            None for one made of JAX's operations. Neither kind needs a derivative: that is the same recurrence.
    """

    @property
    def platform(self) -> str | None: ...

    def fits(self, job: Job) -> str:
        """``""``, or why not: the end of a sentence, such as "needs float32 states, got bfloat16"."""
        ...

    def states(self, a: jax.Array, b: jax.Array, start: jax.Array, *, reverse: bool) -> jax.Array:
        """All states of ``s[t] = a[t] * s[t-1] + b[t]``, with ``reverse`` of ``s[t] = a[t] * s[t+1] + b[t]``.

        Where ``a`` is zero, as at a reset, nothing of the state before may pass, though it be NaN: see `advance`.

        Args:
            a: ``[T, *batch, N]``, or with any of these axes of length 1; real or complex, float32 or wider.
            b: ``[T, *batch, N]``.
            start: ``[*batch, N]``, the state before the first step.
            reverse: whether time runs from the last step to the first.
        """
        ...


@promoting
def advance(a: jax.Array, s: jax.Array, b: jax.Array) -> jax.Array:
    """``a * s + b``, and ``b`` where ``a`` is zero, so that a reset forgets also what is not finite."""
    return jnp.where(a == 0, b, a * s + b)


def first(array: jax.Array, reverse: bool) -> jax.Array:
    """The step at which time begins, ``[1, *batch, N]``."""
    return array[-1:] if reverse else array[:1]


@dataclasses.dataclass(frozen=True)
class Hoisted:
    """`jax.lax.scan`, in which one multiplication and one addition an entry are left of the step."""

    platform = None

    def fits(self, job: Job) -> str:
        """It runs every job."""
        del job
        return ""

    def states(self, a: jax.Array, b: jax.Array, start: jax.Array, *, reverse: bool) -> jax.Array:
        """See `Recurrence`."""
        steady = a.shape[0] == 1

        def step(s: jax.Array, inputs: Any) -> tuple[jax.Array, jax.Array]:
            k, d = inputs
            s = advance(a[0] if steady else k, s, d)
            return s, s

        return jax.lax.scan(step, start, (None if steady else a, b), reverse=reverse)[1]


@dataclasses.dataclass(frozen=True)
class Associative:
    """`jax.lax.associative_scan` over pairs with ``(a, b) then (a', b') = (a' a, a' b + b')``.

    It takes about 2 log2(T) dependent operations over long arrays instead of T over short ones. The initial state
    enters the first ``b``, so it may be zero or negative and may be learned; nothing is done in log space.
    """

    platform = None

    def fits(self, job: Job) -> str:
        """It runs every job."""
        del job
        return ""

    def states(self, a: jax.Array, b: jax.Array, start: jax.Array, *, reverse: bool) -> jax.Array:
        """See `Recurrence`."""

        def after(earlier: Any, later: Any) -> Any:
            (a1, b1), (a2, b2) = earlier, later
            return advance(a2, a1, jnp.zeros_like(a1)), advance(a2, b1, b2)

        begin = advance(first(a, reverse), start, first(b, reverse))
        b = jnp.concatenate([b[:-1], begin] if reverse else [begin, b[1:]])
        a = jnp.broadcast_to(a, (b.shape[0], *a.shape[1:]))
        return jax.lax.associative_scan(after, (a, b), reverse=reverse)[1]
