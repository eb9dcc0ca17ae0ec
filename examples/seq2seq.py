"""Sequence to sequence: times as people say them, written with digits, and where the network looks while it writes.

python examples/seq2seq.py [PICTURE]        a minute on two cores"""

import sys
from matplotlib import pyplot as plt
import jax, numpy as np, optax, rnnjax

IN, OUT = " abcdefghijklmnopqrstuvwxyz", "0123456789:"
HOURS = "twelve one two three four five six seven eight nine ten eleven".split()
MINUTES = {5: "five", 10: "ten", 15: "a quarter", 20: "twenty", 25: "twenty five", 30: "half"}

def say(hour, minute):
    when = f"{MINUTES[60 - minute]} to" if minute > 30 else f"{MINUTES[minute]} past" if minute else "exactly"
    return f"{when} {HOURS[(hour + (minute > 30)) % 12]} in the {'morning' if hour < 12 else 'afternoon'}"

times = np.random.default_rng(0).permutation([(hour, minute) for hour in range(1, 23) for minute in range(0, 60, 5)])
x, n = rnnjax.data.pad_sequences([np.array([IN.index(c) for c in say(*time)]) for time in times])  # [T, N], [N]
data = {"x": x.T, "n": n, "y": np.array([[OUT.index(c) for c in f"{hour:02}:{minute:02}"] for hour, minute in times])}
train, test = ({name: array[rows] for name, array in data.items()} for rows in (slice(214), slice(214, None)))
model = rnnjax.topologies.EncoderDecoder(
    rnnjax.Bidirectional((rnnjax.GRU(32),)), rnnjax.GRU(48), output_size=len(OUT), vocab_size=len(IN), embed_size=16,
    output_embed_size=8, attention=rnnjax.topologies.Attention("additive"))

def loss_fn(params, batch, *, key):
    x, y = batch["x"].T, batch["y"].T
    return rnnjax.topologies.softmax_loss(model.apply(params, x, y, lengths=batch["n"]), y)

batches = rnnjax.data.ShuffledBatches(train, batch_size=50, key=jax.random.key(1))
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(8e-3, 500)))
params = rnnjax.fit.fit(loss_fn, model.init(jax.random.key(0)), optimizer, batches, steps=500).params
source = model.encode(params, test["x"].T, lengths=test["n"])
said = rnnjax.decoding.greedy(model.stepper(params, source), model.start(params, source), model.start_symbol, max_len=5)
print(f"{np.mean((said.tokens == test['y']).all(1)):.0%} of 50 times that it had not read are right in all digits")
_, weights = model.align(params, test["x"].T, said.tokens.T, lengths=test["n"])  # [T_out, B, T_in]
plt.figure(figsize=(8, 2.6), layout="constrained").suptitle("Where it looks while it writes each digit")
plt.imshow(weights[:, 0, : test["n"][0]], cmap="Blues", vmin=0, vmax=1, aspect="auto")  # of the first of the times
plt.xticks(range(test["n"][0]), say(*times[214]))
plt.yticks(range(5), [OUT[c] for c in said.tokens[0]])
plt.savefig(sys.argv[1] if len(sys.argv) > 1 else "seq2seq.png", dpi=110)
