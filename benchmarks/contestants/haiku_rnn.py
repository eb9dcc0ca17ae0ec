"""Haiku: `haiku.dynamic_unroll` over its cells."""

from typing import Any

import jax.numpy as jnp

from benchmarks.contestants.base import Contestant, JaxContestant, Problem, Skip, require

__all__ = ["make"]


def make(problem: Problem) -> Contestant:
    """Its LSTM has one matrix for input and state and gates i, g, f, o; its GRU is another one."""
    require("haiku", "dm-haiku")
    import haiku

    cell, p, kind = problem.cell, problem.params, problem.kind
    if kind is None:
        raise Skip("haiku has no such cell")
    if kind == "elman" and cell.activation != "relu":
        raise Skip("haiku.VanillaRNN has ReLU only; elman(activation='relu') has it as a rival")
    name = {"lstm": "LSTM", "gru": "GRU", "elman": "VanillaRNN"}[kind]

    def forward(xs: Any, state: Any) -> Any:
        options = {"double_bias": False} if kind == "elman" else {}
        return haiku.dynamic_unroll(getattr(haiku, name)(cell.hidden_size, **options), xs, state)

    transformed = haiku.without_apply_rng(haiku.transform(forward))

    def apply(params: Any, state: Any, xs: Any) -> tuple[Any, Any]:
        return transformed.apply(params, xs, state)

    input_size = p.w_ih.shape[0]
    if kind == "lstm":
        i, f, g, o = jnp.split(jnp.concatenate([p.w_ih, p.w_hh]), 4, axis=-1)
        b_i, b_f, b_g, b_o = jnp.split(p.b, 4)
        # The step adds a forget bias of 1 to that of the parameters.
        linear = {"w": jnp.concatenate([i, g, f, o], -1), "b": jnp.concatenate([b_i, b_g, b_f - 1, b_o])}
        params = {"lstm/linear": linear}
        state = haiku.LSTMState(hidden=problem.state.h, cell=problem.state.c)

        def ours(tree: Any) -> dict[str, Any]:
            (inner,) = tree.values()
            w, b = (jnp.split(inner[key], 4, axis=-1) for key in ("w", "b"))
            w, b = (jnp.concatenate([a[0], a[2], a[1], a[3]], axis=-1) for a in (w, b))
            return {"w_ih": w[:input_size], "w_hh": w[input_size:], "b": b}

        return JaxContestant(
            "haiku", "dm-haiku", name, apply, params, state, problem.xs, ours=ours, h_of=lambda final: final.hidden
        )
    if kind == "gru":
        params = {"gru": {"w_i": p.w_ih, "w_h": p.w_hh, "b": p.b}}
        return JaxContestant(
            "haiku", "dm-haiku", name, apply, params, problem.state.h, problem.xs,
            ours=None, h_of=lambda final: final, note="resets before the matmul, which takes two of them a step",
        )  # fmt: skip
    params = {"vanilla_rnn/linear": {"w": p.w_ih, "b": p.b}, "vanilla_rnn/linear_1": {"w": p.w_hh}}

    def ours_elman(tree: Any) -> dict[str, Any]:
        first, second = tree["vanilla_rnn/linear"], tree["vanilla_rnn/linear_1"]
        return {"w_ih": first["w"], "w_hh": second["w"], "b": first["b"]}

    return JaxContestant(
        "haiku", "dm-haiku", name, apply, params, problem.state.h, problem.xs, ours=ours_elman, h_of=lambda final: final
    )
