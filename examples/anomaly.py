"""A sensor that goes wrong: three readings of a machine, and what a network of them did not expect.

python examples/anomaly.py [PICTURE]        half a minute on two cores"""

import sys
from matplotlib import pyplot as plt
import jax, jax.numpy as jnp, numpy as np, optax, rnnjax

rng, T = np.random.default_rng(0), 6000
load = np.cumsum(rng.normal(size=T)) * 0.05 + np.sin(np.arange(T) / 40)  # what drives the machine, and is not measured
heat = np.convolve(load, np.exp(-np.arange(60) / 15) / 15)[:T]           # follows the load
readings = np.stack([load, heat, np.abs(load) + 0.5 * heat], 1) + 0.05 * rng.normal(size=(T, 3))
readings = ((readings - readings[:4000].mean(0)) / readings[:4000].std(0)).astype(np.float32)
readings[4500:4520, 1] = readings[4500, 1]                               # the second sensor is stuck
readings[5000, 0] += 1.5                                                 # the first one jumps once
readings[5500:5520, 2] += np.linspace(0, 1.5, 20)                        # the third one drifts
model = rnnjax.topologies.ManyToMany(rnnjax.GRU(32), output_size=6, input_size=3)  # a mean and a spread for each sensor

def improbability(params, xs):                                           # [T, B, 3] -> [T - 1, B, 3]
    mean, log_spread = jnp.split(model.apply(params, xs[:-1]), 2, axis=-1)
    return 0.5 * ((xs[1:] - mean) / jnp.exp(log_spread)) ** 2 + log_spread

def loss_fn(params, batch, *, key):
    return improbability(params, batch.swapaxes(0, 1)).mean()

windows = np.stack([readings[s : s + 100] for s in range(0, 3900, 10)])  # of the time before any fault
batches = rnnjax.data.ShuffledBatches(windows, batch_size=32, key=jax.random.key(0))
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(5e-3))
fitted = rnnjax.fit.fit(loss_fn, model.init(jax.random.key(1)), optimizer, batches, steps=400)
score = np.max(improbability(fitted.params, readings[:, None]), (1, 2))[3999:]  # one number for every new moment
limit, others = np.quantile(score[:400], 0.999), np.delete(score, np.r_[500:520, 1000, 1500:1520])
found = sum(score[start : start + 20].max() > limit for start in (500, 1000, 1500))
print(f"{found} of 3 faults stand out; {np.mean(others > limit):.1%} of the other moments do")

figure, (top, below) = plt.subplots(2, 1, figsize=(8, 3.6), sharex=True, layout="constrained")
for ax, name, lines in ((top, "three sensors", readings[4000:]), (below, "improbability", score.clip(max=12))):
    ax.plot(np.arange(4000, T), lines, linewidth=0.8)
    ax.set(ylabel=name, xlabel="moment; shaded where a fault was planted" if ax is below else "")
    ax.vlines((4510, 5000, 5510), *ax.get_ylim(), color="#d55e00", linewidth=7, alpha=0.25)
plt.savefig(sys.argv[1] if len(sys.argv) > 1 else "anomaly.png", dpi=110)
