"""A control loop: a network steers a cart that it sees badly, and learns by differentiating through the cart.

python examples/control.py [PICTURE]        half a minute on two cores; draws where a file is named
"""

import os, sys
import jax, jax.numpy as jnp, numpy as np, optax, rnnjax

STEPS, T, B = int(os.environ.get("STEPS", 400)), 120, 64
model = rnnjax.topologies.ManyToMany(rnnjax.GRU(24), output_size=1, input_size=1)

def drive(decide, memory, carts, key):
    """The places [T, B, 1] of carts and the forces on them, where decide(memory, seen) says the force."""
    def step(carry, noise):
        memory, place, speed = carry
        memory, force = decide(memory, place + 0.1 * noise)              # speed and weight are unseen
        speed = speed + 0.1 * jnp.clip(force, -3, 3) / carts["weight"]
        place = place + 0.1 * speed
        return (memory, place, speed), (place, force)

    noise = jax.random.normal(key, (T, B, 1))
    return jax.lax.scan(step, (memory, carts["place"], jnp.zeros((B, 1))), noise)[1]

def steer(params, carts, key):
    return drive(lambda memory, seen: model.step(params, memory, seen), model.start(params, (B,)), carts, key)

def loss_fn(params, carts, *, key):
    places, forces = steer(params, carts, key)
    return jnp.mean(places**2) + 0.01 * jnp.mean(forces**2)

def new_carts(step):
    rng = np.random.default_rng(step)
    drawn = {"place": rng.uniform(-2, 2, (B, 1)), "weight": rng.uniform(0.5, 2, (B, 1))}
    return {name: array.astype(np.float32) for name, array in drawn.items()}

optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(5e-3, STEPS)))
params, key = model.init(jax.random.key(0)), jax.random.key(1)
fitted = rnnjax.fit.fit(loss_fn, params, optimizer, new_carts, steps=STEPS, key=key)

def by_hand(memory, seen):                                               # place, and the smoothed change of place
    last, change = memory
    change = 0.7 * change + 0.3 * (seen - last) / 0.1
    return (seen, change), -1.0 * seen - 1.0 * change

carts, key, nothing = new_carts(STEPS), jax.random.key(7), jnp.zeros((B, 1))
learned, tuned = steer(fitted.params, carts, key)[0], drive(by_hand, (nothing, nothing), carts, key)[0]
distance = [float(jnp.mean(places**2)) for places in (learned, tuned)]
print("mean squared distance: learned {:.3f}, a rule by hand {:.3f}".format(*distance))

if len(sys.argv) > 1:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(8, 2.5), sharey=True, layout="constrained")
    for ax, places, title in zip(axes, (tuned, learned), ("a rule by hand", "the network")):
        ax.plot(np.arange(T) * 0.1, np.asarray(places[:, :24, 0]), color="#0072b2", alpha=0.4, linewidth=0.9)
        ax.set(title=f"{title}: 24 carts", xlabel="seconds")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("distance from the goal")
    figure.savefig(sys.argv[1], dpi=110)
