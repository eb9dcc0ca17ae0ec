"""`torch.nn`: its fused modules on the CPU (oneDNN for the LSTM), cuDNN on a GPU."""

import os
from typing import Any

import jax
import numpy as np

from benchmarks.contestants.base import Contestant, Outputs, Prepared, Problem, Skip, array_dtype, require

__all__ = ["available_cores", "make", "persistent_is_possible"]


def available_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def persistent_is_possible(sizes: tuple[int, int, int, int], dtype: str) -> bool:
    """Whether torch can take cuDNN's persistent algorithm for one layer in one direction: its documented rule."""
    _, batch, input_size, hidden = sizes
    whole = hidden % 128 == 0 and input_size % 128 == 0 and batch % 8 == 0
    return dtype == "float16" and hidden <= 1024 and whole and batch <= 128


def make(problem: Problem) -> Contestant:
    """Weights are ``[G H, I]``; of the two biases the second is zero but for the GRU's ``b_hn``."""
    require("torch", "torch")
    import torch

    cell, p, kind = problem.cell, problem.params, problem.kind
    if kind is None:
        raise Skip("torch.nn has no such cell")
    on_gpu = jax.default_backend() == "gpu"
    if on_gpu and not torch.cuda.is_available():
        raise Skip("this build of torch has no CUDA, and JAX runs on a GPU")
    torch.set_num_threads(available_cores())
    device = "cuda" if on_gpu else "cpu"
    dtype = getattr(torch, array_dtype(problem.dtype).name)

    def to_torch(array: Any) -> Any:
        return torch.tensor(np.asarray(array, np.float32), dtype=dtype, device=device)

    name = {"lstm": "LSTM", "gru": "GRU", "elman": "RNN"}[kind]
    options = {"nonlinearity": cell.activation} if kind == "elman" else {}
    input_size, size = p.w_ih.shape[0], cell.hidden_size
    module = getattr(torch.nn, name)(input_size, size, device=device, dtype=dtype, **options)
    second = np.zeros(p.b.shape, np.float32)
    if kind == "gru":
        second[2 * size :] = np.asarray(p.b_hn, np.float32)
    with torch.no_grad():
        values = (p.w_ih.T, p.w_hh.T, p.b, second)
        for field, value in zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), values, strict=True):
            getattr(module, f"{field}_l0").copy_(to_torch(value))
        module.flatten_parameters()  # of other dtypes than float32 they lie apart, which cuDNN takes more time for
    xs = to_torch(problem.xs).requires_grad_()
    leaves = tuple(to_torch(leaf)[None] for leaf in problem.state)
    state = leaves if kind == "lstm" else leaves[0]

    def wait() -> None:
        if on_gpu:
            torch.cuda.synchronize()

    def forward() -> Any:
        with torch.no_grad():
            return module(xs, state)

    def training() -> Any:
        module.zero_grad(set_to_none=True)
        xs.grad = None
        ys, final = module(xs, state)
        loss = ys.float().square().mean()
        for leaf in final if kind == "lstm" else (final,):
            loss = loss + leaf.float().square().mean()
        loss.backward()
        return ys, final

    def prepare(mode: str) -> Prepared:
        run = forward if mode == "forward" else training

        def several(count: int) -> None:
            for _ in range(count):
                run()
            wait()

        def call() -> None:
            several(1)

        def memory() -> dict[str, int]:
            if not on_gpu:
                return {}
            torch.cuda.reset_peak_memory_stats()
            call()
            return {"peak_bytes": torch.cuda.max_memory_allocated()}

        return Prepared(None, call, memory, several)

    def outputs() -> Outputs:
        def to_numpy(tensor: Any) -> np.ndarray:
            return tensor.detach().float().cpu().numpy()

        ys, final = training()
        wait()
        grads = {key.removesuffix("_l0"): to_numpy(value.grad) for key, value in module.named_parameters()}
        found = {"w_ih": grads["weight_ih"].T, "w_hh": grads["weight_hh"].T, "b": grads["bias_ih"]}
        if kind == "gru":
            found["b_hn"] = grads["bias_hh"][2 * size :]
        h = final[0] if kind == "lstm" else final
        return Outputs(to_numpy(ys), to_numpy(h)[0], found, to_numpy(xs.grad))

    note = None
    if on_gpu:
        sizes = (problem.xs.shape[0], problem.xs.shape[1], input_size, size)
        algorithm = "persistent" if persistent_is_possible(sizes, problem.dtype) else "standard"
        note = f"cuDNN {torch.backends.cudnn.version()}, algorithm can be {algorithm}"
    return Contestant("torch", "torch", f"torch.nn.{name} on {device}", prepare, outputs, note)
