"""Attention of a decoder over what an encoder wrote."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cell import compute_dtype, describe, matmul
from rnnjax.checks import check_init, check_ints, check_size
from rnnjax.initializers import Glorot
from rnnjax.kinds import check_fields, public
from rnnjax.topologies.parts import masked_softmax

__all__ = ["Attention", "AttentionParams", "Memory"]


class AttentionParams(NamedTuple):
    """Parameters of `Attention`; None where the score has no such part."""

    w_query: Any  # additive: [Q, A]
    w_key: Any  # additive: [M, A]; general: [M, Q]
    v: Any  # additive: [A]


class Memory(NamedTuple):
    """What attention reads, made once a source; batch first, as every step multiplies by it."""

    keys: jax.Array  # [B, T_in, A]
    values: jax.Array  # [B, T_in, M]
    valid: jax.Array | None  # bool [B, T_in]


@dataclasses.dataclass(frozen=True)
class Attention:
    r"""Which steps of the source a step of the decoder reads, learned end to end.

        score(q, m) = tanh(q @ w_query + m @ w_key) @ v     "additive"  (Bahdanau et al., 2015)
                      q . m                                 "dot"       (Luong et al., 2015)
                      q . (m @ w_key)                       "general"   (Luong et al., 2015)
        a = softmax_t(score(q, memory[t]))                  over the valid steps; zeros where there is none
        context = sum_t a_t * memory[t]

    The query q is an output of the decoder, and ``attend`` says which, and who reads the context:

        "before"  q = y_{t-1}; the step reads [x_t, context], the head [y_t, context]             (Bahdanau)
        "after"   q = y_t; u_t = tanh([context, y_t] @ w + b); the head reads u_t                 (Luong)
        "feed"    as "after", and the step reads [x_t, u_{t-1}], with u_{-1} = 0                  (Luong, input feeding)

    Before the first step y is the ``h`` of the decoder's top layer, where it has one, else zeros. With ``"after"`` no
    step waits for a context: under teacher forcing the decoder unrolls at full speed, and all steps attend at once.

    Args:
        score: ``"additive"``, ``"dot"`` or ``"general"``; with ``"dot"`` memory and query are equally wide.
        attend: ``"before"``, ``"after"`` or ``"feed"``.
        size: A of the additive score; None takes the query's Q.

    Raises:
        ValueError: for an unknown name, or a size that is below one or of a score without one.

    >>> import jax, jax.numpy as jnp
    >>> attention = Attention("dot")
    >>> params = attention.init(jax.random.key(0), query_size=2, memory_size=2)
    >>> memory = attention.memory(params, jnp.array([[[0.0, 9.0]], [[9.0, 0.0]], [[9.0, 9.0]]]), lengths=jnp.array([2]))
    >>> context, weights = attention.read(params, memory, jnp.array([[1.0, 0.0]]))
    >>> weights.round(3).tolist(), context.round(2).tolist()  # the third step is padding
    ([[0.0, 1.0, 0.0]], [[9.0, 0.0]])
    """

    score: Literal["additive", "dot", "general"] = "additive"
    attend: Literal["before", "after", "feed"] = "before"
    size: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.size is not None and self.score != "additive":
            raise ValueError(f"Attention: size is for score='additive', got {self.size} with {self.score!r}.")

    def init(self, key: jax.Array, query_size: int, memory_size: int, dtype: Any = jnp.float32) -> AttentionParams:
        """New parameters.

        Raises:
            ValueError: if query and memory differ in size, and the score is their dot product.
        """
        memory_size = check_init(self, key, memory_size, dtype, "memory_size")
        query_size = check_size("Attention.init", "query_size", query_size)
        self.check_sizes(query_size, memory_size)
        if self.score == "dot":
            return AttentionParams(None, None, None)
        key_query, key_key, key_v = jax.random.split(key, 3)
        if self.score == "general":
            return AttentionParams(None, Glorot()(key_key, (memory_size, query_size), dtype), None)
        size = self.size or query_size
        return AttentionParams(
            w_query=Glorot()(key_query, (query_size, size), dtype),
            w_key=Glorot()(key_key, (memory_size, size), dtype),
            v=Glorot()(key_v, (size, 1), dtype)[:, 0],
        )

    def check_sizes(self, query_size: int, memory_size: int) -> None:
        """Raises a ValueError if query and memory differ in size, and the score is their dot product."""
        if self.score == "dot" and query_size != memory_size:
            raise ValueError(
                f"Attention: with score='dot' query and memory must be equally wide, got {query_size} and "
                f"{memory_size}; take score='general'."
            )

    @public
    def memory(self, params: AttentionParams, ys: jax.Array, *, lengths: jax.Array | None = None) -> Memory:
        """What `read` reads, from outputs of an encoder.

        Args:
            params: from `init`.
            ys: ``[T_in, B, M]``; what stands in the padding, also NaN, is never read.
            lengths: int ``[B]``.
        """
        if ys.ndim != 3:
            raise ValueError(f"Attention.memory: ys must have shape [T_in, B, M], got {describe(ys)}.")
        values, valid = jnp.swapaxes(ys, 0, 1), None
        if lengths is not None:
            lengths = check_ints("Attention.memory", "lengths", lengths, low=0, high=len(ys), shape=ys.shape[1:2])
            valid = jnp.arange(ys.shape[0])[None] < lengths[:, None]
            values = jnp.where(valid[..., None], values, jnp.zeros((), values.dtype))
        keys = values
        if params.w_key is not None:
            keys = matmul(values, params.w_key, compute_dtype(values.dtype))
        return Memory(keys, values, valid)

    @public
    def read(self, params: AttentionParams, memory: Memory, query: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The context and the weights of each query.

        Args:
            params: from `init`.
            memory: from `memory`, of B sources.
            query: ``[R, Q]`` with R a multiple of B: query r reads source ``r // (R / B)``, so that hypotheses of a
                beam share the memory of their source.

        Returns:
            ``[R, M]`` and ``[R, T_in]``.

        Raises:
            ValueError: if R is no multiple of B.
        """
        rows, sources = query.shape[0], memory.values.shape[0]
        if query.ndim != 2 or (rows % sources if sources else rows):
            raise ValueError(
                f"Attention.read: query must have shape [R, Q] with R a multiple of the {sources} sources, "
                f"got {describe(query)}."
            )
        per_source = rows // sources if sources else 0
        context, weights = self._read(params, memory, query.reshape(sources, per_source, query.shape[1]))
        return context.reshape(rows, context.shape[-1]), weights.reshape(rows, weights.shape[-1])

    def read_all(self, params: AttentionParams, memory: Memory, queries: jax.Array) -> tuple[jax.Array, jax.Array]:
        """As `read`, for all steps at once: ``[T_out, B, Q]`` to ``[T_out, B, M]`` and ``[T_out, B, T_in]``."""
        if self.score == "additive":  # all pairs of steps times A numbers are too many to hold at once
            return jax.lax.map(lambda query: self.read(params, memory, query), queries)
        context, weights = self._read(params, memory, jnp.swapaxes(queries, 0, 1))
        return jnp.swapaxes(context, 0, 1), jnp.swapaxes(weights, 0, 1)

    def _read(self, params: AttentionParams, memory: Memory, queries: jax.Array) -> tuple[jax.Array, jax.Array]:
        """``[B, K, Q]`` to ``[B, K, M]`` and ``[B, K, T_in]``."""
        dtype = compute_dtype(queries.dtype)
        if self.score == "additive":
            scores = _additive(params, memory.keys, matmul(queries, params.w_query, dtype))
        else:
            scores = jnp.einsum("bkq,btq->bkt", queries.astype(dtype), memory.keys.astype(dtype))
        valid = None if memory.valid is None else memory.valid[:, None]
        weights = masked_softmax(scores, valid, axis=-1)
        return jnp.einsum("bkt,btm->bkm", weights, memory.values.astype(dtype)), weights


@jax.checkpoint  # else the backward pass of T_out steps holds T_out * T_in * A numbers a row
def _additive(params: AttentionParams, keys: jax.Array, queries: jax.Array) -> jax.Array:
    z = jnp.tanh(queries[:, :, None] + keys[:, None])  # [B, K, T_in, A]
    return matmul(z, params.v, z.dtype)
