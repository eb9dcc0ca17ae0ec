"""The language model's training step against a straightforward torch script, and the speed of sampling.

Both train on the same random symbols with the same sizes: one-hot input, LSTM layers, linear output, cross-entropy,
clipping by global norm, Adam. They take turns in one process, a burst of updates each, so that whatever else the
machine does meets both. Medians and quartiles are over bursts; compilation and warm-up come before.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rnnjax
from rnnjax.cpu import reuse_memory
from rnnjax.fit import devices
from rnnjax.fit.optimizers import OptimizerOptions
from rnnjax.lm.model import LanguageModel
from rnnjax.lm.sample import generate
from rnnjax.lm.train import update
from rnnjax.text.corpus import Chunk
from rnnjax.update import Carry

VOCAB = 65
ONE = "rnnjax, one device"
# layers, hidden, batch, chunk
CONFIGURATIONS = {"2x128, batch 50x50": (2, 128, 50, 50), "1x512, batch 32x64": (1, 512, 32, 64)}


def ours(layers: int, hidden: int, batch: int, chunk: int, symbols: np.ndarray, *, count: int = 1):
    """A function that makes one update, on so many devices."""
    model = LanguageModel(VOCAB, rnnjax.Stack(tuple(rnnjax.LSTM(hidden) for _ in range(layers))))
    optimizer = OptimizerOptions().make_optimizer()
    params = model.init(jax.random.key(0))
    mesh = devices.make_mesh(count)
    carry = Carry(params, optimizer.init(params), model.initial_state((batch,)))
    box = [devices.place(mesh, carry, devices.CARRY)]
    data = devices.place(mesh, Chunk(symbols[:-1], symbols[1:]), Chunk(devices.CHUNK, devices.CHUNK))
    key = jax.random.key(0)

    def step():
        box[0], info = update(model, optimizer, box[0], data, jnp.float32(1e-3), key, jnp.uint32(1), mesh)
        return info.loss

    return step, jax.block_until_ready


def torch_script(layers: int, hidden: int, batch: int, chunk: int, symbols: np.ndarray):
    """The same in torch, as its tutorials write it."""
    import torch

    torch.manual_seed(0)
    lstm = torch.nn.LSTM(VOCAB, hidden, layers)
    linear = torch.nn.Linear(hidden, VOCAB)
    parameters = [*lstm.parameters(), *linear.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    inputs = torch.from_numpy(symbols[:-1].astype(np.int64))
    targets = torch.from_numpy(symbols[1:].astype(np.int64))
    state = [tuple(torch.zeros(layers, batch, hidden) for _ in range(2))]

    def step():
        optimizer.zero_grad()
        ys, new = lstm(torch.nn.functional.one_hot(inputs, VOCAB).float(), state[0])
        state[0] = tuple(part.detach() for part in new)
        loss = torch.nn.functional.cross_entropy(linear(ys).reshape(-1, VOCAB), targets.reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return loss

    return step, lambda loss: loss.item()


def training_speed(*, rounds: int, burst_seconds: float) -> list[dict[str, Any]]:
    """Characters a second a configuration; torch is left out where it is not installed.

    ``rnnjax`` splits the batch over the devices as `rnnjax train` does.
    """
    reuse_memory()  # as `rnnjax train` does; in one process, so torch's arrays come from the same allocator
    rows = []
    for name, sizes in CONFIGURATIONS.items():
        _, _, batch, chunk = sizes
        symbols = np.random.default_rng(0).integers(0, VOCAB, (chunk + 1, batch)).astype(np.int32)
        count = devices.choose_devices(0, batch)
        contestants = {"rnnjax": ours(*sizes, symbols, count=count)}
        if count > 1:
            contestants[ONE] = ours(*sizes, symbols)
        try:
            contestants["torch"] = torch_script(*sizes, symbols)
        except ModuleNotFoundError:
            pass
        bursts, speeds = {}, {who: [] for who in contestants}
        for who, (step, wait) in contestants.items():
            for _ in range(3):
                wait(step())
            start = time.perf_counter()
            wait(step())
            bursts[who] = max(1, round(burst_seconds / (time.perf_counter() - start)))
        for _ in range(rounds):
            for who, (step, wait) in contestants.items():
                start = time.perf_counter()
                for _ in range(bursts[who]):
                    result = step()
                wait(result)
                speeds[who].append(bursts[who] * batch * chunk / (time.perf_counter() - start))
        row: dict[str, Any] = {"configuration": name, "devices": count}
        for who, values in speeds.items():
            low, middle, high = np.percentile(values, [25, 50, 75])
            row[who] = {"characters_per_second": round(middle), "quartiles": [round(low), round(high)]}
        if "torch" in speeds:
            row["ratio"] = round(row["rnnjax"]["characters_per_second"] / row["torch"]["characters_per_second"], 2)
        rows.append(row)
    return rows


def sampling_speed(*, length: int = 10_000, rounds: int = 5) -> dict[str, Any]:
    """Seconds for one sample of 2x128, after compilation."""
    model = LanguageModel(VOCAB, rnnjax.Stack((rnnjax.LSTM(128), rnnjax.LSTM(128))))
    params = model.init(jax.random.key(0))
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        pieces = list(generate(model, params, np.zeros(1, np.int32), key=jax.random.key(1), length=length))
        seconds.append(time.perf_counter() - start)
        assert sum(piece.shape[1] for piece in pieces) == length
    return {"configuration": "2x128", "characters": length, "seconds": round(float(np.median(seconds[1:])), 3)}
