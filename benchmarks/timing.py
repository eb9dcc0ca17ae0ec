"""Measuring: contestants take turns, so that whatever else the machine does meets all of them.

A round is one burst of calls of every contestant, A B C A B C ...; each call is waited for. Medians and quartiles are
over rounds; compilation is measured apart, and warm-up comes before.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.contestants.base import FAILURES, Prepared, Problem, array_dtype, precision, why

__all__ = ["Stats", "clear_caches", "compile_all", "flops", "interleave", "matmul_peak", "stats"]

Stats = dict[str, float]

_SETTLING = 0.02  # seconds between the end of a turn and the first call that counts


def stats(values: list[float]) -> Stats:
    """Median and quartiles, with four significant digits."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"median": _short(middle), "low": _short(low), "high": _short(high)}


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def compile_all(
    prepared: Mapping[str, Prepared], rounds: int, failed: dict[str, str] | None = None
) -> dict[str, Stats | None]:
    """Seconds to trace and to compile, by turns and from an empty cache; None for what is not compiled.

    Args:
        prepared: the contestants.
        rounds: how often each is compiled.
        failed: gets the reason for everyone who cannot, and who is left out then; None lets errors through.
    """
    found: dict[str, list[float]] = {name: [] for name in prepared}
    for _ in range(rounds):
        for name, one in prepared.items():
            if one.compile is None or name in (failed or ()):
                continue
            clear_caches()
            start = time.perf_counter()
            if _can(name, one.compile, failed):
                found[name].append(time.perf_counter() - start)
    return {name: stats(values) if values else None for name, values in found.items() if name not in (failed or ())}


def _can(name: str, call: Callable[[], Any], failed: dict[str, str] | None) -> bool:
    """Calls; whether that went well. An error of ours is an error."""
    try:
        call()
    except FAILURES as error:
        if failed is None or name.startswith("rnnjax"):
            raise
        failed[name] = why(error)
        return False
    return True


def clear_caches() -> None:
    """So that a trace or a compilation of the round before does not serve this one."""
    jax.clear_caches()


def interleave(
    calls: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    burst_seconds: float,
    warmup: int = 2,
    failed: dict[str, str] | None = None,
) -> dict[str, Stats]:
    """Seconds a call.

    Threads of some libraries (OpenMP's, which torch uses) go on spinning for some milliseconds after their last piece
    of work, on a core that the next contestant needs. So a turn begins with calls that do not count, or, where a single
    call takes long, with a rest.

    Args:
        calls: the contestants; each call waits for its result.
        rounds: how often each has its turn.
        burst_seconds: a turn has as many calls as fit in here, at least one.
        warmup: calls before, which are not counted.
        failed: see `compile_all`.
    """
    repeats: dict[str, int] = {}
    calls = {name: call for name, call in calls.items() if failed is None or _can(name, call, failed)}
    for name, call in calls.items():
        for _ in range(warmup):
            call()
        start = time.perf_counter()
        call()
        repeats[name] = max(1, round(burst_seconds / (time.perf_counter() - start)))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            settling = round(repeats[name] * _SETTLING / burst_seconds) if burst_seconds else 0
            for _ in range(settling):
                call()
            if not settling:
                time.sleep(_SETTLING)
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            seconds[name].append((time.perf_counter() - start) / repeats[name])
    return {name: stats(values) for name, values in seconds.items()}


def flops(problem: Problem, mode: str) -> int:
    """Floating-point operations of one call.

    Of an affine cell those of the matmuls: ``2 T B (I + H) G H`` forward, and twice that again for the gradients. Of
    another cell what XLA counts in one step, times T, and three times that for training.
    """
    steps, batch, input_size = problem.xs.shape
    gates = getattr(problem.cell, "num_gates", None)
    if gates is not None and getattr(problem.params, "w_ih", None) is not None:
        rows = input_size + (problem.cell.hidden_size if getattr(problem.params, "w_hh", None) is not None else 0)
        forward = 2 * steps * batch * rows * gates * problem.cell.hidden_size
    else:
        compiled = jax.jit(problem.cell.step).lower(problem.params, problem.state, problem.xs[0]).compile()
        forward = round(steps * (compiled.cost_analysis() or {}).get("flops", 0))
    return forward * (3 if mode == "training" else 1)


def matmul_peak(dtype: str, *, seconds: float = 0.5) -> dict[str, float]:
    """FLOP/s of the largest square matmul that JAX makes in the time, and torch's on the same arrays."""
    found: dict[str, float] = {}
    size = 256
    with precision(dtype):
        while True:
            array = jnp.ones((size, size), array_dtype(dtype))
            call = jax.jit(jnp.matmul).lower(array, array).compile()
            best = _best(lambda call=call, array=array: jax.block_until_ready(call(array, array)))
            found = {"size": size, "jax": 2 * size**3 / best}
            if best * 8 * 5 > seconds or size >= 16384:
                break
            size *= 2
        torch_call = _torch_matmul(size, dtype)
        if torch_call is not None:
            found["torch"] = 2 * size**3 / _best(torch_call)
    found = {key: _short(value) for key, value in found.items()}
    return found | {"flops_per_second": max(found["jax"], found.get("torch", 0.0))}


def _best(call: Callable[[], Any], rounds: int = 5) -> float:
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def _torch_matmul(size: int, dtype: str) -> Callable[[], Any] | None:
    try:
        import torch
    except ModuleNotFoundError:
        return None
    on_gpu = jax.default_backend() == "gpu"
    if on_gpu and not torch.cuda.is_available():
        return None
    kind = getattr(torch, array_dtype(dtype).name)
    array = torch.ones((size, size), dtype=kind, device="cuda" if on_gpu else "cpu")

    def call() -> None:
        torch.matmul(array, array)
        if on_gpu:
            torch.cuda.synchronize()

    return call
