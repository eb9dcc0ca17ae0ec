"""Sequence to sequence: times as people say them, written with digits, and where the network looks while it writes.

python examples/seq2seq.py [PICTURE]        a minute on two cores; draws where a file is named
"""

import os, sys
import jax, numpy as np, optax, rnnjax

STEPS, IN, OUT = int(os.environ.get("STEPS", 500)), " abcdefghijklmnopqrstuvwxyz", "0123456789:"
NUMBERS = "twelve one two three four five six seven eight nine ten eleven".split()
SAID = "-,five past,ten past,a quarter past,twenty past,twenty five past,half past,twenty five to,twenty to,"\
    "a quarter to,ten to,five to"

def say(hour, minute):
    named = NUMBERS[(hour + (minute > 30)) % 12]
    when = f"{SAID.split(',')[minute // 5]} {named}" if minute else f"{named} o clock"
    return f"{when} in the {'morning' if hour + (minute > 30) < 12 else 'afternoon'}"

times = np.random.default_rng(0).permutation([(hour, minute) for hour in range(1, 23) for minute in range(0, 60, 5)])
sources = [np.array([IN.index(c) for c in say(hour, minute)]) for hour, minute in times]
x, n = rnnjax.data.pad_sequences(sources)                                # [T, N], [N]
data = {"x": x.T, "n": n, "y": np.array([[OUT.index(c) for c in f"{hour:02}:{minute:02}"] for hour, minute in times])}
train, test = ({name: array[s] for name, array in data.items()} for s in (slice(214), slice(214, None)))

model = rnnjax.topologies.EncoderDecoder(
    rnnjax.Bidirectional((rnnjax.GRU(32),)), rnnjax.GRU(48), output_size=len(OUT), vocab_size=len(IN),
    embed_size=16, output_embed_size=8, attention=rnnjax.topologies.Attention("additive"))

def loss_fn(params, batch, *, key):
    targets = batch["y"].T
    return rnnjax.topologies.softmax_loss(model.apply(params, batch["x"].T, targets, lengths=batch["n"]), targets)

batches = rnnjax.data.ShuffledBatches(train, batch_size=50, key=jax.random.key(1))
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(8e-3, STEPS)))
params = rnnjax.fit.fit(loss_fn, model.init(jax.random.key(0)), optimizer, batches, steps=STEPS).params

source = model.encode(params, test["x"].T, lengths=test["n"])
step, start = model.stepper(params, source), model.start(params, source)
written = rnnjax.decoding.greedy(step, start, model.start_symbol, max_len=5)
right = np.asarray(written.tokens == test["y"]).all(1)
for k in range(3):
    print(f"{say(*times[214 + k])}: {''.join(OUT[c] for c in np.asarray(written.tokens[k]))}")
print(f"{right.mean():.0%} of {len(right)} times that it had not read are right in all digits")

if len(sys.argv) > 1:
    from matplotlib import pyplot

    _, weights = model.align(params, test["x"].T, written.tokens.T, lengths=test["n"])  # [T_out, B, T_in]
    figure, axes = pyplot.subplots(2, 1, figsize=(8, 3.6), layout="constrained")
    for k, ax in zip(np.argsort(-test["n"])[:2], axes):
        ax.imshow(weights[:, k, : test["n"][k]], cmap="Blues", vmin=0, vmax=1, aspect="auto")
        ax.set_xticks(range(test["n"][k]), say(*times[214 + k]))
        ax.set_yticks(range(5), [OUT[c] for c in np.asarray(written.tokens[k])])
        ax.tick_params(length=0)
    figure.suptitle("What it reads while it writes each digit: the darker, the more", fontsize=10)
    figure.savefig(sys.argv[1], dpi=110)
