"""Text: a network reads Python's manual character by character, then writes, and says how sure it is.

python examples/text.py [PICTURE]        a minute on two cores"""

import functools, sys
from pydoc_data import topics
from matplotlib import pyplot as plt
import jax, jax.numpy as jnp, numpy as np, optax, rnnjax

B, L, STEPS = 32, 64, 900
text = " ".join(" ".join(topics.topics.values()).split())[:300_000]      # all blanks are one
symbols = sorted(set(text))
ids = np.array([symbols.index(character) for character in text], np.int32)
stream = jnp.asarray(ids[: len(ids) // B * B].reshape(B, -1).T)          # [T, B]: B places, side by side
model = rnnjax.topologies.ManyToMany(rnnjax.LSTM(128), output_size=len(symbols), vocab_size=len(symbols))

def loss_fn(params, state, chunk, *, key):                               # the state goes on to the next chunk
    state, logits = model.advance(params, state, chunk[:-1])
    return rnnjax.topologies.softmax_loss(logits, chunk[1:]), state

def chunk(step):
    start = step * L % (len(stream) - L - 1)
    return stream[start : start + L + 1]

optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(8e-3, STEPS)))
params, rows = model.init(jax.random.key(0)), []
state = model.start(params, (B,))
params = rnnjax.fit.fit(loss_fn, params, optimizer, chunk, steps=STEPS, state=state, report=rows.append).params
losses = [row["loss"] for row in rows if row["kind"] == "train"]
print(f"{losses[-1]:.2f} nats a character; at random {np.log(len(symbols)):.2f}")

first, step = jnp.array([symbols.index(" ")]), functools.partial(model.step, params)
written = rnnjax.decoding.sample(
    step, model.start(params, (1,)), first, key=jax.random.key(1), max_len=600, temperature=0.5).tokens[0]
logits = model.apply(params, jnp.concatenate([first, written[:-1]]))     # what it wrote is what it read next
chances = np.asarray(jax.nn.softmax(logits)[jnp.arange(600), written])
figure = plt.figure(figsize=(8, 2.2))
for k, (symbol, colour) in enumerate(zip(np.asarray(written), plt.cm.viridis_r(0.2 + 0.8 * chances))):
    figure.text(k % 90 / 90, 1 - k // 90 / 7, symbols[symbol], color=colour, family="monospace")
plt.savefig(sys.argv[1] if len(sys.argv) > 1 else "text.png", dpi=110, bbox_inches="tight")
