"""flax, both interfaces: `flax.linen.RNN` and `flax.nnx.RNN` with the fastest cell that each has."""

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.contestants.base import Contestant, JaxContestant, Problem, Skip, require

__all__ = ["make_linen", "make_nnx"]

# A gate: flax's layer of the input, its layer of the state, and which of the two has our bias.
_LINEN = {
    "lstm": ("OptimizedLSTMCell", [("ii", "hi", 1), ("if", "hf", 1), ("ig", "hg", 1), ("io", "ho", 1)]),
    "gru": ("GRUCell", [("ir", "hr", 0), ("iz", "hz", 0), ("in", "hn", 0)]),
    "elman": ("SimpleCell", [("i", "h", 0)]),
}


def _relu(problem: Problem) -> dict[str, Any]:
    is_relu = problem.kind == "elman" and problem.cell.activation == "relu"
    return {"activation_fn": jax.nn.relu} if is_relu else {}


def make_linen(problem: Problem) -> Contestant:
    """`flax.linen`: one array a gate in its parameters."""
    require("flax", "flax")
    from flax import linen

    if problem.kind is None:
        raise Skip("flax has no such cell")
    name, gates = _LINEN[problem.kind]
    cell, p = problem.cell, problem.params
    dtype = p.w_ih.dtype
    module = linen.RNN(
        # Zeros, since the orthogonal matrices that it would start from do not exist in every dtype.
        getattr(linen, name)(
            cell.hidden_size,
            dtype=dtype,
            param_dtype=dtype,
            recurrent_kernel_init=linen.initializers.zeros_init(),
            **_relu(problem),
        ),
        time_major=True,
        return_carry=True,
    )
    blocks = [jnp.split(array, len(gates), axis=-1) for array in (p.w_ih, p.w_hh, p.b)]
    tree: dict[str, Any] = {}
    for (x, h, where), w_ih, w_hh, b in zip(gates, *blocks, strict=True):
        tree |= {x: {"kernel": w_ih}, h: {"kernel": w_hh}}
        tree[(x, h)[where]]["bias"] = b
    if problem.kind == "gru":
        tree["hn"]["bias"] = p.b_hn

    def ours(tree: Any) -> dict[str, Any]:
        inner = tree["params"]["cell"]
        found = {
            "w_ih": jnp.concatenate([inner[x]["kernel"] for x, _, _ in gates], axis=-1),
            "w_hh": jnp.concatenate([inner[h]["kernel"] for _, h, _ in gates], axis=-1),
            "b": jnp.concatenate([inner[gate[gate[2]]]["bias"] for gate in gates], axis=-1),
        }
        return found | ({"b_hn": inner["hn"]["bias"]} if problem.kind == "gru" else {})

    def apply(params: Any, state: Any, xs: Any) -> tuple[Any, Any]:
        final, ys = module.apply(params, xs, initial_carry=state)
        return ys, final

    state, h_of = _carry(problem)
    return JaxContestant(
        "flax.linen", "flax", name, apply, {"params": {"cell": tree}}, state, problem.xs, ours=ours, h_of=h_of
    )


def make_nnx(problem: Problem) -> Contestant:
    """`flax.nnx`, split into a graph and arrays, the way it is fast under `jit`."""
    require("flax", "flax")
    from flax import nnx

    if problem.kind is None:
        raise Skip("flax has no such cell")
    name = _LINEN[problem.kind][0]
    cell, p = problem.cell, problem.params
    dtype = p.w_ih.dtype
    # Zeros, since the orthogonal matrices that it would start from do not exist in every dtype.
    options = {"recurrent_kernel_init": nnx.initializers.zeros_init(), **_relu(problem)}
    made = getattr(nnx, name)(
        p.w_ih.shape[0], cell.hidden_size, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0), **options
    )
    # With all gates in one matrix; the bias of the LSTM is that of the state's layer, and the GRU has no b_hn.
    made.dense_i.kernel[...], made.dense_h.kernel[...] = p.w_ih, p.w_hh
    has_bias = made.dense_h if problem.kind == "lstm" else made.dense_i
    has_bias.bias[...] = p.b
    graph, params, rest = nnx.split(nnx.RNN(made, time_major=True, return_carry=True), nnx.Param, ...)

    def ours(tree: Any) -> dict[str, Any]:
        inner = nnx.to_pure_dict(tree)["cell"]
        bias = inner["dense_h" if problem.kind == "lstm" else "dense_i"]["bias"]
        return {"w_ih": inner["dense_i"]["kernel"], "w_hh": inner["dense_h"]["kernel"], "b": bias}

    def apply(params: Any, state: Any, xs: Any) -> tuple[Any, Any]:
        final, ys = nnx.merge(graph, params, rest)(xs, initial_carry=state)
        return ys, final

    state, h_of = _carry(problem)
    gru = problem.kind == "gru"
    return JaxContestant(
        "flax.nnx", "flax", name, apply, params, state, problem.xs,
        ours=None if gru else ours, h_of=h_of, note="no bias b_hn" if gru else None,
    )  # fmt: skip


def _carry(problem):
    """The state in the order of flax, which has c first."""
    if problem.kind == "lstm":
        return (problem.state.c, problem.state.h), lambda final: final[1]
    return problem.state.h, lambda final: final
