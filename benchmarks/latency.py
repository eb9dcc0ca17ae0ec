"""One step at a time: the latency of a step, and the speed of sampling from a language model, against torch."""

import time
from typing import Any

import numpy as np

from benchmarks import lm
from benchmarks.contestants import Skip, build, make_problem, precision
from benchmarks.contestants.ours import make_step
from benchmarks.grid import Point, Sizes
from benchmarks.timing import compile_all, interleave

__all__ = ["sampling_speeds", "step_latencies"]


def step_latencies(
    cells: list[str], rivals: list[str], *, sizes: list[Sizes], rounds: int, burst_seconds: float
) -> list[dict[str, Any]]:
    """Seconds of one step, from a state and an input to the next state: `cell.step` of rnnjax, and T = 1 of all."""
    rows = []
    for spec in cells:
        for size in sizes:
            problem = make_problem(Point(spec, size._replace(T=1), "float32", "forward"))
            contestants, _ = build(problem, ["default"], rivals)
            contestants.insert(0, make_step(problem))
            with precision("float32"):
                prepared = {one.name: one.prepare("forward") for one in contestants}
                compile_all(prepared, 1)
                calls = {name: one.call for name, one in prepared.items()}
                seconds = interleave(calls, rounds=rounds, burst_seconds=burst_seconds, warmup=20)
            for one in contestants:
                rows.append(
                    {
                        "cell": spec,
                        **size._replace(T=1)._asdict(),
                        "contestant": one.name,
                        "detail": one.detail,
                        "library": one.distribution or "rnnjax",
                        "version": one.version,
                        "seconds": seconds[one.name],
                    }
                )
    return rows


def sampling_speeds(*, length: int, rounds: int) -> dict[str, Any]:
    """Seconds for a sample of the same length from models of the same sizes; torch where it is installed."""
    found: dict[str, Any] = {"rnnjax": lm.sampling_speed(length=length, rounds=rounds)}
    try:
        sample = torch_sampler()
    except Skip as reason:
        found["torch"] = str(reason)
        return found
    sample(length // 10)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        sample(length)
        seconds.append(time.perf_counter() - start)
    found["torch"] = {"characters": length, "seconds": round(float(np.median(seconds)), 3)}
    return found


def torch_sampler() -> Any:
    """A loop over the symbols, as a torch script has it: one-hot, two LSTM layers of 128, softmax, draw."""
    from benchmarks.contestants.base import require
    from benchmarks.contestants.torch_rnn import available_cores

    require("torch", "torch")
    import torch

    torch.set_num_threads(available_cores())
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(lm.VOCAB, 128, 2)
    linear = torch.nn.Linear(128, lm.VOCAB)
    eye = torch.eye(lm.VOCAB)

    def sample(length: int) -> list[int]:
        symbols, symbol, state = [], 0, None
        with torch.no_grad():
            for _ in range(length):
                ys, state = lstm(eye[symbol].reshape(1, 1, -1), state)
                symbol = int(torch.multinomial(torch.softmax(linear(ys[0, 0]), 0), 1))
                symbols.append(symbol)
        return symbols

    return sample
