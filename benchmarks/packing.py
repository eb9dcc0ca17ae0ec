"""``python -m benchmarks.packing``: what padding costs on ragged sequences, and what buckets and packing save.

Padding pads every batch to the longest sequence of all, so that one shape is compiled; "by batch" to the longest of
the batch, which compiles about as often as there are batches (``first_epoch_seconds`` tells).
Every way trains the same LSTM with the same loss on the same sequences, with compiled updates of about the same number
of rows. What counts is sequence steps a second, without padding. The ways take turns, an epoch each, so that whatever
else the machine does meets all of them; medians and quartiles are over epochs, and compilation comes before.
"""

import functools
import json
import pathlib
import time
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import typer

import rnnjax
from benchmarks.provenance import provenance

BATCH = 32
INPUT = 32


def lognormal(rng: np.random.Generator, count: int) -> np.ndarray:
    """Lengths of sentences and short documents: median 40, a tail up to 400."""
    return np.clip(rng.lognormal(np.log(40), 0.8, count), 1, 400).astype(int)


def two_kinds(rng: np.random.Generator, count: int) -> np.ndarray:
    """Many short messages and a few long documents."""
    short = rng.random(count) < 0.9
    return np.where(short, rng.integers(5, 30, count), rng.integers(200, 400, count))


def even(rng: np.random.Generator, count: int) -> np.ndarray:
    """Lengths without a tail, for which there is least to save."""
    return rng.integers(1, 400, count)


DISTRIBUTIONS = {"lognormal": lognormal, "two kinds": two_kinds, "even": even}
Batch = tuple[np.ndarray, np.ndarray, np.ndarray | None]  # xs, lengths, resets


def padding_batches(sequences: list[np.ndarray], one_shape: bool) -> list[Batch]:
    """In the order they come, padded to the longest of all, or to the longest of the batch: many compilations."""
    longest = max(map(len, sequences)) if one_shape else None
    parts = [np.arange(start, start + BATCH) for start in range(0, len(sequences), BATCH)]
    filled = [np.where(part < len(sequences), part, -1) for part in parts]
    return [(*rnnjax.data.pad_sequences(sequences, part, longest), None) for part in filled]


def bucket_batches(sequences: list[np.ndarray], num_buckets: int) -> list[Batch]:
    buckets = rnnjax.data.bucket_by_length([len(s) for s in sequences], BATCH, num_buckets=num_buckets, seed=0)
    return [(*rnnjax.data.pad_sequences(sequences, indices, seq_len), None) for indices, seq_len in buckets.batches]


def packed_batches(sequences: list[np.ndarray]) -> list[Batch]:
    """Rows as long as the longest sequence, with rows that hold nothing to fill the last batch: one shape."""
    seq_len = max(map(len, sequences))
    rows = rnnjax.data.pack_documents(sequences, seq_len=seq_len).resets.shape[1]
    packed = rnnjax.data.pack_documents(sequences, seq_len=seq_len, num_rows=-(-rows // BATCH) * BATCH)
    parts = [slice(start, start + BATCH) for start in range(0, packed.resets.shape[1], BATCH)]
    return [(packed.xs[:, part], packed.lengths[part], packed.resets[:, part]) for part in parts]


WAYS: dict[str, Callable[[list[np.ndarray]], list[Batch]]] = {
    "padding": functools.partial(padding_batches, one_shape=True),
    "by batch": functools.partial(padding_batches, one_shape=False),
    "4 buckets": functools.partial(bucket_batches, num_buckets=4),
    "16 buckets": functools.partial(bucket_batches, num_buckets=16),
    "packing": packed_batches,
}


def trainer(hidden: int) -> tuple[Callable[..., Any], Any]:
    """A compiled update, and what it starts from."""
    cell = rnnjax.LSTM(hidden)
    optimizer = optax.adam(1e-3)
    params = cell.init(jax.random.key(0), INPUT)

    def loss_fn(params, xs, lengths, resets):
        state = cell.initial_state((xs.shape[1],))
        _, ys = rnnjax.unroll(cell, params, state, xs, lengths=lengths, resets=resets)
        return rnnjax.networks.activation_regularization(ys, lengths=lengths)  # any loss that is masked will do

    @jax.jit
    def update(carry, xs, lengths, resets):
        params, opt_state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params, xs, lengths, resets)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), loss

    return update, (params, optimizer.init(params))


def epoch(update: Callable[..., Any], carry: Any, batches: list[Any]) -> float:
    """Seconds for one epoch."""
    start = time.perf_counter()
    for batch in batches:
        carry, loss = update(carry, *batch)
    jax.block_until_ready((carry, loss))
    return time.perf_counter() - start


def measure(name: str, *, count: int, hidden: int, rounds: int) -> dict[str, Any]:
    """One distribution of lengths under every way."""
    rng = np.random.default_rng(0)
    sequences = [rng.normal(size=(n, INPUT)).astype(np.float32) for n in DISTRIBUTIONS[name](rng, count)]
    steps = sum(map(len, sequences))
    update, start = trainer(hidden)
    work, rows = {}, {}
    for way, make in WAYS.items():
        began = time.perf_counter()
        batches = make(sequences)
        seconds = time.perf_counter() - began
        computed = sum(xs.shape[0] * xs.shape[1] for xs, _, _ in batches)
        assert sum(int(lengths.sum()) for _, lengths, _ in batches) == steps
        rows[way] = {
            "padding": round(1 - steps / computed, 4),
            "shapes": len({xs.shape for xs, _, _ in batches}),
            "updates": len(batches),
            "host_seconds": round(seconds, 3),
        }
        work[way] = jax.tree.map(jnp.asarray, batches)
        rows[way]["first_epoch_seconds"] = round(epoch(update, start, work[way]), 2)  # with compilation
    seconds_of: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            seconds_of[way].append(epoch(update, start, work[way]))
    for way, seconds in seconds_of.items():
        low, middle, high = np.percentile(steps / np.asarray(seconds), [25, 50, 75])
        rows[way]["steps_per_second"] = round(middle)
        rows[way]["quartiles"] = [round(low), round(high)]
        rows[way]["times_padding"] = round(float(np.median(seconds_of["padding"]) / np.median(seconds)), 2)
    return {"lengths": name, "sequences": count, "steps": steps, "hidden": hidden, "batch": BATCH, "ways": rows}


def main(
    count: Annotated[int, typer.Option(help="Sequences in the data.")] = 2000,
    hidden: Annotated[int, typer.Option(help="H of the LSTM.")] = 256,
    rounds: Annotated[int, typer.Option(help="Epochs of each way.")] = 7,
    out: Annotated[pathlib.Path | None, typer.Option(help="Where to write the results as JSON.")] = None,
) -> None:
    """Padding against buckets against packing, in training. Keep the machine quiet meanwhile."""
    results = [measure(name, count=count, hidden=hidden, rounds=rounds) for name in DISTRIBUTIONS]
    for result in results:
        typer.echo(f"{result['lengths']}: {result['sequences']} sequences, {result['steps']:,} steps")
        for way, row in result["ways"].items():
            typer.echo(
                f"  {way:10s} {row['padding']:6.1%} padding  {row['shapes']:3d} shapes  "
                f"{row['steps_per_second']:>9,} steps/s  {row['times_padding']:5.2f} times padding"
            )
    if out is not None:
        command = f"python -m benchmarks.packing --count {count} --hidden {hidden} --rounds {rounds}"
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(
            json.dumps({"command": command, "provenance": provenance(), "results": results}, indent=1) + "\n"
        )
        typer.echo(f"written to {out}")


if __name__ == "__main__":
    typer.run(main)
