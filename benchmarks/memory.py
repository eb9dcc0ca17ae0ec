"""What checkpointing costs and saves, and TBPTT over a million steps.

Bytes are those that XLA plans for the compiled training step, so a policy whose plan does not fit is listed without
a time instead of filling the machine.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from benchmarks.contestants.base import loss_of, planned_bytes
from benchmarks.timing import stats

__all__ = ["POLICIES", "remat_costs", "tbptt_costs"]

# implementation, remat
POLICIES = (
    ("scan", None),
    ("scan", True),
    ("scan", 64),
    ("fused", None),
    ("fused", "gates"),
    ("fused", True),
    ("fused", 64),
)
Say = Callable[[str], None]


def remat_costs(
    cell_name: str,
    *,
    hidden_size: int,
    batch_size: int,
    lengths: Sequence[int],
    rounds: int,
    limit_bytes: float,
    say: Say = lambda text: None,
) -> list[dict[str, Any]]:
    """Peak bytes and time of one gradient for every length and policy.

    Args:
        cell_name: see `rnnjax.cells.cell_from_name`.
        hidden_size: H; the input has the same size.
        batch_size: B.
        lengths: T.
        rounds: turns of every policy.
        limit_bytes: what needs more is compiled and not run.
        say: gets a line a length.
    """
    cell = rnnjax.cells.cell_from_name(cell_name, hidden_size)
    policies = [p for p in POLICIES if p[0] in rnnjax.implementations(cell)]
    params = cell.init(jax.random.key(0), hidden_size)
    state = cell.initial_state((batch_size,))
    rows = []
    for length in lengths:
        say(f"remat, T = {length}")
        xs = jax.random.normal(jax.random.key(1), (length, batch_size, hidden_size))
        here, compiled = [], {}
        for implementation, remat in policies:
            compiled[implementation, remat] = _compile(cell, implementation, remat, params, state, xs)
            row = {
                "cell": cell_name,
                "T": length,
                "B": batch_size,
                "I": hidden_size,
                "H": hidden_size,
                "dtype": "float32",
                "implementation": implementation,
                "remat": remat,
                **planned_bytes(compiled[implementation, remat]),
                "seconds": None,
            }
            here.append(row)
        fits = [row for row in here if row["peak_bytes"] <= limit_bytes]
        seconds: dict[int, list[float]] = {id(row): [] for row in fits}
        for turn in range(rounds + 1):
            for row in fits:
                call = compiled[row["implementation"], row["remat"]]
                start = time.perf_counter()
                jax.block_until_ready(call(params, state, xs))
                if turn:  # the first one is the warm-up
                    seconds[id(row)].append(time.perf_counter() - start)
        for row in fits:
            row["seconds"] = stats(seconds[id(row)])
        rows += here
    return rows


def _compile(cell: Any, implementation: str, remat: Any, params: Any, state: Any, xs: jax.Array) -> Any:
    def loss(params: Any, state: Any, xs: jax.Array) -> jax.Array:
        final, ys = rnnjax.unroll(cell, params, state, xs, implementation=implementation, remat=remat)
        return loss_of(ys, final)

    return jax.jit(jax.grad(loss)).lower(params, state, xs).compile()


def tbptt_costs(
    cell_name: str, *, hidden_size: int, lengths: Sequence[int], chunk_len: int, say: Say = lambda text: None
) -> list[dict[str, Any]]:
    """Trains on one sequence of every length by TBPTT, all in one program: bytes beside the data, and time.

    The data are two floats a step. ``temp_bytes`` is what the program needs beside them and its results; it has a copy
    of the data, which XLA takes into the loop, and is otherwise the same for every length.
    """
    cell = rnnjax.cells.cell_from_name(cell_name, hidden_size)
    optimizer = optax.adam(1e-3)
    params = {"cell": cell.init(jax.random.key(0), 1), "out": jnp.zeros((cell.hidden_size, 1))}

    def loss_fn(params: Any, state: Any, chunk: Any) -> Any:
        state, ys = rnnjax.unroll(cell, params["cell"], state, chunk["x"])
        return jnp.mean((ys @ params["out"] - chunk["y"]) ** 2), state

    @jax.jit
    def train(params: Any, opt_state: Any, state: Any, stream: Any) -> Any:
        result = rnnjax.tbptt(loss_fn, optimizer, params, opt_state, state, stream, chunk_len=chunk_len)
        return result.params, result.info.loss

    rows = []
    for length in lengths:
        say(f"TBPTT, T = {length}")
        wave = np.sin(0.1 * np.arange(length + 1, dtype=np.float32))[:, None, None]
        stream = {"x": jnp.asarray(wave[:-1]), "y": jnp.asarray(wave[1:])}
        arguments = (params, optimizer.init(params), cell.initial_state((1,)), stream)
        compiled = train.lower(*arguments).compile()
        start = time.perf_counter()
        _, loss = jax.block_until_ready(compiled(*arguments))
        seconds = time.perf_counter() - start
        rows.append(
            {
                "cell": cell_name,
                "T": length,
                "B": 1,
                "H": hidden_size,
                "chunk_len": chunk_len,
                **planned_bytes(compiled),
                "seconds": round(seconds, 3),
                "first_loss": float(loss[0]),
                "last_loss": float(loss[-1]),
            }
        )
    return rows
