"""What an update costs on many machines: a model of two lines, and measurements that it is held against.

    update     = compute + all-reduce          compute:    6 flops a weight and symbol, the rows of one device
    all-reduce = 2 (N - 1) (a + S / (N b))     a ring of N devices, S bytes of gradients, latency a, bandwidth b

``python -m benchmarks scale`` measures all-reduces between 1, 2 and 4 processes on this machine, and updates of a
language model on 1, 2 and 4 processes and on 1 to 8 simulated devices.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Link", "Model", "allreduce_seconds", "efficiency", "fit_link", "measure", "update_seconds"]

_HERE = pathlib.Path(__file__).resolve().parent.parent


class Link(NamedTuple):
    """Between neighbours in the ring."""

    latency: float  # seconds
    bandwidth: float  # bytes a second


class Model(NamedTuple):
    """A language model of LSTM layers, as `rnnjax train` has it."""

    layers: int
    hidden: int
    embed: int = 128
    vocab: int = 96

    @property
    def weights(self) -> int:
        """Numbers that an update moves, the embedding included."""
        inputs = [self.embed] + [self.hidden] * (self.layers - 1)
        cells = sum(4 * self.hidden * (size + self.hidden + 1) for size in inputs)
        return cells + self.vocab * self.embed + (self.hidden + 1) * self.vocab

    @property
    def flops(self) -> float:
        """Of a symbol: two a weight forward, four backward; the embedding is looked up."""
        return 6.0 * (self.weights - self.vocab * self.embed)


def allreduce_seconds(size: float, devices: int, link: Link) -> float:
    """Of ``size`` bytes over a ring: each device sends 2 (N - 1) pieces of size / N, one after the other."""
    return 2 * (devices - 1) * (link.latency + size / (devices * link.bandwidth))


def update_seconds(model: Model, rows: int, steps: int, devices: int, flops: float, link: Link) -> float:
    """Of one update.

    Args:
        model: whose gradients are averaged, in float32.
        rows: of one device.
        steps: T, of a chunk.
        devices: N.
        flops: that one device does in a second, on matmuls of these sizes.
        link: between devices.
    """
    return model.flops * rows * steps / flops + allreduce_seconds(4.0 * model.weights, devices, link)


def efficiency(model: Model, rows: int, steps: int, devices: int, flops: float, link: Link) -> float:
    """The share of the devices' time that is spent on computing."""
    return model.flops * rows * steps / flops / update_seconds(model, rows, steps, devices, flops, link)


def fit_link(rows: list[dict[str, Any]]) -> Link:
    """The link that explains measured all-reduces best, by least squares of relative errors."""
    design = [[2 * (r["processes"] - 1), 2 * (r["processes"] - 1) * r["bytes"] / r["processes"]] for r in rows]
    seconds = np.array([r["seconds"] for r in rows])
    scaled = np.array(design) / seconds[:, None]
    latency, inverse = np.linalg.lstsq(scaled, np.ones(len(rows)), rcond=None)[0]
    return Link(float(max(latency, 0.0)), float(1 / inverse))


def measure(
    sizes: list[float],
    repetitions: int,
    model: Model,
    batch: int,
    steps: int,
    save: Callable[[dict[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:
    """All measurements, each in processes of its own.

    Args:
        sizes: of all-reduces, in bytes.
        repetitions: of everything; the fastest and the median are kept.
        model: that is trained.
        batch: rows of all devices together.
        steps: T.
        save: gets what is known so far, as it comes.
    """
    found: dict[str, Any] = {"allreduce": [], "updates": [], "batch": batch, "steps": steps, "model": model._asdict()}
    job = {"repetitions": repetitions, "model": model, "batch": batch, "steps": steps}
    for processes, devices in ((2, 1), (4, 1), (1, 1), (1, 2), (1, 4), (1, 8)):
        row = _run(processes, devices, job | {"sizes": sizes if processes > 1 else []})
        found["allreduce"] += [{"processes": processes, **entry} for entry in row["allreduce"]]
        found["updates"].append({"processes": processes, "devices": processes * devices, **row["update"]})
        save(found)
    return found


def _run(processes: int, devices: int, job: dict[str, Any]) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "RNNJAX_NATIVE": "0",  # the engine that runs on several devices of one process, everywhere
        # One core a device: otherwise the matmuls of the only device take all of them.
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip(),
    }
    words = [sys.executable, "-m", "benchmarks.scale", f"127.0.0.1:{port}", str(processes)]
    children = [
        subprocess.Popen([*words, str(k), json.dumps(job)], cwd=_HERE, env=environment, stdout=subprocess.PIPE)
        for k in range(processes)
    ]
    try:
        said = [child.communicate(timeout=1800)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    found: dict[str, Any] = json.loads(said[0].splitlines()[-1])
    return found


def _child(address: str, processes: int, index: int, job: dict[str, Any]) -> None:
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    if processes > 1:
        jax.distributed.initialize(address, processes, index)
    from rnnjax.fit import devices

    mesh = devices.make_mesh(jax.device_count())
    found: dict[str, Any] = {"allreduce": [], "update": _time_updates(mesh, job)}
    for size in job["sizes"]:
        assert mesh is not None
        rows, local = PartitionSpec(devices.AXIS), np.ones((1, int(size) // 4), np.float32)
        array = jax.make_array_from_process_local_data(NamedSharding(mesh, rows), local)
        reduce = jax.jit(
            jax.shard_map(lambda a: jax.lax.pmean(a, devices.AXIS), mesh=mesh, in_specs=rows, out_specs=rows)
        )
        seconds = _times(lambda reduce=reduce, array=array: reduce(array), job["repetitions"])
        found["allreduce"].append({"bytes": int(size), **seconds})
    if index == 0:
        print(json.dumps(found), flush=True)


def _time_updates(mesh: Any, job: dict[str, Any]) -> dict[str, float]:
    import jax
    import jax.numpy as jnp

    import rnnjax
    from rnnjax.fit import devices
    from rnnjax.fit.optimizers import OptimizerOptions
    from rnnjax.lm.model import LanguageModel
    from rnnjax.lm.train import update
    from rnnjax.text.corpus import Chunk
    from rnnjax.update import Carry

    model, batch, steps = Model(*job["model"]), job["batch"], job["steps"]
    stack = rnnjax.Stack((rnnjax.LSTM(model.hidden),) * model.layers)
    network = LanguageModel(vocab_size=model.vocab, stack=stack, embed_size=model.embed)
    optimizer = OptimizerOptions().make_optimizer()
    params, key = network.init(jax.random.key(0)), jax.random.key(1)
    carry = [devices.place(mesh, Carry(params, optimizer.init(params), network.initial_state((batch,))), devices.CARRY)]
    ids = np.random.default_rng(0).integers(0, model.vocab, (steps + 1, batch)).astype(np.int32)
    own = devices.own_rows(mesh, batch)
    chunk = devices.place_rows(mesh, Chunk(ids[:-1, own], ids[1:, own], None), batch)

    def one() -> Any:
        carry[0], info = update(network, optimizer, carry[0], chunk, jnp.float32(1e-3), key, jnp.uint32(0), mesh)
        return info.loss

    return _times(one, job["repetitions"])


def _times(function: Any, repetitions: int) -> dict[str, float]:
    for _ in range(3):
        function().block_until_ready()
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        function().block_until_ready()
        seconds.append(time.perf_counter() - start)
    return {"seconds": float(np.min(seconds)), "median": float(np.median(seconds))}


if __name__ == "__main__":
    _child(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))
