"""A bare `jax.lax.scan`, as one writes it by hand without any library."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.contestants.base import Contestant, JaxContestant, Problem
from benchmarks.contestants.ours import by_name

__all__ = ["make"]


def make(problem: Problem) -> Contestant:
    """Textbook steps for the three classic cells; for any other cell its own step."""
    kind = problem.kind
    if kind is None:
        step, detail = problem.cell.step, "lax.scan over cell.step"
    else:
        step, detail = {"lstm": _lstm, "gru": _gru, "elman": _elman}[kind], "lax.scan over a step written by hand"
        if kind == "elman" and problem.cell.activation == "relu":
            step = functools.partial(_elman, phi=jax.nn.relu)
    if kind is None:
        state, h_of = problem.state, lambda final: getattr(final, "h", jax.tree.leaves(final)[0])
    else:
        state = tuple(problem.state) if kind == "lstm" else problem.state.h
        h_of = (lambda final: final[0]) if kind == "lstm" else (lambda final: final)

    def apply(params: Any, state: Any, xs: Any) -> tuple[Any, Any]:
        final, ys = jax.lax.scan(functools.partial(step, params), state, xs)
        return ys, final

    return JaxContestant(
        "bare scan", "jax", detail, apply, problem.params, state, problem.xs, ours=by_name, h_of=h_of
    )  # fmt: skip


def _lstm(params, state, x):
    h, c = state
    z = x @ params.w_ih + h @ params.w_hh + params.b
    i, f, g, o = jnp.split(z, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), h


def _gru(params, h, x):
    x_r, x_z, x_n = jnp.split(x @ params.w_ih + params.b, 3, axis=-1)
    h_r, h_z, h_n = jnp.split(h @ params.w_hh, 3, axis=-1)
    r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
    n = jnp.tanh(x_n + r * (h_n + params.b_hn))
    h = (1 - z) * n + z * h
    return h, h


def _elman(params, h, x, phi=jnp.tanh):
    h = phi(x @ params.w_ih + h @ params.w_hh + params.b)
    return h, h
