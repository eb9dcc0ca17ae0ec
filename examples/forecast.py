"""From data to prediction: a load with a day, a week and noise in it, and the 96 hours that come next.

python examples/forecast.py [PICTURE]        ten seconds on two cores"""

import sys
from matplotlib import pyplot as plt
import jax, jax.numpy as jnp, numpy as np, optax, rnnjax

hours = np.arange(2000)                                            # a day of 24, a week of 168 hours, and noise
load = np.sin(2 * np.pi * hours / 24) + 0.5 * np.sin(2 * np.pi * hours / 168)
load = (load + 0.1 * np.random.default_rng(0).normal(size=2000)).astype(np.float32)
windows = np.stack([load[s : s + 241] for s in range(0, 1500, 5)])  # [N, T + 1]

model = rnnjax.topologies.ManyToMany(rnnjax.GRU(32), output_size=1, input_size=1)

def loss_fn(params, batch, *, key):
    xs = batch["x"].T[..., None]                                   # [T + 1, B, 1], time first
    return jnp.mean((model.apply(params, xs[:-1]) - xs[1:]) ** 2)  # predict the next hour

batches = rnnjax.data.ShuffledBatches({"x": windows}, batch_size=50, key=jax.random.key(0))
optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 900))
fitted = rnnjax.fit.fit(loss_fn, model.init(jax.random.key(1)), optimizer, batches, epochs=150)

state, ys = model.advance(fitted.params, model.start(fitted.params, (1,)), load[1600:1840, None, None])
def ahead(carry, _):                                               # feed the prediction back, for 96 hours
    state, y = model.step(fitted.params, *carry)
    return (state, y), carry[1]
_, forecast = jax.lax.scan(ahead, (state, ys[-1]), length=96)

errors = [np.mean((guess - load[1840:1936]) ** 2) for guess in (np.ravel(forecast), load[1672:1768])]
print("squared error {:.4f}; the same hour of last week {:.4f}; the noise alone 0.01".format(*errors))

ax = plt.figure(figsize=(8, 2.6), layout="constrained").add_subplot(xlabel="hour", ylabel="load")
ax.plot(hours[1700:1936], load[1700:1936], color="0.6", label="measured")
ax.plot(hours[1840:1936], np.ravel(forecast), color="#d55e00", label="forecast from hour 1840 on")
ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
plt.savefig(sys.argv[1] if len(sys.argv) > 1 else "forecast.png", dpi=120)
