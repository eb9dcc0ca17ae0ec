"""Keras on JAX: `keras.layers`, called without state of their own."""

import os
from typing import Any

import jax.numpy as jnp

from benchmarks.contestants.base import Contestant, JaxContestant, Problem, Skip, require

__all__ = ["make"]


def make(problem: Problem) -> Contestant:
    """Batch-major; the GRU's gates are z, r, n, with two biases."""
    require("keras", "keras")
    os.environ["KERAS_BACKEND"] = "jax"  # read when keras is first imported
    import keras

    if keras.config.backend() != "jax":
        raise Skip(f"keras was imported with the backend {keras.config.backend()!r} before, it must be 'jax'")
    cell, p, kind = problem.cell, problem.params, problem.kind
    if kind is None:
        raise Skip("keras has no such cell")
    name = {"lstm": "LSTM", "gru": "GRU", "elman": "SimpleRNN"}[kind]
    # Zeros, since the orthogonal matrices that it would start from do not exist in every dtype.
    options = {"recurrent_initializer": "zeros"} | ({"activation": cell.activation} if kind == "elman" else {})
    layer = getattr(keras.layers, name)(
        cell.hidden_size, return_sequences=True, return_state=True, dtype=p.w_ih.dtype.name, **options
    )
    xs = jnp.swapaxes(problem.xs, 0, 1)  # [B, T, I]
    layer.build(xs.shape)
    swap = _swap_r_and_z if kind == "gru" else (lambda array: array)
    bias = swap(p.b)
    if kind == "gru":
        zeros = jnp.zeros(2 * cell.hidden_size, p.b.dtype)
        bias = jnp.stack([bias, jnp.concatenate([zeros, p.b_hn])])
    params = [swap(p.w_ih), swap(p.w_hh), bias]
    assert [tuple(v.shape) for v in layer.trainable_variables] == [leaf.shape for leaf in params]
    fixed = [v.value for v in layer.non_trainable_variables]

    def apply(params: Any, state: Any, xs: Any) -> tuple[Any, Any]:
        (ys, *final), _ = layer.stateless_call(params, fixed, xs, initial_state=state)
        return ys, final

    def ours(tree: Any) -> dict[str, Any]:
        w_ih, w_hh, b = tree
        found = {"w_ih": swap(w_ih), "w_hh": swap(w_hh), "b": b}
        if kind == "gru":
            found |= {"b": swap(b[0]), "b_hn": b[1, 2 * cell.hidden_size :]}
        return found

    return JaxContestant(
        "keras", "keras", name, apply, params, list(problem.state), xs,
        ours=ours, h_of=lambda final: final[0], batch_major=True,
    )  # fmt: skip


def _swap_r_and_z(array):
    r, z, n = jnp.split(array, 3, axis=-1)
    return jnp.concatenate([z, r, n], axis=-1)
