"""Sequences in a CSV file: strokes of a pen, each of its own length, and which sign each of them is.

python examples/csv_sequences.py [PICTURE]        twenty seconds on two cores"""

import io, sys
from matplotlib import pyplot as plt
import jax, jax.numpy as jnp, numpy as np, optax, rnnjax

rng, KINDS = np.random.default_rng(0), ("circle", "eight", "wave")
file = io.StringIO()                                             # stands for your file, a row a point: stroke,kind,x,y
for stroke in range(600):
    t = np.linspace(0, 2 * np.pi, rng.integers(15, 40)) * rng.choice([-1, 1]) + rng.uniform(0, 6)
    points = [(np.cos(t), np.sin(t)), (np.sin(t), np.sin(2 * t)), (t / 3, np.sin(2 * t))][stroke % 3]
    points = np.array(points).T * rng.uniform(0.5, 2) + 0.1 * rng.normal(size=(len(t), 2))
    np.savetxt(file, [(stroke, stroke % 3, *point) for point in points], fmt="%g", delimiter=",")

file.seek(0)
table = np.loadtxt(file, delimiter=",", dtype=np.float32)
strokes = np.split(table, np.flatnonzero(np.diff(table[:, 0])) + 1)
moves = [np.diff(stroke[:, 2:], axis=0) for stroke in strokes]           # not places
padded, lengths = rnnjax.data.pad_sequences(moves)                       # [T, N, 2], [N]
data = {"x": padded.swapaxes(0, 1), "n": lengths, "y": np.array([stroke[0, 1] for stroke in strokes], np.int32)}
train, test = ({name: array[rows] for name, array in data.items()} for rows in (slice(450), slice(450, 600)))
model = rnnjax.topologies.ManyToOne(rnnjax.GRU(24), output_size=3, input_size=2)

def loss_fn(params, batch, *, key):
    logits = model.apply(params, jnp.swapaxes(batch["x"], 0, 1), lengths=batch["n"])
    return rnnjax.topologies.softmax_loss(logits, batch["y"])

batches = rnnjax.data.ShuffledBatches(train, batch_size=50, key=jax.random.key(0))
fitted = rnnjax.fit.fit(loss_fn, model.init(jax.random.key(1)), optax.adam(5e-3), batches, steps=300)
guess = np.argmax(model.apply(fitted.params, test["x"].swapaxes(0, 1), lengths=test["n"]), axis=1)
print(f"{np.mean(guess == test['y']):.1%} of 150 new strokes are right; a third by chance")

figure, axes = plt.subplots(2, 9, figsize=(8, 2.3), layout="constrained")
for ax, line, said, kind in zip(axes.flat, moves[450:], guess, test["y"]):
    ax.plot(*np.cumsum(line, 0).T, color="#0072b2" if said == kind else "#d55e00")  # orange: wrong
    ax.set(title=KINDS[said], aspect="equal", adjustable="datalim")
    ax.axis("off")
plt.savefig(sys.argv[1] if len(sys.argv) > 1 else "csv_sequences.png", dpi=110)
