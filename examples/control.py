"""A control loop: a network steers a cart that it sees badly, and learns by differentiating through the cart.

python examples/control.py [PICTURE]        half a minute on two cores"""

import functools, sys
from matplotlib import pyplot as plt
import jax, jax.numpy as jnp, numpy as np, optax, rnnjax

T, B, model = 120, 64, rnnjax.topologies.ManyToMany(rnnjax.GRU(24), output_size=1, input_size=1)

def drive(decide, memory, key):  # places [T, B, 1] of new carts and forces on them; decide(memory, seen) says the force
    keys = jax.random.split(key, 3)
    place = jax.random.uniform(keys[0], (B, 1), minval=-2, maxval=2)
    weight = jax.random.uniform(keys[1], (B, 1), minval=0.5, maxval=2)   # unseen, as the speed is
    def step(carry, noise):
        memory, place, speed = carry
        memory, force = decide(memory, place + 0.1 * noise)
        speed = speed + 0.1 * jnp.clip(force, -3, 3) / weight
        return (memory, place + 0.1 * speed, speed), (place + 0.1 * speed, force)
    return jax.lax.scan(step, (memory, place, jnp.zeros((B, 1))), jax.random.normal(keys[2], (T, B, 1)))[1]

def loss_fn(params, batch, *, key):                                      # no data: every key brings new carts
    places, forces = drive(functools.partial(model.step, params), model.start(params, (B,)), key)
    return jnp.mean(places**2) + 0.01 * jnp.mean(forces**2)

optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(5e-3, 400)))
params = rnnjax.fit.fit(loss_fn, model.init(jax.random.key(0)), optimizer, lambda step: np.zeros(1), steps=400).params

def by_hand(memory, seen):                                               # place, and the smoothed change of place
    change = 0.7 * memory[1] + 0.3 * (seen - memory[0]) / 0.1
    return (seen, change), -seen - change

tuned, _ = drive(by_hand, (jnp.zeros((B, 1)), jnp.zeros((B, 1))), jax.random.key(7))
learned, _ = drive(functools.partial(model.step, params), model.start(params, (B,)), jax.random.key(7))
print(f"mean squared distance: learned {jnp.mean(learned**2):.3f}, a rule by hand {jnp.mean(tuned**2):.3f}")
figure, axes = plt.subplots(1, 2, figsize=(8, 2.5), sharey=True, layout="constrained")
for ax, places, title in zip(axes, (tuned, learned), ("a rule by hand", "the network")):
    ax.plot(np.arange(T) * 0.1, places[:, :24, 0], color="#0072b2", alpha=0.4, linewidth=0.9)
    ax.set(title=f"{title}: 24 carts", xlabel="seconds", ylabel="distance from the goal")
plt.savefig(sys.argv[1] if len(sys.argv) > 1 else "control.png", dpi=110)
