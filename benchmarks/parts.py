"""Where the time of an LSTM goes: its matmuls, its pointwise work and its loop, each timed alone, beside torch's.

A part does what the whole does there, on arrays of the same shapes and with the same dependence from step to step. The
parts of one library need not add up to its whole: fused and overlapped work costs less than its parts do.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.contestants import Skip, build, make_problem
from benchmarks.contestants.base import Problem, require
from benchmarks.contestants.torch_rnn import available_cores
from benchmarks.grid import MODES, Point, Sizes
from benchmarks.timing import compile_all, interleave

__all__ = ["PARTS", "part_times"]

# name -> mode whose whole it belongs to
PARTS = {
    "whole, forward": "forward",
    "input projection": "forward",
    "recurrent matmuls": "forward",
    "pointwise": "forward",
    "loop alone": "forward",
    "whole, training": "training",
    "backward recurrent matmuls": "training",
    "backward pointwise": "training",
    "weight gradients": "training",
    "input gradient": "training",
}


def part_times(sizes: list[Sizes], *, rounds: int, burst_seconds: float) -> list[dict[str, Any]]:
    """Rows of seconds for every part, library and size; torch is left out where it is not installed."""
    rows = []
    for size in sizes:
        calls: dict[str, Callable[[], Any]] = {}
        for mode in MODES:
            problem = make_problem(Point("lstm", size, "float32", mode))
            contestants, _ = build(problem, ["default"], ["torch"])
            prepared = {one.name: one.prepare(mode) for one in contestants}
            compile_all(prepared, 1)
            for name, one in prepared.items():
                calls[f"{'torch' if name == 'torch' else 'rnnjax'}|whole, {mode}"] = one.call
        calls |= {f"rnnjax|{name}": call for name, call in _jax_parts(problem, size).items()}
        try:
            calls |= {f"torch|{name}": call for name, call in _torch_parts(size).items()}
        except Skip:
            pass
        seconds = interleave(calls, rounds=rounds, burst_seconds=burst_seconds)
        for key, value in seconds.items():
            library, part = key.split("|")
            rows.append({**size._asdict(), "library": library, "part": part, "mode": PARTS[part], "seconds": value})
    return rows


def _arrays(size: Sizes) -> dict[str, np.ndarray]:
    steps, batch, inputs, hidden = size
    draw = np.random.default_rng(0).standard_normal
    shapes = {
        "xs": (steps * batch, inputs),
        "hs": (steps * batch, hidden),
        "dz": (steps * batch, 4 * hidden),
        "w_ih": (inputs, 4 * hidden),
        "w_hh": (hidden, 4 * hidden),
        "h": (batch, hidden),
        "z": (batch, 4 * hidden),
    }
    return {name: 0.01 * draw(shape).astype(np.float32) for name, shape in shapes.items()}


def _jax_parts(problem: Problem, size: Sizes) -> dict[str, Callable[[], Any]]:
    steps, batch, _, hidden = size
    a = {name: jnp.asarray(value) for name, value in _arrays(size).items()}
    cell: Any = problem.cell
    gates = tuple(jnp.asarray(part) for part in np.split(_arrays(size)["dz"].reshape(steps, batch, -1), 4, axis=-1))

    def recurrent(h: jax.Array, w: jax.Array) -> jax.Array:
        """Every product waits for the one before it, through one of its gates."""

        def step(h: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            z = h @ w
            return z[:, :hidden], z[0, :1]

        return jax.lax.scan(step, h, None, length=steps)[1]

    def backward(z: jax.Array, w: jax.Array) -> jax.Array:
        def step(z: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            dh = z @ w.T
            return jnp.concatenate([dh] * 4, axis=-1), dh[0, :1]

        return jax.lax.scan(step, z, None, length=steps)[1]

    def update(state: Any, z: Any) -> Any:
        return cell.update(problem.params, state, z, tuple(jnp.zeros_like(gate) for gate in z))

    def pointwise(state: Any, zs: Any) -> Any:
        """With nothing but the outputs kept, as a forward pass does; ``z`` are the sums of both projections."""
        return jax.lax.scan(lambda state, z: update(state, tuple(a + state.h for a in z)), state, zs)[1]

    def backward_pointwise(state: Any, zs: Any, d_ys: jax.Array) -> Any:
        """The derivative of every update, with the cotangents of all gates kept for the weight gradients."""

        def step(d_state: Any, inputs: Any) -> Any:
            z, d_y = inputs
            return jax.vjp(update, state, z)[1]((d_state, d_y))

        return jax.lax.scan(step, state, (zs, d_ys))

    def loop(hs: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda count, h: (count + 1, h + 1), jnp.int32(0), hs)[1]

    parts: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "input projection": (jnp.matmul, (a["xs"], a["w_ih"])),
        "recurrent matmuls": (recurrent, (a["h"], a["w_hh"])),
        "pointwise": (pointwise, (problem.state, gates)),
        "loop alone": (loop, (a["hs"].reshape(steps, batch, -1),)),
        "backward pointwise": (backward_pointwise, (problem.state, gates, a["hs"].reshape(steps, batch, -1))),
        "backward recurrent matmuls": (backward, (a["z"], a["w_hh"])),
        "weight gradients": (lambda xs, hs, dz: (xs.T @ dz, hs.T @ dz), (a["xs"], a["hs"], a["dz"])),
        "input gradient": (lambda dz, w: dz @ w.T, (a["dz"], a["w_ih"])),
    }
    found: dict[str, Callable[[], Any]] = {}
    for name, (function, arguments) in parts.items():
        compiled = jax.jit(function).lower(*arguments).compile()
        found[name] = partial(_run, compiled, arguments)
    return found


def _run(compiled: Any, arguments: tuple[Any, ...]) -> Any:
    return jax.block_until_ready(compiled(*arguments))


def _torch_parts(size: Sizes) -> dict[str, Callable[[], Any]]:
    require("torch", "torch")
    import torch

    torch.set_num_threads(available_cores())
    steps, _, _, hidden = size
    a = {name: torch.tensor(value) for name, value in _arrays(size).items()}
    outs, back = (torch.empty_like(a["z"]), torch.empty_like(a["z"])), torch.empty_like(a["h"])

    def recurrent() -> None:
        h = a["h"]
        with torch.no_grad():
            for n in range(steps):
                out = outs[n % 2]  # the other one is read
                torch.mm(h, a["w_hh"], out=out)
                h = out[:, :hidden]

    def backward() -> None:
        with torch.no_grad():
            for _ in range(steps):
                torch.mm(a["z"], a["w_hh"].T, out=back)

    return {
        "input projection": lambda: torch.mm(a["xs"], a["w_ih"]),
        "recurrent matmuls": recurrent,
        "backward recurrent matmuls": backward,
        "weight gradients": lambda: (torch.mm(a["xs"].T, a["dz"]), torch.mm(a["hs"].T, a["dz"])),
        "input gradient": lambda: torch.mm(a["dz"], a["w_ih"].T),
    }
