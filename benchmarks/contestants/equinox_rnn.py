"""Equinox: its cells take one example, so they are vmapped over the batch within a `jax.lax.scan`, as it documents."""

from typing import Any

import jax

from benchmarks.contestants.base import Contestant, JaxContestant, Problem, Skip, require

__all__ = ["make"]


def make(problem: Problem) -> Contestant:
    """Weights are ``[G H, I]``; gate orders are ours."""
    require("equinox", "equinox")
    import equinox

    cell, p, kind = problem.cell, problem.params, problem.kind
    if kind not in ("lstm", "gru"):
        raise Skip("equinox has no such cell")
    name = {"lstm": "LSTMCell", "gru": "GRUCell"}[kind]
    made = getattr(equinox.nn, name)(p.w_ih.shape[0], cell.hidden_size, dtype=p.w_ih.dtype, key=jax.random.key(0))
    fields = {"weight_ih": p.w_ih.T, "weight_hh": p.w_hh.T, "bias": p.b}
    if kind == "gru":
        fields["bias_n"] = p.b_hn
    made = equinox.tree_at(lambda m: [getattr(m, field) for field in fields], made, list(fields.values()))
    params, static = equinox.partition(made, equinox.is_array)

    def apply(params: Any, state: Any, xs: Any) -> tuple[Any, Any]:
        model = equinox.combine(params, static)

        def step(state: Any, x: Any) -> tuple[Any, Any]:
            state = jax.vmap(model)(x, state)
            return state, state[0] if kind == "lstm" else state

        final, ys = jax.lax.scan(step, state, xs)
        return ys, final

    def ours(tree: Any) -> dict[str, Any]:
        found = {"w_ih": tree.weight_ih.T, "w_hh": tree.weight_hh.T, "b": tree.bias}
        return found | ({"b_hn": tree.bias_n} if kind == "gru" else {})

    state = tuple(problem.state) if kind == "lstm" else problem.state.h
    return JaxContestant(
        "equinox", "equinox", name, apply, params, state, problem.xs,
        ours=ours, h_of=(lambda final: final[0]) if kind == "lstm" else (lambda final: final),
    )  # fmt: skip
