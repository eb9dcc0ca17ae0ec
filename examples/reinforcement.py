"""Reinforcement learning: one of two levers pays more often; which one, an agent finds out in every episode.

python examples/reinforcement.py [PICTURE]        half a minute on two cores; draws where a file is named
"""

import os, sys
import jax, jax.numpy as jnp, numpy as np, optax, rnnjax

STEPS, T, B = int(os.environ.get("STEPS", 400)), 20, 256
model = rnnjax.topologies.ManyToMany(rnnjax.GRU(24), output_size=2, input_size=3)

def play(params, key):
    """B episodes of T pulls: rewards [T, B], and the log-probability [T, B] of what was pulled."""
    key_good, key_pulls = jax.random.split(key)
    good = jax.random.bernoulli(key_good, 0.5, (B,)).astype(int)         # the agent never sees this

    def pull(carry, key):
        memory, seen = carry
        key_action, key_reward = jax.random.split(key)
        memory, logits = model.step(params, memory, seen)
        action = jax.random.categorical(key_action, logits)
        reward = jax.random.bernoulli(key_reward, jnp.where(action == good, 0.8, 0.2)).astype(float)
        chance = jnp.take_along_axis(jax.nn.log_softmax(logits), action[:, None], 1)[:, 0]
        seen = jnp.concatenate([jax.nn.one_hot(action, 2), reward[:, None]], 1)  # what it did, and what came of it
        return (memory, seen), (reward, chance)

    return jax.lax.scan(pull, (model.start(params, (B,)), jnp.zeros((B, 3))), jax.random.split(key_pulls, T))[1]

def loss_fn(params, batch, *, key):                                      # REINFORCE (Williams, 1992)
    rewards, chances = play(params, key)
    to_come = jnp.cumsum(rewards[::-1], 0)[::-1]                         # a pull earns what comes after it
    return -jnp.mean(chances * jax.lax.stop_gradient(to_come - to_come.mean(1, keepdims=True)))

optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(5e-3))
nothing = np.zeros(1, np.float32)                                        # the batch: the agent makes its own data
params = model.init(jax.random.key(0))
fitted = rnnjax.fit.fit(loss_fn, params, optimizer, lambda step: nothing, steps=STEPS, key=jax.random.key(1))

before, after = (np.asarray(play(p, jax.random.key(2))[0].mean(1)) for p in (params, fitted.params))
print(f"paid pulls: untrained {before.mean():.0%}, trained {after.mean():.0%}, the last five {after[-5:].mean():.0%}")

if len(sys.argv) > 1:
    from matplotlib import pyplot

    figure, ax = pyplot.subplots(figsize=(8, 2.5), layout="constrained")
    for name, line, colour in (("trained", after, "#0072b2"), ("untrained", before, "0.5")):
        ax.plot(range(1, T + 1), line, color=colour)
        ax.annotate(name, (T, line[-1]), (5, 0), textcoords="offset points", color=colour, va="center")
    ax.axhline(0.8, color="0.7", linewidth=0.8, linestyle=":")
    ax.set(xlabel="pull of an episode", ylabel="share that is paid", ylim=(0.4, 0.85), xlim=(1, T + 2),
           xticks=(1, 5, 10, 15, 20))
    ax.set_title("It learns from its own pulls within an episode, with its weights as they are")
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(sys.argv[1], dpi=110)
