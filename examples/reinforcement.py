"""Reinforcement learning: one of two levers pays more often; which one, an agent finds out in every episode.

python examples/reinforcement.py [PICTURE]        half a minute on two cores"""

import sys
from matplotlib import pyplot as plt
import jax, jax.numpy as jnp, numpy as np, optax, rnnjax

T, B, model = 20, 256, rnnjax.topologies.ManyToMany(rnnjax.GRU(24), output_size=2, input_size=3)

def play(params, key):
    """B episodes of T pulls: rewards [T, B], and the log-probability [T, B] of what was pulled."""
    key_good, key_pulls = jax.random.split(key)
    good = jax.random.bernoulli(key_good, 0.5, (B,)).astype(int)         # the agent never sees this
    def pull(carry, key):
        key_action, key_reward = jax.random.split(key)
        memory, logits = model.step(params, *carry)
        action = jax.random.categorical(key_action, logits)
        reward = jax.random.bernoulli(key_reward, jnp.where(action == good, 0.8, 0.2)).astype(float)
        seen = jnp.column_stack([jax.nn.one_hot(action, 2), reward])     # what it did, and what came of it
        return (memory, seen), (reward, -optax.softmax_cross_entropy_with_integer_labels(logits, action))
    return jax.lax.scan(pull, (model.start(params, (B,)), jnp.zeros((B, 3))), jax.random.split(key_pulls, T))[1]

def loss_fn(params, batch, *, key):                                      # REINFORCE (Williams, 1992); it makes its data
    rewards, chances = play(params, key)
    to_come = jnp.cumsum(rewards[::-1], 0)[::-1]                         # a pull earns what comes after it
    return -jnp.mean(chances * jax.lax.stop_gradient(to_come - to_come.mean(1, keepdims=True)))

optimizer, untrained = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(5e-3)), model.init(jax.random.key(0))
trained = rnnjax.fit.fit(loss_fn, untrained, optimizer, lambda step: np.zeros(1), steps=400).params
before, after = (np.mean(play(params, jax.random.key(2))[0], axis=1) for params in (untrained, trained))
print(f"paid pulls: untrained {before.mean():.0%}, trained {after.mean():.0%}, the last five {after[-5:].mean():.0%}")

ax = plt.figure(figsize=(8, 2.5), layout="constrained").add_subplot(xlabel="pull of an episode", ylabel="share paid")
ax.plot(range(1, T + 1), after, label="trained, with weights as they are")
ax.plot(range(1, T + 1), before, color="0.5", label="untrained")
ax.axhline(0.8, color="0.7", linestyle=":", label="always the better lever")
ax.set_xticks((1, 5, 10, 15, 20))
ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)
plt.savefig(sys.argv[1] if len(sys.argv) > 1 else "reinforcement.png", dpi=110)
