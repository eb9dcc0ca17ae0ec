"""Text: a network reads Python's manual character by character, then writes, and says how sure it is.

python examples/text.py [PICTURE]        a minute on two cores; draws where a file is named
"""

import os, sys
from pydoc_data import topics
import jax, jax.numpy as jnp, numpy as np, optax, rnnjax

STEPS, B, L = int(os.environ.get("STEPS", 900)), 32, 64
text = "\n".join(text.strip() for _, text in sorted(topics.topics.items()))
symbols = sorted(set(text))
ids = np.array([symbols.index(c) for c in text[: 300_000 if STEPS > 20 else 20_000]], np.int32)
stream = jnp.asarray(ids[: len(ids) // B * B].reshape(B, -1).T)          # [T, B]: B places, side by side
model = rnnjax.topologies.ManyToMany(rnnjax.LSTM(128), output_size=len(symbols), vocab_size=len(symbols))

def loss_fn(params, state, chunk, *, key):                               # the state goes on to the next chunk
    state, logits = model.advance(params, state, chunk[:-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, chunk[1:]).mean(), state

def chunk(step):
    start = step * L % (len(stream) - L - 1)
    return stream[start : start + L + 1]

optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(8e-3, STEPS)))
params, rows = model.init(jax.random.key(0)), []
state = model.start(params, (B,))
params = rnnjax.fit.fit(loss_fn, params, optimizer, chunk, steps=STEPS, state=state, report=rows.append).params
losses = [row["loss"] for row in rows if row["kind"] == "train"]
print(f"{losses[-1]:.2f} nats a character; at random {np.log(len(symbols)):.2f}")

def write(carry, key):                                                   # what it writes is what it reads next
    state, symbol = carry
    state, logits = model.step(params, state, symbol)
    symbol = jax.random.categorical(key, logits / 0.5)
    return (state, symbol), (symbol, jax.nn.softmax(logits)[symbol])

begin = model.start(params), jnp.int32(symbols.index("T"))
_, (written, chances) = jax.lax.scan(write, begin, jax.random.split(jax.random.key(1), 600))
print("T" + "".join(symbols[k] for k in np.asarray(written)))

if len(sys.argv) > 1:
    from matplotlib import pyplot

    figure, ax = pyplot.subplots(figsize=(8, 2.6))
    column, line = 0, 0
    for k, chance in zip(np.asarray(written), np.asarray(chances)):
        if symbols[k] == "\n" or column == 90:
            column, line = 0, line + 1
        if symbols[k] != "\n":
            colour = pyplot.cm.viridis_r(0.2 + 0.8 * chance)
            ax.text(column, -line, symbols[k], family="monospace", fontsize=8, color=colour)
            column += 1
    ax.set(xlim=(0, 91), ylim=(-line - 1, 1), title="What it wrote; the darker a character, the surer it was of it")
    ax.axis("off")
    figure.savefig(sys.argv[1], dpi=110, bbox_inches="tight")
