"""A sensor that goes wrong: three readings of a machine, and what a network of them did not expect.

python examples/anomaly.py [PICTURE]        half a minute on two cores; draws where a file is named
"""

import os, sys
import jax, jax.numpy as jnp, numpy as np, optax, rnnjax

STEPS = int(os.environ.get("STEPS", 400))
rng, T = np.random.default_rng(0), 6000
load = np.cumsum(rng.normal(size=T)) * 0.05 + np.sin(np.arange(T) / 40)  # what drives the machine, and is not measured
heat = np.convolve(load, np.exp(-np.arange(60) / 15) / 15)[:T]           # follows the load
readings = np.stack([load, heat, np.abs(load) + 0.5 * heat], 1) + 0.05 * rng.normal(size=(T, 3))
mean, spread = readings[:4000].mean(0), readings[:4000].std(0)
faulty = ((readings - mean) / spread).astype(np.float32)
faults = np.zeros(T, bool)
faulty[4500:4520, 1] = faulty[4500, 1]                                   # the second sensor is stuck
faulty[5000, 0] += 1.5                                                   # the first one jumps once
faulty[5500:5520, 2] += np.linspace(0, 1.5, 20)                          # the third one drifts
faults[4500:4520] = faults[5000] = faults[5500:5520] = True

model = rnnjax.topologies.ManyToMany(rnnjax.GRU(32), output_size=6, input_size=3)  # a mean and a spread for each sensor

def bits_of(params, xs):                                                 # [T, B, 3] -> [T - 1, B, 3], improbability
    mean, log_spread = jnp.split(model.apply(params, xs[:-1]), 2, axis=-1)
    return 0.5 * ((xs[1:] - mean) / jnp.exp(log_spread)) ** 2 + log_spread

def loss_fn(params, batch, *, key):
    return bits_of(params, batch["x"].swapaxes(0, 1)).mean()

windows = np.stack([faulty[s : s + 100] for s in range(0, 3900, 10)])    # of the time before any fault
batches = rnnjax.data.ShuffledBatches({"x": windows}, batch_size=32, key=jax.random.key(0))
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(5e-3))
fitted = rnnjax.fit.fit(loss_fn, model.init(jax.random.key(1)), optimizer, batches, steps=STEPS)

score = np.asarray(bits_of(fitted.params, faulty[:, None])).max((1, 2))[3999:]  # one number for every new moment
limit, odd = np.quantile(score[:400], 0.999), faults[4000:]
found = [score[start : start + 20].max() > limit for start in (500, 1000, 1500)]
print(f"{sum(found)} of 3 faults stand out; {np.mean(score[~odd] > limit):.1%} of the other moments do")

if len(sys.argv) > 1:
    from matplotlib import pyplot

    figure, (top, below) = pyplot.subplots(2, 1, figsize=(8, 3.6), sharex=True, layout="constrained")
    top.plot(np.arange(4000, T), faulty[4000:], linewidth=0.8)
    top.set(ylabel="three sensors", title="What a network of the machine did not expect")
    below.plot(np.arange(4000, T), np.clip(score, None, 12), color="0.4", linewidth=0.8)
    below.axhline(limit, color="#d55e00", linewidth=1)
    for ax in (top, below):
        ax.fill_between(np.arange(4000, T), 0, 1, odd, transform=ax.get_xaxis_transform(), color="#d55e00", alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    below.set(ylabel="improbability", xlabel="moment; shaded where a fault was planted")
    figure.savefig(sys.argv[1], dpi=110)
